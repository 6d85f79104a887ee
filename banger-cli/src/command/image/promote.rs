//! `banger image promote`.

use clap::Args;
use zbus::OwnedObjectPath;

use crate::{
    batch::{self, ToldArgs},
    bus::Bus,
    error::Result,
    progress::{Progress, ProgressArgs},
    service::Kind,
};

/// Let every user of this host use images of yours
///
/// An administrator has to allow it. What is shared counts for nobody's share of the disk, and only who may share can
/// delete it.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger image promote tool
  banger image promote --private tool   nobody else may use it any more")]
pub struct Promote {
    /// Names, ids, or beginnings of ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Take it back, unless others have sandboxes of it
    #[arg(long)]
    private: bool,
    #[command(flatten)]
    told: ToldArgs,
}

impl Promote {
    pub async fn run(&self) -> Result<u8> {
        let bus = &Bus::connect().await?;
        let progress = Progress::new(ProgressArgs { quiet: true });
        let found = batch::find(bus, Kind::Image, &self.images).await;
        let done = if self.private { "private" } else { "shared" };
        batch::each(found, &progress, done, self.told, async |_, image: OwnedObjectPath| {
            bus.share_image(&image, !self.private).await
        })
        .await
    }
}
