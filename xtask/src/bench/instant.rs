//! `cargo xtask bench instant`: what sandboxes gain from captures of their guests.
//!
//! - `banger vm run --rm -- true` in a sandbox that boots, in one that starts from a kernel template, and in one of a
//!   snapshot of a running sandbox.
//! - `vm resume` of a suspended sandbox until the first command in it has an answer. The peer is the same QEMU with the same
//!   command line, started by hand, which loads the same memory with a copy of the disks.
//! - How long the guest of a sandbox stands still while it is forked. The peer stops that guest by hand, writes its memory
//!   to a file, and lets it run. Both are the longest time without a datagram of the guest, which sends one every 5 ms, by
//!   the host's clock: the clock of a guest that is stopped stands still, too.
//! - The fork of a running sandbox until all new ones have run a command, divided by their number; and the memory of one.

use std::process::Stdio;

use anyhow::{Context, Result};
use banger_proto::guest::{Exec, Frame, Request, hello::HostHello, message::Phase};
use serde::{Deserialize, Serialize};

use crate::{
    bench::{Effort, Machine, median},
    run::{hex, output, say},
};

/// How many sandboxes a fork makes.
const CHILDREN: u32 = 4;
/// The command of the peer; its output is what the script waits for.
const COMMAND: [&str; 2] = ["echo", "first"];

/// The medians, in milliseconds and KiB, and all samples.
#[derive(Serialize)]
pub struct Report {
    name: &'static str,
    runs: u32,
    machine: Machine,
    cold_ms: f64,
    template_ms: f64,
    snapshot_ms: f64,
    pause_ms: f64,
    peer_pause_ms: f64,
    resume_ms: f64,
    peer_resume_ms: f64,
    children_ms: f64,
    pss_kib: f64,
    cold_pss_kib: f64,
    ratio: f64,
    samples: Samples,
}

/// What the script has measured.
#[derive(Serialize, Deserialize)]
struct Samples {
    cold: Vec<f64>,
    template: Vec<f64>,
    snapshot: Vec<f64>,
    pause: Vec<f64>,
    peer_pause: Vec<f64>,
    resume: Vec<f64>,
    peer_resume: Vec<f64>,
    children: Vec<f64>,
    pss: Vec<f64>,
    cold_pss: Vec<f64>,
}

/// Runs the benchmark: first all sandboxes that boot, since templates are turned on for the others.
pub fn run(effort: Effort) -> Result<Report> {
    let host = effort.host()?;
    say("measuring");
    let children = if effort.smoke { 2 } else { CHILDREN };
    let mut command = host.enter(&script!(
        "bench/instant.py" uses "bench/by_hand.py",
        runs = effort.runs,
        children = children,
        hello = hex(&hello()?),
        request = hex(&request()),
    ));
    let said = output(command.stdin(Stdio::null()))?;
    let samples: Samples =
        serde_json::from_str(said.lines().last().unwrap_or_default()).context("cannot read the times")?;
    Ok(Report::of(effort.runs, Machine::this()?, samples))
}

/// Returns the greeting of the agent. The script knows the token that it ends with.
fn hello() -> Result<Vec<u8>> {
    let token = "0".repeat(32);
    Ok(HostHello::new(*b"bench-inst-nonce", &token).context("the token is not valid")?.encode().to_vec())
}

fn request() -> Vec<u8> {
    let argv = COMMAND.map(str::to_owned).into();
    let exec = Exec { argv, wait: Phase::Agent, ..Exec::default() };
    [Frame::Request(Request::Exec(exec)).encode(), Frame::InputEnd.encode()].concat()
}

impl Report {
    fn of(runs: u32, machine: Machine, samples: Samples) -> Self {
        let (cold_ms, template_ms) = (median(&samples.cold), median(&samples.template));
        Self {
            name: "instant",
            runs,
            machine,
            cold_ms,
            template_ms,
            snapshot_ms: median(&samples.snapshot),
            pause_ms: median(&samples.pause),
            peer_pause_ms: median(&samples.peer_pause),
            resume_ms: median(&samples.resume),
            peer_resume_ms: median(&samples.peer_resume),
            children_ms: median(&samples.children),
            pss_kib: median(&samples.pss),
            cold_pss_kib: median(&samples.cold_pss),
            ratio: template_ms / cold_ms,
            samples,
        }
    }

    /// Prints the figures for people.
    pub fn print(&self) {
        let runs = self.runs;
        println!("instant: {runs} runs, medians, and the ratio to the peer: a boot, or QEMU by hand");
        for (ours, peer, unit, what) in [
            (self.cold_ms, None, "ms ", "`banger vm run --rm -- true`, the guest boots"),
            (self.template_ms, Some(self.cold_ms), "ms ", "the same, from a template"),
            (self.snapshot_ms, Some(self.cold_ms), "ms ", "the same, of a snapshot of a running sandbox"),
            (self.peer_resume_ms, None, "ms ", "memory loaded by hand, until a command has an answer"),
            (self.resume_ms, Some(self.peer_resume_ms), "ms ", "`banger vm resume`, then `vm exec`"),
            (self.peer_pause_ms, None, "ms ", "a guest stands still, its memory written by hand"),
            (self.pause_ms, Some(self.peer_pause_ms), "ms ", "a guest stands still in a fork"),
            (self.children_ms, None, "ms ", "for each new sandbox, until all run commands"),
            (self.cold_pss_kib, None, "KiB", "memory of a sandbox that has booted"),
            (self.pss_kib, Some(self.cold_pss_kib), "KiB", "memory of a new sandbox of a fork"),
        ] {
            let ratio = peer.map(|peer| format!("{:.2}", ours / peer)).unwrap_or_default();
            println!("{ours:>8.0} {unit} {ratio:>5}  {what}");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_figures_are_the_medians_of_what_the_script_has_measured() {
        let said = json!({
            "cold": [4.0, 9.0, 5.0], "template": [2.0], "snapshot": [1.0], "pause": [3.0], "peer_pause": [1.5],
            "resume": [6.0], "peer_resume": [4.5], "children": [7.0], "pss": [400.0], "cold_pss": [200.0],
        });
        let samples = serde_json::from_value(said).unwrap();
        let report = serde_json::to_value(Report::of(3, Machine::this().unwrap(), samples)).unwrap();
        for (key, expect) in [
            ("cold_ms", 5.0),
            ("template_ms", 2.0),
            ("snapshot_ms", 1.0),
            ("pause_ms", 3.0),
            ("peer_pause_ms", 1.5),
            ("resume_ms", 6.0),
            ("peer_resume_ms", 4.5),
            ("children_ms", 7.0),
            ("pss_kib", 400.0),
            ("cold_pss_kib", 200.0),
            ("ratio", 0.4),
        ] {
            assert_eq!(report[key], Value::from(expect), "{key}");
        }
    }
}
