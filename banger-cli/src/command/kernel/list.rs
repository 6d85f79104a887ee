//! `banger kernel list`.

use banger_proto::bus::names::KERNEL_INTERFACE;
use clap::Args;

use crate::{
    client::{
        bus::Bus,
        object::{self, Object},
        service::Kind,
    },
    command::catalog::AvailableArgs,
    error::Result,
    ui::{age, output, table::Table},
};

/// List your kernels and the shared ones
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger kernel list
  banger kernel list --available   what the catalogs have

Next: `banger vm run --kernel NAME`.")]
pub struct List {
    /// Print a JSON array of objects; their keys are the D-Bus properties in snake case
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    available: AvailableArgs,
}

impl List {
    pub async fn run(&self) -> Result<u8> {
        if self.available.is_requested() {
            return self.available.run(Kind::Kernel, self.json).await;
        }
        let mut kernels = Bus::connect().await?.objects(KERNEL_INTERFACE).await?;
        object::sort(&mut kernels);
        if self.json {
            output::json(&kernels.iter().map(Object::json).collect())?;
        } else {
            output::text(&table(&kernels, age::now()))?;
        }
        Ok(0)
    }
}

fn table(kernels: &[Object], now: u64) -> String {
    let mut table = Table::new(["ID", "NAME", "VERSION", "SHARED", "CREATED"]);
    for kernel in kernels {
        table.row([
            kernel.short_id().to_owned(),
            kernel.name().to_owned(),
            kernel.text("Version").to_owned(),
            if kernel.flag("Shared") { "yes" } else { "no" }.to_owned(),
            age::ago(kernel.number("CreatedAt"), now),
        ]);
    }
    table.text()
}
