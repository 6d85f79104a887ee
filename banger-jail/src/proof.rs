//! Shows that the system call filter forbids what settings of systemd would forbid
//! (docs/decisions/0019-limits-of-slices.md).
//!
//! Each setting is a list of forbidden calls, with arguments that change nothing if the kernel does execute the call.
//! A call that reaches the kernel either succeeds or fails with another error than a missing permission.

use std::{io, process::ExitCode};

use rustix::thread::set_no_new_privs;

use super::filter;

/// A call and its first arguments; the others are out of range.
type Call = (i64, &'static [i64]);

/// Out of range as a number, a descriptor and an address.
const NONE: i64 = -1;
/// No flag of `unshare`, which the kernel checks first.
#[cfg(target_arch = "x86_64")]
const NO_FLAG: i64 = 1;
#[cfg(target_arch = "x86_64")]
const BOTH: i64 = (libc::CLONE_NEWUSER | libc::CLONE_FS) as i64;

/// The settings, under their names in a unit.
#[cfg(target_arch = "x86_64")]
const SETTINGS: &[(&str, &[Call])] = &[
    ("ProtectClock=yes", CLOCK),
    ("ProtectKernelLogs=yes", &[(libc::SYS_syslog, &[])]),
    ("ProtectKernelModules=yes", MODULE),
    ("ProtectHostname=yes", &[(libc::SYS_sethostname, &[]), (libc::SYS_setdomainname, &[])]),
    (
        "RestrictNamespaces=yes",
        &[
            (libc::SYS_unshare, &[libc::CLONE_NEWUSER as i64 | NO_FLAG]),
            (libc::SYS_unshare, &[libc::CLONE_NEWNS as i64 | NO_FLAG]),
            (libc::SYS_unshare, &[libc::CLONE_NEWNET as i64 | NO_FLAG]),
            (libc::SYS_setns, &[]),
            // The kernel refuses the combination.
            (libc::SYS_clone, &[BOTH, 0, 0, 0, 0]),
            (libc::SYS_clone3, &[0, 0]),
        ],
    ),
    (
        "RestrictAddressFamilies=AF_UNIX",
        &[
            (libc::SYS_socket, &[libc::AF_INET as i64]),
            (libc::SYS_socket, &[libc::AF_INET6 as i64]),
            (libc::SYS_socket, &[libc::AF_NETLINK as i64]),
            (libc::SYS_socket, &[libc::AF_PACKET as i64]),
            (libc::SYS_socket, &[libc::AF_VSOCK as i64]),
            (libc::SYS_socket, &[libc::AF_ALG as i64]),
            (libc::SYS_socketpair, &[libc::AF_INET as i64]),
        ],
    ),
    (
        "RestrictRealtime=yes",
        &[
            (libc::SYS_sched_setscheduler, &[0, libc::SCHED_FIFO as i64, 0]),
            (libc::SYS_sched_setparam, &[0, 0]),
            (libc::SYS_sched_setattr, &[0, 0, 0]),
        ],
    ),
    ("LockPersonality=yes", &[(libc::SYS_personality, &[0xffff_ffff])]),
    ("SystemCallFilter=~@clock", CLOCK),
    ("SystemCallFilter=~@cpu-emulation", &[(libc::SYS_modify_ldt, &[0, 0, 0])]),
    (
        "SystemCallFilter=~@debug",
        &[
            (libc::SYS_lookup_dcookie, &[]),
            (libc::SYS_perf_event_open, &[]),
            (libc::SYS_pidfd_getfd, &[]),
            (libc::SYS_ptrace, &[]),
        ],
    ),
    ("SystemCallFilter=~@module", MODULE),
    (
        "SystemCallFilter=~@mount",
        &[
            (libc::SYS_chroot, &[]),
            (libc::SYS_fsconfig, &[]),
            (libc::SYS_fsmount, &[]),
            (libc::SYS_fsopen, &[]),
            (libc::SYS_fspick, &[]),
            (libc::SYS_mount, &[]),
            (libc::SYS_mount_setattr, &[]),
            (libc::SYS_move_mount, &[]),
            (libc::SYS_open_tree, &[]),
            (libc::SYS_pivot_root, &[]),
            (libc::SYS_umount2, &[]),
        ],
    ),
    (
        "SystemCallFilter=~@obsolete",
        &[
            (libc::SYS__sysctl, &[]),
            (libc::SYS_afs_syscall, &[]),
            (libc::SYS_getpmsg, &[]),
            (libc::SYS_putpmsg, &[]),
            (libc::SYS_security, &[]),
            (libc::SYS_sysfs, &[]),
            (libc::SYS_tuxcall, &[]),
            (libc::SYS_uselib, &[]),
            (libc::SYS_ustat, &[]),
            (libc::SYS_vserver, &[]),
            // create_module, get_kernel_syms and query_module, which the crate lacks.
            (174, &[]),
            (177, &[]),
            (178, &[]),
        ],
    ),
    ("SystemCallFilter=~@raw-io", &[(libc::SYS_ioperm, &[]), (libc::SYS_iopl, &[0])]),
    (
        "SystemCallFilter=~@reboot",
        &[(libc::SYS_kexec_file_load, &[]), (libc::SYS_kexec_load, &[]), (libc::SYS_reboot, &[])],
    ),
    ("SystemCallFilter=~@swap", &[(libc::SYS_swapoff, &[]), (libc::SYS_swapon, &[])]),
];
#[cfg(not(target_arch = "x86_64"))]
const SETTINGS: &[(&str, &[Call])] = &[];

#[cfg(target_arch = "x86_64")]
const CLOCK: &[Call] = &[
    (libc::SYS_adjtimex, &[]),
    (libc::SYS_clock_adjtime, &[]),
    (libc::SYS_clock_settime, &[0]),
    (libc::SYS_settimeofday, &[]),
];
#[cfg(target_arch = "x86_64")]
const MODULE: &[Call] =
    &[(libc::SYS_delete_module, &[]), (libc::SYS_finit_module, &[]), (libc::SYS_init_module, &[])];

/// Checks that the filter of this process covers every setting.
pub fn check() -> io::Result<()> {
    match broken().first() {
        None => Ok(()),
        Some((setting, call)) => Err(io::Error::other(format!(
            "the system call filter allows call number {call}, which {setting} forbids"
        ))),
    }
}

/// Applies the filter, and prints the settings that it covers, one per line.
pub fn print() -> ExitCode {
    let applied = set_no_new_privs(true).map_err(io::Error::from).and_then(|()| filter::apply());
    if let Err(error) = applied.and_then(|()| check()) {
        eprintln!("banger-shim: {error}");
        return ExitCode::FAILURE;
    }
    SETTINGS.iter().for_each(|(setting, _)| println!("{setting}"));
    ExitCode::SUCCESS
}

/// Returns the settings that are not covered, with the number of a call that reached the kernel.
fn broken() -> Vec<(&'static str, i64)> {
    let through = |(setting, calls): &(&'static str, &[Call])| {
        calls.iter().find(|call| !is_refused(call)).map(|(number, _)| (*setting, *number))
    };
    SETTINGS.iter().filter_map(through).collect()
}

fn is_refused((number, given): &Call) -> bool {
    let mut arguments = [NONE; 6];
    for (argument, given) in arguments.iter_mut().zip(*given) {
        *argument = *given;
    }
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: no argument is a mapped address, so the kernel neither reads nor writes the memory of this process; and
    // no call returns twice, since the kernel creates no child with these flags.
    #[expect(unsafe_code, reason = "no library makes calls that must not be made")]
    let returned = unsafe { libc::syscall(*number, a, b, c, d, e, f) };
    let error = io::Error::last_os_error().raw_os_error();
    // The filter reports this call as missing, so that the C library uses the older one.
    let expected = if *number == libc::SYS_clone3 { libc::ENOSYS } else { libc::EPERM };
    returned == -1 && error == Some(expected)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_setting_holds_behind_the_filter_and_not_before() {
        // The filter applies to the thread that sets it.
        std::thread::spawn(|| {
            let before: Vec<_> = broken().into_iter().map(|(setting, _)| setting).collect();
            for setting in
                ["RestrictNamespaces=yes", "RestrictAddressFamilies=AF_UNIX", "LockPersonality=yes"]
            {
                assert!(before.contains(&setting), "{before:?}");
            }
            set_no_new_privs(true).unwrap();
            filter::apply().unwrap();
            assert_eq!(broken(), []);
        })
        .join()
        .unwrap();
    }
}
