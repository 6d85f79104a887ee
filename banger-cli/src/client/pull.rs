//! Pulls images and kernels for the commands that need them.

use std::os::fd::AsFd;

use banger_proto::bus::{
    option::pull,
    proxy::{Facts, Options},
};
use clap::ValueEnum;
use zbus::{Fd, OwnedObjectPath, Variant};

use crate::{
    client::{bus::Bus, job::Jobs},
    error::{Error, Result},
    ui::{progress::Progress, signals::Listener},
    user::credentials,
};

/// When to pull an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum PullPolicy {
    /// If the host does not have it
    #[default]
    Missing,
    /// Never
    Never,
    /// Even if the host has it, to get the newest one
    Always,
}

/// Pulls an image. Returns it, with the data of the pull.
pub async fn image(
    bus: &Bus,
    jobs: &Jobs,
    progress: &Progress,
    listener: &mut Listener,
    reference: &str,
    mut options: Options<'_>,
) -> Result<(OwnedObjectPath, Facts)> {
    let credentials = credentials::of_reference(reference).await?;
    if let Some(file) = &credentials {
        options.insert(pull::CREDENTIALS, Variant::from(Fd::from(file.as_fd())));
    }
    let job = bus.pull_image(reference, &options).await?;
    let facts = jobs.finish(bus, &job, progress.track(None), listener).await?;
    Ok((pulled(&facts, "image")?, facts))
}

/// Pulls a kernel from a catalog.
pub async fn kernel(
    bus: &Bus,
    jobs: &Jobs,
    progress: &Progress,
    listener: &mut Listener,
    entry: &str,
    options: Options<'_>,
) -> Result<OwnedObjectPath> {
    let job = bus.pull_kernel(entry, &options).await?;
    let facts = jobs.finish(bus, &job, progress.track(None), listener).await?;
    pulled(&facts, "kernel")
}

/// Returns the object that a job has pulled.
fn pulled(facts: &Facts, key: &str) -> Result<OwnedObjectPath> {
    let path = facts.get(key).and_then(|path| OwnedObjectPath::try_from(path.clone()).ok());
    path.ok_or_else(|| Error::Refused(format!("the service did not say which {key} it pulled")))
}
