//! `cargo xtask bench exec`: a command in a guest, compared with ssh to the same guest; and the completion of a sandbox
//! name, compared with the D-Bus call that it needs.

use anyhow::Result;

use crate::bench::{
    Effort, Report,
    guest::{self, Comparison},
};

const SCRIPT: &str = r#"
service = "dev.banger.Manager1"
call = ["busctl", "--system", "call", service, "/dev/banger/Manager1", "org.freedesktop.DBus.ObjectManager", "GetManagedObjects"]
words = ["banger", "--", "banger", "vm", "exec", "be"]
os.environ.update({"_CLAP_IFS": "\n", "_CLAP_COMPLETE_INDEX": "3", "_CLAP_COMPLETE_COMP_TYPE": "9", "_CLAP_COMPLETE_SPACE": "false"})
complete = {**os.environ, "BANGER_COMPLETE": "bash"}
told = subprocess.run(words, env=complete, capture_output=True, text=True).stdout
assert told.strip() == "bench", told
def complete_once():
    begin = time.perf_counter()
    run(*words, env=complete)
    seen.setdefault("complete", []).append((time.perf_counter() - begin) * 1000)
for turn in range(runs):
    timed("exec", ["banger", "vm", "exec", "bench", "--", "true"])
    timed("ssh", [*ssh, "true"])
    complete_once()
    timed("busctl", call)
"#;

/// Runs both comparisons.
pub fn run(effort: Effort) -> Result<Vec<Report>> {
    guest::run(
        effort,
        SCRIPT,
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
