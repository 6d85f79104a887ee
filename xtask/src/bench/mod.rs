//! `cargo xtask bench`: measures banger against a peer, in turns within one run.
//!
//! Hosts are noisy, so what counts is the ratio of the medians, never a single time.

mod all;
pub mod boot;
mod bus;
mod chart;
mod create;
mod disk;
mod exec;
mod fairness;
mod guest;
mod idle;
mod import;
mod instant;
mod mcp;
mod net;
mod service;
mod size;
mod start;
mod workspace;

use std::{fmt, fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use serde::Serialize;

use crate::{
    build::{self, Profile, Programs},
    host::{self, Host},
    image, try_it,
};

/// Arguments of `cargo xtask bench`.
#[derive(Parser)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    bench: Option<Bench>,
    /// Run the benchmark, or all of them, once and with little work, to test that it runs
    #[arg(long, global = true, conflicts_with = "runs")]
    smoke: bool,
    /// Run each side this many times
    #[arg(long, default_value_t = 5, global = true, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Print one JSON object per table
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Clone, Copy, Subcommand)]
enum Bench {
    /// Run all benchmarks, and write a table, a chart and all figures to target/banger/bench
    All,
    /// Measure from the request to the first byte of a command's output in a new sandbox
    Boot,
    /// Measure how many sandboxes the service creates and deletes per second on a host in memory, and its memory
    Create,
    /// Compare calls of the service with those of an empty service on the same bus
    Bus,
    /// Measure memory of the service, size of the agent and start time of the client
    Size,
    /// Compare the import of an image layer with umoci and mkfs.ext4
    Import,
    /// Compare adding and removing a guest's network interface with ip and nft
    Net,
    /// Compare the system disk of a 4 GiB image with one `dmsetup create`, in the test host
    Disk,
    /// Compare the host's part of a start with an empty unit of the same confinement
    Start,
    /// Compare a user's list and start during another user's flood with the same alone
    Fairness,
    /// Compare a command in a guest with ssh, and completion of a name with busctl
    Exec,
    /// Measure the processor time of an idle guest
    Idle,
    /// Compare sandboxes from a kernel template with those that boot, and resuming and forking with QEMU by hand
    Instant,
    /// Compare a command in a guest over MCP with the command line
    Mcp,
    /// Compare a workspace of 5,000 files, into a guest and back, with git and scp by hand
    Workspace,
}

/// The figures of a benchmark whose sides are both measured in milliseconds.
#[derive(Serialize)]
pub struct Report {
    /// The name of the benchmark.
    pub name: String,
    /// How often each side ran.
    pub runs: u32,
    /// The host that it ran on.
    pub machine: Machine,
    /// The times of banger.
    pub ours: Side,
    /// The times of the peer.
    pub peers: Side,
    /// Our median.
    pub median_ms: f64,
    /// The peer's median.
    pub peer_median_ms: f64,
    /// Our median divided by the peer's.
    pub ratio: f64,
    /// What is wanted, if the benchmark itself judges that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
}

/// The goal of a benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// The highest ratio of the medians.
    Ratio(f64),
    /// The longest median of ours, in milliseconds.
    Millis(f64),
}

/// One side of a comparison.
#[derive(Clone, Serialize)]
pub struct Side {
    /// What was run.
    pub what: &'static str,
    /// Each measurement.
    pub samples_ms: Vec<f64>,
}

/// The hardware and kernel of the host, which explain the figures.
#[derive(Serialize)]
pub struct Machine {
    kernel: String,
    cpu: String,
    cores: usize,
    memory_mib: u64,
}

/// How much work a benchmark does.
#[derive(Clone, Copy)]
pub struct Effort {
    /// How often each side runs.
    pub runs: u32,
    /// Whether it only tests that the benchmark runs, with the programs of the tests, which are built already, and
    /// guests without systemd.
    pub smoke: bool,
}

impl Effort {
    /// Returns a private host with an image and a kernel.
    pub fn host(self) -> Result<Host> {
        let host = host::up(&host::Up { release: !self.smoke, ..host::Up::default() })?;
        try_it::provide(&host)?;
        if self.smoke {
            try_it::make_quick(&host)?;
        }
        Ok(host)
    }

    /// Builds the programs that are measured.
    pub fn programs(self) -> Result<Programs> {
        if self.smoke { build::ensure() } else { build::release() }
    }

    /// Returns the cargo profile of the programs that are measured.
    pub fn profile(self) -> &'static Profile {
        if self.smoke { &build::TEST } else { &build::RELEASE }
    }

    /// Returns the path of the default image.
    pub fn image(self) -> Result<PathBuf> {
        if self.smoke { image::without_init(try_it::IMAGE) } else { image::ensure(try_it::IMAGE) }
    }
}

/// Runs a benchmark, or all of them once, and prints the figures.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let runs = if arguments.smoke { 1 } else { arguments.runs };
    let effort = Effort { runs, smoke: arguments.smoke };
    measure(arguments, arguments.bench.unwrap_or(Bench::All), effort)?;
    Ok(ExitCode::SUCCESS)
}

