//! `banger vm list`, also `banger ps`.

use banger_proto::bus::{names::VM_INTERFACE, option::filter, proxy::Options};
use clap::Args;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::Value;
use zbus::Variant;

use crate::{
    client::{
        bus::Bus,
        object::{self, Object},
        published_port::PublishedPorts,
        service::Kind,
    },
    command::{
        filter::{Filter, SANDBOXES, fit_all},
        table_args::TableArgs,
    },
    error::Result,
    ui::{
        column::{self, Column},
        output,
    },
};

/// Limit of the service on concurrent calls of a user.
const MAX_CONCURRENT: usize = 16;

/// The columns of the list.
pub const LIST: column::List = column::List { verb: "vm list", columns: COLUMNS };
const COLUMNS: &[Column] = &[
    Column::new("ID", "id", column::short_id).drop(7),
    Column::new("NAME", "name", column::text),
    Column::new("STATE", "state", column::text),
    Column::new("IMAGE", "image_name", column::text).drop(2),
    Column::new("ADDRESS", "address", column::text).drop(3),
    Column::new("VCPU", "vcpus", column::text).drop(5),
    Column::new("MEM", "memory", column::size).drop(4),
    Column::new("DISK", "disk_size", column::size).drop(6),
    Column::new("CREATED", "created_at", column::age).drop(1),
    Column::new("PORTS", "published_ports", |sandbox| {
        PublishedPorts::of_arrays(sandbox.value(), sandbox.of("blocked_ports")).text()
    })
    .drop(8),
];

/// List your sandboxes, running or not
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm list
  banger ps --json
  banger vm list --filter state=running --filter label=team=web
  banger ps --sort -memory --columns name,mem,image
  banger ps --format '{{.Name}} {{.State}}'

Next: `banger vm show NAME` shows all details of one, `banger vm exec NAME` opens a shell in it.")]
pub struct List {
    /// Accepted for users of docker: sandboxes that are not running are always shown
    #[arg(short = 'a', long = "all", hide = true)]
    _all: bool,
    /// Show the sandboxes of all users (needs an administrator)
    #[arg(long)]
    all_users: bool,
    /// Show only matching sandboxes: `state=`, `label=KEY[=VALUE]`, or a part of a name with `name=`, `image=`
    /// or `kernel=`. Several filters of one kind are alternatives, except labels
    #[arg(short, long, value_name = "WHAT=VALUE", value_parser = |text: &str| SANDBOXES.parse(text))]
    filter: Vec<Filter>,
    /// Print only their names
    #[arg(short, long, conflicts_with_all = ["json", "columns", "format"])]
    quiet: bool,
    /// Print a JSON array of objects; their keys are the D-Bus properties in snake case
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    table: TableArgs,
}

impl List {
    pub async fn run(&self) -> Result<u8> {
        let view = self.table.view(LIST)?;
        let bus = Bus::connect().await?;
        let mut sandboxes =
            if self.all_users { of_all_users(&bus).await? } else { bus.objects(VM_INTERFACE).await? };
        object::sort(&mut sandboxes);
        let mut rows: Vec<Value> = sandboxes.iter().map(Object::json).collect();
        rows.retain(|row| fit_all(&self.filter, row));
        if self.quiet {
            let name = |row: &Value| format!("{}\n", row["name"].as_str().unwrap_or_default());
            output::text(&view.sorted(rows).iter().map(name).collect::<String>())?;
        } else {
            view.print(rows, self.json)?;
        }
        Ok(0)
    }
}

async fn of_all_users(bus: &Bus) -> Result<Vec<Object>> {
    let rows = bus.list_vms(&Options::from([(filter::ALL, Variant::from(true))])).await?;
    stream::iter(rows)
        .map(async |row| bus.properties(&row.path, Kind::Vm.interface()).await)
        .buffered(MAX_CONCURRENT)
        .try_collect()
        .await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn a_sandbox_is_a_row() {
        let rows = [json!({
            "id": "0123456789abcdef0123456789abcdef",
            "name": "calm-otter",
            "state": "running",
            "image_name": "debian-bookworm",
            "address": "",
            "vcpus": 2,
            "memory": 1u64 << 30,
            "disk_size": 8u64 << 30,
            "created_at": 1_000_000,
            "published_ports": [
                { "protocol": "tcp", "guest_port": 80, "host_port": 8080, "host_address": "127.0.0.1" },
            ],
        })];
        let shown = |width| TableArgs::default().view(LIST).unwrap().text(&rows, width, 181_000_000);
        let expect = "\
ID            NAME        STATE    IMAGE            ADDRESS  VCPU  MEM    DISK   CREATED        PORTS
0123456789ab  calm-otter  running  debian-bookworm  -        2     1 GiB  8 GiB  3 minutes ago  127.0.0.1:8080->80/tcp
";
        assert_eq!(shown(None), expect);
        let narrow = "NAME        STATE    CREATED\ncalm-otter  running  3 minutes ago\n";
        assert_eq!(shown(Some(40)), narrow);
    }
}
