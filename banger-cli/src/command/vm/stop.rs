//! `banger vm stop`.

use clap::Args;

use super::{
    change::{self, ChangeArgs},
    stop_args::StopArgs,
};
use crate::error::Result;

/// Shut sandboxes down, and keep their disks
///
/// The guest writes its data to disk and powers off. A sandbox that is not running stays as it is; a failed one
/// becomes stopped. A suspended one is stopped with `--force` only, and loses what was in its memory.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  banger vm stop web db

Next: `banger vm start NAME` boots one of them again, `banger vm delete NAME` deletes it.")]
pub struct Stop {
    /// Names, ids or id prefixes
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    #[command(flatten)]
    stop: StopArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

impl Stop {
    pub async fn run(&self) -> Result<u8> {
        change::each(&self.sandboxes, "Stop", self.stop.options(), self.change, "stopped").await
    }
}
