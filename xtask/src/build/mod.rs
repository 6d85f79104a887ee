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
    build(&TEST)
}

/// Builds everything with the profile of releases.
pub fn release() -> Result<Programs> {
    build(&RELEASE)
}

/// Builds examples with a profile, and returns the directory that they are in.
pub fn examples(profile: &Profile, names: &[&str]) -> Result<PathBuf> {
    let mut build = cargo(["build", "--quiet", "--profile", profile.name]);
    build.args(profile.packages).args(names.iter().flat_map(|name| ["--example", name]));
    run(build.current_dir(repository()))?;
    Ok(target().join(profile.directory).join("examples"))
}

/// A profile in Cargo.toml, and the directory that cargo gives it.
pub struct Profile {
    /// The name of the profile.
    pub name: &'static str,
    /// The directory of its programs, below cargo's target directory.
    pub directory: &'static str,
    /// The packages to build. They decide the features: where all builds of a profile name the same, nothing is built
    /// twice.
    packages: &'static [&'static str],
}

/// A test that is quick to build. With any test among the targets, cargo unifies the features of dependencies as for all
/// tests. Else it would build a third of them twice, and all that depends on these.
pub const WITH_FEATURES_OF_TESTS: [&str; 2] = ["--test", "architecture"];

/// The profile of tests.
pub const TEST: Profile = Profile {
    name: "dev",
    directory: "debug",
    packages: &["--workspace", "--lib", "--bins", WITH_FEATURES_OF_TESTS[0], WITH_FEATURES_OF_TESTS[1]],
};

/// The profile of releases.
pub const RELEASE: Profile = Profile {
    name: "release",
    directory: "release",
    packages: &[
        "--package",
        "banger-cli",
        "--package",
        "banger-image",
        "--package",
        "banger-jail",
        "--package",
        "banger-system",
    ],
};

/// Builds the programs of the host.
pub fn host_programs(profile: &Profile) -> Result<()> {
    let mut build = cargo(["build", "--quiet", "--profile", profile.name]);
    run(build.args(profile.packages).current_dir(repository()))
}

fn build(profile: &Profile) -> Result<Programs> {
    say("building");
    host_programs(profile)?;
    let agent =
        ["build", "--quiet", "--package", "banger-agent", "--profile", "agent", "--target", AGENT_TARGET];
    let mut agent = cargo(agent);
    run(agent.current_dir(repository()).env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    Ok(Programs {
        directory: target().join(profile.directory),
        agent: target().join(AGENT_TARGET).join("agent/banger-agent"),
    })
}
