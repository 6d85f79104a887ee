//! Checks of what users of docker type.

use anyhow::{Result, ensure};

use super::{Check, run_as, run_as_root};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("habits of docker: the first ten minutes work, or say what to type", first_minutes),
    ("habits of docker: a detached run with --rm is deleted when its command ends", ends_by_itself),
    ("habits of docker: a detached run with --rm is deleted although the service restarts", survives),
    ("habits of docker: a paused sandbox stands still and goes on, although the service restarts", paused),
];

fn first_minutes(host: &Host) -> Result<()> {
    let script = script!("level4/habits/first_minutes.sh" uses "wait.sh");
    let out = run_as(host, "alice", &script)?;
    ensure!(out.lines().filter(|line| line.starts_with("ok: ")).count() == 22, "{out:?}");
    Ok(())
}

fn ends_by_itself(host: &Host) -> Result<()> {
    let out = run_as(host, "alice", &script!("level4/habits/ends_by_itself.sh" uses "wait.sh"))?;
    for expected in ["name job", "waited 7", "gone", "brief gone", "idle gone", "stays 9"] {
        ensure!(out.lines().any(|line| line == expected), "no {expected:?} in {out:?}");
    }
    ensure!(out.contains("\"state\": \"running\""), "{out:?}");
    Ok(())
}

fn survives(host: &Host) -> Result<()> {
    let out = run_as_root(host, &script!("level4/habits/survives.sh" uses "wait.sh"))?;
    for expected in ["job gone", "late gone"] {
        ensure!(out.lines().any(|line| line == expected), "no {expected:?} in {out:?}");
    }
    ensure!(out.contains("\"state\": \"running\""), "the restart ended the sandbox: {out:?}");
    Ok(())
}

fn paused(host: &Host) -> Result<()> {
    let out = run_as_root(host, &script!("level4/habits/paused.sh" uses "wait.sh"))?;
    for expected in [
        "still: paused",
        "still: already paused",
        "no processor time",
        "hint: `banger vm unpause still` continues it.",
        "still: continued",
        "still: already running",
        "the right time",
    ] {
        ensure!(out.lines().any(|line| line == expected), "no {expected:?} in {out:?}");
    }
    ensure!(out.contains("\"state\": \"stopped\""), "{out:?}");
    Ok(())
}
