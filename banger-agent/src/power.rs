//! Powers the guest off. Before this starts, the data is on the disks; what remains is to end the guest's programs in
//! order, and to leave the file systems clean.

use std::{
    convert::Infallible, fs, io, os::unix::fs::PermissionsExt, path::Path, process::ExitCode, thread,
    time::Duration,
};

use banger_proto::guest::{OFF_BY_RESET, POWER_OFF_MARK};
use rustix::{
    mount::{MountFlags, mount_remount},
    process::{Pid, Signal, kill_process, test_kill_process},
    system::{RebootCommand, reboot},
};

use crate::{channels::InitKind, log, stopping};

/// How long the image's init may take. The host's timeout is longer.
const INIT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long programs may take to end if there is no init to end them.
const PROGRAMS_TIMEOUT: Duration = Duration::from_secs(3);
/// Poll interval for the end of processes.
const POLL: Duration = Duration::from_millis(20);
/// Signals that make systemd power off, and reboot (systemd(1): SIGRTMIN+4 and +5).
const SYSTEMD_POWER_OFF: i32 = 34 + 4;
const SYSTEMD_REBOOT: i32 = 34 + 5;
/// The directory and the program that systemd switches to at the very end (systemd.io, "The initrd interface").
const SHUTDOWN_ROOT: &str = "/run/initramfs";
const SHUTDOWN_PROGRAM: &str = "shutdown";

/// How to power the guest off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PowerOff {
    PowerOff,
    /// By a reset, because the VMM has no power switch and exits on a reset.
    Reset,
}

impl PowerOff {
    /// Returns the method for this VMM, which the host puts on the kernel's command line.
    fn find() -> Self {
        Self::of(&fs::read_to_string("/proc/cmdline").unwrap_or_default())
    }

    fn of(command_line: &str) -> Self {
        let resets = command_line.split_ascii_whitespace().any(|word| word == OFF_BY_RESET);
        if resets { PowerOff::Reset } else { PowerOff::PowerOff }
    }

    /// Returns the signal for systemd.
    fn signal(self) -> i32 {
        match self {
            PowerOff::PowerOff => SYSTEMD_POWER_OFF,
            PowerOff::Reset => SYSTEMD_REBOOT,
        }
    }

    /// Powers off now.
    fn power_off(self) -> io::Result<Infallible> {
        if self == PowerOff::Reset {
            log::emergency(POWER_OFF_MARK);
        }
        reboot(match self {
            PowerOff::PowerOff => RebootCommand::PowerOff,
            PowerOff::Reset => RebootCommand::Restart,
        })?;
        Err(still_running())
    }
}

fn still_running() -> io::Error {
    io::Error::other("the guest is still running")
}

/// What systemd was asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    PowerOff,
    Reboot,
    Halt,
}

impl Verb {
    fn of(word: Option<&str>) -> Self {
        match word {
            Some("reboot" | "kexec") => Verb::Reboot,
            Some("halt") => Verb::Halt,
            _ => Verb::PowerOff,
        }
    }
}

/// Prepares for a VMM that can only be reset, so that it exits when the guest powers itself off: systemd then
/// switches to this program. Other inits halt, and the guest has to be stopped by the host.
pub fn prepare() -> io::Result<()> {
    if PowerOff::find() == PowerOff::PowerOff {
        return Ok(());
    }
    fs::create_dir_all(SHUTDOWN_ROOT)?;
    let program = Path::new(SHUTDOWN_ROOT).join(SHUTDOWN_PROGRAM);
    fs::copy("/proc/self/exe", &program)?;
    fs::set_permissions(program, fs::Permissions::from_mode(0o700))
}

/// Returns whether this process is the program that [`prepare`] installed.
pub fn is_shutdown_program() -> bool {
    std::env::args().next().is_some_and(|name| Path::new(&name).ends_with(SHUTDOWN_PROGRAM))
}

