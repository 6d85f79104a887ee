//! Checks of the host's own kernel, which sandboxes boot if the configuration names none.

use anyhow::{Result, ensure};

use super::{Check, run_as, run_as_root};
use crate::{
    host::{self, Host},
    image, try_it,
};

pub(super) const CHECKS: &[(&str, Check)] =
    &[("a host whose configuration names no kernel boots its own", host_kernel)];

fn host_kernel(host: &Host) -> Result<()> {
    let kernel = image::kernel::ensure()?;
    let root = host::inside(&kernel.root)?;
    run_as_root(host, &script!("level4/host_kernel/install.sh", root = root.display()))?;
    try_it::set_default_kernel(host, "")?;
    let checked = boots_its_own(host, &kernel.modules.file_name().unwrap_or_default().to_string_lossy());
    let removed = run_as_root(host, &script!("level4/host_kernel/remove.sh"));
    try_it::set_default_kernel(host, try_it::KERNEL)?;
    checked.and(removed.map(drop))
}

fn boots_its_own(host: &Host, release: &str) -> Result<()> {
    let out = run_as_root(host, &script!("level4/host_kernel/killed.sh" uses "wait.sh"))?;
    ensure!(out == "nothing is left", "{out:?}");
    let out = run_as(host, "alice", &script!("level4/host_kernel/first_run.sh"))?;
    for expected in ["which the first sandbox imports", "the host's own", "host:/boot/vmlinuz-"] {
        ensure!(out.contains(expected), "no {expected:?} in {out:?}");
    }
    ensure!(out.lines().any(|line| line.trim() == release), "no {release} in {out:?}");
    let out = run_as_root(host, &script!("level4/host_kernel/upgrade.sh"))?;
    for expected in ["imported again", "1"] {
        ensure!(out.lines().any(|line| line == expected), "no {expected:?} in {out:?}");
    }
    Ok(())
}
