//! A service on the real adapters that is killed at random moments: real disks, images, database, network and processes, and
//! `sleep` in place of VMMs.
//!
//! `cargo xtask killpoints --runs N` kills it N times; a run of the tests does so a few times. In each run a service of its own
//! process does random operations until it gets SIGKILL in the middle of one, or while it recovers. Then the next service
//! recovers. Rows, ledger, interfaces, routes, packet filter, processes and files must agree with each other, and what was
//! reported as done before must still be there. A service that is started after that must find and leave everything as it is. Now and then, everything is deleted: nothing may be left.

mod random;
mod service;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant, UNIX_EPOCH},
};

use banger_domain::resource::Paths;
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, set_parent_process_death_signal,
};

use self::{
    random::Random,
    service::{Begin, Look},
};
use crate::{
    net_lab::Space,
    real_host,
    scratch::{Scratch, has_program, is_root, require},
    skip,
};

/// Environment variable of `cargo xtask killpoints`: how often to kill the service.
const RUNS: &str = "BANGER_REAL_KILLPOINTS_RUNS";
/// Environment variable with the seed of a run that is repeated.
const SEED: &str = "BANGER_REAL_KILLPOINTS_SEED";
/// What a run of the tests has.
const FEW: u32 = 12;
/// With so many, every kind of operation is done.
const MANY: u32 = 500;
/// Environment variable with the directory of the service that this process is to be.
const HOME: &str = "BANGER_REAL_KILLPOINTS_HOME";
/// Environment variable of the process that runs services and nothing else.
const ALONE: &str = "BANGER_REAL_KILLPOINTS_ALONE";
const TEST: &str = "real_killpoints::a_service_that_is_killed_at_random_moments_recovers_and_leaves_nothing";

/// How long a service may take for anything, on a machine that does many other things.
const LONG: Duration = Duration::from_secs(200);
/// How many runs there are until everything is deleted.
const RUNS_OF_A_LIFE: u32 = 20;
/// One kill of this many comes while the service recovers.
const RECOVERIES: usize = 6;
/// The most operations that are let through before the kill.
const LET_THROUGH: usize = 6;

/// A host for services that come and go.
struct Host {
    scratch: Scratch,
    /// What there was before the first sandbox.
    empty: Look,
}

/// A service in a process of its own.
struct Service {
    process: Child,
    orders: ChildStdin,
    lines: Receiver<String>,
}

/// The figures of all runs.
#[derive(Default)]
struct Figures {
    /// How often the service was killed in an operation, by operation.
    hits: BTreeMap<String, u32>,
    /// How often an operation was through before the kill.
    missed: u32,
    /// How long operations took, when they were not killed.
    took: BTreeMap<String, Duration>,
    /// How often operations succeeded, and why they did not.
    done: u32,
    refused: BTreeMap<String, u32>,
    failures: Vec<String>,
}

impl Service {
    fn start(host: &Host) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", TEST, "--nocapture"]).env(HOME, host.scratch.home.path());
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(process.stdout.take().unwrap());
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let orders = process.stdin.take().unwrap();
        Self { process, orders, lines }
    }

    fn order(&mut self, line: &str) {
        writeln!(self.orders, "{line}").unwrap();
    }

    /// Returns the rest of the next line that begins like this.
    fn wait_for(&mut self, start: &str) -> Result<String, String> {
        loop {
            let line = self.lines.recv_timeout(LONG).map_err(|error| match error {
                RecvTimeoutError::Timeout => {
                    format!("the service stands still before: {start}: {}", self.threads())
                }
                RecvTimeoutError::Disconnected => {
                    format!("the service ended before: {start}: {:?}", self.process.wait())
                }
            })?;
            // The harness of the tests writes to the same output, without an end of its line.
            if let Some((_, rest)) = line.split_once(start) {
                return Ok(rest.to_owned());
            }
        }
    }

    /// Returns what its threads wait for, and what it has started.
    fn threads(&self) -> String {
        let pid = self.process.id();
        let read = |path: String| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let tasks = tasks.map(|task| {
            let file = |name: &str| read(task.path().join(name).display().to_string());
            format!("{} {} [{}]", file("comm"), file("wchan"), file("children"))
        });
        tasks.collect::<Vec<_>>().join(", ")
    }

    /// Returns what it finds once it has recovered, in which nothing may be wrong.
    fn look(&mut self) -> Result<Look, String> {
        let look: Look = serde_json::from_str(&self.wait_for(service::RECOVERED)?).unwrap();
        match look.wrong.is_empty() {
            true => Ok(look),
            false => Err(format!("{:?}", look.wrong)),
        }
    }

    /// Returns the next operation.
    fn begin(&mut self) -> Result<Begin, String> {
        Ok(serde_json::from_str(&self.wait_for(service::BEGINS)?).unwrap())
    }

    /// Kills it, and returns what it wrote before that.
    fn kill(mut self) -> Vec<String> {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.lines.iter().collect()
    }
}

