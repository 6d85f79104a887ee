//! Powering off. The data is on the disks before this begins; what remains is to end the guest's programs
//! in order, and to leave the file systems clean.

use std::{fs, io, path::Path, thread, time::Duration};

use rustix::{
    mount::{MountFlags, mount_remount},
    process::{Pid, Signal, kill_process, test_kill_process},
    system::{RebootCommand, reboot},
};

use crate::{channels::InitKind, log};

/// How long the image's init may take. The host's patience is longer.
const INIT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long programs may take to end when there is no init to end them.
const PROGRAMS_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two looks at what is still there.
const POLL: Duration = Duration::from_millis(20);
/// What systemd takes for a request to power off (systemd(1): SIGRTMIN+4).
const SYSTEMD_POWER_OFF: i32 = 34 + 4;

/// Powers the machine off. Returns only when that fails.
pub fn off(init: InitKind) -> io::Result<()> {
    if init == InitKind::Image && ask_init() {
        thread::sleep(INIT_TIMEOUT);
        log::error("the image's init does not power off");
    }
    end_programs();
    leave_disks_clean();
    Ok(reboot(RebootCommand::PowerOff)?)
}

/// Asks the image's init, where it is one that can be asked. The machine is off before the wait is over.
fn ask_init() -> bool {
    if !Path::new("/run/systemd/system").is_dir() {
        return false;
    }
    // SAFETY: the number is that of a real-time signal, which the C library does not use for itself.
    #[expect(unsafe_code, reason = "real-time signals have no names")]
    let signal = unsafe { Signal::from_raw_unchecked(SYSTEMD_POWER_OFF) };
    kill_process(Pid::INIT, signal).is_ok()
}

fn end_programs() {
    for (signal, patience) in [(Signal::TERM, PROGRAMS_TIMEOUT), (Signal::KILL, PROGRAMS_TIMEOUT)] {
        for pid in programs() {
            let _ = kill_process(pid, signal);
        }
        let mut waited = Duration::ZERO;
        while waited < patience && programs().iter().any(|pid| test_kill_process(*pid).is_ok()) {
            thread::sleep(POLL);
            waited += POLL;
        }
    }
}

/// Every process but the first, this one, the kernel's own and zombies.
fn programs() -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let own = std::process::id() as i32;
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != 1 && *pid != own)
        // The kernel's threads and zombies have no command line.
        .filter(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty()))
        .filter_map(Pid::from_raw)
        .collect()
}

/// Writes everything and makes every file system read-only, the last mounted first.
fn leave_disks_clean() {
    rustix::fs::sync();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines().rev() {
        let mut fields = line.split(' ');
        if let (Some(source), Some(target)) = (fields.next(), fields.next())
            && source.starts_with("/dev/")
        {
            // One that is busy stays as it is: its data is written, and its journal does the rest.
            let _ = mount_remount(target, MountFlags::RDONLY, c"");
        }
    }
    rustix::fs::sync();
}
