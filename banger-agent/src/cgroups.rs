//! Control groups of a guest: one for the agent, and one for each session.
//!
//! ```text
//! /                     init.scope, system.slice … of the image's init
//! └─ banger             a higher weight for the processor
//!    ├─ agent           the serving process, which the kernel kills last
//!    └─ sessions        memory.max, pids.max: what all commands together may take
//!       ├─ 1            pids.max: half of that; a command and all that it started
//!       └─ 2
//! ```
//!
//! So a command that uses up the memory ends alone, a fork bomb leaves room for the next command, and the image's
//! init does not count commands as its own. If the kernel has no cgroup2, or the image's init uses a controller with
//! cgroup1, commands run without these limits.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::Command,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::{
    fs::{Mode, OFlags, openat},
    io::Errno,
    mount::{MountFlags, mount},
};

use crate::{freezer, hierarchy::Hierarchy, log};

/// Where programs of an image expect the tree.
const MOUNT_POINT: &str = "/sys/fs/cgroup";
/// The agent's own group, below the root.
const TOP: &str = "banger";
const AGENT: &str = "banger/agent";
const SESSIONS: &str = "banger/sessions";
/// Prefix that [`is_command`] looks for in `cgroup` of proc(5).
const SESSION_PREFIX: &str = "0::/banger/sessions/";
/// Controllers for limits and for sharing evenly.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];
/// Weight of all commands; each service has 100 (systemd.resource-control(5), "CPUWeight=").
const WEIGHT: &str = "300";
/// The agent does little, but every request waits for it.
const AGENT_WEIGHT: &str = "1000";
/// The kernel kills everything else before the agent (proc_pid_oom_score_adj(5)); -1000 would hide a leak of the
/// agent.
const PROTECTED: &[u8] = b"-900";
const NOT_PROTECTED: &[u8] = b"0";
/// Memory that commands leave to the kernel, the image's init, its services and the agent: an eighth, within these
/// bounds. With less, a command that uses up its own part makes a small guest evict and read again the programs of its
/// services.
const RESERVED: std::ops::RangeInclusive<u64> = 96 << 20..=128 << 20;
/// Memory of a small process, with its page tables and the kernel's records of it. A guest with more processes than fit
/// into its memory evicts and reads the same pages over and over, and its agent no longer answers.
const PROCESS_MEMORY: u64 = 256 << 10;
/// With fewer processes, a shell could not run a pipeline.
const MIN_PROCESSES: u64 = 64;

/// Limits of commands.
#[derive(Debug, PartialEq, Eq)]
struct Limits {
    /// All commands together, in bytes.
    memory: u64,
    /// Processes and threads of all commands together.
    processes: u64,
    /// Processes and threads of one session.
    processes_each: u64,
}

impl Limits {
    fn of_this_guest() -> Self {
        let number = |path: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            text.trim().parse().unwrap_or(32 << 10)
        };
        Self::of(
            crate::stats::memory_total(),
            number("/proc/sys/kernel/pid_max").min(number("/proc/sys/kernel/threads-max")),
        )
    }

    /// Returns the limits for a guest with `memory` bytes and at most `processes` processes and threads.
    fn of(memory: u64, processes: u64) -> Self {
        let reserved = (memory / 8).clamp(*RESERVED.start(), *RESERVED.end());
        let memory = memory.saturating_sub(reserved).max(memory / 2);
        let processes = (processes / 8 * 7).min(memory / PROCESS_MEMORY);
        Self {
            memory,
            processes: processes.max(MIN_PROCESSES),
            processes_each: (processes / 2).max(MIN_PROCESSES),
        }
    }
}

/// The tree of control groups.
struct Tree {
    hierarchy: Hierarchy,
    limits: Limits,
    last: AtomicU64,
    /// Groups of ended sessions whose background processes still run.
    left: Mutex<Vec<String>>,
}

/// Set in the serving process of a guest only, and not in tests.
static TREE: OnceLock<Arc<Tree>> = OnceLock::new();

