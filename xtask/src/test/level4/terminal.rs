//! Checks of a terminal session: input, size, interrupts and job control.

use anyhow::{Result, ensure};

use super::{Check, run_as};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] =
    &[("a terminal has its size, interrupts, job control and an editor", person)];

/// Drives a shell through tmux, which provides the terminal and reads its screen.
fn person(host: &Host) -> Result<()> {
    let out = run_as(host, "alice", &script!("level4/terminal/person.sh" uses "wait.sh"))?;
    for line in ["resized", "interrupted", "stopped", "continued", "edited", "ended 42"] {
        ensure!(out.lines().any(|seen| seen == line), "no {line:?} in {out:?}");
    }
    Ok(())
}
