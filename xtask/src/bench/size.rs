//! `cargo xtask bench size`: memory, size and start time of banger's release builds at rest.

use std::{
    fs,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::{
    bench::{Effort, Machine, median},
    host::Host,
    run::output,
};

/// The figures, which are printed beside their limits.
#[derive(Serialize)]
pub struct Report {
    name: &'static str,
    runs: u32,
    machine: Machine,
    /// Memory of the service before the first request, in MiB.
    rss_mib: f64,
    /// Size of the agent's file, in MiB.
    agent_mib: f64,
    /// Run time of `banger --version`.
    cli_start_ms: f64,
    /// Run time of a program that does nothing.
    true_start_ms: f64,
}

const MAX_RSS_MIB: f64 = 20.0;
const MAX_AGENT_MIB: f64 = 3.0;
const MAX_CLI_START_MS: f64 = 10.0;

/// Runs the benchmark.
pub fn run(effort: Effort) -> Result<Report> {
    let (runs, programs) = (effort.runs, effort.programs()?);
    let host = effort.host()?;
    output(&mut host.enter(&["systemctl", "restart", "banger-system.service"]))?;
    let client = programs.directory.join("banger");
    let bytes = fs::metadata(&programs.agent).context("there is no agent")?.len();
    let times = |program: &str, argument: &str| -> Result<f64> {
        let samples: Result<Vec<f64>> = (0..runs).map(|_| start(program, argument)).collect();
        Ok(median(&samples?))
    };
    Ok(Report {
        name: "size",
        runs,
        machine: Machine::this()?,
        rss_mib: service_rss_kib(&host)? / 1024.0,
        agent_mib: bytes as f64 / f64::from(1 << 20),
        cli_start_ms: times(&client.display().to_string(), "--version")?,
        true_start_ms: times("/usr/bin/true", "--version")?,
    })
}

impl Report {
    /// Prints the result as text.
    pub fn print(&self) {
        let lines = [
            ("banger-system at rest", self.rss_mib, MAX_RSS_MIB, "MiB"),
            ("banger-agent", self.agent_mib, MAX_AGENT_MIB, "MiB"),
            ("banger --version", self.cli_start_ms, MAX_CLI_START_MS, "ms"),
        ];
        for (what, is, most, unit) in lines {
            let verdict = if is <= most { "" } else { " (too much)" };
            println!("{what:>22}: {is:5.1} {unit} of {most} {unit}{verdict}");
        }
        println!("{:>22}: {:5.1} ms", "true", self.true_start_ms);
    }
}

fn start(program: &str, argument: &str) -> Result<f64> {
    let begin = Instant::now();
    let status = Command::new(program).arg(argument).stdout(Stdio::null()).status();
    let time = begin.elapsed();
    ensure!(status.with_context(|| format!("cannot run {program}"))?.success(), "{program} failed");
    Ok(time.as_secs_f64() * 1000.0)
}

fn service_rss_kib(host: &Host) -> Result<f64> {
    let look = "grep VmRSS /proc/$(systemctl show -P MainPID banger-system.service)/status";
    let line = output(&mut host.enter(&["sh", "-c", look]))?;
    let kib = line.split_ascii_whitespace().nth(1).context("cannot read the memory of the service")?;
    kib.parse().context("the memory of the service is not a number")
}
