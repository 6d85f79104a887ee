//! `cargo xtask cross`: checks that the programs compile for arm64. Builds the agent of arm64 guests for a test.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::{
    build::{self, remap},
    dist::platform,
    packages,
    run::{cargo, command, output, repository, run, say, target},
};

/// Rust's name of the architecture.
const ARM64: &str = "aarch64";
/// Debian's linker for it.
const LINKER: &str = "aarch64-linux-gnu-gcc";

/// Compiles for arm64, or says why it cannot. Nothing is linked or run.
pub fn check() -> Result<()> {
    let target = platform::of(ARM64)?.rust;
    if let Some(why) = missing(target)? {
        say(&format!("SKIP arm64: {why}"));
        return Ok(());
    }
    packages::ensure()?;
    packages::ensure_cross_compiler()?;
    let mut check = cargo(["check", "--quiet", "--target", target, "--package", "banger-agent"]);
    check.args(build::RELEASE.packages);
    // Of these, only headers are read.
    check.env("PKG_CONFIG_ALLOW_CROSS", "1");
    check.env("BINDGEN_EXTRA_CLANG_ARGS", "-I/usr/aarch64-linux-gnu/include");
    run(check.current_dir(repository()))?;
    say(&format!("PASS the programs compile for {target}; none of them was run"));
    Ok(())
}

/// Returns why nothing can be compiled for this target, after an attempt to install its standard library.
pub fn missing(target: &str) -> Result<Option<String>> {
    let libraries = output(&mut command("rustc", ["--print", "target-libdir", "--target", target]))?;
    let is_there = || Path::new(libraries.trim()).is_dir();
    if !is_there() {
        // Without rustup or a network, the caller reports it.
        let _ = run(&mut command("rustup", ["target", "add", target]));
    }
    let why = format!("Rust has no standard library for {target}; run: rustup target add {target}");
    Ok((!is_there()).then_some(why))
}

/// Builds the agent of arm64 guests, and returns its path.
pub fn agent() -> Result<PathBuf> {
    let architecture = platform::of(ARM64)?.rust;
    packages::ensure_cross_compiler()?;
    say("building the agent for arm64");
    let mut agent = cargo([
        "build",
        "--quiet",
        "--package",
        "banger-agent",
        "--profile",
        "agent",
        "--target",
        architecture,
    ]);
    remap::apply(&mut agent, &["-C", "target-feature=+crt-static"]);
    agent.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER);
    run(agent.current_dir(repository()))?;
    Ok(target().join(architecture).join("agent/banger-agent"))
}
