//! How far the guest is with its boot.
//!
//! The agent answers before the image's init has begun. What a command does then, the early part of the boot may undo:
//! it empties `/tmp`, and mounts over what was written. So commands and copies wait for [`Phase::Init`] unless they
//! are told otherwise. If the image has no init, or one that does not report its progress, they start at once.
//!
//! The init is asked only while somebody wants to know, and no more once the boot is over.

use std::{
    fs, io,
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use banger_proto::guest::message::{Phase, Phases as Told};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    time::{ClockId, clock_gettime},
};
use serde::{Deserialize, Serialize};

use crate::{
    port::Port,
    systemd::{self, Boot, Systemd},
};

/// Between two looks.
pub const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// For so long one look is as good as the next, however many want to know.
const FRESH: Duration = Duration::from_millis(40);
/// How long commands wait for the early part of a boot, and for all of it. After that they start, so that a guest whose boot
/// hangs can be examined.
const INIT_LIMIT: Duration = Duration::from_secs(180);
const BOOT_LIMIT: Duration = Duration::from_secs(600);
/// Where OpenRC keeps how far it is.
const OPENRC: &str = "/run/openrc";

/// What kind of init the image has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum InitSystem {
    Systemd,
    OpenRc,
    /// None, or one that does not say how far it is.
    Other,
}

impl InitSystem {
    /// The kind of this program below a root.
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
    /// It was not reached in time. Whoever comes later does not wait.
    Late,
    /// Whoever waited does so no more.
    Over,
}

/// How far the guest is.
pub struct Phases {
    init: InitSystem,
    begun: Instant,
    known: Mutex<Known>,
}

struct Known {
    told: Told,
    looked: Option<Instant>,
}

impl Phases {
    /// The agent answers from now on.
    pub fn begin(init: InitSystem) -> Self {
        let now = now();
        let rest = (init == InitSystem::Other).then_some(now);
        let told = Told { agent: Some(now), init: rest, boot: rest };
        Self { init, begun: Instant::now(), known: Mutex::new(Known { told, looked: None }) }
    }

    /// What is reached, and when it was.
    pub fn now(&self) -> Told {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.told.boot.is_some() || known.looked.is_some_and(|looked| looked.elapsed() < FRESH) {
            return known.told;
        }
        let looked = match self.init {
            InitSystem::Systemd => look_at_systemd(known.told),
            InitSystem::OpenRc => Ok(look_at_openrc(Path::new(OPENRC), known.told)),
            InitSystem::Other => Ok(known.told),
        };
        // What cannot be asked has not come so far.
        if let Ok(told) = looked {
            known.told = told;
        }
        known.looked = Some(Instant::now());
        known.told
    }

    /// Waits for a phase; `pause` waits for about [`LOOK`], and says whether somebody still waits.
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
                return Ok(Waited::Over);
            }
        }
        Ok(Waited::Reached)
    }

    /// Waits for a phase while the host stays; what it sends meanwhile is left to be read.
    pub fn wait_quietly(&self, phase: Phase, port: &Port) -> io::Result<Waited> {
        self.wait(phase, || {
            let mut fds = [PollFd::new(port, PollFlags::RDHUP)];
            match poll(&mut fds, Some(&LOOK)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            Ok(!fds[0].revents().intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR))
        })
    }
}

fn has(told: Told, phase: Phase) -> bool {
    match phase {
        Phase::Agent => told.agent.is_some(),
        Phase::Init => told.init.is_some(),
        Phase::Boot => told.boot.is_some(),
    }
}

/// Microseconds since the kernel began.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let since = Duration::try_from(time).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn look_at_systemd(before: Told) -> io::Result<Told> {
    if !systemd::is_there() {
        return Ok(before);
    }
    let mut systemd = Systemd::connect()?;
    let boot = systemd.boot()?;
    let mut told = before;
    if boot != Boot::Early && told.init.is_none() {
        told.init = Some(systemd.basic_at()?.unwrap_or_else(now));
    }
    if boot == Boot::Over {
        told.boot = Some(systemd.finished_at()?.unwrap_or_else(now));
    }
    Ok(told)
}

/// OpenRC names the runlevel that it is in: `sysinit` and `boot` are the early ones. A directory is there while it
/// starts what belongs to the level.
fn look_at_openrc(state: &Path, before: Told) -> Told {
    let level = fs::read_to_string(state.join("softlevel")).unwrap_or_default();
    let is_early = matches!(level.trim(), "" | "sysinit" | "boot");
    let is_starting = state.join("rc.starting").exists();
    let reached = |before: Option<u64>, is: bool| before.or_else(|| is.then(now));
    Told {
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
        let phases = Phases::begin(InitSystem::Other);
        let told = phases.now();
        assert!(told.agent.is_some());
        assert_eq!((told.init, told.boot), (told.agent, told.agent));
        assert_eq!(phases.wait(Phase::Boot, || Ok(false)).unwrap(), Waited::Reached);
    }

    #[test]
    fn whoever_leaves_waits_no_more() {
        let phases = Phases::begin(InitSystem::OpenRc);
        assert_eq!(phases.wait(Phase::Agent, || Ok(false)).unwrap(), Waited::Reached);
        let mut looks = 0;
        let waited = phases.wait(Phase::Init, || {
            looks += 1;
            Ok(looks < 3)
        });
        assert_eq!((waited.unwrap(), looks), (Waited::Over, 3));
    }

    #[test]
    fn a_boot_that_hangs_is_not_waited_for_in_vain() {
        let Some(begun) = Instant::now().checked_sub(INIT_LIMIT * 2) else { return };
        let phases = Phases { begun, ..Phases::begin(InitSystem::OpenRc) };
        assert_eq!(phases.wait(Phase::Init, || Ok(true)).unwrap(), Waited::Late);
        assert_eq!(phases.wait(Phase::Boot, || Ok(false)).unwrap(), Waited::Over);
    }

    #[test]
    fn the_runlevel_of_openrc_says_how_far_it_is() {
        let state = tempfile::tempdir().unwrap();
        let reached = || {
            let told = look_at_openrc(state.path(), Told::default());
            (told.init.is_some(), told.boot.is_some())
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
    fn the_kind_of_an_init_is_told_by_its_program() {
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
        // As in container images of Alpine, which name in that file what they do not have.
        fs::write(root.join("etc/inittab"), "#x\n::sysinit:/sbin/openrc sysinit\n").unwrap();
        assert_eq!(kind("../bin/busybox"), InitSystem::Other);
        fs::write(root.join("sbin/openrc"), "").unwrap();
        assert_eq!(kind("../bin/busybox"), InitSystem::OpenRc);
    }
}
