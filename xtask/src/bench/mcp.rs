//! `cargo xtask bench mcp`: a command in a guest over MCP, compared with `banger vm exec`.

use anyhow::Result;

use crate::bench::{
    Effort, Report,
    guest::{self, Comparison},
};

/// Runs the comparison.
pub fn run(effort: Effort) -> Result<Vec<Report>> {
    guest::run(
        effort,
        |runs, size| script!("bench/mcp.py" uses "bench/guest.py" + "mcp.py", runs = runs, size = size),
        &[Comparison {
            name: "mcp (1.2 at most)",
            ours: ("mcp", "the tool exec with true"),
            peers: ("exec", "banger vm exec bench -- true"),
        }],
    )
}
