//! `cargo xtask bench create`: how many sandboxes per second the service creates, starts and deletes on a host in memory, and
//! how much memory it takes: what is left is the service itself.

use anyhow::{Context, Result};
use serde::Serialize;

use super::{
    Effort, Machine, median,
    service::{Service, samples},
};
use crate::run::say;

/// How many sandboxes exist at once.
const COUNT: u32 = 1000;
const FEW: u32 = 20;
const LEAST_PER_SECOND: f64 = 200.0;
const MOST_MIB: f64 = 20.0;
const MOST_KIB_PER_VM: f64 = 60.0;

/// The figures, which are printed beside their goals.
#[derive(Serialize)]
pub struct Report {
    name: &'static str,
    runs: u32,
    machine: Machine,
    /// How many sandboxes each run has.
    count: u32,
    /// Sandboxes that were created, started and deleted per second, one after the other.
    per_second: f64,
    samples_per_second: Vec<f64>,
    /// Memory of the service before the first request, in MiB.
    rss_mib: f64,
    /// What each running sandbox adds to that in the first run, in KiB.
    rss_per_vm_kib: f64,
}

/// Runs the benchmark.
pub fn run(effort: Effort) -> Result<Report> {
    let count = if effort.smoke { FEW } else { COUNT };
    let service = Service::start(effort)?;
    say("creating and deleting sandboxes");
    let figures = service.measure(["create", &count.to_string(), &effort.runs.to_string()])?;
    let number = |name: &str| figures[name].as_f64().with_context(|| format!("there is no {name}"));
    let samples_per_second = samples(&figures, "per_second")?;
    Ok(Report {
        name: "create",
        runs: effort.runs,
        machine: Machine::this()?,
        count,
        per_second: median(&samples_per_second),
        samples_per_second,
        rss_mib: number("rss_kib")? / 1024.0,
        rss_per_vm_kib: number("rss_per_vm_kib")?,
    })
}

impl Report {
    /// Prints the result as text.
    pub fn print(&self) {
        println!("create: {} runs of {} sandboxes on {}", self.runs, self.count, self.machine);
        let verdict = |is_met: bool| if is_met { "" } else { " (missed)" };
        let met = verdict(self.per_second >= LEAST_PER_SECOND);
        println!("{:>24}: {:7.0} of {LEAST_PER_SECOND}{met}", "per second", self.per_second);
        let met = verdict(self.rss_mib <= MOST_MIB);
        println!("{:>24}: {:7.1} MiB of {MOST_MIB}{met}", "memory at rest", self.rss_mib);
        let met = verdict(self.rss_per_vm_kib <= MOST_KIB_PER_VM);
        println!("{:>24}: {:7.1} KiB of {MOST_KIB_PER_VM}{met}", "memory per sandbox", self.rss_per_vm_kib);
    }
}
