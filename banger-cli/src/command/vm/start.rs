//! `banger vm start`.

use banger_proto::bus::proxy::Options;
use clap::Args;

use super::change::{self, ChangeArgs};
use crate::error::Result;

/// Start sandboxes
///
/// Returns when the guests are ready. A sandbox that is running stays as it is.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  banger vm start web db

Next: `banger vm exec NAME` opens a shell in one of them.")]
pub struct Start {
    /// Names, ids or id prefixes
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    #[command(flatten)]
    change: ChangeArgs,
}

impl Start {
    pub async fn run(&self) -> Result<u8> {
        change::each(&self.sandboxes, "Start", Options::new(), self.change, "started").await
    }
}
