//! `banger vm shell`.

use clap::Args;

use super::exec::Target;
use crate::error::Result;

/// Open a shell in a sandbox
///
/// This is `banger vm exec` without a command. If you sent a repository, the shell starts in it.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm shell web
  banger vm shell -u dev web
  banger vm shell --session work web        attaches to the session work, or starts it")]
pub struct Shell {
    #[command(flatten)]
    target: Target,
}

impl Shell {
    pub async fn run(&self) -> Result<u8> {
        self.target.shell().await
    }
}
