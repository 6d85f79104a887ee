//! `banger image`.

mod build;
mod cache;
mod export;
mod promote;
mod pull;
mod register;
mod saved;

use clap::Subcommand;

use crate::{
    client::service::Kind,
    command::{delete::DeleteArgs, list::ListArgs, show::ShowArgs},
    error::Result,
};

/// The subcommands of `banger image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    Build(Box<build::Build>),
    Pull(pull::Pull),
    Register(register::Register),
    /// List your images and the shared ones
    #[command(after_long_help = "\
Examples:
  banger image list
  banger image list --available   what the catalogs have

Next: `banger vm run --image NAME`.")]
    List(ListArgs),
    /// Show all details of an image
    #[command(after_long_help = "\
Example:
  banger image show debian")]
    Show(ShowArgs),
    Export(export::Export),
    Promote(promote::Promote),
    /// Delete images that no sandbox uses
    #[command(
        visible_alias = "rm",
        after_long_help = "\
Example:
  banger image delete debian"
    )]
    Delete(DeleteArgs),
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
            ImageCommand::Build(build) => build.run().await,
            ImageCommand::Pull(pull) => pull.run().await,
            ImageCommand::Register(register) => register.run().await,
            ImageCommand::List(list) => list.run(Kind::Image).await,
            ImageCommand::Show(show) => show.run(Kind::Image).await,
            ImageCommand::Export(export) => export.run().await,
            ImageCommand::Promote(promote) => promote.run().await,
            ImageCommand::Delete(delete) => delete.run(Kind::Image).await,
            ImageCommand::Cache(cache) => cache.run().await,
        }
    }
}
