//! Checks of kernel modules: guests have them all, the kernel loads them on demand, and containers run.

use anyhow::{Result, ensure};

use super::{Check, run_as, run_as_root, sh_as_root};
use crate::{
    host::{self, Host},
    image,
};

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("the kernel loads modules in an image without kmod", without_kmod),
    ("docker and podman run containers with published ports and DNS, and FUSE mounts", containers),
    ("a kernel without the drivers for its root is refused at import", no_drivers),
];
pub(super) const WITH_SYSTEMD: &[(&str, Check)] = &[
    ("a guest has all modules of its kernel, and systemd reports no failure", all_modules),
    ("the systemd of Debian 13 reports no failure", debian13),
];

fn all_modules(host: &Host) -> Result<()> {
    let out = run_as(host, "alice", &script!("level4/modules/all_modules.sh"))?;
    let has = |text: &str| out.lines().any(|line| line.contains(text));
    for expected in [
        "system: running",
        "read-only",
        "lost: 0",
        "wg0:",
        "br0:",
        "/dev/fuse",
        "/dev/net/tun",
        "alias: fuse",
    ] {
        ensure!(has(expected), "no {expected:?} in {out:?}");
    }
    ensure!(!has("no "), "modules are missing: {out:?}");
    Ok(())
}

fn debian13(host: &Host) -> Result<()> {
    let image = host::inside(&image::ensure(image::TRIXIE)?)?;
    let register = format!("banger image register --shared --name trixie --rootfs {}", image.display());
    sh_as_root(host, &register)?;
    let out = run_as(host, "alice", &script!("level4/modules/debian13.sh"))?;
    run_as_root(host, &["banger", "image", "delete", "trixie"])?;
    ensure!(out.trim() == "trixie: running", "{out:?}");
    Ok(())
}

/// Checks an image that has only busybox, and no `modprobe` where the kernel looks for it.
fn without_kmod(host: &Host) -> Result<()> {
    let tar = host::inside(&image::archive("minimal")?)?;
    let register = format!("banger image register --shared --name bare --rootfs {}", tar.display());
    sh_as_root(host, &register)?;
    let out = run_as(host, "alice", &script!("level4/modules/without_kmod.sh"))?;
    run_as_root(host, &["banger", "image", "delete", "bare"])?;
    for expected in ["modules.dep", "/run/banger-modprobe", "fuse", "squashfs", "nfs", "sunrpc"] {
        ensure!(out.lines().any(|line| line.trim().ends_with(expected)), "no {expected:?} in {out:?}");
    }
    Ok(())
}

/// Runs containers from an image that is built from a tar, so nothing is downloaded.
fn containers(host: &Host) -> Result<()> {
    let tar = host::inside(&image::archive("containers")?)?;
    let register = format!("banger image register --shared --name containers --rootfs {}", tar.display());
    sh_as_root(host, &register)?;
    let out = run_as(host, "alice", &script!("level4/modules/containers.sh"))?;
    run_as_root(host, &["banger", "image", "delete", "containers"])?;
    for expected in [
        "docker: content overlay2 2",
        "docker network: content",
        "docker DNS: ship.vm",
        "podman: content",
        "rootless: content",
        "FUSE: content more fuseblk",
    ] {
        ensure!(out.lines().any(|line| line == expected), "no {expected:?} in {out}");
    }
    Ok(())
}

/// Imports Debian's kernel without its modules, which contain the drivers.
fn no_drivers(host: &Host) -> Result<()> {
    let kernel = image::kernel::ensure()?;
    let vmlinuz = host::inside(&kernel.vmlinuz)?;
    let import =
        format!("banger kernel import --name lone --vmlinuz {} 2>&1 && echo taken", vmlinuz.display());
    let out = super::text(&host.enter(&["sh", "-c", &import]).output()?.stdout);
    ensure!(out.contains("no virtio_blk") && !out.contains("taken"), "{out:?}");
    Ok(())
}
