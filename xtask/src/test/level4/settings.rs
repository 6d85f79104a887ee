//! Checks of what users set once and rely on: proxies, and explanations of what is missing or has failed.

use anyhow::{Result, ensure};

use super::{Check, run_as, run_as_root, sh};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("a proxy on the host's loopback serves a sandbox, and its password is kept nowhere", proxy),
    ("a failed look-up without internet access is explained on a terminal", lookups),
    ("the log of a killed VMM says what ended it, and a stop clears the failure", killed),
];

fn proxy(host: &Host) -> Result<()> {
    let out = run_as(host, "alice", &script!("level4/settings/proxy.sh" uses "wait.sh"))?;
    let fetched = out.matches("through the proxy to http://example.org/page").count();
    ensure!(fetched == 4, "{fetched} of 4 pages in {out:?}");
    for line in [
        "not without asking",
        "two ports",
        "localhost,127.0.0.1,::1,.vm,box",
        "refused for a detached command",
        "the password is kept nowhere",
    ] {
        ensure!(out.lines().any(|found| found == line), "no {line:?} in {out:?}");
    }
    Ok(())
}

fn lookups(host: &Host) -> Result<()> {
    let out = run_as(host, "alice", &script!("level4/settings/lookups.sh"))?;
    for line in [
        "failed: 1",
        "note: the sandbox has no internet access; `banger vm set --nat box` gives it.",
        "succeeded: 0",
        "in a pipe: 0",
        "without a look-up: 0",
        "PASS  internet: sandboxes have it only with `--nat` or `--egress`, so that code in them cannot send data away",
    ] {
        ensure!(out.lines().any(|found| found == line), "no {line:?} in {out:?}");
    }
    Ok(())
}

fn killed(host: &Host) -> Result<()> {
    sh(host, "alice", "banger vm create --quiet --vcpu 1 --name box")?;
    // Root sees the sandboxes of others by their owner.
    let kill = script!("level4/settings/killed.sh" uses "wait.sh");
    let out = run_as_root(host, &kill)?;
    for part in
        ["banger: signal 9 (KILL) ended the VMM.", "signal 9 ended the VMM (vmm-exit)", "already stopped"]
    {
        ensure!(out.contains(part), "no {part:?} in {out:?}");
    }
    ensure!(out.lines().any(|line| line == "stopped"), "{out:?}");
    sh(host, "alice", "banger vm delete --quiet box").map(drop)
}
