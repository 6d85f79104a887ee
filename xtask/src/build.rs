//! Building the programs as they are installed.

use std::path::PathBuf;

use anyhow::Result;

use crate::run::{command, repository, run, say, target};

/// The agent runs where nothing is installed: it is linked statically. The target is named so that build
/// scripts and procedural macros are not.
const AGENT_TARGET: &str = "x86_64-unknown-linux-gnu";

/// The programs.
pub struct Programs {
    /// Where the programs of the host are.
    pub directory: PathBuf,
    /// The agent.
    pub agent: PathBuf,
}

/// Builds everything.
pub fn ensure() -> Result<Programs> {
    say("building");
    let mut host =
        command("cargo", ["build", "--quiet", "--package", "banger-cli", "--package", "banger-system"]);
    run(host.current_dir(repository()))?;
    let agent =
        ["build", "--quiet", "--package", "banger-agent", "--profile", "agent", "--target", AGENT_TARGET];
    let mut agent = command("cargo", agent);
    run(agent.current_dir(repository()).env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    Ok(Programs {
        directory: target().join("debug"),
        agent: target().join(AGENT_TARGET).join("agent/banger-agent"),
    })
}
