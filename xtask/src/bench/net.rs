//! `cargo xtask bench net`: creates and removes the network interface of one guest beside 1, 100 and 1000 others,
//! compared with the same by `ip` and `nft`, as a script would do it.
//!
//! Everything happens in a new network namespace, which ends with the process.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::{
    bench::{Effort, Report, Side},
    build, run,
};

/// How many guests exist already.
const CROWDS: [u32; 3] = [1, 100, 1000];
const TAP: &str = "bgr-peer";
const GUEST: &str = "172.30.250.1";
const GUEST6: &str = "fd01:203:405::fa01";

/// Runs the benchmark and returns two reports for each crowd: adding a guest and removing it.
pub fn run(effort: Effort) -> Result<Vec<Report>> {
    let runs = effort.runs;
    let examples = build::examples(effort.profile(), &["network_times"])?;
    // SAFETY: a new network namespace changes nothing about the thread's memory or descriptors.
    #[expect(unsafe_code, reason = "the call is unsafe for flags that are not given here")]
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.context("cannot unshare the network (needs root)")?;
    run::run(&mut run::command("ip", ["link", "set", "lo", "up"]))?;
    let mut ours = Ours::start(&examples.join("network_times"))?;
    let mut reports = Vec::new();
    let crowds = if effort.smoke { &CROWDS[..2] } else { &CROWDS };
    for &crowd in crowds {
        let mut samples: [Vec<f64>; 4] = Default::default();
        // The first pair creates the crowd, and is not counted.
        for n in 0..=runs {
            let (ours_plug, ours_unplug) = ours.come_and_go(crowd)?;
            let (peers_plug, peers_unplug) = (time(&plug())?, time(&unplug())?);
            let pair = [ours_plug, peers_plug, ours_unplug, peers_unplug];
            if n > 0 {
                samples.iter_mut().zip(pair).for_each(|(all, sample)| all.push(sample));
            }
        }
        let [ours_plug, peers_plug, ours_unplug, peers_unplug] = samples;
        let side = |what, samples_ms| Side { what, samples_ms };
        reports.push(Report::new(
            name(crowd, "added"),
            runs,
            side("a guest is added", ours_plug),
            side("the same with ip and nft", peers_plug),
        )?);
        reports.push(Report::new(
            name(crowd, "removed"),
            runs,
            side("a guest is removed", ours_unplug),
            side("the same with ip and nft", peers_unplug),
        )?);
    }
    Ok(reports)
}

fn name(crowd: u32, what: &str) -> String {
    format!("net: a guest {what} beside {crowd} others")
}

/// The side of banger: a process that adds and removes guests on request.
struct Ours {
    process: Child,
    orders: ChildStdin,
    times: BufReader<ChildStdout>,
}

impl Ours {
    fn start(program: &Path) -> Result<Self> {
        let mut process = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let orders = process.stdin.take().context("it has no standard input")?;
        let times = BufReader::new(process.stdout.take().context("it has no standard output")?);
        Ok(Self { process, orders, times })
    }

    fn come_and_go(&mut self, crowd: u32) -> Result<(f64, f64)> {
        writeln!(self.orders, "{crowd}")?;
        let mut line = String::new();
        self.times.read_line(&mut line)?;
        let (plug, unplug) = line.trim().split_once(' ').context("network_times ended")?;
        Ok((plug.parse()?, unplug.parse()?))
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the commands that a script would run for a guest with NAT.
fn plug() -> Vec<String> {
    let elements = format!(
        "add element inet banger source4 {{ {TAP} . {GUEST} }}; \
         add element inet banger source6 {{ {TAP} . {GUEST6} }}; \
         add element inet banger peers {{ 1000 . {TAP} }}; \
         add element inet banger reach {{ 1000 . {TAP} }}; \
         add element inet banger nat4 {{ {TAP} }}"
    );
    vec![
        format!("ip tuntap add {TAP} mode tap user 0 vnet_hdr"),
        format!("ip link set {TAP} address 02:62:67:00:00:01 alias peer group 1000 addrgenmode none"),
        format!("ip link set {TAP} up"),
        format!("ip route replace {GUEST}/32 dev {TAP}"),
        format!("ip neighbour replace {GUEST} lladdr 02:67:00:00:00:01 dev {TAP}"),
        format!("ip address replace fe80::1/64 dev {TAP} nodad"),
        format!("ip route replace {GUEST6}/128 dev {TAP}"),
        format!("ip neighbour replace {GUEST6} lladdr 02:67:00:00:00:01 dev {TAP}"),
        format!("sysctl -q net.ipv4.conf.{TAP}.forwarding=1 net.ipv4.conf.{TAP}.route_localnet=1"),
        format!("nft {elements}"),
    ]
}

fn unplug() -> Vec<String> {
    vec![
        format!(
            "nft delete element inet banger source4 {{ {TAP} . {GUEST} }}; \
             delete element inet banger source6 {{ {TAP} . {GUEST6} }}; \
             delete element inet banger peers {{ 1000 . {TAP} }}; \
             delete element inet banger reach {{ 1000 . {TAP} }}; \
             delete element inet banger nat4 {{ {TAP} }}"
        ),
        format!("ip link del {TAP}"),
    ]
}

/// Runs these commands in order, without a shell, and returns how long they took in milliseconds.
fn time(commands: &[String]) -> Result<f64> {
    let began = Instant::now();
    for line in commands {
        let (program, arguments) = line.split_once(' ').unwrap_or((line, ""));
        let arguments: Vec<&str> = match program {
            "nft" => vec![arguments],
            _ => arguments.split(' ').collect(),
        };
        run::run(&mut run::command(program, arguments))?;
    }
    Ok(began.elapsed().as_secs_f64() * 1e3)
}
