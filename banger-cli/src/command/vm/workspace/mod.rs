//! `banger vm workspace`.

mod export;
mod prepare;

use clap::Subcommand;

use crate::error::Result;

/// The subcommands of `banger vm workspace`.
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
