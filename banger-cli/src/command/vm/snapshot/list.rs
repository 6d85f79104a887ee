//! `banger vm snapshot list`.

use banger_proto::bus::{ErrorName, names::VM_INTERFACE};
use clap::Args;
use serde_json::Value;

use super::row;
use crate::{
    client::{
        bus::Bus,
        object::{self, Object},
        service::Kind,
    },
    command::table_args::TableArgs,
    error::Result,
    ui::column::{self, Column, List},
};

/// List the snapshots of a sandbox, or of all your sandboxes
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm snapshot list web
  banger vm snapshot list --json | jq -r '.[] | \"\\(.sandbox) \\(.name)\"'

SIZE is what the memory and the disk layers of a snapshot take. Other snapshots and sandboxes may
share them.")]
pub struct ListSnapshots {
    /// Name, id or id prefix [default: all your sandboxes]
    #[arg(value_name = "SANDBOX")]
    sandbox: Option<String>,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    table: TableArgs,
}

/// The columns of the list.
pub const LIST: List = List {
    verb: "vm snapshot list",
    columns: &[
        Column::new("SANDBOX", "sandbox", column::text),
        Column::new("NAME", "name", column::text),
        Column::new("MEMORY", "memory", column::yes_or_no).drop(1),
        Column::new("SIZE", "size", column::size).drop(3),
        Column::new("CREATED", "created_at", column::age).drop(2),
    ],
};

/// Returns the rows of a sandbox.
async fn rows_of(bus: &Bus, reference: &str) -> Result<Vec<Value>> {
    let vm = bus.find(Kind::Vm, reference).await.map_err(|error| error.about(reference))?;
    let sandbox = bus.properties(&vm, VM_INTERFACE).await?;
    let snapshots = bus.list_snapshots(&vm).await?.into_iter().map(Object::new);
    Ok(snapshots.map(|snapshot| row(sandbox.name(), &snapshot)).collect())
}

impl ListSnapshots {
    pub async fn run(&self) -> Result<u8> {
        let view = self.table.view(LIST)?;
        let bus = Bus::connect().await?;
        let mut rows = Vec::new();
        for reference in self.sandboxes(&bus).await? {
            match rows_of(&bus, &reference).await {
                // It was deleted after its name was read.
                Err(error) if self.sandbox.is_none() && error.name() == Some(ErrorName::NoSuchVm) => {}
                of_one => rows.extend(of_one?),
            }
        }
        view.print(rows, self.json)?;
        Ok(0)
    }

    /// Returns the sandboxes whose snapshots are listed.
    async fn sandboxes(&self, bus: &Bus) -> Result<Vec<String>> {
        if let Some(one) = &self.sandbox {
            return Ok(vec![one.clone()]);
        }
        let mut all = bus.objects(VM_INTERFACE).await?;
        object::sort(&mut all);
        Ok(all.iter().map(|sandbox| sandbox.text("Id").to_owned()).collect())
    }
}
