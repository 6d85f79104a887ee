//! The check of `banger-e2b`, with E2B's own SDK.

use anyhow::{Context, Result, ensure};

use super::{Check, run_as};
use crate::{
    host::{self, Host},
    packages,
};

pub(super) const CHECKS: &[(&str, Check)] =
    &[("a program with E2B's SDK works in a sandbox, and leaves nothing", works)];

fn works(host: &Host) -> Result<()> {
    let modules = packages::e2b_sdk()?.context("there is no SDK")?;
    let modules = host::inside(&modules)?;
    let to = "/usr/local/lib/e2b-sdk";
    run_as(host, "root", &script!("level4/e2b/install.sh", modules = modules.display(), to = to))?;
    let out = run_as(host, "alice", &script!("level4/e2b/work.py", modules = to))?;
    for expected in [
        "created running base",
        "command 12 err",
        "status 3",
        "stream one two",
        "input hello",
        "killed True",
        "user nobody",
        "directory /tmp",
        "file hello True",
        "list sub True",
        "renamed True False",
        "listed True",
        "paused True",
        "refused SandboxNotRunningException",
        "resumed True",
        "still running",
        "gone True False",
        "in time",
        "nothing left",
    ] {
        ensure!(out.lines().any(|line| line == expected), "no {expected:?} in {out:?}");
    }
    Ok(())
}
