//! `banger vm restart`.

use clap::Args;

use super::{
    change::{self, ChangeArgs},
    stop_args::StopArgs,
    wait::Wait,
};
use crate::error::Result;

/// Shut sandboxes down and boot them again
///
/// Returns when the guests' agents answer. A sandbox that is not running is only started.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  banger vm restart web")]
pub struct Restart {
    /// Names, ids or id prefixes
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    /// Phase of the boot to wait for [default: agent]
    #[arg(long, value_name = "PHASE")]
    wait: Option<Wait>,
    #[command(flatten)]
    stop: StopArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

impl Restart {
    pub async fn run(&self) -> Result<u8> {
        let options = self.stop.options();
        change::each_and_wait(&self.sandboxes, "Restart", options, self.change, "restarted", self.wait).await
    }
}
