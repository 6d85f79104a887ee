//! `banger image promote`.

use clap::Args;
use zbus::OwnedObjectPath;

use crate::{
    client::{bus::Bus, service::Kind},
    command::batch::{self, Effect, ResultArgs},
    error::Result,
    ui::progress::{Progress, ProgressArgs},
};

/// Share images with all users of this host
///
/// This needs an administrator, and so does deleting a shared image. A shared image counts against nobody's
/// limit.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger image promote tool
  banger image promote --private tool   only you can use it again")]
pub struct Promote {
    /// Names, ids or id prefixes
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Stop sharing them, unless other users have sandboxes of them
    #[arg(long)]
    private: bool,
    #[command(flatten)]
    output: ResultArgs,
}

impl Promote {
    pub async fn run(&self) -> Result<u8> {
        let bus = &Bus::connect().await?;
        let progress = Progress::new(ProgressArgs { quiet: true });
        let found = batch::find(bus, Kind::Image, &self.images).await;
        let done = if self.private { "private" } else { "shared" };
        batch::each(found, &progress, done, self.output, async |_, image: OwnedObjectPath| {
            bus.share_image(&image, !self.private).await.map(|()| Effect::Changed)
        })
        .await
    }
}