/// Powers off for systemd, after file systems are unmounted or read-only. `verb` is what systemd was asked to do:
/// `poweroff`, `reboot`, `halt` or `kexec`.
pub fn finish(verb: Option<&str>) -> ExitCode {
    rustix::fs::sync();
    let ended = match Verb::of(verb) {
        Verb::PowerOff => PowerOff::find().power_off(),
        Verb::Halt => {
            reboot(RebootCommand::Halt).map_err(io::Error::from).and_then(|()| Err(still_running()))
        }
        Verb::Reboot => {
            reboot(RebootCommand::Restart).map_err(io::Error::from).and_then(|()| Err(still_running()))
        }
    };
    let Err(error) = ended;
    log::error(&format!("cannot end the guest: {error}"));
    ExitCode::FAILURE
}

/// Powers the guest off. Returns only if that fails.
pub fn power_off_guest(init: InitKind) -> io::Result<()> {
    stopping::begin();
    let manner = PowerOff::find();
    if init == InitKind::Image && ask_init(manner) {
        thread::sleep(INIT_TIMEOUT);
        log::error("the image's init did not power off in time");
    }
    end_programs();
    leave_disks_clean();
    manner.power_off().map(|never| match never {})
}

/// Asks the image's init to power off, if it supports that. The guest is off before the wait is over.
fn ask_init(manner: PowerOff) -> bool {
    if !Path::new("/run/systemd/system").is_dir() {
        return false;
    }
    // SAFETY: the number is that of a real-time signal, which the C library does not use itself.
    #[expect(unsafe_code, reason = "real-time signals have no names")]
    let signal = unsafe { Signal::from_raw_unchecked(manner.signal()) };
    kill_process(Pid::INIT, signal).is_ok()
}

fn end_programs() {
    for (signal, timeout) in [(Signal::TERM, PROGRAMS_TIMEOUT), (Signal::KILL, PROGRAMS_TIMEOUT)] {
        for pid in programs() {
            let _ = kill_process(pid, signal);
        }
        let mut waited = Duration::ZERO;
        while waited < timeout && programs().iter().any(|pid| test_kill_process(*pid).is_ok()) {
            thread::sleep(POLL);
            waited += POLL;
        }
    }
}

/// Returns all processes except the first, this one, kernel threads and zombies.
fn programs() -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let own = std::process::id() as i32;
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != 1 && *pid != own)
        // Kernel threads and zombies have no command line.
        .filter(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty()))
        .filter_map(Pid::from_raw)
        .collect()
}

/// Flushes all data and makes every file system read-only, in reverse order of mounting.
fn leave_disks_clean() {
    rustix::fs::sync();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines().rev() {
        let mut fields = line.split(' ');
        if let (Some(source), Some(target)) = (fields.next(), fields.next())
            && source.starts_with("/dev/")
        {
            // A busy one stays as it is: its data is written, and its journal does the rest.
            let _ = mount_remount(target, MountFlags::RDONLY, c"");
        }
    }
    rustix::fs::sync();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reboot_stays_a_reboot_without_a_power_switch() {
        for (word, expect) in [
            (Some("reboot"), Verb::Reboot),
            (Some("kexec"), Verb::Reboot),
            (Some("halt"), Verb::Halt),
            (Some("poweroff"), Verb::PowerOff),
            (Some("exit"), Verb::PowerOff),
            (None, Verb::PowerOff),
        ] {
            assert_eq!(Verb::of(word), expect, "{word:?}");
        }
    }

    #[test]
    fn the_command_line_selects_how_to_power_off() {
        assert_eq!(PowerOff::of("console=ttyS0 quiet\n"), PowerOff::PowerOff);
        assert_eq!(PowerOff::of(&format!("quiet {OFF_BY_RESET}\n")), PowerOff::Reset);
        assert_eq!(PowerOff::of(&format!("x{OFF_BY_RESET} {OFF_BY_RESET}ly")), PowerOff::PowerOff);
    }
}
