//! Deletes images or kernels.

use zbus::OwnedObjectPath;

use crate::{
    client::{bus::Bus, service::Kind},
    command::batch::{self, ResultArgs},
    error::Result,
    ui::progress::{Progress, ProgressArgs},
};

/// Deletes each named object. Returns the exit status.
pub async fn each(kind: Kind, references: &[String], output: ResultArgs) -> Result<u8> {
    let bus = &Bus::connect().await?;
    let progress = Progress::new(ProgressArgs { quiet: true });
    let found = batch::find(bus, kind, references).await;
    batch::each(found, &progress, "deleted", output, async |_, object: OwnedObjectPath| {
        bus.delete(kind, &object).await
    })
    .await
}
