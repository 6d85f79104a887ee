//! Common parts of the benchmarks that need a running guest: a script measures both sides in turns, in one session of
//! alice in the private host.

use std::{collections::HashMap, process::Stdio};

use anyhow::{Context, Result};

use crate::{
    bench::{Effort, Report, Side},
    host::Host,
    run::{output, run as shell, say},
};

/// The sandbox of the benchmarks.
const NAME: &str = "bench";
/// A comparison: the keys of both sides in the output of a script.
pub struct Comparison {
    /// The name of the comparison.
    pub name: &'static str,
    /// Our key, and a description of what was run.
    pub ours: (&'static str, &'static str),
    /// The peer's key and description.
    pub peers: (&'static str, &'static str),
}

/// Returns the words that run a script, from the number of its runs and the size of its work.
type Script = fn(runs: &str, size: &str) -> Vec<String>;

/// Runs a script and returns the reports of these comparisons.
pub fn run(effort: Effort, script: Script, comparisons: &[Comparison]) -> Result<Vec<Report>> {
    let host = effort.host()?;
    // An interrupted run may have left one.
    alice(&host, &["banger", "vm", "delete", "--force", NAME])?.output().context("cannot run")?;
    say("starting a guest");
    shell(&mut alice(&host, &["banger", "vm", "create", "--quiet", "--vcpu", "1", "--name", NAME])?)?;
    if effort.smoke {
        // The small image has no init that starts sshd.
        let serve = "mkdir -p /run/sshd; exec /usr/sbin/sshd";
        shell(&mut alice(&host, &["banger", "vm", "exec", NAME, "--", "sh", "-c", serve])?)?;
    }
    shell(&mut alice(&host, &script!("bench/wait_for_ssh.sh" uses "wait.sh", name = NAME))?)?;
    say("measuring");
    let size = if effort.smoke { "small" } else { "full" };
    let said = output(&mut alice(&host, &script(&effort.runs.to_string(), size))?);
    shell(&mut alice(&host, &["banger", "vm", "delete", "--force", "--quiet", NAME])?)?;
    let said = said?;
    let seen: HashMap<String, Vec<f64>> =
        serde_json::from_str(said.lines().last().unwrap_or_default()).context("cannot read the times")?;
    let side = |(key, what): (&str, &'static str)| {
        let samples_ms = seen.get(key).with_context(|| format!("there are no times for {key}"))?;
        Ok::<_, anyhow::Error>(Side { what, samples_ms: samples_ms.clone() })
    };
    let report = |one: &Comparison| Report::new(one.name, effort.runs, side(one.ours)?, side(one.peers)?);
    comparisons.iter().map(report).collect()
}

fn alice<S: AsRef<str>>(host: &Host, words: &[S]) -> Result<std::process::Command> {
    let mut session = host.session("alice", false, words)?;
    session.stdin(Stdio::null());
    Ok(session)
}
