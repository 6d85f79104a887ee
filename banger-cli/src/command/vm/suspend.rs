//! `banger vm suspend` and `banger vm resume`.

use banger_proto::bus::proxy::Options;
use clap::Args;

use super::change::{self, ChangeArgs};
use crate::error::Result;

/// Suspend sandboxes: write their memory to disk and end them
///
/// A suspended sandbox takes neither memory nor processor time on the host. Its programs continue when it is resumed,
/// also after a restart of the service. The memory on disk counts against your limit on images.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  banger vm suspend web

Next: `banger vm resume web` continues it, as does a command or an ssh session in it. `banger vm start --cold web` boots it \
without its memory.")]
pub struct Suspend {
    /// Names, ids or id prefixes
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Continue suspended sandboxes where they were
///
/// The guest's clock is set to the host's time. Its memory is read once, and then no longer on disk.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  banger vm resume web")]
pub struct Resume {
    /// Names, ids or id prefixes
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    #[command(flatten)]
    change: ChangeArgs,
}

impl Suspend {
    pub async fn run(&self) -> Result<u8> {
        change::each(&self.sandboxes, "Suspend", Options::new(), self.change, "suspended").await
    }
}

impl Resume {
    pub async fn run(&self) -> Result<u8> {
        change::each(&self.sandboxes, "Resume", Options::new(), self.change, "resumed").await
    }
}
