//! The phase of the guest's boot.
//!
//! The agent answers before the image's init starts. The early boot may undo what a command does then: it empties
//! `/tmp`, and mounts file systems over files. So commands and copies wait for [`Phase::Init`] unless the request
//! says otherwise. If the image has no init, or one that does not report its progress, they start at once.
//!
//! The init is queried only while a request waits, and no longer once the boot is over.

use std::{
    fs, io,
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use banger_proto::guest::message::{Phase, Phases};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::{
    port::Port,
    systemd::{self, Boot, Systemd},
};

/// How long the result of one query is reused.
const FRESH: Duration = Duration::from_millis(40);
/// How long commands wait for the early boot, and for the whole boot. Then they start anyway, so that a guest whose
/// boot hangs can be examined.
const INIT_LIMIT: Duration = Duration::from_secs(180);
const BOOT_LIMIT: Duration = Duration::from_secs(600);
/// Where OpenRC keeps its state.
const OPENRC: &str = "/run/openrc";

/// The init system of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum InitSystem {
    Systemd,
    OpenRc,
    /// None, or one that does not report its progress.
    Other,
}

impl InitSystem {
    /// Identifies the init system of this program below a root.
    pub fn of(root: &Path, init: &str) -> Self {
        let path = root.join(init.trim_start_matches('/'));
        let name = path.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_owned()));
        let has_openrc = || ["sbin/openrc", "usr/sbin/openrc"].iter().any(|path| root.join(path).exists());
        let starts_openrc = || {
            fs::read_to_string(root.join("etc/inittab"))
                .is_ok_and(|text| text.lines().any(|line| !line.starts_with('#') && line.contains("openrc ")))
        };
        match name.as_ref().and_then(|name| name.to_str()) {
            Some("systemd") => Self::Systemd,
            Some("openrc-init") => Self::OpenRc,
            Some(_) if has_openrc() && starts_openrc() => Self::OpenRc,
            _ => Self::Other,
        }
    }
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// The phase is reached.
    Reached,
    /// It was not reached in time. Later requests do not wait.
    Late,
    /// The host has hung up meanwhile.
    HungUp,
}

/// Tracks the phases of the guest's boot.
pub struct PhaseTracker {
    init: InitSystem,
    begun: Instant,
    known: Mutex<Known>,
}

struct Known {
    reached: Phases,
    looked: Option<Instant>,
}

impl PhaseTracker {
    /// Starts tracking: the agent answers from now on.
    pub fn begin(init: InitSystem) -> Self {
        let now = now();
        let rest = (init == InitSystem::Other).then_some(now);
        let reached = Phases { agent: Some(now), init: rest, boot: rest };
        Self { init, begun: Instant::now(), known: Mutex::new(Known { reached, looked: None }) }
    }

    /// Returns the phases that were reached, and when.
    pub fn now(&self) -> Phases {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.reached.boot.is_some() || known.looked.is_some_and(|looked| looked.elapsed() < FRESH) {
            return known.reached;
        }
        let looked = match self.init {
            InitSystem::Systemd => query_systemd(known.reached),
            InitSystem::OpenRc => Ok(query_openrc(Path::new(OPENRC), known.reached)),
            InitSystem::Other => Ok(known.reached),
        };
        // If the init cannot be queried yet, the phase is not reached.
        if let Ok(reached) = looked {
            known.reached = reached;
        }
        known.looked = Some(Instant::now());
        known.reached
    }

    /// Waits for a phase. `pause` sleeps for about [`PAUSE`](crate::port::PAUSE), and returns whether to continue to wait.
    pub fn wait(&self, phase: Phase, mut pause: impl FnMut() -> io::Result<bool>) -> io::Result<Waited> {
        let limit = match phase {
            Phase::Agent | Phase::Init => INIT_LIMIT,
            Phase::Boot => BOOT_LIMIT,
        };
        while !has(self.now(), phase) {
            if self.begun.elapsed() > limit {
                return Ok(Waited::Late);
            }
            if !pause()? {
                return Ok(Waited::HungUp);
            }
        }
        Ok(Waited::Reached)
    }

    /// Waits for a phase until the host hangs up. Leaves what the host sends meanwhile unread.
    pub fn wait_quietly(&self, phase: Phase, port: &Port) -> io::Result<Waited> {
        self.wait(phase, || port.pause())
    }
}

fn has(reached: Phases, phase: Phase) -> bool {
    match phase {
        Phase::Agent => reached.agent.is_some(),
        Phase::Init => reached.init.is_some(),
        Phase::Boot => reached.boot.is_some(),
    }
}

