//! `banger vm shell`.

use clap::Args;

use super::exec::Target;
use crate::error::Result;

/// Open a shell in a sandbox
///
/// The same as `banger vm exec` without a command. Where a repository was sent from here, it begins there.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm shell web
  banger vm shell -u dev web")]
pub struct Shell {
    #[command(flatten)]
    target: Target,
}

impl Shell {
    pub async fn run(&self) -> Result<u8> {
        self.target.shell().await
    }
}
