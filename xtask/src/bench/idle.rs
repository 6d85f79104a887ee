//! `cargo xtask bench idle`: processor time of an idle guest, compared with the same guest whose agent is stopped by
//! SIGSTOP.
//!
//! Both sandboxes run at the same time and are measured over the same window, which starts 10 s after both have booted.

use std::{
    fs,
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    bench::{Effort, Machine, boot::process_of, median},
    host::Host,
    run::{run as shell, say},
};

const OURS: &str = "bench-idle";
const PEER: &str = "bench-idle-no-agent";
/// The limit that the documentation promises.
const MAX_PERCENT: f64 = 2.0;
/// The pause between the end of the boot and the first measurement.
const SETTLING: Duration = Duration::from_secs(10);
/// The length of each measurement.
const WINDOW: Duration = Duration::from_secs(30);
/// The unit of processor times in `/proc`, on every architecture that banger runs on: USER_HZ, proc(5).
const TICKS_PER_SECOND: f64 = 100.0;

/// The result: processor time in percent of one processor.
#[derive(Serialize)]
pub struct Report {
    name: &'static str,
    runs: u32,
    machine: Machine,
    ours_percent: Vec<f64>,
    peers_percent: Vec<f64>,
    median_percent: f64,
    peer_median_percent: f64,
}

/// Runs the benchmark. Both sides are measured at the same time.
pub fn run(effort: Effort) -> Result<Report> {
    let runs = effort.runs;
    let host = effort.host()?;
    delete(&host)?;
    let measured = measure(&host, effort);
    delete(&host)?;
    let (ours_percent, peers_percent) = measured?;
    let (median_percent, peer_median_percent) = (median(&ours_percent), median(&peers_percent));
    let machine = Machine::this()?;
    Ok(Report {
        name: "idle",
        runs,
        machine,
        ours_percent,
        peers_percent,
        median_percent,
        peer_median_percent,
    })
}

fn measure(host: &Host, effort: Effort) -> Result<(Vec<f64>, Vec<f64>)> {
    for name in [OURS, PEER] {
        say(&format!("starting {name}"));
        alice(host, &["banger", "vm", "create", "--quiet", "--vcpu", "1", "--name", name])?;
        // It exits with an error when a unit of the image has failed, which does not matter here.
        let booted = "banger vm exec \"$0\" -- sh -c 'systemctl is-system-running --wait' || true";
        alice(host, &["sh", "-c", booted, name])?;
    }
    // The command ends before the agent is stopped, so that its client does not wait for an answer.
    let stop = "nohup sh -c 'sleep 5; kill -STOP $(pgrep -of ^@banger-agent)' > /dev/null 2>&1 &";
    alice(host, &["banger", "vm", "exec", PEER, "--", "sh", "-c", stop])?;
    let part = if effort.smoke { 10 } else { 1 };
    thread::sleep(SETTLING / part);
    let vmms = [process_of(OURS)?, process_of(PEER)?];
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for round in 1..=effort.runs {
        say(&format!("measurement {round} of {}", effort.runs));
        let before = [ticks(&vmms[0])?, ticks(&vmms[1])?];
        let begin = Instant::now();
        thread::sleep(WINDOW / part);
        let passed = begin.elapsed().as_secs_f64() * TICKS_PER_SECOND;
        for (side, (vmm, before)) in [&mut ours, &mut peers].into_iter().zip(vmms.iter().zip(before)) {
            side.push((ticks(vmm)? - before) as f64 * 100.0 / passed);
        }
    }
    Ok((ours, peers))
}

/// Returns the processor time of a process and its threads in ticks: fields 14 and 15 of `/proc/PID/stat`, proc(5).
fn ticks(process: &Path) -> Result<u64> {
    let stat = fs::read_to_string(process.join("stat")).context("the VMM has ended")?;
    ticks_in(&stat).context("cannot read the processor time of the VMM")
}

fn ticks_in(stat: &str) -> Option<u64> {
    // The name of the program, in parentheses, may contain spaces.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

fn alice(host: &Host, words: &[&str]) -> Result<()> {
    let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
    shell(host.session("alice", false, &words)?.stdin(Stdio::null()))
}

/// Deletes the sandboxes of this run or of an interrupted one.
fn delete(host: &Host) -> Result<()> {
    let words = ["banger", "vm", "delete", "--force", OURS, PEER].map(str::to_owned);
    host.session("alice", false, &words)?.stdin(Stdio::null()).output().context("cannot run")?;
    Ok(())
}

impl Report {
    /// Prints the result as text.
    pub fn print(&self) {
        let sides =
            [(&self.ours_percent, "an idle guest"), (&self.peers_percent, "the same, its agent stopped")];
        println!("{}: {} runs, processor time in % of one processor", self.name, self.runs);
        for (samples, what) in sides {
            let verdict = if median(samples) <= MAX_PERCENT { "" } else { " (too much)" };
            println!("{:>7.2} % of {MAX_PERCENT} %{verdict}  {what}", median(samples));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_time_is_read_behind_the_name_of_the_program() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 4 0 100 1 2";
        assert_eq!(ticks_in(stat), Some(300));
        assert_eq!(ticks_in("7 (a"), None);
    }
}
