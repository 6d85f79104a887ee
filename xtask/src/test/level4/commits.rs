//! Checks that the work of an agent comes back as commits.

use anyhow::{Result, ensure};

use super::{Check, run_as};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] =
    &[("an agent edits, tests and commits, and its commits come back as they are", agent)];

fn agent(host: &Host) -> Result<()> {
    let out = run_as(host, "alice", &script!("level4/commits/agent.sh"))?;
    for expected in [
        "test fails",
        "refs/banger/work/main: 3 new commits",
        "refs/banger/work/side: 1 new commit",
        "left is named",
        "main is equal",
        "side is equal",
        "Eve: add: mend it",
        "Max: aside",
        "Alice: second",
        "nothing else has changed",
        "merged",
        "sound",
        "error: cannot fetch the commits: an object is larger than 256 MiB.",
        "nothing is left",
        "sent 3 files: add.sh, aside, notes",
        "edited",
    ] {
        ensure!(out.lines().any(|line| line == expected), "no {expected:?} in {out:?}");
    }
    Ok(())
}
