//! `banger kernel`.

mod import;
mod list;
mod modules;
mod pull;
mod rm;
mod show;

pub use import::Files;

use clap::Subcommand;

use crate::error::Result;

/// The subcommands of `banger kernel`.
#[derive(Debug, Subcommand)]
pub enum KernelCommand {
    Pull(pull::Pull),
    Import(import::Import),
    List(list::List),
    Show(show::Show),
    Rm(rm::Rm),
}

impl KernelCommand {
    pub async fn run(&self) -> Result<u8> {
        match self {
            KernelCommand::Pull(pull) => pull.run().await,
            KernelCommand::Import(import) => import.run().await,
            KernelCommand::List(list) => list.run().await,
            KernelCommand::Show(show) => show.run().await,
            KernelCommand::Rm(rm) => rm.run().await,
        }
    }
}