impl Host {
    fn new() -> Self {
        let scratch = Scratch::new();
        scratch.install("banger-import");
        real_host::install(&scratch);
        // This thread's next processes are in it.
        Space::enter_new();
        let mut host = Self { scratch, empty: Look::default() };
        let mut service = Service::start(&host);
        service.wait_for(service::RECOVERED).unwrap();
        service.order("prepare");
        service.wait_for(service::PREPARED).unwrap();
        service.order("clear");
        host.empty = serde_json::from_str(&service.wait_for(service::CLEARED).unwrap()).unwrap();
        service.kill();
        host
    }

    /// Kills a service once, and lets two others recover. Returns the first thing that is wrong.
    fn run(&self, random: &mut Random, figures: &mut Figures) -> Result<(), String> {
        let mut service = Service::start(self);
        service.look().map_err(|error| format!("at the third start: {error}"))?;
        service.order(&format!("work {}", random.next()));
        for _ in 0..random.below(LET_THROUGH) {
            let operation = service.begin()?.operation;
            let begun = Instant::now();
            let end = service.wait_for(service::ENDED)?;
            match end.strip_prefix(&operation).map(str::trim) {
                Some("done") => {
                    figures.done += 1;
                    figures.took.insert(operation, begun.elapsed());
                }
                // None is asked for that cannot be done, but another one may have a random port.
                Some(why) if operation == "Publish" && why.contains("taken") => {
                    *figures.refused.entry(format!("{operation}: {why}")).or_default() += 1;
                }
                why => return Err(format!("{operation} failed: {}", why.unwrap_or(&end))),
            }
        }
        let mut begin = service.begin()?;
        let operation = begin.operation.clone();
        self.sleep(&operation, random, figures);
        let last = service.kill();
        for line in &last {
            // A line that the kill has cut is of an operation that had not begun.
            if let Some((_, text)) = line.split_once(service::BEGINS) {
                begin = serde_json::from_str(text).unwrap_or(begin);
            }
            if let Some((_, end)) = line.split_once(service::ENDED)
                && !end.ends_with(" done")
                && !end.contains("taken")
            {
                return Err(format!("failed: {end}"));
            }
        }
        match last.iter().any(|line| line.contains(service::ENDED)) {
            true => figures.missed += 1,
            false => *figures.hits.entry(operation.clone()).or_default() += 1,
        }
        let mut killed = format!("killed in {operation}");
        let mut service = Service::start(self);
        if random.below(RECOVERIES) == 0 {
            service.wait_for(service::STARTS)?;
            self.sleep("recovery", random, figures);
            let last = service.kill();
            match last.iter().any(|line| line.contains(service::RECOVERED)) {
                true => figures.missed += 1,
                false => *figures.hits.entry("recovery".to_owned()).or_default() += 1,
            }
            killed += ", then while it recovered";
            service = Service::start(self);
        }
        let begun = Instant::now();
        let first = service.look().map_err(|error| format!("{killed}: {error}"))?;
        figures.took.insert("recovery".to_owned(), begun.elapsed());
        service.kill();
        let lost = begin.lost(&first.kept);
        if !lost.is_empty() {
            return Err(format!("{killed}: lost: {lost:#?}"));
        }
        let mut service = Service::start(self);
        let second = service.look().map_err(|error| format!("{killed}: {error}"))?;
        service.kill();
        match first.differences(&second) {
            none if none.is_empty() => Ok(()),
            some => Err(format!("{killed}: a second recovery changes something: {some:#?}")),
        }
    }

