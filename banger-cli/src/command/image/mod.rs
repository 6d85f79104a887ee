//! `banger image`.

mod build;
mod cache;
mod export;
mod promote;
mod prune;
mod pull;
mod push;
mod register;
mod saved;
mod tag;

pub use pull::Pull;
pub use saved::temporary;
pub use tag::Tag;

use clap::Subcommand;

use crate::{
    client::service::Kind,
    command::{delete::DeleteArgs, list::ListArgs, rename::RenameArgs, show::ShowArgs},
    error::Result,
};

/// The subcommands of `banger image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    Build(Box<build::Build>),
    Pull(Pull),
    Register(register::Register),
    /// List your images and the shared ones
    #[command(
        visible_alias = "ls",
        after_long_help = "\
Examples:
  banger image list
  banger image list --available   what the catalogs have

Next: `banger vm run --image NAME`."
    )]
    List(ListArgs),
    /// Show all details of an image
    #[command(
        visible_alias = "inspect",
        after_long_help = "\
Example:
  banger image show debian"
    )]
    Show(ShowArgs),
    /// Rename an image
    ///
    /// Existing sandboxes of it are not affected. Renaming a shared image needs an administrator.
    #[command(after_long_help = "\
Example:
  banger image rename debian-bookworm debian")]
    Rename(RenameArgs),
    Tag(Tag),
    Export(export::Export),
    Push(push::Push),
    Promote(promote::Promote),
    /// Delete images that no sandbox uses
    ///
    /// If an image has several names, only the given ones are removed. The file stays until the last name is removed.
    #[command(
        visible_alias = "rm",
        after_long_help = "\
Example:
  banger image delete debian"
    )]
    Delete(DeleteArgs),
    Prune(prune::Prune),
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
            ImageCommand::Rename(rename) => rename.run(Kind::Image).await,
            ImageCommand::Tag(tag) => tag.run().await,
            ImageCommand::Prune(prune) => prune.run().await,
            ImageCommand::Export(export) => export.run().await,
            ImageCommand::Push(push) => push.run().await,
            ImageCommand::Promote(promote) => promote.run().await,
            ImageCommand::Delete(delete) => delete.run(Kind::Image).await,
            ImageCommand::Cache(cache) => cache.run().await,
        }
    }
}
