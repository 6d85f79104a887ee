//! `banger vm prune`.

use banger_proto::bus::names::VM_INTERFACE;
use clap::Args;

use super::change::{self, ChangeArgs};
use crate::{client::bus::Bus, command::prune::PruneArgs, error::Result};

/// The states in which a sandbox is neither running nor starting.
const INACTIVE_STATES: [&str; 3] = ["created", "stopped", "failed"];

/// Delete all your sandboxes that are not running
///
/// Asks first, unless you give --force. Running sandboxes are never deleted, and sandboxes with snapshots
/// are refused.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm prune
  banger vm prune --force      without asking
  banger vm prune --dry-run    what would be deleted

What was on their disks is lost for good.")]
pub struct Prune {
    #[command(flatten)]
    prune: PruneArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

impl Prune {
    pub async fn run(&self) -> Result<u8> {
        let mut sandboxes = Bus::connect().await?.objects(VM_INTERFACE).await?;
        sandboxes.retain(|sandbox| INACTIVE_STATES.contains(&sandbox.text("State")));
        let contents = " with everything on their disks";
        match self.prune.choose(sandboxes, contents, self.change.output.json)? {
            // The service refuses those that were started meanwhile.
            Some(chosen) => change::delete(&chosen.ids, &chosen.names, self.change).await,
            None => Ok(0),
        }
    }
}
