//! `banger image prune`.

use banger_proto::bus::names::IMAGE_INTERFACE;
use clap::Args;
use serde_json::Value;
use zbus::OwnedObjectPath;

use crate::{
    client::{bus::Bus, object::Object, service::Kind},
    command::{
        batch::{self, ResultArgs},
        delete::delete,
        prune::PruneArgs,
    },
    error::Result,
    ui::progress::{Progress, ProgressArgs},
};

/// Delete all your images that no sandbox uses
///
/// Asks first, unless you give --force. Shared images and images of other users stay.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger image prune
  banger image prune --force      without asking
  banger image prune --dry-run    what would be deleted

`banger image cache prune` removes cached downloads.")]
pub struct Prune {
    #[command(flatten)]
    prune: PruneArgs,
    /// Accepted for users of docker: tagged images are deleted as well
    #[arg(short = 'a', long = "all", hide = true)]
    _all: bool,
    #[command(flatten)]
    output: ResultArgs,
}

impl Prune {
    pub async fn run(&self) -> Result<u8> {
        let bus = &Bus::connect().await?;
        let mut images = bus.objects(IMAGE_INTERFACE).await?;
        images.retain(|image| bus.is_own(image) && is_unused(image));
        let Some(chosen) = self.prune.choose(images, "", self.output.json)? else { return Ok(0) };
        let mut found = batch::find(bus, Kind::Image, &chosen.ids).await;
        for ((reference, _), name) in found.iter_mut().zip(chosen.names) {
            *reference = name;
        }
        let progress = Progress::new(ProgressArgs { quiet: true });
        // The service refuses those that are used by now.
        let delete = async |_, image: OwnedObjectPath| delete(bus, Kind::Image, &image).await;
        batch::each(found, &progress, "deleted", self.output, delete).await
    }
}

/// Returns whether only its owner has an image, and no sandbox uses it.
fn is_unused(image: &Object) -> bool {
    let has_users = image.json()["used_by"].as_array().is_none_or(|users: &Vec<Value>| !users.is_empty());
    !image.flag("Shared") && !has_users
}
