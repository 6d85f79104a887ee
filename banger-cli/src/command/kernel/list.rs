//! `banger kernel list`.

use banger_proto::bus::names::KERNEL_INTERFACE;
use clap::Args;

use crate::{
    age,
    bus::Bus,
    error::Result,
    object::{self, Object},
    output,
    table::Table,
};

/// Show your kernels and those that all users share
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  banger kernel list

Next: `banger vm run --kernel NAME`.")]
pub struct List {
    /// Print an array of objects, with the properties on the bus in snake case as keys
    #[arg(long)]
    json: bool,
}

impl List {
    pub async fn run(&self) -> Result<u8> {
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
