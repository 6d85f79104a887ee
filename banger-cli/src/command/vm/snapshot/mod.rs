//! `banger vm snapshot`.

mod create;
mod delete;
mod list;
mod restore;

use banger_proto::bus::option::snapshot as key;
use clap::Subcommand;
use serde_json::{Value, json};

pub use self::list::LIST;
use crate::{client::object::Object, error::Result};

/// The subcommands of `banger vm snapshot`.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    Create(create::Create),
    #[command(visible_alias = "ls")]
    List(list::ListSnapshots),
    Restore(restore::Restore),
    #[command(visible_alias = "rm")]
    Delete(delete::Delete),
}

impl SnapshotCommand {
    pub async fn run(&self) -> Result<u8> {
        match self {
            SnapshotCommand::Create(create) => create.run().await,
            SnapshotCommand::List(list) => list.run().await,
            SnapshotCommand::Restore(restore) => restore.run().await,
            SnapshotCommand::Delete(delete) => delete.run().await,
        }
    }
}

/// Returns a snapshot of the sandbox with this name, as `--json` prints it.
fn row(sandbox: &str, snapshot: &Object) -> Value {
    json!({
        "sandbox": sandbox,
        "name": snapshot.text(key::NAME),
        "created_at": snapshot.number(key::CREATED_AT),
        "memory": snapshot.flag(key::MEMORY),
        "size": snapshot.number(key::SIZE),
    })
}
