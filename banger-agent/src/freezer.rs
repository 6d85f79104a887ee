//! Freezes the guest for a capture: every process but the agent, the first process and threads of the kernel.
//!
//! Whole control groups are frozen from the top, except those that the agent and the first process are in. The other
//! processes of these are moved into a group that is frozen, and back when the guest is thawed. This does not depend on
//! the image's init: systemd has a group for each service, other inits leave everything in the root group, which cannot be
//! frozen.
//!
//! The agent answers meanwhile. Requests that need other processes wait ([`wait_thawed`]).

use std::{
    fs::File,
    io,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use banger_proto::guest::{FailureKind, Frame, Request};
use rustix::{
    fs::{Mode, OFlags, syncfs},
    io::Errno,
};

use crate::{
    conversation::{WORK_DISK, kind_of, refuse},
    hierarchy::Hierarchy,
    log,
    phases::Waited,
    port::Port,
    stats,
};

/// How long everything may take to stand still, and to be on the disks then. Programs wait meanwhile.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long all of it may take after the request. The host gives up after 20 s, and nothing may freeze after that.
const DEADLINE: Duration = Duration::from_secs(15);
/// Poll interval.
const POLL: Duration = Duration::from_millis(2);
/// Holds the processes of groups that cannot be frozen.
const HELD: &str = "banger/held";
const INIT: u32 = 1;
const THREAD_STACK: usize = 64 << 10;

/// Set in the serving process of a guest only, and not in tests.
static FREEZER: OnceLock<Freezer> = OnceLock::new();

/// Freezes processes, at most once at a time.
pub struct Freezer {
    hierarchy: Hierarchy,
    /// The group in proc(5) whose relative path is empty.
    root: String,
    /// The processes that are not frozen.
    spared: [u32; 2],
    is_frozen: AtomicBool,
    frozen: Mutex<Frozen>,
}

/// What has to be undone.
#[derive(Default)]
struct Frozen {
    groups: Vec<String>,
    /// Processes that were moved, with the group that they were in.
    moved: Vec<(u32, String)>,
}

/// Why a guest cannot be frozen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something takes too long.
    #[error("{what} within {} s", within.as_secs())]
    Late { what: String, within: Duration },
    /// The kernel refused.
    #[error("cannot {doing}: {error}")]
    System { doing: String, error: io::Error },
}

/// Makes freezing possible.
pub fn begin(hierarchy: Hierarchy) {
    let freezer = Freezer::new(hierarchy, "", [INIT, std::process::id()]);
    drop(FREEZER.set(freezer));
}

/// Returns whether the guest is frozen, or about to be.
pub fn is_frozen() -> bool {
    FREEZER.get().is_some_and(|freezer| freezer.is_frozen.load(Ordering::SeqCst))
}

/// Waits until the guest is not frozen, or the host hangs up.
pub fn wait_thawed(port: &Port) -> io::Result<Waited> {
    while is_frozen() {
        if !port.pause()? {
            return Ok(Waited::HungUp);
        }
    }
    Ok(Waited::Reached)
}

/// Returns whether a request may be served while the guest is frozen.
pub fn may_be_served(request: &Request) -> bool {
    matches!(
        request,
        Request::Freeze
            | Request::Thaw
            | Request::Info
            | Request::Clock
            | Request::SetTime { .. }
            | Request::Stats
            | Request::Ports
            | Request::Wait(_)
            | Request::Shutdown
    )
}

/// Freezes the guest and writes its data to the disks. Replies with `Done`.
pub fn freeze(port: &mut Port) -> io::Result<()> {
    let Some(freezer) = FREEZER.get() else {
        return refuse(port, FailureKind::Other, "the kernel of the guest cannot freeze processes");
    };
    match freezer.sync_and_freeze(Instant::now() + DEADLINE, sync_disks) {
        Ok(()) => {
            // A host that is gone does not capture the guest.
            if !port.send(&Frame::Done)? {
                thaw_all();
            }
            Ok(())
        }
        Err(error) => {
            let kind = match &error {
                Error::System { error, .. } => kind_of(error),
                Error::Late { .. } => FailureKind::Other,
            };
            refuse(port, kind, &error.to_string())
        }
    }
}

