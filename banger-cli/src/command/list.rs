//! Shared code of `image list` and `kernel list`.

use banger_proto::size::Bytes;
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

/// The options of a command that lists images or kernels.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print a JSON array of objects; their keys are the D-Bus properties in snake case
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    available: AvailableArgs,
}

impl ListArgs {
    /// Lists the objects on this host, or the entries of the catalogs. Returns the exit status.
    pub async fn run(&self, kind: Kind) -> Result<u8> {
        if self.available.is_requested() {
            return self.available.run(kind, self.json).await;
        }
        let mut objects = Bus::connect().await?.objects(kind.interface()).await?;
        object::sort(&mut objects);
        if self.json {
            output::json(&objects.iter().map(Object::json).collect())?;
        } else {
            output::text(&table(kind, &objects, age::now()))?;
        }
        Ok(0)
    }
}

fn table(kind: Kind, objects: &[Object], now: u64) -> String {
    let shared = |object: &Object| if object.flag("Shared") { "yes" } else { "no" }.to_owned();
    let size = |object: &Object, key| Bytes(object.number(key)).to_string();
    let mut table = match kind {
        Kind::Kernel => Table::new(["ID", "NAME", "VERSION", "SHARED", "CREATED"]),
        _ => Table::new(["ID", "NAME", "SIZE", "ON DISK", "SHARED", "CREATED"]),
    };
    for object in objects {
        let (id, name) = (object.short_id().to_owned(), object.name().to_owned());
        let created = age::ago(object.number("CreatedAt"), now);
        match kind {
            Kind::Kernel => {
                table.row([id, name, object.text("Version").to_owned(), shared(object), created]);
            }
            _ => {
                let (content, on_disk) = (size(object, "ContentSize"), size(object, "DiskUsage"));
                table.row([id, name, content, on_disk, shared(object), created]);
            }
        }
    }
    table.text()
}
