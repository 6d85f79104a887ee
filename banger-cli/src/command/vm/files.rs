//! `banger vm files`.

use banger_proto::guest::listing::Entry;
use clap::Args;
use serde_json::{Value, json};

use super::workspace_args::guest_path;
use crate::{
    command::table_args::TableArgs,
    error::{Error, Result},
    guest::{
        agent::Guest,
        files::{Listing, kind_name, mode_text},
    },
    ui::column::{self, Column, List},
};

/// How many files are listed at most: a list is sorted, and kept in memory until its end.
const LIMIT: usize = 100_000;

/// List the files of a directory in a sandbox
///
/// The agent reads the directory, so the image needs no program for it. Directories named .git are left out.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm files web /srv
  banger vm files --recursive --json web /etc | jq -r '.[].name'

Next: `banger vm cp web:/srv/file .` copies a file out of the sandbox.")]
pub struct Files {
    /// Name, id or id prefix
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Absolute path of the directory
    #[arg(value_name = "PATH", value_parser = directory)]
    path: String,
    /// List everything below the directory
    #[arg(short, long)]
    recursive: bool,
    /// Print a JSON array of objects
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    table: TableArgs,
}

/// The columns of the list.
pub const LIST: List = List {
    verb: "vm files",
    columns: &[
        Column::new("MODE", "mode", column::text).drop(2),
        Column::new("KIND", "kind", column::text).drop(1),
        Column::new("SIZE", "size", column::size),
        Column::new("NAME", "name", column::text),
    ],
};

fn directory(text: &str) -> Result<String, String> {
    if text == "/" { Ok(text.to_owned()) } else { guest_path(text) }
}

impl Files {
    pub async fn run(&self) -> Result<u8> {
        let view = self.table.view(LIST)?;
        let mut guest = Guest::of(&self.sandbox).await?;
        let listing = Listing::of(&mut guest, self.path.clone(), self.recursive, LIMIT).await?;
        if listing.truncated {
            return Err(Error::Refused(format!("cannot list {}: it has more than {LIMIT} files", self.path)));
        }
        let mut entries = listing.entries;
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        view.print(entries.iter().map(object).collect(), self.json)?;
        Ok(0)
    }
}

fn object(entry: &Entry) -> Value {
    json!({
        "name": String::from_utf8_lossy(&entry.name),
        "kind": kind_name(entry.kind),
        "size": entry.size,
        "mode": mode_text(entry.mode),
    })
}
