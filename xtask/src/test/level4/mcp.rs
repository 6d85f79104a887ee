//! Checks of the MCP server for coding agents.

use anyhow::{Result, ensure};

use super::{Check, run_as};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] =
    &[("an agent works in a sandbox over MCP, within its bounds, and leaves nothing", works)];

fn works(host: &Host) -> Result<()> {
    let out = run_as(host, "alice", &script!("level4/mcp/work.py" uses "mcp.py"))?;
    for expected in [
        "state running {'agent': ''}",
        "sum 5",
        "read echo $(($1 + $2))",
        "listed True",
        "limit True begun",
        "bound 5000000 True True",
        "nothing runs 0",
        "sent 1",
        "diff [{'path': 'file', 'status': 'modified'}] True",
        "applied 1 ['one', 'two']",
        "downloaded echo $(($1 + $2))",
        "wrong guest.not-found invalid-arguments",
        "outside not-allowed",
        "absent dev.banger.Error.NoSuchVM",
        "run 4",
        "background 1",
        "stopped stopped",
        "deleted {'deleted': 'work'}",
        "nothing left",
    ] {
        ensure!(out.lines().any(|line| line == expected), "no {expected:?} in {out:?}");
    }
    Ok(())
}