fn measure(arguments: &Arguments, bench: Bench, effort: Effort) -> Result<()> {
    match bench {
        Bench::All => all::run(arguments),
        Bench::Boot => show(arguments, &boot::run(effort)?, Report::print),
        Bench::Bus => show(arguments, &bus::run(effort)?, Report::print),
        Bench::Create => show(arguments, &[create::run(effort)?], create::Report::print),
        Bench::Fairness => show(arguments, &fairness::run(effort)?, Report::print),
        Bench::Disk => show(arguments, &[disk::run(effort)?], Report::print),
        Bench::Exec => show(arguments, &exec::run(effort)?, Report::print),
        Bench::Mcp => show(arguments, &mcp::run(effort)?, Report::print),
        Bench::Import => show(arguments, &import::run(effort)?, import::Report::print),
        Bench::Idle => show(arguments, &[idle::run(effort)?], idle::Report::print),
        Bench::Instant => show(arguments, &[instant::run(effort)?], instant::Report::print),
        Bench::Net => show(arguments, &net::run(effort)?, Report::print),
        Bench::Start => show(arguments, &[start::run(effort)?], Report::print),
        Bench::Workspace => show(arguments, &workspace::run(effort)?, Report::print),
        Bench::Size => show(arguments, &[size::run(effort)?], size::Report::print),
    }
}

fn show<R: Serialize>(arguments: &Arguments, reports: &[R], print: fn(&R)) -> Result<()> {
    for report in reports {
        match arguments.json {
            true => println!("{}", serde_json::to_string(report)?),
            false => print(report),
        }
    }
    Ok(())
}

impl Report {
    /// Builds the report of these two sides.
    pub fn new(name: impl Into<String>, runs: u32, ours: Side, peers: Side) -> Result<Self> {
        let name = name.into();
        let (median_ms, peer_median_ms) = (median(&ours.samples_ms), median(&peers.samples_ms));
        let ratio = median_ms / peer_median_ms;
        let machine = Machine::this()?;
        Ok(Self { name, runs, machine, ours, peers, median_ms, peer_median_ms, ratio, goal: None })
    }

    /// Sets the goal, which is printed beside the figures.
    pub fn with_goal(self, goal: Goal) -> Self {
        Self { goal: Some(goal), ..self }
    }

    fn print(&self) {
        println!("{}: {} runs on {}", self.name, self.runs, self.machine);
        println!("{:>10} {:>10} {:>10}", "median", "best", "worst");
        for side in [&self.ours, &self.peers] {
            let best = side.samples_ms.iter().copied().fold(f64::INFINITY, f64::min);
            let worst = side.samples_ms.iter().copied().fold(0.0, f64::max);
            let median = median(&side.samples_ms);
            // Short times need more digits; for long ones these would be noise.
            let digits = if median < 100.0 { 2 } else { 0 };
            println!("{median:>7.digits$} ms {best:>7.digits$} ms {worst:>7.digits$} ms  {}", side.what);
        }
        println!("ratio of the medians: {:.3}{}", self.ratio, self.verdict());
    }
}

impl Report {
    /// Returns the goal, and whether it was missed.
    fn verdict(&self) -> String {
        let (is_met, goal) = match self.goal {
            None => return String::new(),
            Some(Goal::Ratio(most)) => (self.ratio <= most, format!("goal: {most}")),
            Some(Goal::Millis(most)) => {
                (self.median_ms <= most, format!("median: {:.2} ms, goal: {most} ms", self.median_ms))
            }
        };
        format!("; {goal}{}", if is_met { "" } else { " (missed)" })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, cpu, cores, memory_mib } = self;
        write!(f, "{cores} × {cpu}, {memory_mib} MiB, Linux {kernel}")
    }
}

impl Machine {
    /// Describes the host that this runs on.
    pub fn this() -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
        let meminfo = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the release")?;
        let value_of = |text: &str, key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key))?;
            Some(line.trim_start_matches([' ', '\t', ':']).trim().to_owned())
        };
        let memory_kib = value_of(&meminfo, "MemTotal").and_then(|text| text.split(' ').next()?.parse().ok());
        Ok(Self {
            kernel: kernel.trim().to_owned(),
            cpu: value_of(&cpuinfo, "model name").unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory_kib.unwrap_or(0u64) / 1024,
        })
    }
}

/// Returns the median of the samples, of which there is at least one.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.get(..=middle) {
        Some([.., low, high]) if sorted.len().is_multiple_of(2) => (low + high) / 2.0,
        Some([.., high]) => *high,
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_shown_with_what_was_measured() {
        let side = |ms| Side { what: "", samples_ms: vec![ms] };
        let verdict =
            |goal| Report::new("", 1, side(6.0), side(5.0)).map(|report| report.with_goal(goal).verdict());
        let check = |goal, expect: &str| assert_eq!(verdict(goal).unwrap_or_default(), expect);
        check(Goal::Ratio(1.5), "; goal: 1.5");
        check(Goal::Ratio(1.1), "; goal: 1.1 (missed)");
        check(Goal::Millis(10.0), "; median: 6.00 ms, goal: 10 ms");
        check(Goal::Millis(5.5), "; median: 6.00 ms, goal: 5.5 ms (missed)");
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
    }
}
