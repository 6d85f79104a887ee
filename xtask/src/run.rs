//! Running programs: what they say goes to standard error, since standard output belongs to the results.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// Runs a program to its end; it must succeed.
pub fn run(command: &mut Command) -> Result<()> {
    let what = command.get_program().to_string_lossy().into_owned();
    // Its standard output is our standard error.
    let status = command.stdout(io::stderr()).status().with_context(|| format!("cannot run {what}"))?;
    if !status.success() {
        bail!("{what} failed: {status}");
    }
    Ok(())
}

/// Runs a program and gives what it printed; it must succeed.
pub fn output(command: &mut Command) -> Result<String> {
    let what = command.get_program().to_string_lossy().into_owned();
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot run {what}"))?;
    if !output.status.success() {
        bail!("{what} failed: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A program with its arguments.
pub fn command<I: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Cargo with its arguments, as if it was started by hand.
///
/// `cargo run` describes xtask's own package in the environment of xtask. Build scripts that watch such a variable,
/// as those of ring do, would run again, and what depends on them would be built again, whenever cargo is started
/// from xtask and by hand in turns.
pub fn cargo<I: AsRef<OsStr>>(arguments: impl IntoIterator<Item = I>) -> Command {
    let mut cargo = command("cargo", arguments);
    let variables = std::env::vars_os().map(|(name, _)| name);
    for name in variables.filter(|name| name.to_str().is_some_and(describes_a_package)) {
        cargo.env_remove(name);
    }
    cargo
}

/// Whether `cargo run` sets this variable to describe the package whose program it runs.
/// <https://doc.rust-lang.org/cargo/reference/environment-variables.html>
fn describes_a_package(variable: &str) -> bool {
    const NAMES: [&str; 4] = ["CARGO_BIN_NAME", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "OUT_DIR"];
    NAMES.contains(&variable) || variable.starts_with("CARGO_PKG_") || variable.starts_with("CARGO_MANIFEST_")
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The SHA-256 of a file, as hexadecimal digits.
pub fn digest_of(file: &Path) -> Result<String> {
    let reading = || format!("cannot read {}", file.display());
    let mut digest = Sha256::new();
    io::copy(&mut File::open(file).with_context(reading)?, &mut digest).with_context(reading)?;
    Ok(hex(&digest.finalize()))
}

/// Says what is being done.
pub fn say(message: &str) {
    eprintln!("xtask: {message}");
}

/// The repository that this runs in, not the one that it was built in: a checkout is copied with its programs.
///
/// It is found by what `cargo run` says, else by the current directory.
pub fn repository() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let current = std::env::current_dir().ok();
    let found = manifest.iter().chain(&current).find_map(|place| repository_above(place));
    // Nothing of it is there, so that whatever is looked for is said to be missing.
    found.or(current).unwrap_or_default()
}

/// The nearest directory at or above this one that is a checkout.
fn repository_above(place: &Path) -> Option<PathBuf> {
    let is_checkout =
        |place: &&Path| place.join("Cargo.lock").is_file() && place.join("xtask/Cargo.toml").is_file();
    place.ancestors().find(is_checkout).map(Path::to_path_buf)
}

/// Where cargo builds.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => repository().join(directory),
        None => repository().join("target"),
    }
}

/// Where xtask keeps what it makes: kernels, images and private hosts.
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
