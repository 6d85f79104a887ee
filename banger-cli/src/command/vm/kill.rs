//! `banger vm kill`.

use clap::Args;
use zbus::OwnedObjectPath;

use crate::{
    client::{bus::Bus, service::Kind},
    command::batch::{self, Effect, ResultArgs},
    error::Result,
    ui::progress::{Progress, ProgressArgs},
};

/// Send a signal to the VMMs of sandboxes
///
/// The signal goes to the process on the host that runs the sandbox, not to the guest. What the guest has not
/// written to disk is lost; `banger vm stop` shuts it down properly.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm kill web
  banger vm kill --signal TERM web")]
pub struct Kill {
    /// Names, ids or id prefixes
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    /// Signal to send, a name or a number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", value_parser = signal)]
    signal: i32,
    #[command(flatten)]
    output: ResultArgs,
}

/// Signals that end a program, with their numbers on all our architectures (signal(7)).
pub const SIGNALS: [(&str, i32); 8] =
    [("HUP", 1), ("INT", 2), ("QUIT", 3), ("ABRT", 6), ("KILL", 9), ("USR1", 10), ("USR2", 12), ("TERM", 15)];

fn signal(text: &str) -> Result<i32, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    SIGNALS
        .iter()
        .find(|(known, number)| *known == name || number.to_string() == name)
        .map(|(_, number)| *number)
        .ok_or_else(|| format!("choose one of {}", SIGNALS.map(|(name, _)| name).join(", ")))
}

impl Kill {
    pub async fn run(&self) -> Result<u8> {
        let bus = &Bus::connect().await?;
        let progress = Progress::new(ProgressArgs { quiet: true });
        let kill =
            async |_, vm: OwnedObjectPath| bus.kill_vm(&vm, self.signal).await.map(|()| Effect::Changed);
        batch::each(batch::find(bus, Kind::Vm, &self.sandboxes).await, &progress, "killed", self.output, kill)
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["TERM", "sigterm", "SIGTERM", "15"] {
            assert_eq!(signal(text), Ok(15), "{text}");
        }
        for text in ["", "SIG", "STOP", "99", "-9"] {
            assert!(signal(text).is_err(), "{text}");
        }
    }
}
