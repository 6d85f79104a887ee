//! Builds the programs that are installed.

mod catalog;
pub mod install;
pub mod remap;
pub mod sqlx;

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use crate::{
    dist::platform,
    packages,
    run::{cargo, repository, run, say, target},
};

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
    packages::ensure()?;
    run(profile.build().args(names.iter().flat_map(|name| ["--example", name])))?;
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
    pub packages: &'static [&'static str],
}

/// A test that is quick to build. With any test among the targets, cargo unifies the features of dependencies as for all
/// tests. Else it would build a third of them twice, and all that depends on these.
pub const WITH_FEATURES_OF_TESTS: [&str; 2] = ["--test", "architecture"];

impl Profile {
    /// Returns the command that builds the packages of the profile.
    fn build(&self) -> Command {
        let mut build = cargo(["build", "--quiet", "--profile", self.name]);
        // The paths in the programs of tests lead to their sources.
        if self.name == RELEASE.name {
            // Debuggers find symbols that are elsewhere by the id, and not every linker makes one unasked.
            remap::apply(&mut build, &["-C", "link-arg=-Wl,--build-id=sha1"]);
        }
        build.args(self.packages).current_dir(repository());
        build
    }
}

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
        "banger-e2b",
        "--package",
        "banger-image",
        "--package",
        "banger-jail",
        "--package",
        "banger-notify",
        "--package",
        "banger-system",
    ],
};

/// Builds the programs of the host.
pub fn host_programs(profile: &Profile) -> Result<()> {
    packages::ensure()?;
    run(&mut profile.build())
}

fn build(profile: &Profile) -> Result<Programs> {
    say("building");
    host_programs(profile)?;
    // The agent is linked statically, since it runs in any guest. Naming the target keeps build scripts and procedural
    // macros dynamic.
    let agent_target = platform::here()?.rust;
    let agent =
        ["build", "--quiet", "--package", "banger-agent", "--profile", "agent", "--target", agent_target];
    let mut agent = cargo(agent);
    remap::apply(&mut agent, &["-C", "target-feature=+crt-static"]);
    run(agent.current_dir(repository()))?;
    Ok(Programs {
        directory: target().join(profile.directory),
        agent: target().join(agent_target).join("agent/banger-agent"),
    })
}
