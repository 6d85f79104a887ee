//! `banger vm start`.

use banger_proto::bus::{option::start, proxy::Options};
use clap::Args;
use zbus::Variant;

use super::{
    change::{self, ChangeArgs},
    wait::Wait,
};
use crate::error::Result;

/// Start sandboxes
///
/// Returns when the guests' agents answer. A sandbox that is running stays as it is, and a suspended one continues.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm start web db
  banger vm start --wait boot web   return when its services have started

Next: `banger vm exec NAME` opens a shell in one of them.")]
pub struct Start {
    /// Names, ids or id prefixes
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    /// Phase of the boot to wait for [default: agent]
    #[arg(long, value_name = "PHASE")]
    wait: Option<Wait>,
    /// Boot suspended sandboxes; what was in their memory is lost
    #[arg(long)]
    cold: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

impl Start {
    pub async fn run(&self) -> Result<u8> {
        let mut options = Options::new();
        if self.cold {
            options.insert(start::COLD, Variant::from(true));
        }
        change::each_and_wait(&self.sandboxes, "Start", options, self.change, "started", self.wait).await
    }
}
