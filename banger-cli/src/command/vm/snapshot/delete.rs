//! `banger vm snapshot delete`.

use clap::Args;

use crate::{
    client::{bus::Bus, service::Kind},
    error::Result,
};

/// Delete snapshots of a sandbox
///
/// Sandboxes that were made of them keep their files.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  banger vm snapshot delete web clean")]
pub struct Delete {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Names of its snapshots
    #[arg(value_name = "SNAPSHOT", required = true)]
    snapshots: Vec<String>,
}

impl Delete {
    pub async fn run(&self) -> Result<u8> {
        let bus = Bus::connect().await?;
        let vm = bus.find(Kind::Vm, &self.sandbox).await.map_err(|error| error.about(&self.sandbox))?;
        for snapshot in &self.snapshots {
            bus.delete_snapshot(&vm, snapshot).await.map_err(|error| error.about(&self.sandbox))?;
        }
        Ok(0)
    }
}
