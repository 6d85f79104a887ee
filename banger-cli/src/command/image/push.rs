//! `banger image push`.

use std::{fs::File, os::fd::AsFd, sync::Arc};

use banger_image::oci::reference::ImageRef;
use banger_proto::bus::proxy::Facts;
use clap::Args;
use serde_json::json;
use zbus::Fd;

use super::temporary;
use crate::{
    client::{bus::Bus, job::Jobs, service::Kind},
    error::{Error, Result},
    push::{
        self,
        layout::{self, Compression},
    },
    ui::{
        output,
        progress::{Progress, ProgressArgs},
        signals::{Listener, Signals, unless_ended},
    },
    user::credentials,
};

/// Push an image to a registry
///
/// It is pushed with one layer, and the environment, user and command of the image, so that docker, podman and `banger
/// image pull` read it. A reference without a tag means `latest`. The credentials of `docker login` and `podman login`
/// are used, and the proxy of HTTPS_PROXY. Only a registry on this host (`localhost:5000`) is reached without
/// encryption. Layers that the registry has already are not sent again.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger image push tool ghcr.io/org/tool:1.2
  banger image push tool localhost:5000/team/tool --compression zstd
  banger image push tool ghcr.io/org/tool:1.3 --json

Next, on another host: `banger image pull ghcr.io/org/tool:1.2`.")]
pub struct Push {
    /// Name, id or id prefix
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Where to push it: REGISTRY/REPOSITORY[:TAG]
    #[arg(value_name = "DESTINATION")]
    destination: String,
    /// How to compress layers [default: gzip]
    #[arg(long, value_enum, value_name = "FORM", default_value_t, hide_default_value = true)]
    compression: Compression,
    /// Another repository of the registry that may have the layers already
    #[arg(long, value_name = "REPOSITORY")]
    mount_from: Option<String>,
    /// Print a JSON object instead of the digest
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    progress: ProgressArgs,
}

impl Push {
    pub async fn run(&self) -> Result<u8> {
        let reference = self.destination()?;
        let mount_from = self.mount_from.as_deref().map(|other| repository(&reference, other)).transpose()?;
        let progress = Progress::new(self.progress);
        let bus = Bus::connect().await?;
        let image = bus.find(Kind::Image, &self.image).await?;
        let (login, notes) = credentials::login_at(&reference.to_string()).await?;
        notes.iter().for_each(|note| progress.note(&format!("note: {note}")));
        let mut listener = Signals::catch()?.listen();

        let archive = temporary().map_err(|source| Error::io("create a temporary file", source))?;
        export(&bus, &image, &archive, &progress, &mut listener).await?;
        let track = Arc::new(progress.track(None));
        track.stage("pack", &format!("compressing {}", self.image));
        let meter = track.meter(archive.metadata().map_or(0, |facts| facts.len()));
        let compression = self.compression;
        let work = tokio::task::spawn_blocking(move || layout::pack(archive, compression, temporary, &meter));
        let packed = unless_ended(&mut listener, async {
            let done = work.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
            done.map_err(|source| Error::io(format!("pack {}", self.image), source))
        });
        let packed = packed.await?;
        let shown = reference.to_string();
        let push = push::push(&packed, reference, mount_from.as_deref(), login, track);
        let pushed = unless_ended(&mut listener, push).await?;
        match self.json {
            true => output::json(&json!({
                "reference": shown,
                "digest": packed.digest,
                "size": pushed.size,
                "uploaded": pushed.uploaded,
            }))?,
            false => output::text(&format!("{}\n", packed.digest))?,
        }
        Ok(0)
    }

    /// Returns where to push to.
    fn destination(&self) -> Result<ImageRef> {
        let reference: ImageRef = self
            .destination
            .parse()
            .map_err(|error| Error::Usage(format!("cannot push to {}: {error}", self.destination)))?;
        match reference.digest() {
            None => Ok(reference),
            Some(_) => {
                let error = Error::Usage(format!("cannot push to {reference}: it has a digest"));
                Err(error.with_hint("give a tag; the digest is printed once the image is pushed."))
            }
        }
    }
}

/// Returns a repository of the registry, which may be given with the registry.
fn repository(reference: &ImageRef, other: &str) -> Result<String> {
    let registry = reference.registry();
    let full = match other.strip_prefix(&format!("{registry}/")) {
        Some(_) => other.to_owned(),
        None => format!("{registry}/{other}"),
    };
    let wrong = |why: String| Error::Usage(format!("cannot mount from {other}: {why}"));
    let parsed: ImageRef = full
        .parse()
        .map_err(|error: banger_image::oci::reference::NotAReference| wrong(error.to_string()))?;
    // A tag or a digest says nothing about where a layer is.
    match full.ends_with(parsed.repository()) || registry.as_str() == "docker.io" {
        true => Ok(parsed.repository().to_owned()),
        false => Err(wrong("give a repository without a tag".to_owned())),
    }
}

/// Has the service write the archive of an image.
async fn export(
    bus: &Bus,
    image: &zbus::ObjectPath<'_>,
    archive: &File,
    progress: &Progress,
    listener: &mut Listener,
) -> Result<()> {
    let jobs = Jobs::of(bus);
    let (job, filled) = bus.export_image(image, Fd::from(archive.as_fd())).await?;
    let _: Facts = jobs.finish(bus, &job, progress.track(None), listener).await?;
    match filled {
        Some(filled) => unless_ended(listener, filled.fetch(archive)).await,
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::parse_args;

    #[test]
    fn a_destination_has_a_tag_and_no_digest() {
        let destination = |text: &str| {
            let push: Push = parse_args(&format!("tool {text}")).unwrap();
            push.destination().map(|reference| reference.to_string())
        };
        assert_eq!(destination("ghcr.io/org/tool").unwrap(), "ghcr.io/org/tool:latest");
        assert_eq!(destination("ghcr.io/org/tool:1.2").unwrap(), "ghcr.io/org/tool:1.2");
        assert_eq!(destination("tool").unwrap(), "docker.io/library/tool:latest");
        let digest = format!("ghcr.io/org/tool@sha256:{}", "0".repeat(64));
        for wrong in [&digest, "https://ghcr.io/tool", "GHCR.io/Tool", "ghcr.io/tool:"] {
            assert_eq!(destination(wrong).unwrap_err().status(1), 2, "{wrong}");
        }
    }

    #[test]
    fn layers_are_mounted_from_a_repository_of_the_same_registry() {
        let reference: ImageRef = "localhost:5000/team/tool".parse().unwrap();
        for other in ["team/base", "localhost:5000/team/base"] {
            assert_eq!(repository(&reference, other).unwrap(), "team/base");
        }
        for wrong in ["team/base:1", "ghcr.io:1/team/Base", "", "-"] {
            assert!(repository(&reference, wrong).is_err(), "{wrong}");
        }
        assert_eq!(repository(&"alpine".parse().unwrap(), "debian").unwrap(), "library/debian");
    }
}
