//! `banger vm stop`.

use clap::Args;

use super::{
    change::{self, ChangeArgs},
    stop_args::StopArgs,
};
use crate::error::Result;

/// Shut sandboxes down; their disks stay
///
/// The guest writes its data and powers off. Stopping what does not run changes nothing.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  banger vm stop web db

Next: `banger vm start NAME` boots one of them again, `banger vm delete NAME` removes it.")]
pub struct Stop {
    /// Names, ids, or beginnings of ids
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
