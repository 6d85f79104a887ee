//! The options for stopping a sandbox.

use std::time::Duration;

use banger_proto::bus::{option::stop, proxy::Options};
use clap::Args;
use zbus::Variant;

use super::numbers::whole;

/// The options of a command that stops sandboxes.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// How long a guest may take to shut down before it is killed [default: the service's]
    #[arg(short, long, value_name = "SECONDS", value_parser = whole::<u32>)]
    timeout: Option<u32>,
    /// Kill them at once; what their guests have not written to disk is lost
    #[arg(short, long, conflicts_with = "timeout")]
    force: bool,
}

impl StopArgs {
    /// Returns the options as options of the call.
    pub fn options(&self) -> Options<'static> {
        let mut options = Options::new();
        if let Some(seconds) = self.timeout {
            let timeout = Duration::from_secs(u64::from(seconds)).as_micros();
            options.insert(stop::TIMEOUT, Variant::from(u64::try_from(timeout).unwrap_or(u64::MAX)));
        }
        if self.force {
            options.insert(stop::FORCE, Variant::from(true));
        }
        options
    }
}
