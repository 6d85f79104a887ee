//! `banger image pull`.

use banger_proto::bus::option::pull as option;
use clap::Args;
use zbus::Variant;

use crate::{client::service::Kind, command::add::PullArgs, error::Result};

/// Pull an image from a catalog or a registry
///
/// A name such as `debian-bookworm` is looked up in the catalogs first (`banger image list --available`).
/// Anything else is a reference as in Docker and podman: `alpine` is `docker.io/library/alpine:latest`. Write
/// a reference in full to bypass the catalogs. The credentials of `docker login` and `podman login` are used.
/// Layers stay in a cache that all users share, so that pulling the same image again is quick.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger image pull debian-bookworm
  banger image pull alpine
  banger image pull ghcr.io/org/tool:1.2 --name tool
  banger image pull localhost:5000/team/base@sha256:…

Next: `banger vm run --image alpine`.")]
pub struct Pull {
    /// Name in a catalog, or reference
    #[arg(value_name = "REFERENCE")]
    reference: String,
    /// Kernel that sandboxes of this image boot [default: the service's]
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<String>,
    /// Platform, such as linux/amd64 [default: the host's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    #[command(flatten)]
    pull: PullArgs,
}

impl Pull {
    pub async fn run(&self) -> Result<u8> {
        let texts = [(option::KERNEL, &self.kernel), (option::PLATFORM, &self.platform)];
        let options =
            texts.into_iter().filter_map(|(key, text)| Some((key, Variant::from(text.as_deref()?))));
        self.pull.run(Kind::Image, &self.reference, options.collect()).await
    }
}
