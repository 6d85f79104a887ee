//! Removing images or kernels.

use zbus::OwnedObjectPath;

use crate::{
    batch::{self, ToldArgs},
    bus::Bus,
    error::Result,
    progress::{Progress, ProgressArgs},
    service::Kind,
};

/// Removes each object that is named. Returns the status.
pub async fn each(kind: Kind, references: &[String], told: ToldArgs) -> Result<u8> {
    let bus = &Bus::connect().await?;
    let progress = Progress::new(ProgressArgs { quiet: true });
    let found = batch::find(bus, kind, references).await;
    batch::each(found, &progress, "deleted", told, async |_, object: OwnedObjectPath| {
        bus.delete(kind, &object).await
    })
    .await
}
