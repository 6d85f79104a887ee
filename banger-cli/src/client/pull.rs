//! Pulls images and kernels for the commands that need them.

use std::os::fd::AsFd;

use banger_proto::bus::{
    option::pull,
    proxy::{Facts, Options},
};
use clap::ValueEnum;
use zbus::{Fd, OwnedObjectPath, Variant};

use crate::{
    client::{bus::Bus, job::Jobs, service::Kind},
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
    credentials.notes.iter().for_each(|note| progress.note(&format!("note: {note}")));
    if let Some(file) = &credentials.file {
        options.insert(pull::CREDENTIALS, Variant::from(Fd::from(file.as_fd())));
    }
    let job = bus.pull_image(reference, &options).await?;
    let ended = jobs.finish(bus, &job, progress.track(None), listener).await;
    let facts = ended.map_err(|error| explain_signal(error, Kind::Image))?;
    Ok((pulled(&facts, Kind::Image)?, facts))
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
    let ended = jobs.finish(bus, &job, progress.track(None), listener).await;
    let facts = ended.map_err(|error| explain_signal(error, Kind::Kernel))?;
    pulled(&facts, Kind::Kernel)
}

/// Says what became of an image or a kernel that was being added when a signal came.
pub fn explain_signal(error: Error, kind: Kind) -> Error {
    let group = kind.group();
    if error.is_interrupted() {
        return error.with_hint(format!("no {group} was added."));
    }
    match error.is_detached() {
        true => error.with_hint(format!(
            "the service continues the work: `banger {group} list` shows the result, and `banger events` \
             follows it."
        )),
        false => error,
    }
}

/// Returns the object that a job has pulled.
fn pulled(facts: &Facts, kind: Kind) -> Result<OwnedObjectPath> {
    let key = kind.group();
    let path = facts.get(key).and_then(|path| OwnedObjectPath::try_from(path.clone()).ok());
    path.ok_or_else(|| Error::Refused(format!("the service did not say which {key} it pulled")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_says_what_became_of_the_image() {
        use crate::ui::wording::{check, shown};

        let signal = 2;
        let errors = [
            ("interrupted pull of an image", explain_signal(Error::Interrupted { signal }, Kind::Image)),
            ("interrupted import of a kernel", explain_signal(Error::Interrupted { signal }, Kind::Kernel)),
            ("detached from an image", explain_signal(Error::Detached { signal }, Kind::Image)),
            ("detached from a kernel", explain_signal(Error::Detached { signal }, Kind::Kernel)),
            ("another error", explain_signal(Error::ServiceEnded, Kind::Image)),
        ];
        check("hints_of_signals", &shown(errors));
    }
}
