//! `banger image pull`.

use banger_proto::bus::{names::IMAGE_INTERFACE, option::pull as option, proxy::Options};
use clap::Args;
use zbus::Variant;

use crate::{
    client::{bus::Bus, job::Jobs, pull},
    error::Result,
    ui::{
        output,
        progress::{Progress, ProgressArgs},
        signals::Signals,
    },
};

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
    /// Name for the image [default: derived from the reference]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Kernel that sandboxes of this image boot [default: the service's]
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<String>,
    /// Platform, such as linux/amd64 [default: the host's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Share it with all users of this host (needs an administrator)
    #[arg(long)]
    shared: bool,
    /// Replace another image of the same name
    #[arg(long)]
    force: bool,
    /// Print the image as a JSON object instead of its name
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    progress: ProgressArgs,
}

impl Pull {
    pub async fn run(&self) -> Result<u8> {
        let progress = Progress::new(self.progress);
        let bus = Bus::connect().await?;
        let jobs = Jobs::of(&bus);
        let mut listener = Signals::catch()?.listen();
        let (image, _) =
            pull::pull(&bus, &jobs, &progress, &mut listener, &self.reference, self.options()).await?;
        let image = bus.properties(&image, IMAGE_INTERFACE).await?;
        if self.json {
            output::json(&image.json())?;
        } else {
            output::text(&format!("{}\n", image.name()))?;
        }
        Ok(0)
    }

    fn options(&self) -> Options<'_> {
        let mut options = Options::new();
        let texts =
            [(option::NAME, &self.name), (option::KERNEL, &self.kernel), (option::PLATFORM, &self.platform)];
        for (key, text) in texts {
            if let Some(text) = text {
                options.insert(key, Variant::from(text.as_str()));
            }
        }
        for (key, flag) in [(option::SHARED, self.shared), (option::FORCE, self.force)] {
            if flag {
                options.insert(key, Variant::from(true));
            }
        }
        options
    }
}
