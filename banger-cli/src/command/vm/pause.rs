//! `banger vm pause` and `banger vm unpause`.

use banger_proto::bus::names::VM_INTERFACE;
use clap::Args;
use zbus::OwnedObjectPath;

use crate::{
    client::{bus::Bus, service::Kind},
    command::batch::{self, Effect, ResultArgs},
    error::Result,
    ui::progress::{Progress, ProgressArgs},
};

/// Pause sandboxes: they keep their memory and get no processor time
///
/// Programs in the guest stand still, and connections stay open as long as the other side waits. A paused sandbox still
/// takes its memory on the host; `banger vm stop` gives that back.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  banger vm pause web

Next: `banger vm unpause web` continues it.")]
pub struct Pause {
    #[command(flatten)]
    which: Which,
}

/// Continue paused sandboxes
///
/// The guest's clock is set to the host's time.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  banger vm unpause web")]
pub struct Unpause {
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Args)]
struct Which {
    /// Names, ids or id prefixes
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    #[command(flatten)]
    output: ResultArgs,
}

impl Pause {
    pub async fn run(&self) -> Result<u8> {
        self.which.each("Pause", "paused", "already paused").await
    }
}

impl Unpause {
    pub async fn run(&self) -> Result<u8> {
        self.which.each("Unpause", "continued", "already running").await
    }
}

impl Which {
    async fn each(&self, method: &str, done: &str, already: &'static str) -> Result<u8> {
        let bus = &Bus::connect().await?;
        let progress = Progress::new(ProgressArgs { quiet: true });
        let state = async |vm: &OwnedObjectPath| {
            bus.properties(vm, VM_INTERFACE).await.map(|properties| properties.text("State").to_owned())
        };
        let change = async |_, vm: OwnedObjectPath| {
            let before = state(&vm).await?;
            bus.call_vm(&vm, method).await?;
            let is_same = before == state(&vm).await?;
            Ok(if is_same { Effect::Unchanged(already) } else { Effect::Changed })
        };
        batch::each(batch::find(bus, Kind::Vm, &self.sandboxes).await, &progress, done, self.output, change)
            .await
    }
}
