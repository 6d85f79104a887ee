//! Shared code of `vm rename`, `image rename` and `kernel rename`.

use clap::Args;

use crate::{
    client::{bus::Bus, service::Kind},
    error::Result,
    ssh::installed,
    ui::output,
};

/// The options of a command that renames an object.
#[derive(Debug, Args)]
pub struct RenameArgs {
    /// Name, id or id prefix
    #[arg(value_name = "NAME")]
    reference: String,
    /// The new name
    #[arg(value_name = "NEW-NAME")]
    new_name: String,
    /// Print it as a JSON object
    #[arg(long)]
    json: bool,
}

impl RenameArgs {
    /// Renames the object.
    pub async fn run(&self, kind: Kind) -> Result<u8> {
        let bus = Bus::connect().await?;
        let object = bus.find(kind, &self.reference).await.map_err(|error| error.about(&self.reference))?;
        let renamed = bus.rename(kind, &object, &self.new_name).await;
        renamed.map_err(|error| error.about(&self.reference))?;
        if kind == Kind::Vm {
            installed::refresh(&bus).await;
        }
        if self.json {
            output::json(&bus.properties(&object, kind.interface()).await?.json())?;
        } else {
            output::text(&format!("{}: renamed to {}\n", self.reference, self.new_name))?;
        }
        Ok(0)
    }
}
