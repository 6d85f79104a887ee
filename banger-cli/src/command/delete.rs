//! Shared code of `image delete` and `kernel delete`.

use banger_proto::bus::names::IMAGE_INTERFACE;
use clap::Args;
use zbus::OwnedObjectPath;

use crate::{
    client::{bus::Bus, object::Object, service::Kind},
    command::batch::{self, Effect, ResultArgs},
    error::Result,
    ui::progress::{Progress, ProgressArgs},
};

/// The options of a command that deletes images or kernels.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Names, ids or id prefixes
    #[arg(required = true, value_name = "NAME")]
    references: Vec<String>,
    #[command(flatten)]
    output: ResultArgs,
}

impl DeleteArgs {
    /// Deletes each of them. Returns the exit status.
    pub async fn run(&self, kind: Kind) -> Result<u8> {
        let bus = &Bus::connect().await?;
        let progress = Progress::new(ProgressArgs { quiet: true });
        let found = batch::find(bus, kind, &self.references).await;
        let delete = async |_, object: OwnedObjectPath| delete(bus, kind, &object).await;
        batch::each(found, &progress, "deleted", self.output, delete).await
    }
}

/// Deletes an image or a kernel. Says so if it was one of several names of an image.
pub async fn delete(bus: &Bus, kind: Kind, object: &OwnedObjectPath) -> Result<Effect> {
    let deleted = match kind {
        // One that cannot be read may be deleted nevertheless.
        Kind::Image => bus.properties(object, IMAGE_INTERFACE).await.ok(),
        Kind::Vm | Kind::Kernel => None,
    };
    bus.delete(kind, object).await?;
    let Some(deleted) = deleted else { return Ok(Effect::Changed) };
    let digest = deleted.text("Digest");
    let is_name_of_it = |image: &Object| bus.is_own(image) && image.text("Digest") == digest;
    let left = bus.objects(IMAGE_INTERFACE).await.unwrap_or_default();
    Ok(match left.iter().any(is_name_of_it) {
        true => Effect::ChangedTo("untagged"),
        false => Effect::Changed,
    })
}
