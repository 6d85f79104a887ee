//! What the benchmarks have in common that need a guest that is up: a script takes both sides in turns, as alice in
//! the private host, beside each other in one session.

use std::{collections::HashMap, process::Stdio};

use anyhow::{Context, Result};

use crate::{
    bench::{Effort, Report, Side},
    host::Host,
    run::{output, run as shell, say},
};

/// The sandbox of the benchmarks.
const NAME: &str = "bench";
/// What every script begins with: times of programs, and ssh to the guest with a connection that is kept.
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
/// What every script ends with.
const END: &str = r#"
run(*ssh[:-1], "-O", "exit", "bench.vm", stderr=subprocess.DEVNULL)
run("banger", "ssh-config", "--uninstall")
print(json.dumps(seen))
"#;

/// A comparison: the keys under which a script has the times of each side.
pub struct Comparison {
    /// What it is called.
    pub name: &'static str,
    /// Our key, and what was run.
    pub ours: (&'static str, &'static str),
    /// The peer's.
    pub peers: (&'static str, &'static str),
}

/// Runs the script, whose times are those of these comparisons.
pub fn run(effort: Effort, script: &str, comparisons: &[Comparison]) -> Result<Vec<Report>> {
    let host = effort.host()?;
    // One that an interrupted run has left.
    alice(&host, &["banger", "vm", "delete", "--force", NAME])?.output().context("cannot run")?;
    say("starting a guest");
    shell(&mut alice(&host, &["banger", "vm", "create", "--quiet", "--vcpu", "1", "--name", NAME])?)?;
    if effort.smoke {
        // There is no init that starts it.
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
        let samples_ms = seen.get(key).with_context(|| format!("there are no times of {key}"))?;
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
