//! `banger vm delete`.

use banger_proto::bus::{option::delete, proxy::Options};
use clap::Args;
use zbus::Variant;

use super::change::{self, ChangeArgs};
use crate::error::Result;

/// Delete sandboxes and their disks
///
/// A sandbox with snapshots is deleted only with --force, and its snapshots with it.
#[derive(Debug, Args)]
#[command(
    visible_alias = "rm",
    after_long_help = "\
Examples:
  banger vm delete web db
  banger vm delete --force web   even if it is running

What was on the disks is lost for good."
)]
pub struct Delete {
    /// Names, ids or id prefixes
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    /// First kill sandboxes that are running, and delete their snapshots
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

impl Delete {
    pub async fn run(&self) -> Result<u8> {
        let options = Options::from([(delete::FORCE, Variant::from(self.force))]);
        change::each(&self.sandboxes, "Delete", options, self.change, "deleted").await
    }
}