/// Lets the guest continue.
pub fn thaw_all() {
    if let Some(freezer) = FREEZER.get() {
        freezer.thaw();
    }
}

/// Writes all data to the system disk and the work disk. File systems of programs, which may be frozen, are left out.
fn sync_disks() -> io::Result<()> {
    for directory in ["/", WORK_DISK] {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(directory, flags, Mode::empty()) {
            Ok(opened) => syncfs(File::from(opened))?,
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

impl Freezer {
    fn new(hierarchy: Hierarchy, root: &str, spared: [u32; 2]) -> Self {
        let root = root.to_owned();
        Self { hierarchy, root, spared, is_frozen: AtomicBool::new(false), frozen: Mutex::default() }
    }

    /// Calls `sync`, so that most data is written before anything stands still, and then freezes everything. If that takes
    /// too long, nothing is frozen, also when `sync` returns later.
    fn sync_and_freeze(
        &self,
        deadline: Instant,
        sync: impl Fn() -> io::Result<()> + Copy + Send + 'static,
    ) -> Result<(), Error> {
        sync_before(deadline, DEADLINE, sync)?;
        self.freeze(deadline.min(Instant::now() + TIMEOUT), sync)
    }

    /// Freezes everything, then calls `sync`. After an error, nothing is frozen.
    fn freeze(
        &self,
        deadline: Instant,
        sync: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<(), Error> {
        let mut frozen = self.frozen.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_frozen.store(true, Ordering::SeqCst);
        let done = self.stop(&mut frozen, deadline).and_then(|()| sync_before(deadline, TIMEOUT, sync));
        if done.is_err() {
            self.release(&mut frozen);
        }
        done
    }

    fn thaw(&self) {
        self.release(&mut self.frozen.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Freezes groups and moves processes until a look at the tree finds nothing more to freeze.
    fn stop(&self, frozen: &mut Frozen, deadline: Instant) -> Result<(), Error> {
        let held = self.hierarchy.make(HELD).and_then(|()| self.hierarchy.write(HELD, "cgroup.freeze", "1"));
        held.map_err(|error| not_frozen("control groups", error))?;
        frozen.groups.push(HELD.to_owned());
        loop {
            let mut is_complete = true;
            let spared = self.spared_groups();
            for group in &spared {
                is_complete &= self.hold_processes(group, frozen)?;
                let below = self.hierarchy.below(group).map_err(|error| not_frozen(group, error))?;
                for below in below.into_iter().filter(|below| !spared.contains(below)) {
                    if frozen.groups.contains(&below) {
                        continue;
                    }
                    is_complete = false;
                    match self.hierarchy.write(&below, "cgroup.freeze", "1") {
                        Ok(()) => frozen.groups.push(below),
                        Err(error) if is_gone(&error) => {}
                        Err(error) => return Err(not_frozen(&below, error)),
                    }
                }
            }
            let moving = frozen.groups.iter().find(|group| !self.stands_still(group));
            match moving {
                None if is_complete => return Ok(()),
                Some(moving) if Instant::now() > deadline => {
                    let what = format!("{} did not freeze", self.culprit(moving));
                    return Err(Error::Late { what, within: TIMEOUT });
                }
                None if Instant::now() > deadline => {
                    let what = "the guest did not stop starting processes".to_owned();
                    return Err(Error::Late { what, within: TIMEOUT });
                }
                _ => thread::sleep(POLL),
            }
        }
    }

    /// Returns the groups of the spared processes, with those above them.
    fn spared_groups(&self) -> Vec<String> {
        let mut groups = vec![String::new()];
        for pid in self.spared {
            let group = self.group_of(pid);
            for (end, _) in group.match_indices('/') {
                groups.push(group[..end].to_owned());
            }
            groups.push(group);
        }
        groups.sort();
        groups.dedup();
        groups
    }

    /// Returns the group of a process (cgroups(7), `/proc/PID/cgroup`).
    fn group_of(&self, pid: u32) -> String {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let path = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let path = path.strip_prefix(self.root.as_str()).unwrap_or(path);
        path.trim_start_matches('/').to_owned()
    }

    /// Moves the processes of a group that cannot be frozen into one that is. Returns whether there were none.
    fn hold_processes(&self, group: &str, frozen: &mut Frozen) -> Result<bool, Error> {
        let mut had_none = true;
        for pid in self.hierarchy.processes(group).unwrap_or_default() {
            if self.spared.contains(&pid) || stats::is_kernel_thread(pid) {
                continue;
            }
            had_none = false;
            match self.hierarchy.write(HELD, "cgroup.procs", &pid.to_string()) {
                Ok(()) => frozen.moved.push((pid, group.to_owned())),
                // It has ended.
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(not_frozen(&named(pid), error)),
            }
        }
        Ok(had_none)
    }

    /// Returns whether nothing in a group runs. One that is gone has nothing.
    fn stands_still(&self, group: &str) -> bool {
        let events = self.hierarchy.read(group, "cgroup.events");
        events.map_or_else(|error| is_gone(&error), |text| text.lines().any(|line| line == "frozen 1"))
    }

    /// Returns the name of the process that keeps a group from freezing, or else of the group.
    fn culprit(&self, group: &str) -> String {
        for below in self.hierarchy.below(group).unwrap_or_default() {
            if !self.stands_still(&below) {
                return self.culprit(&below);
            }
        }
        let processes = self.hierarchy.processes(group).unwrap_or_default();
        // A frozen process sleeps and can be interrupted.
        let is_frozen = |pid: &u32| matches!(stats::state_of(*pid), Some('S' | 'T' | 't' | 'Z') | None);
        processes.into_iter().find(|pid| !is_frozen(pid)).map_or_else(|| group.to_owned(), named)
    }

    /// Undoes everything that was frozen. What is gone meanwhile needs nothing.
    fn release(&self, frozen: &mut Frozen) {
        for (pid, group) in frozen.moved.drain(..) {
            // Moving it out of the frozen group lets it continue.
            if let Err(error) = self.hierarchy.write(&group, "cgroup.procs", &pid.to_string())
                && !is_gone(&error)
            {
                log::error(&format!("cannot move {} back: {error}", named(pid)));
            }
        }
        for group in frozen.groups.drain(..) {
            if let Err(error) = self.hierarchy.write(&group, "cgroup.freeze", "0")
                && !is_gone(&error)
            {
                log::error(&format!("cannot thaw {group}: {error}"));
            }
        }
        // It stays if something could not be moved back.
        let _ = self.hierarchy.remove(HELD);
        self.is_frozen.store(false, Ordering::SeqCst);
    }
}

/// Calls `sync` in a thread, which a slow disk may keep for longer. The error names the time.
fn sync_before(
    deadline: Instant,
    within: Duration,
    sync: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<(), Error> {
    let (sender, receiver) = mpsc::channel();
    let send = move || drop(sender.send(sync()));
    thread::Builder::new().stack_size(THREAD_STACK).spawn(send).map_err(not_written)?;
    match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(synced) => synced.map_err(not_written),
        Err(_) => Err(Error::Late { what: "the disks did not take all data".to_owned(), within }),
    }
}

fn not_frozen(what: &str, error: io::Error) -> Error {
    Error::System { doing: format!("freeze {what}"), error }
}

fn not_written(error: io::Error) -> Error {
    Error::System { doing: "write all data to the disks".to_owned(), error }
}

/// Returns whether an error means that the process or the group does not exist any more.
fn is_gone(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(code, Some(Errno::NOENT | Errno::NODEV | Errno::SRCH))
}

fn named(pid: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name: String = name.trim().chars().filter(|c| !c.is_control()).collect();
    if name.is_empty() { format!("process {pid}") } else { format!("{name} (process {pid})") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::process::{Child, Command};

    use super::*;
    use crate::hierarchy::scratch::Scratch;

    /// A tree as in a guest, with a counting process in each of these groups.
    struct Guest {
        freezer: Freezer,
        scratch: Scratch,
        counters: Vec<(Child, String)>,
        directory: tempfile::TempDir,
    }

    const SLEEPER: &[&str] = &["sleep", "1000"];
    /// The longest that a test waits for anything, on a machine that does many other things.
    const PATIENCE: Duration = Duration::from_secs(60);

    impl Guest {
        fn new(init_group: &str, groups: &[&str]) -> Option<Self> {
            let scratch = Scratch::new()?;
            let hierarchy = scratch.hierarchy();
            for group in ["banger", "banger/agent", "banger/sessions"] {
                hierarchy.make(group).unwrap();
            }
            let mut guest = Self {
                freezer: Freezer::new(scratch.hierarchy(), &scratch.name, [0, 0]),
                scratch,
                counters: Vec::new(),
                directory: tempfile::tempdir().unwrap(),
            };
            let init = guest.start(init_group, SLEEPER);
            let agent = guest.start("banger/agent", SLEEPER);
            guest.freezer.spared = [init, agent];
            for group in groups {
                let file = guest.directory.path().join(guest.counters.len().to_string());
                let script = format!("while :; do echo >> {}; sleep 0.01; done", file.display());
                guest.start(group, &["sh", "-c", &script]);
            }
            Some(guest)
        }

        fn start(&mut self, group: &str, argv: &[&str]) -> u32 {
            let hierarchy = self.scratch.hierarchy();
            let mut parent = String::new();
            for name in group.split('/').filter(|name| !name.is_empty()) {
                parent = if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") };
                hierarchy.make(&parent).unwrap();
            }
            let child = Command::new(argv[0]).args(&argv[1..]).spawn().unwrap();
            let pid = child.id();
            hierarchy.write(group, "cgroup.procs", &pid.to_string()).unwrap();
            self.counters.push((child, group.to_owned()));
            pid
        }

        fn counts(&self) -> Vec<u64> {
            let count = |index: usize| self.directory.path().join(index.to_string());
            let size = |index| std::fs::metadata(count(index)).map_or(0, |found| found.len());
            (2..self.counters.len()).map(size).collect()
        }

        /// Waits until every process has counted on.
        fn until_all_count(&self) {
            let (before, begin) = (self.counts(), Instant::now());
            let counts_on = |(before, after): (&u64, u64)| after > *before;
            while !before.iter().zip(self.counts()).all(counts_on) {
                assert!(begin.elapsed() < PATIENCE, "something stands still: {before:?} {:?}", self.counts());
                thread::sleep(POLL);
            }
        }

        /// Returns whether no process counts for a while.
        fn stands_still(&self) -> bool {
            let before = self.counts();
            thread::sleep(Duration::from_millis(200));
            self.counts() == before
        }

        fn groups(&self) -> Vec<String> {
            self.counters.iter().map(|(child, _)| self.freezer.group_of(child.id())).collect()
        }

        fn freeze(&self) -> Result<(), Error> {
            self.freezer.freeze(Instant::now() + PATIENCE, || Ok(()))
        }
    }

    impl Drop for Guest {
        fn drop(&mut self) {
            self.freezer.thaw();
            for (child, _) in &mut self.counters {
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }
    }

    fn skipped() {
        eprintln!("SKIPPED: this test needs control groups that it may change");
    }

    #[test]
    fn everything_but_the_first_process_and_the_agent_stands_still_and_continues() {
        for (init_group, groups) in [
            // As with systemd, OpenRC, and without an init.
            (
                "init.scope",
                &["system.slice/a.service", "init.scope", "banger/sessions/1", "user.slice/u/s"][..],
            ),
            ("", &["", "openrc.sshd", "banger/sessions/1"]),
            ("", &["banger/sessions/1", "banger/sessions/2", ""]),
        ] {
            let Some(guest) = Guest::new(init_group, groups) else { return skipped() };
            let where_they_were = guest.groups();
            guest.until_all_count();
            // Repeats are safe.
            for _ in 0..2 {
                guest.freeze().unwrap();
                assert!(guest.stands_still(), "{groups:?}");
            }
            let [init, agent] = guest.freezer.spared;
            assert_eq!(
                [guest.freezer.group_of(init).as_str(), &*guest.freezer.group_of(agent)],
                [init_group, "banger/agent"]
            );
            for _ in 0..2 {
                guest.freezer.thaw();
                guest.until_all_count();
            }
            assert_eq!(guest.groups(), where_they_were);
            assert!(!guest.freezer.is_frozen.load(Ordering::SeqCst));
        }
    }

    #[test]
    fn a_guest_that_cannot_be_frozen_runs_on() {
        let Some(guest) = Guest::new("", &["", "banger/sessions/1"]) else { return skipped() };
        let (written, until_written) = mpsc::channel::<()>();
        // Everything stands still long before that.
        let late = guest.freezer.freeze(Instant::now() + Duration::from_secs(3), move || {
            let _ = until_written.recv();
            Ok(())
        });
        assert_eq!(late.unwrap_err().to_string(), "the disks did not take all data within 5 s");
        drop(written);
        guest.until_all_count();
        let full = guest.freezer.freeze(Instant::now() + PATIENCE, || Err(Errno::IO.into()));
        assert!(full.unwrap_err().to_string().starts_with("cannot write all data to the disks"));
        guest.until_all_count();
        assert!(!guest.freezer.is_frozen.load(Ordering::SeqCst));
    }

    #[test]
    fn a_guest_whose_data_is_written_too_late_is_never_frozen() {
        let Some(guest) = Guest::new("", &["", "banger/sessions/1"]) else { return skipped() };
        static WRITTEN: AtomicBool = AtomicBool::new(false);
        let late = guest.freezer.sync_and_freeze(Instant::now() + Duration::from_millis(100), || {
            while !WRITTEN.load(Ordering::SeqCst) {
                thread::sleep(POLL);
            }
            Ok(())
        });
        assert_eq!(late.unwrap_err().to_string(), "the disks did not take all data within 15 s");
        WRITTEN.store(true, Ordering::SeqCst);
        for _ in 0..3 {
            thread::sleep(Duration::from_millis(200));
            guest.until_all_count();
        }
        guest.freezer.sync_and_freeze(Instant::now() + PATIENCE, || Ok(())).unwrap();
        assert!(guest.stands_still());
    }

    #[test]
    fn processes_that_start_others_are_frozen_too() {
        let Some(mut guest) = Guest::new("", &[]) else { return skipped() };
        for group in ["banger/sessions/1", "", ""] {
            guest.start(group, &["sh", "-c", "while :; do sleep 0.001; done"]);
        }
        for _ in 0..10 {
            guest.freeze().unwrap();
            assert!(guest.freezer.stands_still("banger/sessions") && guest.freezer.stands_still(HELD));
            assert_eq!(guest.scratch.hierarchy().processes("").unwrap(), [guest.freezer.spared[0]]);
            guest.freezer.thaw();
        }
        guest.scratch.kill();
    }

    #[test]
    fn requests_that_need_other_processes_wait() {
        for (request, expect) in [
            (Request::Info, true),
            (Request::Thaw, true),
            (Request::Shutdown, true),
            (Request::Exec(Default::default()), false),
            (Request::PrepareCommit, false),
        ] {
            assert_eq!(may_be_served(&request), expect, "{request:?}");
        }
        assert!(!is_frozen());
    }

    #[test]
    fn a_guest_without_control_groups_refuses() {
        let (_, end) = crate::test_host::Host::ask(Request::Freeze).bytes();
        let Frame::Failed(failure) = end else { panic!("{end:?}") };
        assert_eq!(failure.message, "the kernel of the guest cannot freeze processes");
        assert_eq!(crate::test_host::Host::ask(Request::Thaw).bytes().1, Frame::Done);
    }
}
