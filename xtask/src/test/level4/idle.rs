//! Checks of sandboxes that idle, and of suspensions that their user interrupts.

use anyhow::{Result, ensure};

use super::{Check, run_as_root};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("a sandbox is suspended after its idle time, and not while a command runs in it", suspends),
    (
        "a sandbox that idled wakes by a connection to its port and by its name, and loses no connection",
        wakes,
    ),
    (
        "Ctrl-C of a suspension leaves the guest running, and of a resumption the sandbox suspended",
        interrupted,
    ),
];

fn suspends(host: &Host) -> Result<()> {
    let out = run_as_root(host, &script!("level4/idle/suspends.sh" uses "wait.sh"))?;
    for expected in [
        "busy with commands",
        "the command keeps it up",
        "the reason: idle:1 minute",
        "idle for 1 minute",
        "woken",
        "no policy",
    ] {
        ensure!(out.lines().any(|line| line == expected), "no {expected:?} in {out:?}");
    }
    Ok(())
}

fn wakes(host: &Host) -> Result<()> {
    let out = run_as_root(host, &script!("level4/idle/wakes.sh" uses "wait.sh"))?;
    for expected in [
        "its port is held",
        "the first connection is answered",
        "the reason: woken:port 8765",
        "and so is the next one",
        "its name is answered",
        "the reason: woken:name",
        "it is there",
    ] {
        ensure!(out.lines().any(|line| line == expected), "no {expected:?} in {out:?}");
    }
    Ok(())
}

fn interrupted(host: &Host) -> Result<()> {
    let out = run_as_root(host, &script!("level4/idle/interrupted.sh" uses "wait.sh"))?;
    for expected in ["it runs on", "the same process", "it stays suspended", "the memory is right"] {
        ensure!(out.lines().any(|line| line == expected), "no {expected:?} in {out:?}");
    }
    ensure!(!out.contains("too fast"), "{out:?}");
    Ok(())
}
