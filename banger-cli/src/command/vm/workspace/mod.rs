//! `banger vm workspace`.

mod export;
mod fetch;
mod prepare;
mod sync;

use clap::Subcommand;

use crate::{
    client::service::id_of,
    error::{Error, Result},
    guest::agent::Guest,
    workspace::record::{Records, StoredWorkspace},
};

/// The subcommands of `banger vm workspace`.
#[derive(Debug, Subcommand)]
pub enum WorkspaceCommand {
    Prepare(prepare::Prepare),
    Export(export::Export),
    Fetch(fetch::Fetch),
    Sync(sync::Sync),
}

impl WorkspaceCommand {
    pub async fn run(&self) -> Result<u8> {
        match self {
            WorkspaceCommand::Prepare(prepare) => prepare.run().await,
            WorkspaceCommand::Export(export) => export.run().await,
            WorkspaceCommand::Fetch(fetch) => fetch.run().await,
            WorkspaceCommand::Sync(sync) => sync.run().await,
        }
    }
}

/// Returns the workspace at a path in the sandbox, or the one that was sent last.
fn stored(guest: &Guest, sandbox: &str, guest_path: Option<&str>) -> Result<StoredWorkspace> {
    Records::of(&id_of(guest.vm()))?.find(guest_path).ok_or_else(|| {
        let location = guest_path.map(|path| format!(" at {path}")).unwrap_or_default();
        Error::Refused(format!("you sent no repository to {sandbox}{location}")).with_hint(format!(
            "`banger vm workspace prepare {sandbox} PATH` sends one; `banger vm cp` copies any file."
        ))
    })
}
