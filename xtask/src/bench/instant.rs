//! `cargo xtask bench instant`: `banger vm run --rm -- true` in a sandbox that boots, and in one that starts from a kernel
//! template.

use std::process::Stdio;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{
    bench::{Effort, Machine, median},
    run::{output, say},
};

/// The result, in milliseconds.
#[derive(Serialize)]
pub struct Report {
    name: &'static str,
    runs: u32,
    machine: Machine,
    cold_samples_ms: Vec<f64>,
    template_samples_ms: Vec<f64>,
    cold_ms: f64,
    template_ms: f64,
    ratio: f64,
}

#[derive(Deserialize)]
struct Seen {
    cold: Vec<f64>,
    template: Vec<f64>,
}

/// Runs the benchmark: first all sandboxes that boot, since templates are turned on for the others.
pub fn run(effort: Effort) -> Result<Report> {
    let host = effort.host()?;
    say("measuring");
    let mut command = host.enter(&script!("bench/instant.py", runs = effort.runs));
    let said = output(command.stdin(Stdio::null()))?;
    let Seen { cold, template } =
        serde_json::from_str(said.lines().last().unwrap_or_default()).context("cannot read the times")?;
    let (cold_ms, template_ms) = (median(&cold), median(&template));
    Ok(Report {
        name: "instant",
        runs: effort.runs,
        machine: Machine::this()?,
        cold_samples_ms: cold,
        template_samples_ms: template,
        cold_ms,
        template_ms,
        ratio: template_ms / cold_ms,
    })
}

impl Report {
    /// Prints the figures for people.
    pub fn print(&self) {
        let Self { runs, cold_ms, template_ms, ratio, .. } = self;
        println!("instant: `banger vm run --rm -- true`, {runs} runs, medians");
        println!("{cold_ms:>7.0} ms  the guest boots");
        println!("{template_ms:>7.0} ms  it continues from a template");
        println!("ratio of the medians: {ratio:.3}");
    }
}
