//! `banger vm restart`.

use clap::Args;

use super::{
    change::{self, ChangeArgs},
    stop_args::StopArgs,
};
use crate::error::Result;

/// Shut sandboxes down and boot them again
///
/// Returns when the guests are ready. A sandbox that is not running is just started.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  banger vm restart web")]
pub struct Restart {
    /// Names, ids or id prefixes
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    #[command(flatten)]
    stop: StopArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

impl Restart {
    pub async fn run(&self) -> Result<u8> {
        change::each(&self.sandboxes, "Restart", self.stop.options(), self.change, "restarted").await
    }
}
