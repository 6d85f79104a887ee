//! `cargo xtask bench start`: the host's part of a start, from the request until the VMM runs, compared with
//! systemd-run of an empty unit that systemd alone confines.

use std::collections::HashMap;

use anyhow::{Context, Result};

use crate::{
    bench::{Effort, Report, Side},
    host::Host,
    run::{output, run as shell, say},
};

/// The limit for the host's part, in milliseconds.
const MOST: f64 = 30.0;
const NAME: &str = "bench-start";

/// Runs the benchmark.
pub fn run(effort: Effort) -> Result<Report> {
    let runs = effort.runs;
    let host = effort.host()?;
    // An interrupted run may have left one.
    root(&host, &["banger", "vm", "delete", "--force", NAME]).output().context("cannot run")?;
    shell(&mut root(
        &host,
        &["banger", "vm", "create", "--no-start", "--quiet", "--vcpu", "1", "--name", NAME],
    ))?;
    say("measuring");
    let said = output(&mut root(&host, &script!("bench/start.py", runs = runs, name = NAME)));
    shell(&mut root(&host, &["banger", "vm", "delete", "--force", "--quiet", NAME]))?;
    let mut seen: HashMap<String, Vec<f64>> =
        serde_json::from_str(said?.lines().last().unwrap_or_default()).context("cannot read the times")?;
    let mut side = |key: &str, what| {
        let samples_ms = seen.remove(key).with_context(|| format!("there are no times for {key}"))?;
        Ok::<_, anyhow::Error>(Side { what, samples_ms })
    };
    let ours = side("ours", "banger vm start, until the VMM runs")?;
    let peers = side("peers", "systemd-run, an empty unit confined by systemd")?;
    Report::new(format!("start ({MOST} ms at most)"), runs, ours, peers)
}

fn root<S: AsRef<str>>(host: &Host, words: &[S]) -> std::process::Command {
    let mut command = host.enter(words);
    command.stdin(std::process::Stdio::null());
    command
}
