//! `cargo xtask bench workspace`: sends a repository of 5,000 files into a guest and exports the work, compared with
//! `git bundle`, `scp` and `ssh` by hand over an open connection; sends one edited file of them, compared with `rsync`; and
//! sends a repository of 20,000 small files, compared with `tar` through a command. Runs `git status` in the repository of
//! 5,000 files as it is mounted, compared with the one that was sent.

use anyhow::Result;

use crate::bench::{
    Effort, Report,
    guest::{self, Comparison},
};

/// Runs the benchmark in both directions.
pub fn run(effort: Effort) -> Result<Vec<Report>> {
    guest::run(
        effort,
        |runs, size| script!("bench/workspace.py" uses "bench/guest.py", runs = runs, size = size),
        &[
            Comparison {
                name: "workspace, in",
                ours: ("in", "banger vm workspace prepare"),
                peers: ("in by hand", "git bundle, scp, git clone there"),
            },
            Comparison {
                name: "workspace, 20,000 small files in",
                ours: ("many", "banger vm workspace prepare"),
                peers: ("many by tar", "tar, through banger vm exec to tar there"),
            },
            Comparison {
                name: "workspace, out",
                ours: ("out", "banger vm workspace export -o"),
                peers: ("out by hand", "git commit and bundle there, scp, git fetch, git diff"),
            },
            Comparison {
                name: "workspace, one of 5,000 files edited",
                ours: ("sync", "banger vm workspace sync"),
                peers: ("sync by hand", "rsync"),
            },
            Comparison {
                name: "workspace, git status over a mount",
                ours: ("status mounted", "banger vm exec --mount, git status"),
                peers: ("status sent", "banger vm exec, git status in the workspace"),
            },
        ],
    )
}
