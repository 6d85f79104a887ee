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
    let mut check = cargo(["check", "--quiet", "--target", target, "--package", "banger-agent"]);
    check.args(build::RELEASE.packages);
    // Of these, only headers are read.
    check.env("PKG_CONFIG_ALLOW_CROSS", "1");
    check.env("BINDGEN_EXTRA_CLANG_ARGS", "-I/usr/aarch64-linux-gnu/include");
    run(check.current_dir(repository()))?;
    say(&format!("PASS the programs compile for {target}; none of them was run"));
    Ok(())
}

/// Returns why nothing can be compiled for arm64, after an attempt to install what that needs. Errors are those of a
/// toolchain that cannot compile for this machine either.
pub fn missing(target: &str) -> Result<Option<String>> {
    let libraries = output(&mut command("rustc", ["--print", "target-libdir", "--target", target]))?;
    let install = || {
        say(&format!("adding a target to this Rust toolchain: rustup target add {target}"));
        run(&mut command("rustup", ["target", "add", target]))
    };
    let library = no_library(Path::new(libraries.trim()), target, install);
    Ok(library.or_else(|| packages::ensure_cross_compiler().err().map(no_compiler)))
}

/// Returns why there is no standard library in this directory, after an attempt to install it.
fn no_library(directory: &Path, target: &str, install: impl FnOnce() -> Result<()>) -> Option<String> {
    if directory.is_dir() {
        return None;
    }
    let error = install().err();
    let why = error.map_or_else(|| "it is still missing".to_owned(), |error| format!("{error:#}"));
    let text = format!("Rust has no standard library for {target} ({why}); run: rustup target add {target}");
    (!directory.is_dir()).then_some(text)
}

fn no_compiler(error: anyhow::Error) -> String {
    format!("there is no {LINKER}: {error:#}")
}

/// Builds the agent of arm64 guests, and returns its path. [`missing`] has found nothing.
pub fn agent() -> Result<PathBuf> {
    let architecture = platform::of(ARM64)?.rust;
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use anyhow::bail;

    use super::*;

    #[test]
    fn a_target_is_installed_only_if_it_is_missing_and_the_reason_is_kept() {
        let home = tempfile::tempdir().unwrap();
        let library = home.path().join("lib");
        let why = no_library(&library, "some-target", || bail!("cannot run rustup")).unwrap();
        assert_eq!(
            why,
            "Rust has no standard library for some-target (cannot run rustup); run: rustup target add some-target"
        );
        assert!(no_library(&library, "some-target", || Ok(())).unwrap().contains("still missing"));
        assert_eq!(no_library(&library, "some-target", || Ok(std::fs::create_dir(&library)?)), None);
        assert_eq!(no_library(&library, "some-target", || panic!("it is there")), None);
    }

    #[test]
    fn a_compiler_that_cannot_be_installed_is_named() {
        let why = no_compiler(anyhow::anyhow!("packages are missing"));
        assert_eq!(why, "there is no aarch64-linux-gnu-gcc: packages are missing");
    }
}
