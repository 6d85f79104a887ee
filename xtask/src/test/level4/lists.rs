//! Checks of lists and completion, as a person sees them in a terminal.

use anyhow::{Result, ensure};

use super::{Check, run_as};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] =
    &[("lists fit a narrow terminal, and the Tab key finds files of a guest", person)];

fn person(host: &Host) -> Result<()> {
    let out = run_as(host, "alice", &script!("level4/lists/person.sh" uses "wait.sh"))?;
    for line in [
        "box-of-lists running",
        "box-of-lists",
        "narrow",
        "name completed",
        "directory completed",
        "file completed",
        "filter completed",
    ] {
        ensure!(out.lines().any(|seen| seen == line), "no {line:?} in {out:?}");
    }
    ensure!(out.lines().any(|seen| seen.starts_with("root ")), "no name of a user in {out:?}");
    Ok(())
}
