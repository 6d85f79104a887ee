//! `banger vm prune`.

use banger_proto::bus::{ErrorName, names::VM_INTERFACE};
use clap::Args;

use super::change::{self, ChangeArgs};
use crate::{
    client::{bus::Bus, service::Kind},
    command::prune::PruneArgs,
    error::Result,
    ui::progress::Progress,
};

/// The states in which a sandbox is neither running nor starting.
const INACTIVE_STATES: [&str; 3] = ["created", "stopped", "failed"];

/// Delete all your sandboxes that are not running
///
/// Asks first, unless you give --force. Running sandboxes and those with snapshots are never deleted.
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

/// Returns whether a sandbox has snapshots. One that was deleted meanwhile has none.
async fn has_snapshots(bus: &Bus, id: &str) -> Result<bool> {
    let look = async {
        let vm = bus.find(Kind::Vm, id).await?;
        bus.list_snapshots(&vm).await
    };
    match look.await {
        Ok(snapshots) => Ok(!snapshots.is_empty()),
        Err(error) if error.name() == Some(ErrorName::NoSuchVm) => Ok(false),
        // It is too old for snapshots.
        Err(error) if error.is_of_other_version() => Ok(false),
        Err(error) => Err(error),
    }
}

impl Prune {
    pub async fn run(&self) -> Result<u8> {
        let bus = Bus::connect().await?;
        let mut sandboxes = bus.objects(VM_INTERFACE).await?;
        sandboxes.retain(|sandbox| INACTIVE_STATES.contains(&sandbox.text("State")));
        let mut chosen = Vec::new();
        for sandbox in sandboxes {
            match has_snapshots(&bus, sandbox.text("Id")).await? {
                false => chosen.push(sandbox),
                true => Progress::new(self.change.progress).note(&format!(
                    "{name} has snapshots and is kept; `banger vm delete --force {name}` deletes both.",
                    name = sandbox.name()
                )),
            }
        }
        let contents = " with everything on their disks";
        match self.prune.choose(chosen, contents, self.change.output.json)? {
            // The service refuses those that were started meanwhile.
            Some(chosen) => change::delete(&chosen.ids, &chosen.names, self.change).await,
            None => Ok(0),
        }
    }
}
