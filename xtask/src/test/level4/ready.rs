//! Checks of readiness, and of what a command finds in a new guest: files written in the first second stay, systemctl
//! answers, and the locale is a UTF-8 one.

use anyhow::{Result, ensure};

use super::{Check, run_as};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] =
    &[("a command has a locale with UTF-8, and leaves a script its input", habits)];
pub(super) const WITH_SYSTEMD: &[(&str, Check)] = &[
    ("what a command does in the first second is there when the boot is over", first_second),
    ("a start waits for as much of the boot as it is told to", waits),
];

fn first_second(host: &Host) -> Result<()> {
    // A user without a configuration file.
    let out = run_as(host, "alice", &script!("level4/ready/first_second.sh"))?;
    let lines: Vec<&str> = out.lines().collect();
    let [first, kept, copied, running, phases] = lines[..] else { anyhow::bail!("{out:?}") };
    ensure!(["starting", "running", "degraded"].contains(&first), "{first}");
    ensure!((kept, copied) == ("kept", "hello"), "{out:?}");
    ensure!(["running", "degraded"].contains(&running), "{running}");
    ensure!(phases.contains("\"agent\":") && !phases.contains("null"), "{phases}");
    Ok(())
}

fn waits(host: &Host) -> Result<()> {
    let out = run_as(host, "alice", &script!("level4/ready/waits.sh"))?;
    let lines: Vec<&str> = out.lines().collect();
    let [created, early, booted, phases] = lines[..] else { anyhow::bail!("{out:?}") };
    for (state, states) in [
        (created, &["running", "degraded"][..]),
        (early, &["starting", "running", "degraded"]),
        (booted, &["running", "degraded"]),
    ] {
        ensure!(states.contains(&state), "{out:?}");
    }
    ensure!(phases.contains("agent after") && phases.contains("boot after"), "{phases}");
    Ok(())
}

fn habits(host: &Host) -> Result<()> {
    let out = run_as(host, "alice", &script!("level4/ready/habits.sh"))?;
    for expected in ["C.UTF-8", "ä", "C.UTF-8 C", "C", "got a", "got b", "hello", "terminal"] {
        ensure!(out.lines().any(|line| line == expected), "no {expected:?} in {out:?}");
    }
    Ok(())
}
