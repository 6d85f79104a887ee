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
/// The beginning of every script: measures programs, and opens an ssh connection to the guest.
const PRELUDE: &str = r#"
import json, os, subprocess, sys, time
runs = int(sys.argv[1])
small = sys.argv[2] == "small"
ssh = ["ssh", "-S", "control", "bench.vm"]
scp = ["scp", "-q", "-o", "ControlPath=control"]
seen = {}
def run(*words, **more):
    return subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, **more)
def timed(key, *steps, cwd=None):
    begin = time.perf_counter()
    for words in steps: run(*words, cwd=cwd)
    seen.setdefault(key, []).append((time.perf_counter() - begin) * 1000)
run("banger", "ssh-config", "--install")
run("ssh", "-f", "-N", "-o", "ControlMaster=yes", "-S", "control", "bench.vm", stderr=subprocess.DEVNULL)
"#;
/// The end of every script.
const END: &str = r#"
run(*ssh[:-1], "-O", "exit", "bench.vm", stderr=subprocess.DEVNULL)
run("banger", "ssh-config", "--uninstall")
print(json.dumps(seen))
"#;

/// A comparison: the keys of both sides in the output of a script.
pub struct Comparison {
    /// The name of the comparison.
    pub name: &'static str,
    /// Our key, and a description of what was run.
    pub ours: (&'static str, &'static str),
    /// The peer's key and description.
    pub peers: (&'static str, &'static str),
}

/// Runs a script and returns the reports of these comparisons.
pub fn run(effort: Effort, script: &str, comparisons: &[Comparison]) -> Result<Vec<Report>> {
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
    shell(&mut alice(&host, &["sh", "-c", "until banger vm ssh bench -- true; do sleep 1; done"])?)?;
    say("measuring");
    let script = format!("{PRELUDE}{script}{END}");
    let size = if effort.smoke { "small" } else { "full" };
    let said = output(&mut alice(&host, &["python3", "-c", &script, &effort.runs.to_string(), size])?);
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

fn alice(host: &Host, words: &[&str]) -> Result<std::process::Command> {
    let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
    let mut session = host.session("alice", false, &words)?;
    session.stdin(Stdio::null());
    Ok(session)
}
