//! Checks of restart policies, and of sandboxes that start with the host.

use anyhow::{Result, ensure};

use super::{Check, run_as_root};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] = &[
    (
        "a sandbox whose VMM is killed comes back with a new boot, and stays down once it is stopped",
        comes_back,
    ),
    ("the service starts with the host only for sandboxes that start with it", with_the_host),
];

fn comes_back(host: &Host) -> Result<()> {
    let out = run_as_root(host, &script!("level4/restart/comes_back.sh" uses "wait.sh"))?;
    for expected in [
        "policy on-failure",
        "running restarted:vmm-exit:killed:9",
        "its restart policy started it again after an end: signal 9 ended the VMM (vmm-exit)",
        "then stopped user-request",
    ] {
        ensure!(out.lines().any(|line| line == expected), "no {expected:?} in {out:?}");
    }
    Ok(())
}

fn with_the_host(host: &Host) -> Result<()> {
    let out = run_as_root(host, &script!("level4/restart/with_the_host.sh" uses "wait.sh"))?;
    for expected in [
        "wanted by the boot",
        "the service is started",
        "first running host-boot",
        "other stopped host-restart",
        "after a restart stopped user-request",
        "the service is not started",
    ] {
        ensure!(out.lines().any(|line| line == expected), "no {expected:?} in {out:?}");
    }
    Ok(())
}
