//! Builds the programs that are installed.

mod catalog;
pub mod deb;
pub mod install;
pub mod sqlx;

use std::path::PathBuf;

use anyhow::Result;

use crate::run::{cargo, repository, run, say, target};

/// The agent is linked statically, since it runs in any guest. Naming the target keeps build scripts and procedural
/// macros dynamic.
const AGENT_TARGET: &str = "x86_64-unknown-linux-gnu";

/// The built programs.
pub struct Programs {
    /// The directory with the host's programs.
    pub directory: PathBuf,
    /// The path of the agent.
    pub agent: PathBuf,
}

/// Builds everything with the profile of tests.
pub fn ensure() -> Result<Programs> {
    build(Profile { name: "dev", directory: "debug", packages: &["--workspace"] })
}

/// Builds everything with the profile of releases.
pub fn release() -> Result<Programs> {
    let packages = &[
        "--package",
        "banger-cli",
        "--package",
        "banger-image",
        "--package",
        "banger-jail",
        "--package",
        "banger-system",
    ];
    build(Profile { name: "release", directory: "release", packages })
}

/// A profile in Cargo.toml, and the directory that cargo gives it.
struct Profile {
    name: &'static str,
    directory: &'static str,
    /// The packages to build. They decide the features: with those of the tests, nothing is built twice.
    packages: &'static [&'static str],
}

fn build(profile: Profile) -> Result<Programs> {
    say("building");
    let mut host = cargo(["build", "--quiet", "--profile", profile.name]);
    run(host.args(profile.packages).current_dir(repository()))?;
    let agent =
        ["build", "--quiet", "--package", "banger-agent", "--profile", "agent", "--target", AGENT_TARGET];
    let mut agent = cargo(agent);
    run(agent.current_dir(repository()).env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    Ok(Programs {
        directory: target().join(profile.directory),
        agent: target().join(AGENT_TARGET).join("agent/banger-agent"),
    })
}
