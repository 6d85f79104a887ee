//! `banger image list`.

use banger_proto::{bus::names::IMAGE_INTERFACE, size::Bytes};
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

/// List your images and the shared ones
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger image list
  banger image list --available   what the catalogs have

Next: `banger vm run --image NAME`.")]
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
            return self.available.run(Kind::Image, self.json).await;
        }
        let mut images = Bus::connect().await?.objects(IMAGE_INTERFACE).await?;
        object::sort(&mut images);
        if self.json {
            output::json(&images.iter().map(Object::json).collect())?;
        } else {
            output::text(&table(&images, age::now()))?;
        }
        Ok(0)
    }
}

fn table(images: &[Object], now: u64) -> String {
    let mut table = Table::new(["ID", "NAME", "SIZE", "ON DISK", "SHARED", "CREATED"]);
    for image in images {
        table.row([
            image.short_id().to_owned(),
            image.name().to_owned(),
            Bytes(image.number("VirtualSize")).to_string(),
            Bytes(image.number("DiskUsage")).to_string(),
            if image.flag("Shared") { "yes" } else { "no" }.to_owned(),
            age::ago(image.number("CreatedAt"), now),
        ]);
    }
    table.text()
}
