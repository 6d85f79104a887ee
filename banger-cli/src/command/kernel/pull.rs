//! `banger kernel pull`.

use banger_proto::bus::proxy::Options;
use clap::Args;

use crate::{client::service::Kind, command::add::PullArgs, error::Result};

/// Pull a kernel from a catalog
///
/// An interrupted pull resumes where it stopped.
#[derive(Debug, Args)]
#[command(
    mut_arg("name", |name| name.help("Name for the kernel [default: its name in the catalog]")),
    mut_arg("force", |force| force.help("Replace another kernel of the same name")),
    after_long_help = "\
Examples:
  banger kernel list --available
  banger kernel pull debian

Next: `banger vm run --kernel debian`."
)]
pub struct Pull {
    /// Name in the catalog
    #[arg(value_name = "ENTRY")]
    entry: String,
    #[command(flatten)]
    pull: PullArgs,
}

impl Pull {
    pub async fn run(&self) -> Result<u8> {
        self.pull.run(Kind::Kernel, &self.entry, Options::new()).await
    }
}
