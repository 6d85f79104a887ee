//! `banger vm workspace`.

mod export;
mod prepare;

use clap::Subcommand;

use crate::error::Result;

/// What can be done with the workspace in a sandbox.
#[derive(Debug, Subcommand)]
pub enum WorkspaceCommand {
    Prepare(prepare::Prepare),
    Export(export::Export),
}

impl WorkspaceCommand {
    pub async fn run(&self) -> Result<u8> {
        match self {
            WorkspaceCommand::Prepare(prepare) => prepare.run().await,
            WorkspaceCommand::Export(export) => export.run().await,
        }
    }
}
