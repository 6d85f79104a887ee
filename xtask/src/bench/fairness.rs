//! `cargo xtask bench fairness`: what a user waits for while another one has asked for as much as they can, compared with
//! the same user alone: 560 followed logs, 600 jobs and 120 exports of an image.

use std::process::Stdio;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    bench::{Effort, Goal, Report, Side},
    host::Host,
    run::{output, run as shell, say},
    try_it::IMAGE,
};

/// The sandbox of alice, who asks for too much, and that of bob.
const HERS: &str = "bench-fairness";
const HIS: &str = "bench-alone";
/// How many times as long anything may take for another user.
const GOAL: Goal = Goal::Ratio(1.2);

/// Runs the benchmark.
pub fn run(effort: Effort) -> Result<Vec<Report>> {
    let host = effort.host()?;
    delete(&host)?;
    let seen = measure(&host, effort.runs);
    delete(&host)?;
    let seen = seen?;
    let side = |key: &str, what| {
        let times = seen[key].as_array().with_context(|| format!("there are no times for {key}"))?;
        Ok::<_, anyhow::Error>(Side { what, samples_ms: times.iter().filter_map(Value::as_f64).collect() })
    };
    Ok(vec![
        Report::new(
            "fairness: vm list",
            effort.runs,
            side("list crowded", "banger vm list, another user floods the service")?,
            side("list alone", "the same, alone")?,
        )?
        .with_goal(GOAL),
        Report::new(
            "fairness: vm start",
            effort.runs,
            side("start crowded", "banger vm start, until the VMM runs, another user floods the service")?,
            side("start alone", "the same, alone")?,
        )?
        .with_goal(GOAL),
    ])
}

fn measure(host: &Host, runs: u32) -> Result<Value> {
    for (user, name) in [("alice", HERS), ("bob", HIS)] {
        let create = ["banger", "vm", "create", "--no-start", "--quiet", "--vcpu", "1", "--name", name];
        shell(host.session(user, false, &create)?.stdin(Stdio::null()))?;
    }
    say("measuring");
    let script = script!("bench/fairness.py", runs = runs, hers = HERS, his = HIS, image = IMAGE);
    let said = output(host.enter(&script).stdin(Stdio::null()))?;
    serde_json::from_str(said.lines().last().unwrap_or_default()).context("cannot read the times")
}

/// Deletes the sandboxes of this run or of an interrupted one.
fn delete(host: &Host) -> Result<()> {
    for (user, name) in [("alice", HERS), ("bob", HIS)] {
        let delete = ["banger", "vm", "delete", "--force", name];
        host.session(user, false, &delete)?.stdin(Stdio::null()).output().context("cannot run")?;
    }
    Ok(())
}