/// Returns the microseconds since the kernel started.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let since = Duration::try_from(time).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn query_systemd(before: Phases) -> io::Result<Phases> {
    if !systemd::is_available() {
        return Ok(before);
    }
    let mut systemd = Systemd::connect()?;
    let boot = systemd.boot()?;
    let mut reached = before;
    if boot != Boot::Early && reached.init.is_none() {
        reached.init = Some(systemd.basic_at()?.unwrap_or_else(now));
    }
    if boot == Boot::Over {
        reached.boot = Some(systemd.finished_at()?.unwrap_or_else(now));
    }
    Ok(reached)
}

/// Reads the state of OpenRC: a file has its current runlevel, of which `sysinit` and `boot` are the early ones. A
/// directory exists while it starts the services of a runlevel.
fn query_openrc(state: &Path, before: Phases) -> Phases {
    let level = fs::read_to_string(state.join("softlevel")).unwrap_or_default();
    let is_early = matches!(level.trim(), "" | "sysinit" | "boot");
    let is_starting = state.join("rc.starting").exists();
    let reached = |before: Option<u64>, is: bool| before.or_else(|| is.then(now));
    Phases {
        init: reached(before.init, !is_early),
        boot: reached(before.boot, !is_early && !is_starting),
        ..before
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn an_image_whose_init_says_nothing_is_ready_at_once() {
        let phases = PhaseTracker::begin(InitSystem::Other);
        let reached = phases.now();
        assert!(reached.agent.is_some());
        assert_eq!((reached.init, reached.boot), (reached.agent, reached.agent));
        assert_eq!(phases.wait(Phase::Boot, || Ok(false)).unwrap(), Waited::Reached);
    }

    #[test]
    fn a_wait_ends_when_the_host_hangs_up() {
        let phases = PhaseTracker::begin(InitSystem::OpenRc);
        assert_eq!(phases.wait(Phase::Agent, || Ok(false)).unwrap(), Waited::Reached);
        let mut looks = 0;
        let waited = phases.wait(Phase::Init, || {
            looks += 1;
            Ok(looks < 3)
        });
        assert_eq!((waited.unwrap(), looks), (Waited::HungUp, 3));
    }

    #[test]
    fn the_wait_for_a_hanging_boot_times_out() {
        let Some(begun) = Instant::now().checked_sub(INIT_LIMIT * 2) else { return };
        let phases = PhaseTracker { begun, ..PhaseTracker::begin(InitSystem::OpenRc) };
        assert_eq!(phases.wait(Phase::Init, || Ok(true)).unwrap(), Waited::Late);
        assert_eq!(phases.wait(Phase::Boot, || Ok(false)).unwrap(), Waited::HungUp);
    }

    #[test]
    fn the_runlevel_of_openrc_gives_the_phase() {
        let state = tempfile::tempdir().unwrap();
        let reached = || {
            let reached = query_openrc(state.path(), Phases::default());
            (reached.init.is_some(), reached.boot.is_some())
        };
        assert_eq!(reached(), (false, false));
        for (level, expect) in
            [("sysinit\n", (false, false)), ("boot\n", (false, false)), ("default\n", (true, true))]
        {
            fs::write(state.path().join("softlevel"), level).unwrap();
            assert_eq!(reached(), expect, "{level}");
        }
        fs::create_dir(state.path().join("rc.starting")).unwrap();
        assert_eq!(reached(), (true, false));
    }

    #[test]
    fn an_init_is_identified_by_its_program() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for directory in ["sbin", "etc", "lib/systemd", "bin"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::write(root.join("lib/systemd/systemd"), "").unwrap();
        fs::write(root.join("bin/busybox"), "").unwrap();
        let kind = |target: &str| {
            let _ = fs::remove_file(root.join("sbin/init"));
            symlink(target, root.join("sbin/init")).unwrap();
            InitSystem::of(root, "/sbin/init")
        };
        assert_eq!(kind("../lib/systemd/systemd"), InitSystem::Systemd);
        assert_eq!(kind("../bin/busybox"), InitSystem::Other);
        assert_eq!(kind("nowhere"), InitSystem::Other);
        // As in Alpine's container images, whose file names an init that they do not have.
        fs::write(root.join("etc/inittab"), "#x\n::sysinit:/sbin/openrc sysinit\n").unwrap();
        assert_eq!(kind("../bin/busybox"), InitSystem::Other);
        fs::write(root.join("sbin/openrc"), "").unwrap();
        assert_eq!(kind("../bin/busybox"), InitSystem::OpenRc);
    }
}
