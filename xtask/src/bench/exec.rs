//! `cargo xtask bench exec`: a command in a guest, compared with ssh to the same guest; and the completion of a sandbox
//! name, compared with the D-Bus call that it needs.

use anyhow::Result;

use crate::bench::{
    Effort, Report,
    guest::{self, Comparison},
};

/// Runs both comparisons.
pub fn run(effort: Effort) -> Result<Vec<Report>> {
    guest::run(
        effort,
        |runs, size| script!("bench/exec.py" uses "bench/guest.py", runs = runs, size = size),
        &[
            Comparison {
                name: "exec",
                ours: ("exec", "banger vm exec bench -- true"),
                peers: ("ssh", "ssh bench.vm true, over an open connection"),
            },
            Comparison {
                name: "complete (20 ms at most)",
                ours: ("complete", "completion of a sandbox name"),
                peers: ("busctl", "busctl, with the same D-Bus call"),
            },
        ],
    )
}
