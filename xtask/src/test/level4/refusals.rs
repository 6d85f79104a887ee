//! Checks of refusals: the error names the reason, and the attempt leaves nothing behind.

use anyhow::{Result, ensure};

use super::{Check, as_user, sh, text};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("impossible wishes are refused in words", impossible),
    ("files that are neither an image nor a kernel are refused", wrong_files),
    ("a sandbox that is not ready in time is kept for its logs", not_ready),
    ("without QEMU a start fails and leaves nothing", no_qemu),
    ("on a full disk a create fails and leaves nothing", no_space),
];

/// Runs a command as alice that must fail, and whose errors must contain each of these.
fn refused(host: &Host, command: &str, said: &[&str]) -> Result<()> {
    let output = as_user(host, "alice", &["sh", "-c", command])?;
    let message = text(&output.stderr);
    ensure!(!output.status.success(), "{command:?} succeeds");
    for word in said {
        ensure!(message.contains(word), "the errors of {command:?} lack {word:?}: {message:?}");
    }
    Ok(())
}

fn impossible(host: &Host) -> Result<()> {
    let run = |options: &str, said: &[&str]| refused(host, &format!("banger vm run {options} -- true"), said);
    run("--vcpu 0", &["error:", "1"])?;
    run("--memory 10TiB", &["error:", "10 TiB"])?;
    run("--disk-size 1KiB", &["error:"])?;
    run("--root-size 1GiB", &["error: cannot make the system disk 1 GiB: its image has 8 GiB", "hint:"])?;
    run("--root-size 100TiB", &["error:", "100 TiB"])?;
    run("--image missing", &["error:", "missing", "hint:"])?;
    run("--kernel missing", &["error:", "missing", "hint:"])?;
    run("--name 'Not A Name'", &["error:"])?;
    refused(host, "banger vm start nobody", &["error:", "nobody"])?;
    // The service runs as root, and a local service would take its request for root's.
    refused(host, "banger image pull localhost:5432/x", &["error:", "registry.local_ports"])?;
    refused(host, "banger vm strat nobody", &["error:", "start"])
}

fn wrong_files(host: &Host) -> Result<()> {
    let session = "head -c 4M /dev/urandom > noise && ";
    let register = format!("{session} banger image register --name noise --rootfs noise");
    refused(host, &register, &["error:", "ext4"])?;
    let import = format!("{session} banger kernel import --name noise --vmlinuz noise");
    refused(host, &import, &["error:", "kernel"])?;
    let lists = sh(host, "alice", "banger image list --json; banger kernel list --json")?;
    ensure!(!lists.contains("noise"), "{lists}");
    Ok(())
}

fn not_ready(host: &Host) -> Result<()> {
    refused(
        host,
        // There is no template of this size, from which it might continue in time.
        "banger vm run --rm --name late --memory 777MiB --ready-timeout 1 -- true",
        &["error:", "banger vm logs late"],
    )?;
    let session =
        "banger vm show late --json; banger vm logs late > /dev/null; banger vm delete --force late";
    let shown = sh(host, "alice", session)?;
    ensure!(shown.contains("running"), "it does not run: {shown}");
    Ok(())
}

fn no_qemu(host: &Host) -> Result<()> {
    let move_it = |from: &str, to: &str| host.enter(&["mv", from, to]).status();
    let (qemu, hidden) = ("/usr/bin/qemu-system-x86_64", "/usr/bin/hidden-qemu");
    move_it(qemu, hidden)?;
    let checked = refused(host, "banger vm run --rm -- true", &["error:", "qemu"]);
    let doctor = sh(host, "alice", "banger doctor || true");
    move_it(hidden, qemu)?;
    checked?;
    let doctor = doctor?;
    ensure!(doctor.contains("qemu-system-x86"), "doctor does not say what to install: {doctor}");
    Ok(())
}

fn no_space(host: &Host) -> Result<()> {
    let vms = "/var/lib/banger/vms";
    // The service only sees mounts that exist when it starts.
    let root = |script: &str| host.enter(&["sh", "-euc", script]).output();
    root(&format!("mount -t tmpfs -o size=16m small {vms}; systemctl restart banger-system.service"))?;
    let checked = refused(host, "banger vm run --rm -- true", &["error:", "no space"]);
    let left = root(&format!("ls {vms}"));
    root(&format!("systemctl stop banger-system.service; umount {vms}"))?;
    checked?;
    let left = text(&left?.stdout);
    ensure!(left.is_empty(), "it left {left:?}");
    Ok(())
}
