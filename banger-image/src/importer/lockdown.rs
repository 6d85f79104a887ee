//! Locks down the worker before it reads the first untrusted byte: from then on it cannot open files, make sockets or
//! start programs. systemd or [`banger_jail::jail`] confine it as well; each alone should suffice.

use std::{
    fs::{self, File},
    io,
    net::TcpListener,
    os::unix::net::UnixDatagram,
    process::Command,
};

use banger_jail::{
    capabilities,
    filter::{allow_only, argument},
};
use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, Scope};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use seccompiler::{BackendError, BpfProgram, SeccompCmpOp};

use super::message::{Attempt, Failure};

/// The limit of its address space: what the largest accepted image needs, and the largest window of zstd.
const MAX_MEMORY: u64 = 3 << 30;
/// The newest Landlock rules that were reviewed; an older kernel supports fewer.
const RULES: ABI = ABI::V6;

/// The allowed system calls: reading, writing, memory, threads and time.
const CALLS: &[i64] = &[
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_writev,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_close,
    // On its socket.
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// `statx` of a descriptor, with an empty path.
const AT_EMPTY_PATH: u64 = 0x1000;

/// Locks the process down permanently. Call it while the process has one thread.
pub(super) fn enter() -> Result<(), Failure> {
    let failed = |doing: &str, error: &dyn std::fmt::Display| Failure::Broken {
        doing: doing.to_owned(),
        why: error.to_string(),
    };
    let limit = |resource, most| {
        let maximum = getrlimit(resource).maximum.map_or(most, |maximum| maximum.min(most));
        setrlimit(resource, Rlimit { current: Some(maximum), maximum: Some(maximum) })
            .map_err(|error| Failure::os("limit the worker", error))
    };
    limit(Resource::As, MAX_MEMORY)?;
    limit(Resource::Core, 0)?;
    rustix::thread::set_no_new_privs(true).map_err(|error| Failure::os("give up privileges", error))?;
    capabilities::give_up().map_err(|error| Failure::os("drop all capabilities", error))?;

    // Without rules that allow something, everything that the ruleset handles is forbidden. A kernel without Landlock
    // still has the filter below.
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(RULES))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(RULES)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(RULES)))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self);
    ruleset.map_err(|error| failed("restrict access to files", &error))?;

    for filter in filters().map_err(|error| failed("build the system call filter", &error))? {
        seccompiler::apply_filter(&filter)
            .map_err(|error| failed("install the system call filter", &error))?;
    }
    Ok(())
}

fn filters() -> Result<[BpfProgram; 2], BackendError> {
    // Threads, but no processes.
    let thread = libc::CLONE_THREAD as u64;
    let conditional = [
        (libc::SYS_clone, argument(0, SeccompCmpOp::MaskedEq(thread), thread)?),
        (libc::SYS_statx, argument(2, SeccompCmpOp::MaskedEq(AT_EMPTY_PATH), AT_EMPTY_PATH)?),
        (libc::SYS_prctl, argument(0, SeccompCmpOp::Eq, libc::PR_SET_NAME as u64)?),
        (libc::SYS_fcntl, argument(1, SeccompCmpOp::Eq, libc::F_GETFL as u64)?),
    ];
    allow_only(CALLS.iter(), conditional)
}

/// Tries what the lockdown must prevent.
pub(super) fn probe() -> Vec<Attempt> {
    fn tried<T>(what: &str, result: io::Result<T>) -> Attempt {
        let how = result.as_ref().err().map_or("done".to_owned(), io::Error::to_string);
        Attempt { what: what.to_owned(), done: result.is_ok(), how }
    }
    vec![
        tried("read a file", File::open("/etc/passwd")),
        tried("read its own program", File::open("/proc/self/exe")),
        tried("list the root", fs::read_dir("/")),
        tried("make a file", File::create("/tmp/banger-probe")),
        tried(
            "make a file in memory",
            rustix::fs::memfd_create("probe", rustix::fs::MemfdFlags::empty()).map_err(Into::into),
        ),
        tried("make a network socket", TcpListener::bind("127.0.0.1:0")),
        tried("make a socket", UnixDatagram::unbound()),
        tried("see the network", fs::read_to_string("/proc/net/dev")),
        tried("start a program", Command::new("/bin/true").status()),
        tried("see processes", fs::read_dir("/proc/1")),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_filters_are_filters() {
        assert!(filters().unwrap().iter().all(|filter| !filter.is_empty()));
    }
}
