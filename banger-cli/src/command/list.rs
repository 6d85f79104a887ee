//! Shared code of `image list` and `kernel list`.

use clap::{Arg, Args};
use serde_json::Value;

use crate::{
    client::{
        bus::Bus,
        object::{self, Object},
        service::Kind,
    },
    command::{
        catalog::AvailableArgs,
        filter::{self, Filter, fit_all},
        table_args::TableArgs,
    },
    error::Result,
    ui::column::{self, Column, List},
};

/// The columns of the list of images.
pub const IMAGES: List = List {
    verb: "image list",
    columns: &[
        Column::new("ID", "id", column::short_id).drop(5),
        Column::new("NAME", "name", column::text),
        Column::new("SIZE", "content_size", column::size).drop(1),
        Column::new("ON DISK", "disk_usage", column::size).drop(3),
        Column::new("SHARED", "shared", column::yes_or_no).drop(4),
        Column::new("CREATED", "created_at", column::age).drop(2),
    ],
};
/// The columns of the list of kernels.
pub const KERNELS: List = List {
    verb: "kernel list",
    columns: &[
        Column::new("ID", "id", column::short_id).drop(4),
        Column::new("NAME", "name", column::text),
        Column::new("VERSION", "version", column::text).drop(1),
        Column::new("SHARED", "shared", column::yes_or_no).drop(3),
        Column::new("CREATED", "created_at", column::age).drop(2),
    ],
};

/// The options of a command that lists images or kernels.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print a JSON array of objects; their keys are the D-Bus properties in snake case
    #[arg(long)]
    json: bool,
    /// Show only matching images: `shared=true` or `shared=false`, `label=KEY[=VALUE]`, a part of the name with `name=`,
    /// or of the name or the reference that it was pulled by with `reference=`
    #[arg(short, long, value_name = "WHAT=VALUE", conflicts_with = "available",
          value_parser = |text: &str| filter::IMAGES.parse(text))]
    filter: Vec<Filter>,
    #[command(flatten)]
    table: TableArgs,
    #[command(flatten)]
    available: AvailableArgs,
}

impl ListArgs {
    /// Lists the objects on this host, or the entries of the catalogs. Returns the exit status.
    pub async fn run(&self, kind: Kind) -> Result<u8> {
        if self.available.is_requested() {
            return self.available.run(kind, &self.table, self.json).await;
        }
        let view = self.table.view(if kind == Kind::Kernel { KERNELS } else { IMAGES })?;
        let mut objects = Bus::connect().await?.objects(kind.interface()).await?;
        object::sort(&mut objects);
        let mut rows: Vec<Value> = objects.iter().map(Object::json).collect();
        rows.retain(|row| fit_all(&self.filter, row));
        view.print(rows, self.json)?;
        Ok(0)
    }
}

/// Makes the conditions of a list those on kernels.
pub fn of_kernels(filter: Arg) -> Arg {
    filter.value_parser(|text: &str| filter::KERNELS.parse(text)).help(
        "Show only matching kernels: `shared=true` or `shared=false`, or a part of the name or the version with `name=` \
         or `version=`",
    )
}
