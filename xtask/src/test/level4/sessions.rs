//! Checks of several commands in one guest: none starves the others.

use anyhow::{Context, Result, ensure};

use super::{Check, run_as, run_as_root, sh_as_root};
use crate::{
    host::{self, Host},
    image,
};

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("a fork bomb leaves room for another command", fork_bomb),
    ("commands may open and watch as much as services of systemd", limits),
    ("what a detached command writes is bounded, and outlives the boot", detached),
    ("a guest that stops answering is not ready, and its commands end with 125", silent),
];
pub(super) const WITH_SYSTEMD: &[(&str, Check)] = &[
    ("a command that eats all memory ends alone, with and without systemd", memory_hog),
    ("systemd leaves the control groups of commands alone, and a terminal is a login", systemd_leaves_groups),
];

fn memory_hog(host: &Host) -> Result<()> {
    let tar = host::inside(&image::archive("minimal")?)?;
    let register = format!("banger image register --shared --name without --rootfs {}", tar.display());
    sh_as_root(host, &register)?;
    for image in ["", "without"] {
        let out = run_as(host, "alice", &script!("level4/sessions/memory_hog.sh", image = image))?;
        for expected in ["other: goes on", "\"ready\": true"] {
            ensure!(out.lines().any(|line| line == expected), "{image}: no {expected:?} in {out:?}");
        }
        ensure!(out.lines().filter(|line| *line == "hog: 137").count() == 2, "{image}: {out:?}");
    }
    run_as_root(host, &["banger", "image", "delete", "without"])?;
    Ok(())
}

fn fork_bomb(host: &Host) -> Result<()> {
    // More processes than a guest of this size can have: the shell either fails to fork or runs out of memory first.
    let out = run_as(host, "alice", &script!("level4/sessions/fork_bomb.sh"))?;
    let is_bounded = |line: &str| {
        ["cannot fork", "resource", "ended: 137"].iter().any(|end| line.to_lowercase().contains(end))
    };
    ensure!(out.lines().any(is_bounded) && out.lines().any(|line| line == "one"), "{out:?}");
    Ok(())
}

fn systemd_leaves_groups(host: &Host) -> Result<()> {
    let out = run_as(host, "alice", &script!("level4/sessions/systemd_leaves_groups.sh" uses "wait.sh"))?;
    let groups = out.lines().filter(|line| line.starts_with("0::/banger/sessions/")).count();
    ensure!(groups == 2, "{out:?}");
    for expected in ["-900", "0"] {
        ensure!(out.lines().any(|line| line.ends_with(expected)), "no {expected:?} in {out:?}");
    }
    let controllers = out.lines().any(|line| line.contains("memory") && line.contains("pids"));
    ensure!(controllers, "{out:?}");
    for expected in ["manager: running", "\nkept\n", "\nVersion="] {
        ensure!(out.contains(expected), "no {expected:?} in {out:?}");
    }
    Ok(())
}

fn limits(host: &Host) -> Result<()> {
    let out = run_as(host, "alice", &script!("level4/sessions/limits.sh"))?;
    for expected in
        ["1024", "524288", "/run/user/0 root 700", "/run/user/65534 nobody 700", "written", "watches"]
    {
        ensure!(out.lines().any(|line| line == expected), "no {expected:?} in {out:?}");
    }
    Ok(())
}

fn detached(host: &Host) -> Result<()> {
    // More than twice the limit of kept output.
    let out = run_as(host, "alice", &script!("level4/sessions/detached.sh"))?;
    ensure!(out.lines().filter(|line| *line == "last").count() == 2, "{out:?}");
    for expected in ["bounded", "bytes were cut here", "running", "exited 3", "killed by signal 15"] {
        ensure!(out.contains(expected), "no {expected:?} in {out:?}");
    }
    Ok(())
}

fn silent(host: &Host) -> Result<()> {
    let session = script!("level4/sessions/silent.sh" uses "wait.sh");
    let stopper = script!("level4/sessions/stop_vmm.sh" uses "wait.sh");
    let mut stopper = host.enter(&stopper).spawn().context("cannot stop the VMM")?;
    let session = run_as(host, "alice", &session);
    stopper.wait()?;
    let out = session?;
    for expected in
        ["client: 125", "said nothing for 30 seconds", "\"ready\": false", "\"ready\": true", "still there"]
    {
        ensure!(out.contains(expected), "no {expected:?} in {out:?}");
    }
    Ok(())
}
