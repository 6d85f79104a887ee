//! The system call filter of the shim and the VMM. The VMM narrows it further.
//!
//! systemd could set a filter too (`SystemCallFilter=@system-service`, `RestrictAddressFamilies=` and others), but
//! needs more time for it than for the rest of the confinement; and without systemd nobody else would do it.

use std::{collections::BTreeMap, io};

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// The system calls of a program that computes, uses files, sockets and devices, and has threads. Calls for
/// namespaces, mounts, keys, kernel modules, clocks and BPF are missing, as are io_uring and calls that inspect other
/// processes.
const CALLS: &[i64] = &[
    // Files.
    libc::SYS_chdir,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_ioctl,
    libc::SYS_linkat,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pipe2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readahead,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_sync_file_range,
    libc::SYS_syncfs,
    libc::SYS_tee,
    libc::SYS_truncate,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_vmsplice,
    libc::SYS_write,
    libc::SYS_writev,
    // Sockets.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // Waiting.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_get_robust_list,
    libc::SYS_getitimer,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_set_robust_list,
    libc::SYS_setitimer,
    libc::SYS_signalfd4,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_gettime,
    libc::SYS_timer_settime,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    libc::SYS_times,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mlockall,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munlock,
    libc::SYS_munlockall,
    libc::SYS_munmap,
    // The process itself, its threads and its child.
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getcpu,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getpgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getpriority,
    libc::SYS_getrandom,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrlimit,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_kill,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getattr,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_rr_get_interval,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_yield,
    // For filters that a VMM adds itself.
    libc::SYS_seccomp,
    libc::SYS_set_tid_address,
    libc::SYS_setpriority,
    libc::SYS_setrlimit,
    libc::SYS_setsid,
    libc::SYS_sigaltstack,
    libc::SYS_sysinfo,
    libc::SYS_tgkill,
    libc::SYS_tkill,
    libc::SYS_uname,
];

/// Calls that newer architectures left out.
#[cfg(target_arch = "x86_64")]
const OLDER: &[i64] = &[
    libc::SYS_access,
    libc::SYS_alarm,
    libc::SYS_arch_prctl,
    libc::SYS_chmod,
    libc::SYS_creat,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_fork,
    libc::SYS_getdents,
    libc::SYS_getpgrp,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_pause,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_signalfd,
    libc::SYS_stat,
    libc::SYS_symlink,
    libc::SYS_time,
    libc::SYS_unlink,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[i64] = &[];

/// The flags of `clone` that create namespaces. It has none for time namespaces.
const NAMESPACES: i32 = libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS;

/// Restricts this process and its children to these calls. Other calls fail instead of killing the process: QEMU
/// tries io_uring and memory policies, and works without them. Call it while the process has one thread, after it has
/// given up new privileges.
pub fn apply() -> io::Result<()> {
    let filters = filters()
        .map_err(|error| io::Error::other(format!("cannot build the system call filter: {error}")))?;
    for filter in filters {
        seccompiler::apply_filter(&filter)
            .map_err(|error| io::Error::other(format!("cannot install the system call filter: {error}")))?;
    }
    Ok(())
}

fn filters() -> Result<[BpfProgram; 2], BackendError> {
    let unix = || argument(0, SeccompCmpOp::Eq, libc::AF_UNIX as u64);
    let in_the_same_namespaces = argument(0, SeccompCmpOp::MaskedEq(NAMESPACES as u64), 0)?;
    let conditional = [
        (libc::SYS_socket, unix()?),
        (libc::SYS_socketpair, unix()?),
        (libc::SYS_clone, in_the_same_namespaces),
    ];
    allow_only(CALLS.iter().chain(OLDER), conditional)
}

/// Returns the condition that the lower 32 bits of an argument match.
pub fn argument(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<Vec<SeccompRule>, BackendError> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
    Ok(vec![SeccompRule::new(vec![condition])?])
}

/// Returns the filters that allow these calls, some only on a condition. Both filters have to allow a call. Install
/// them in this order.
pub fn allow_only<'a>(
    calls: impl Iterator<Item = &'a i64>,
    conditional: impl IntoIterator<Item = (i64, Vec<SeccompRule>)>,
) -> Result<[BpfProgram; 2], BackendError> {
    let architecture = std::env::consts::ARCH.try_into()?;
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let mut allowed: BTreeMap<i64, Vec<SeccompRule>> = calls.map(|call| (*call, Vec::new())).collect();
    allowed.extend(conditional);
    // The other filter decides about it.
    allowed.insert(libc::SYS_clone3, Vec::new());
    let main = SeccompFilter::new(allowed, refuse, SeccompAction::Allow, architecture)?;
    // Its arguments are in memory, where no filter sees them. The C library falls back to the older call if this one
    // is missing.
    let newer = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    let newer = SeccompFilter::new(newer, SeccompAction::Allow, absent, architecture)?;
    // The first one installed is consulted last, and forbids the call that would install the second.
    Ok([newer.try_into()?, main.try_into()?])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::thread;

    use rustix::{
        io::Errno,
        net::{AddressFamily, SocketType, socket},
        thread::{UnshareFlags, set_no_new_privs, unshare_unsafe},
    };

    use super::*;

    fn make_socket(family: AddressFamily) -> Result<(), Errno> {
        socket(family, SocketType::STREAM, None).map(drop)
    }

    #[test]
    fn a_forbidden_call_fails_and_the_process_continues() {
        // The filter applies to the thread that sets it, and to threads that it starts.
        thread::spawn(|| {
            set_no_new_privs(true).unwrap();
            apply().unwrap();
            // SAFETY: a namespace of names is all that would be changed, and the thread ends here.
            #[expect(unsafe_code, reason = "the call is unsafe for flags that are not given here")]
            let unshared = unsafe { unshare_unsafe(UnshareFlags::NEWUTS) };
            assert_eq!(unshared.unwrap_err(), Errno::PERM);
            assert_eq!(rustix::system::sethostname(b"x").unwrap_err(), Errno::PERM);
            assert_eq!(make_socket(AddressFamily::INET).unwrap_err(), Errno::PERM);
            assert_eq!(make_socket(AddressFamily::VSOCK).unwrap_err(), Errno::PERM);
            assert!(make_socket(AddressFamily::UNIX).is_ok());
            // The arguments are passed as they are, without the C library.
            // SAFETY: the child, should there be one, has a copy of this thread alone, and ends at once.
            #[expect(unsafe_code, reason = "no library calls clone with flags of one's own")]
            let cloned = unsafe {
                let cloned = libc::syscall(libc::SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD, 0, 0, 0, 0);
                if cloned == 0 {
                    libc::_exit(0);
                }
                cloned
            };
            assert_eq!((cloned, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EPERM)));
            assert!(std::fs::read("/proc/self/status").is_ok());
            let status = std::process::Command::new("true").status().unwrap();
            assert!(status.success());
            assert_eq!(thread::spawn(|| 5).join().unwrap(), 5);
        })
        .join()
        .unwrap();
    }
}
