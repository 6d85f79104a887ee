//! `banger vm rename`.

use clap::Args;

use super::run::print_created;
use crate::{
    client::{bus::Bus, service::Kind},
    error::Result,
    ssh::installed,
    ui::output,
};

/// Rename a sandbox
///
/// The host uses the new name at once. The host name in the guest changes at its next boot.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  banger vm rename calm-otter web")]
pub struct Rename {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// The new name
    #[arg(value_name = "NEW-NAME")]
    name: String,
    /// Print the sandbox as a JSON object
    #[arg(long)]
    json: bool,
}

impl Rename {
    pub async fn run(&self) -> Result<u8> {
        let bus = Bus::connect().await?;
        let vm = bus.find(Kind::Vm, &self.sandbox).await.map_err(|error| error.about(&self.sandbox))?;
        bus.rename_vm(&vm, &self.name).await.map_err(|error| error.about(&self.sandbox))?;
        installed::refresh(&bus).await;
        if self.json {
            return print_created(&bus, &vm, true).await;
        }
        output::text(&format!("{}: renamed to {}\n", self.sandbox, self.name))?;
        Ok(0)
    }
}
