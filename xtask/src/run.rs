//! Runs programs. Their output goes to standard error, because standard output is for results.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// Runs a program, which must succeed.
pub fn run(command: &mut Command) -> Result<()> {
    let what = command.get_program().to_string_lossy().into_owned();
    // Standard output of the program goes to our standard error.
    let status = command.stdout(io::stderr()).status().with_context(|| format!("cannot run {what}"))?;
    if !status.success() {
        bail!("{what} failed: {status}");
    }
    Ok(())
}

/// Runs a program, which must succeed, and returns its output.
pub fn output(command: &mut Command) -> Result<String> {
    let what = command.get_program().to_string_lossy().into_owned();
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot run {what}"))?;
    if !output.status.success() {
        bail!("{what} failed: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns a command with these arguments.
pub fn command<I: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Returns a cargo command with these arguments, without the environment that `cargo run` adds.
///
/// `cargo run` describes xtask's own package in environment variables. Build scripts that watch one of them, such as
/// ring's, would run again whenever cargo is started from xtask after it was started by hand, and their dependents
/// would be rebuilt.
pub fn cargo<I: AsRef<OsStr>>(arguments: impl IntoIterator<Item = I>) -> Command {
    let mut cargo = command("cargo", arguments);
    let variables = std::env::vars_os().map(|(name, _)| name);
    for name in variables.filter(|name| name.to_str().is_some_and(describes_a_package)) {
        cargo.env_remove(name);
    }
    cargo
}

/// Returns whether `cargo run` sets this variable to describe the package whose program it runs.
/// See <https://doc.rust-lang.org/cargo/reference/environment-variables.html>
fn describes_a_package(variable: &str) -> bool {
    const NAMES: [&str; 4] = ["CARGO_BIN_NAME", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "OUT_DIR"];
    NAMES.contains(&variable) || variable.starts_with("CARGO_PKG_") || variable.starts_with("CARGO_MANIFEST_")
}

/// Formats bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the SHA-256 of a file, as hexadecimal digits.
pub fn digest_of(file: &Path) -> Result<String> {
    let reading = || format!("cannot read {}", file.display());
    let mut digest = Sha256::new();
    io::copy(&mut File::open(file).with_context(reading)?, &mut digest).with_context(reading)?;
    Ok(hex(&digest.finalize()))
}

/// Prints a progress message.
pub fn say(message: &str) {
    eprintln!("xtask: {message}");
}

/// Returns the repository that xtask runs in. It may differ from the one it was built in, because a checkout may be
/// copied with its programs.
///
/// Uses the directory that `cargo run` sets, else the current one.
pub fn repository() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let current = std::env::current_dir().ok();
    let found = manifest.iter().chain(&current).find_map(|place| repository_above(place));
    // Otherwise any directory will do: every file of the repository is then reported as missing.
    found.or(current).unwrap_or_default()
}

/// Returns the nearest checkout at or above a directory.
fn repository_above(place: &Path) -> Option<PathBuf> {
    let is_checkout =
        |place: &&Path| place.join("Cargo.lock").is_file() && place.join("xtask/Cargo.toml").is_file();
    place.ancestors().find(is_checkout).map(Path::to_path_buf)
}

/// Returns cargo's target directory.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => repository().join(directory),
        None => repository().join("target"),
    }
}

/// Returns the directory where xtask keeps kernels, images and private hosts.
pub fn cache() -> PathBuf {
    target().join("banger")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn cargo_is_told_of_no_package_and_keeps_its_settings() {
        for variable in
            ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PKG_NAME", "CARGO_PKG_VERSION_PRE"]
        {
            assert!(describes_a_package(variable), "{variable}");
        }
        for variable in ["CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_NET_OFFLINE", "CARGO_BUILD_JOBS", "PATH"] {
            assert!(!describes_a_package(variable), "{variable}");
        }
    }

    #[test]
    fn a_checkout_is_found_from_where_it_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("copy");
        std::fs::create_dir_all(copy.join("xtask/src")).unwrap();
        assert_eq!(repository_above(&copy.join("xtask/src")), None);
        for file in ["Cargo.lock", "xtask/Cargo.toml"] {
            std::fs::write(copy.join(file), "").unwrap();
        }
        for place in [copy.clone(), copy.join("xtask"), copy.join("xtask/src"), copy.join("not/there")] {
            assert_eq!(repository_above(&place), Some(copy.clone()), "{}", place.display());
        }
        assert_eq!(repository_above(dir.path()), None);
    }
}
