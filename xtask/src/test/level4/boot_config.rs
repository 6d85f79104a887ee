//! Checks of the configuration of a boot: it reaches the guest over the agent's channel, so the initramfs of all
//! sandboxes is the same.

use std::fs;

use anyhow::{Context, Result, bail, ensure};

use super::{Check, run_as, run_as_root, sh};
use crate::{bench::boot::process_of, host::Host};

pub(super) const CHECKS: &[(&str, Check)] =
    &[("the initramfs holds nothing of a sandbox, and guests draw different numbers", one_initramfs)];

fn one_initramfs(host: &Host) -> Result<()> {
    // The first one boots; the second one may continue from a template, and has none then.
    run_as_root(host, &script!("level4/template/forget.sh"))?;
    let out = run_as(host, "alice", &script!("level4/boot_config/two.sh"))?;
    let initramfs = [initramfs_of("bare-1"), initramfs_of("bare-2")];
    sh(host, "alice", "banger vm delete --force --quiet bare-1 bare-2")?;
    let [first, second] = initramfs;
    let (first, second) = (first?.context("the first sandbox has no initramfs")?, second?);
    ensure!(second.is_none_or(|second| first == second), "two sandboxes have different initramfs");
    ensure!(!first.windows(6).any(|window| window == b"bare-1"), "the initramfs has the name of a sandbox");
    let [one, other] = out.lines().collect::<Vec<_>>()[..] else { bail!("{out:?}") };
    let words = one.split_whitespace().zip(other.split_whitespace());
    ensure!(words.clone().count() == 2 && words.clone().all(|(a, b)| a != b), "{out:?}");
    Ok(())
}

/// Returns the initramfs that the QEMU of a sandbox has open, if it has one.
fn initramfs_of(sandbox: &str) -> Result<Option<Vec<u8>>> {
    let process = process_of(sandbox)?;
    for entry in fs::read_dir(process.join("fd"))? {
        let descriptor = entry?.path();
        // Descriptors come and go.
        let Ok(file) = fs::read_link(&descriptor) else { continue };
        if file.to_string_lossy().contains("banger-initrd") {
            return fs::read(&descriptor).map(Some).context("cannot read the initramfs of a sandbox");
        }
    }
    Ok(None)
}
