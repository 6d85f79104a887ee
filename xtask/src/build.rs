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

/// Builds everything for tests.
pub fn ensure() -> Result<Programs> {
    build(Profile { name: "dev", directory: "debug" })
}

/// Builds everything as it is shipped.
pub fn release() -> Result<Programs> {
    build(Profile { name: "release", directory: "release" })
}

/// A profile in Cargo.toml, and the directory that cargo gives it.
struct Profile {
    name: &'static str,
    directory: &'static str,
}

fn build(profile: Profile) -> Result<Programs> {
    say("building");
    let mut host =
        command("cargo", ["build", "--quiet", "--package", "banger-cli", "--package", "banger-system"]);
    run(host.args(["--profile", profile.name]).current_dir(repository()))?;
    let agent =
        ["build", "--quiet", "--package", "banger-agent", "--profile", "agent", "--target", AGENT_TARGET];
    let mut agent = command("cargo", agent);
    run(agent.current_dir(repository()).env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    Ok(Programs {
        directory: target().join(profile.directory),
        agent: target().join(AGENT_TARGET).join("agent/banger-agent"),
    })
}
