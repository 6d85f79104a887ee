//! `banger kernel`.

mod import;
mod pull;

pub use import::Files;

use clap::Subcommand;

use crate::{
    client::service::Kind,
    command::{
        delete::DeleteArgs,
        list::{self, ListArgs},
        rename::RenameArgs,
        show::ShowArgs,
    },
    error::Result,
};

/// The subcommands of `banger kernel`.
#[derive(Debug, Subcommand)]
pub enum KernelCommand {
    Pull(pull::Pull),
    Import(import::Import),
    /// List your kernels and the shared ones
    #[command(
        mut_arg("filter", list::of_kernels),
        visible_alias = "ls",
        after_long_help = "\
Examples:
  banger kernel list
  banger kernel list --available   what the catalogs have

Next: `banger vm run --kernel NAME`."
    )]
    List(ListArgs),
    /// Show all details of a kernel
    #[command(
        visible_alias = "inspect",
        after_long_help = "\
Example:
  banger kernel show host"
    )]
    Show(ShowArgs),
    /// Rename a kernel
    ///
    /// Images and sandboxes that boot it are not affected. Renaming a shared kernel needs an administrator.
    #[command(after_long_help = "\
Example:
  banger kernel rename host debian")]
    Rename(RenameArgs),
    /// Delete kernels that no image and no sandbox uses
    #[command(
        visible_alias = "rm",
        after_long_help = "\
Example:
  banger kernel delete host"
    )]
    Delete(DeleteArgs),
}

impl KernelCommand {
    pub async fn run(&self) -> Result<u8> {
        match self {
            KernelCommand::Pull(pull) => pull.run().await,
            KernelCommand::Import(import) => import.run().await,
            KernelCommand::List(list) => list.run(Kind::Kernel).await,
            KernelCommand::Show(show) => show.run(Kind::Kernel).await,
            KernelCommand::Rename(rename) => rename.run(Kind::Kernel).await,
            KernelCommand::Delete(delete) => delete.run(Kind::Kernel).await,
        }
    }
}
