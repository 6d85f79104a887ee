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

/// The repository.
pub fn repository() -> PathBuf {
    let crate_directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_directory.parent().unwrap_or(crate_directory).to_path_buf()
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
