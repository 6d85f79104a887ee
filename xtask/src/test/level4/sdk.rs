//! Checks of the SDKs for Python and TypeScript.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::{Check, run_as};
use crate::{
    host::{self, Host},
    packages,
    run::cache,
    sdk,
};

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("a program in Python works in sandboxes with the SDK, and leaves nothing", python),
    ("a program in JavaScript works in sandboxes with the SDK, and leaves nothing", javascript),
];

/// The program in JavaScript.
const JAVASCRIPT: &str = include_str!("../../../../sdk/typescript/test/guests.mjs");
/// What both programs print.
const EXPECTED: [&str; 13] = [
    "created running",
    "command 3 out err",
    "input hello",
    "limit begun",
    "stream one two 0",
    "file #!/bin/sh 0755",
    "copied up",
    "failed guest.not-found",
    "published True",
    "suspended resumed",
    "fork kept True",
    "gone dev.banger.Error.NoSuchVM",
    "cancelled, nothing left",
];

fn python(host: &Host) -> Result<()> {
    let package = installed(host, "python")?;
    check(&run_as(host, "alice", &script!("level4/sdk/work.py", package = package.display()))?)
}

fn javascript(host: &Host) -> Result<()> {
    let package = installed(host, "typescript")?;
    let text = JAVASCRIPT.replace("PACKAGE", &package.to_string_lossy());
    let run = script!("level4/examples/run.sh", interpreter = "node", name = "sdk.mjs", text = text);
    check(&run_as(host, "alice", &run)?)
}

fn check(out: &str) -> Result<()> {
    for expected in EXPECTED {
        ensure!(out.lines().any(|line| line == expected), "no {expected:?} in {out:?}");
    }
    Ok(())
}

/// Installs an SDK for all users of the host, from the package that is published. Returns its directory.
fn installed(host: &Host, name: &str) -> Result<PathBuf> {
    let packed = cache().join("sdk");
    if packed.join(name).exists() {
        // Of a run that failed.
        fs::remove_dir_all(packed.join(name)).context("cannot remove the packages")?;
    }
    let files = sdk::pack(&packages::sdk_tools()?, &packed.join(name))?;
    let suffix = if name == "python" { ".whl" } else { ".tgz" };
    let file = files.iter().find(|file| file.to_string_lossy().ends_with(suffix)).context("no package")?;
    let inside = host::inside(file)?;
    let to = Path::new("/usr/local/lib/banger-sdk").join(name);
    run_as(host, "root", &script!("level4/sdk/install.sh", file = inside.display(), to = to.display()))?;
    fs::remove_dir_all(packed.join(name)).context("cannot remove the packages")?;
    Ok(to)
}
