//! Shared code of `image delete` and `kernel delete`.

use clap::Args;
use zbus::OwnedObjectPath;

use crate::{
    client::{bus::Bus, service::Kind},
    command::batch::{self, ResultArgs},
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
        let delete = async |_, object: OwnedObjectPath| bus.delete(kind, &object).await;
        batch::each(found, &progress, "deleted", self.output, delete).await
    }
}
