//! Checks of sessions that outlive their clients.

use anyhow::{Context, Result, ensure};

use super::{Check, run_as};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] =
    &[("an editor in a session is where it was after its client and the service were killed", attach)];

fn attach(host: &Host) -> Result<()> {
    let session = script!("level4/attach/attach.sh" uses "wait.sh");
    // The session cannot kill the service itself, so it asks for it by a file.
    let killer = script!("level4/guests/kill_service.sh" uses "wait.sh");
    let mut killer = host.enter(&killer).spawn().context("cannot start the killer")?;
    let session = run_as(host, "alice", &session);
    killer.wait()?;
    let out = session?;
    for line in ["listed", "there", "edited", "ended 0", "ended 42", "remembered 42", "kept"] {
        ensure!(out.lines().any(|seen| seen == line), "no {line:?} in {out:?}");
    }
    Ok(())
}