/// Mounts the tree where programs look for it, in a guest whose init does not.
pub fn mount_for_programs() -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    match mount("cgroup2", MOUNT_POINT, "cgroup2", flags, Some(c"nsdelegate,memory_recursiveprot")) {
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Starts the serving process in its own group, and protects it from the OOM killer. Call it before the image's init
/// starts, because that moves all processes in the root group.
pub fn protect(server: &mut Command) {
    let procs = Tree::open().and_then(|tree| tree.hierarchy.write_end(AGENT, "cgroup.procs"));
    let procs = procs.map_err(|error| log::error(&format!("commands share one control group: {error}"))).ok();
    let prepare = move || {
        // It serves without this, too.
        let _ = set_oom_score(PROTECTED);
        if let Some(procs) = &procs {
            let _ = rustix::io::write(procs, b"0");
        }
        Ok(())
    };
    // SAFETY: the closure only makes system calls; it neither allocates nor takes a lock.
    #[expect(unsafe_code, reason = "a process can only move itself between fork and exec")]
    unsafe {
        server.pre_exec(prepare);
    }
}

/// Runs commands in groups of their own from now on.
pub fn begin() {
    match Tree::open() {
        Ok(tree) => drop(TREE.set(Arc::new(tree))),
        Err(error) => log::error(&format!("commands share one control group: {error}")),
    }
    match Hierarchy::mount() {
        Ok(hierarchy) => freezer::begin(hierarchy),
        Err(error) => log::error(&format!("the guest cannot be frozen: {error}")),
    }
}

/// Returns whether a process belongs to a command, according to its control group in proc(5).
pub fn is_command(pid: i32) -> bool {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    groups.lines().any(|line| line.starts_with(SESSION_PREFIX))
}

/// Kills all processes in the group of a session.
pub fn kill(group: &str) {
    if let Some(tree) = TREE.get() {
        // If the group does not exist, it has no processes.
        let _ = tree.hierarchy.write(group, "cgroup.kill", "1");
    }
}

/// The group of a session. Dropping it removes the group, or postpones that if processes are left in it.
pub struct Group {
    tree: Arc<Tree>,
    name: String,
    procs: OwnedFd,
}

impl Group {
    /// Creates a group. Returns `None` if there are no groups or none can be created.
    pub fn new() -> Option<Self> {
        let tree = TREE.get()?;
        tree.group().map_err(|error| log::error(&format!("cannot make a control group: {error}"))).ok()
    }

    /// Returns its name in the tree.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what a child calls between fork and exec to enter this group, and to be a normal victim of the OOM
    /// killer.
    pub fn enter(group: Option<&Self>) -> io::Result<impl Fn() + Send + Sync + 'static> {
        let procs = group.map(|group| group.procs.try_clone()).transpose()?;
        Ok(move || {
            // A command without limits is better than none.
            let _ = set_oom_score(NOT_PROTECTED);
            if let Some(procs) = &procs {
                let _ = rustix::io::write(procs, b"0");
            }
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.tree.hierarchy.remove(&self.name) {
            self.tree
                .left
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(std::mem::take(&mut self.name));
        }
    }
}

impl Tree {
    fn open() -> io::Result<Self> {
        let hierarchy = Hierarchy::mount()?;
        for group in [TOP, AGENT, SESSIONS] {
            hierarchy.make(group)?;
        }
        let (last, left) = (AtomicU64::default(), Mutex::default());
        Ok(Self { hierarchy, limits: Limits::of_this_guest(), last, left })
    }

    fn group(self: &Arc<Self>) -> io::Result<Group> {
        self.set_limits();
        self.left.lock().unwrap_or_else(PoisonError::into_inner).retain(|name| !self.hierarchy.remove(name));
        let name = format!("{SESSIONS}/{}", self.last.fetch_add(1, Ordering::Relaxed) + 1);
        self.hierarchy.make(&name)?;
        let _ = self.hierarchy.write(&name, "pids.max", &self.limits.processes_each.to_string());
        let procs = self.hierarchy.write_end(&name, "cgroup.procs")?;
        Ok(Group { tree: Arc::clone(self), name, procs })
    }

    /// Enables the controllers and sets the limits of all commands. This is repeated for each session: a controller
    /// that the image's init uses may become available later, and one that is enabled here cannot be taken away.
    fn set_limits(&self) {
        let enabled = self.hierarchy.read(SESSIONS, "cgroup.subtree_control").unwrap_or_default();
        if CONTROLLERS.iter().all(|wanted| enabled.split_whitespace().any(|word| word == *wanted)) {
            return;
        }
        for group in ["", TOP, SESSIONS] {
            for controller in CONTROLLERS {
                let _ = self.hierarchy.write(group, "cgroup.subtree_control", &format!("+{controller}"));
            }
        }
        for (group, file, value) in [
            (TOP, "cpu.weight", WEIGHT),
            (AGENT, "cpu.weight", AGENT_WEIGHT),
            (SESSIONS, "memory.max", &self.limits.memory.to_string()),
            (SESSIONS, "pids.max", &self.limits.processes.to_string()),
        ] {
            let _ = self.hierarchy.write(group, file, value);
        }
    }
}

/// Makes the calling process a better or worse victim of the OOM killer. Allocates nothing.
fn set_oom_score(score: &[u8]) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(rustix::fs::CWD, c"/proc/self/oom_score_adj", flags, Mode::empty())?;
    rustix::io::write(&file, score)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn commands_leave_memory_and_processes_to_the_rest_of_the_guest() {
        for (memory, processes, expect) in [
            // Memory in MiB, then processes of all sessions and of one.
            (64, 400, (32, 128, 64)),
            (256, 2000, (160, 640, 320)),
            (480, 3800, (384, 1536, 768)),
            (2048, 16_000, (1920, 7680, 3840)),
            (65_536, 4_194_304, (65_408, 261_632, 130_816)),
            // A kernel that allows few.
            (65_536, 4000, (65_408, 3500, 1750)),
            // If the values cannot be read, commands still get something.
            (0, 0, (0, 64, 64)),
        ] {
            let limits = Limits::of(memory * MIB, processes);
            let found = (limits.memory / MIB, limits.processes, limits.processes_each);
            assert_eq!(found, expect, "{memory} MiB, {processes} processes");
        }
    }

    #[test]
    fn outside_of_a_guest_there_are_no_groups() {
        assert!(Group::new().is_none());
    }
}
