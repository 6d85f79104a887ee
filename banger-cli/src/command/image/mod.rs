//! `banger image`.

mod cache;
mod delete;
mod export;
mod list;
mod oci_layout;
mod promote;
mod pull;
mod register;
mod show;

use clap::Subcommand;

use crate::error::Result;

/// The subcommands of `banger image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    Pull(pull::Pull),
    Register(register::Register),
    List(list::List),
    Show(show::Show),
    Export(export::Export),
    Promote(promote::Promote),
    Delete(delete::Delete),
    /// Manage the cache of registries and catalogs
    #[command(
        subcommand,
        after_long_help = "\
Example:
  banger image cache prune --older-than 7d"
    )]
    Cache(cache::CacheCommand),
}

impl ImageCommand {
    pub async fn run(&self) -> Result<u8> {
        match self {
            ImageCommand::Pull(pull) => pull.run().await,
            ImageCommand::Register(register) => register.run().await,
            ImageCommand::List(list) => list.run().await,
            ImageCommand::Show(show) => show.run().await,
            ImageCommand::Export(export) => export.run().await,
            ImageCommand::Promote(promote) => promote.run().await,
            ImageCommand::Delete(delete) => delete.run().await,
            ImageCommand::Cache(cache) => cache.run().await,
        }
    }
}
