//! Checks that a directory of the host is in a sandbox while a command runs, with the user's rights.

use anyhow::{Result, ensure};

use super::{Check, run_as};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] =
    &[("a mounted directory is worked in with the rights of its user, and is gone with the command", mount)];

fn mount(host: &Host) -> Result<()> {
    let out = run_as(host, "alice", &script!("level4/mount/works.sh" uses "wait.sh"))?;
    for expected in [
        "clean",
        " M file7",
        "same",
        "tool 755 root",
        "closed stays closed",
        "links lead nowhere",
        "owners stay",
        "no pipe",
        "commit: Eve: from the sandbox",
        "big: 1000 alice, tool: 755 alice",
        "left: 0",
        "1",
        "read-only",
        "still read-only",
        "nothing new",
        "of user: 1234",
        "of user: alice",
        "ended",
        "2",
    ] {
        ensure!(out.lines().any(|line| line == expected), "no {expected:?} in {out:?}");
    }
    ensure!(out.contains("the guest needs what is there"), "{out:?}");
    Ok(())
}
