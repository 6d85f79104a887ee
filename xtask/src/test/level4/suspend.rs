//! Checks of suspended sandboxes.

use anyhow::{Result, ensure};

use super::{Check, run_as_root};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("a suspended sandbox continues where it was, although the service restarts", continues),
    ("a suspended sandbox with damaged memory starts cold and keeps its disks", damaged),
];

fn continues(host: &Host) -> Result<()> {
    let out = run_as_root(host, &script!("level4/suspend/continues.sh" uses "wait.sh"))?;
    for expected in [
        "no VMM",
        "the memory: 600 root",
        "no port",
        "hint: `banger vm resume save` continues it; `banger vm start --cold save` boots it without its memory.",
        "the same boot",
        "the right time",
        "the same process",
        "no gap",
        "the port is back",
        "no memory on disk",
        "woken",
    ] {
        ensure!(out.lines().any(|line| line == expected), "no {expected:?} in {out:?}");
    }
    ensure!(out.matches("hint: `banger vm resume save`").count() == 2, "a change of its size: {out:?}");
    let suspended = out.lines().filter(|line| line.split_whitespace().eq(["save", "suspended"])).count();
    ensure!(suspended == 2, "the restart ended the suspension: {out:?}");
    Ok(())
}

fn damaged(host: &Host) -> Result<()> {
    let out = run_as_root(host, &script!("level4/suspend/damaged.sh" uses "wait.sh"))?;
    for expected in ["then suspended", "cold kept", "no memory on disk", "forced stopped", "nothing is left"]
    {
        ensure!(out.lines().any(|line| line == expected), "no {expected:?} in {out:?}");
    }
    ensure!(out.contains("its memory on disk has changed; a cold start keeps the disks"), "{out:?}");
    Ok(())
}