    /// Waits for a random part of the time that an operation takes.
    fn sleep(&self, operation: &str, random: &mut Random, figures: &Figures) {
        let long = figures.took.get(operation).copied().unwrap_or(Duration::from_millis(20));
        let micros = usize::try_from(long.as_micros()).unwrap().max(1);
        thread::sleep(Duration::from_micros(random.below(micros) as u64));
    }

    /// Deletes everything. Returns what is left.
    fn clear(&self) -> Result<(), String> {
        let mut service = Service::start(self);
        service.look()?;
        service.order("clear");
        let cleared: Look = serde_json::from_str(&service.wait_for(service::CLEARED)?).unwrap();
        service.kill();
        if !cleared.wrong.is_empty() {
            return Err(format!("after a deletion of everything: {:?}", cleared.wrong));
        }
        match self.empty.differences(&cleared) {
            none if none.is_empty() => {}
            some => return Err(format!("a deletion of everything left something: {some:#?}")),
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Some(process) = orphans().first() {
            if Instant::now() > deadline {
                let words = fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap_or_default();
                return Err(format!("a deletion of everything left the process {words:?}"));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// Ends what services have left. The kernel gives their processes to this one.
impl Drop for Host {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            let left = orphans();
            if left.is_empty() {
                return;
            }
            for pid in left.into_iter().filter_map(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Returns the processes that services have left behind and that have not ended.
fn orphans() -> Vec<i32> {
    // The last argument of a loop that ends with an error: there are no children.
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let children = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("children")));
    children
        .map_while(Result::ok)
        .flat_map(|all| all.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
        .collect()
}

fn paths_below(home: PathBuf) -> Paths {
    Paths { state: home.join("state"), runtime: home.join("run"), libexec: home.join("libexec") }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

#[test]
fn a_service_that_is_killed_at_random_moments_recovers_and_leaves_nothing() {
    if let Some(home) = std::env::var_os(HOME) {
        // It does not outlive the test.
        set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
        return service::serve(paths_below(home.into()));
    }
    require!(is_root(), "root");
    require!(has_program("nft") && has_program("ip"), "nft and ip");
    require!(skip::has_device("/dev/net/tun"), "TUN");
    if std::env::var_os(ALONE).is_none() {
        // It takes and ends all of its children, and other tests may have some in this process.
        let mut command = Command::new(std::env::current_exe().unwrap());
        let status = command.args(["--exact", TEST, "--nocapture"]).env(ALONE, "1").status().unwrap();
        assert!(status.success(), "{status}");
        return;
    }
    set_parent_process_death_signal(Some(Signal::TERM)).unwrap();
    set_child_subreaper(Some(getpid())).unwrap();
    let runs = number(RUNS).and_then(|runs| u32::try_from(runs).ok()).unwrap_or(FEW);
    let seed = number(SEED).unwrap_or_else(|| u64::from(UNIX_EPOCH.elapsed().unwrap().subsec_micros()));
    eprintln!("{SEED}={seed}");
    let (mut random, mut figures, mut host) = (Random(seed), Figures::default(), Host::new());
    for run in 1..=runs {
        let mut done = host.run(&mut random, &mut figures);
        if done.is_ok() && (run % RUNS_OF_A_LIFE == 0 || run == runs) {
            done = host.clear();
        }
        if let Err(error) = done {
            eprintln!("run {run}: {error}");
            figures.failures.push(format!("run {run}: {error}"));
            host = Host::new();
        }
        if run % 100 == 0 {
            eprintln!("{run} of {runs} runs");
        }
    }
    for (why, count) in &figures.refused {
        eprintln!("refused {count} times: {why}");
    }
    let hits: u32 = figures.hits.values().sum();
    let by_operation: Vec<String> =
        figures.hits.iter().map(|(operation, count)| format!("{operation} {count}")).collect();
    println!(
        "real killpoints: {runs} runs, {hits} killed in an operation ({}), {} between two, {} operations done, {} failed",
        by_operation.join(", "),
        figures.missed,
        figures.done,
        figures.failures.len()
    );
    assert!(hits > 0, "no operation was hit");
    assert!(figures.done > 0, "no operation was done");
    if runs >= MANY {
        // A recovery is one of them.
        assert_eq!(figures.took.len(), service::OPERATIONS + 1, "some were never done: {:?}", figures.took);
    }
    assert!(figures.failures.is_empty(), "{:#?}", figures.failures);
}
