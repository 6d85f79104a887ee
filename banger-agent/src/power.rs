//! Powering off. The data is on the disks before this begins; what remains is to end the guest's programs
//! in order, and to leave the file systems clean.

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

/// How long the image's init may take. The host's patience is longer.
const INIT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long programs may take to end when there is no init to end them.
const PROGRAMS_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two looks at what is still there.
const POLL: Duration = Duration::from_millis(20);
/// What systemd takes for a request to power off, and to reboot (systemd(1): SIGRTMIN+4 and +5).
const SYSTEMD_POWER_OFF: i32 = 34 + 4;
const SYSTEMD_REBOOT: i32 = 34 + 5;
/// What systemd hands over to at the very end, in a directory that becomes the root (systemd.io, "The initrd
/// interface").
const SHUTDOWN_ROOT: &str = "/run/initramfs";
const SHUTDOWN_PROGRAM: &str = "shutdown";

/// How a machine goes off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    PowerOff,
    /// The monitor has no power switch, and ends by a reset.
    Reset,
}

impl Manner {
    /// What this machine's monitor wants; its host says so on the kernel's command line.
    fn find() -> Self {
        Self::of(&fs::read_to_string("/proc/cmdline").unwrap_or_default())
    }

    fn of(command_line: &str) -> Self {
        let resets = command_line.split_ascii_whitespace().any(|word| word == OFF_BY_RESET);
        if resets { Manner::Reset } else { Manner::PowerOff }
    }

    /// What systemd is asked by.
    fn signal(self) -> i32 {
        match self {
            Manner::PowerOff => SYSTEMD_POWER_OFF,
            Manner::Reset => SYSTEMD_REBOOT,
        }
    }

    /// Ends the machine, now.
    fn go(self) -> io::Result<Infallible> {
        if self == Manner::Reset {
            log::emergency(POWER_OFF_MARK);
        }
        reboot(match self {
            Manner::PowerOff => RebootCommand::PowerOff,
            Manner::Reset => RebootCommand::Restart,
        })?;
        Err(goes_on())
    }
}

fn goes_on() -> io::Error {
    io::Error::other("the guest is still running")
}

/// What the guest's user wanted of its init.
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

/// Where a machine can only be reset, sees to it that it ends when its user powers it off from within: systemd
/// hands over to this program then. Other inits halt, and the machine has to be stopped from outside.
pub fn prepare() -> io::Result<()> {
    if Manner::find() == Manner::PowerOff {
        return Ok(());
    }
    fs::create_dir_all(SHUTDOWN_ROOT)?;
    let program = Path::new(SHUTDOWN_ROOT).join(SHUTDOWN_PROGRAM);
    fs::copy("/proc/self/exe", &program)?;
    fs::set_permissions(program, fs::Permissions::from_mode(0o700))
}

/// Whether this is what [`prepare`] left behind.
pub fn is_shutdown_program() -> bool {
    std::env::args().next().is_some_and(|name| Path::new(&name).ends_with(SHUTDOWN_PROGRAM))
}

/// Ends the machine as [`prepare`] promised: file systems are unmounted or read-only by now. `verb` is what systemd was
/// asked for: `poweroff`, `reboot`, `halt` or `kexec`.
pub fn finish(verb: Option<&str>) -> ExitCode {
    rustix::fs::sync();
    let ended = match Verb::of(verb) {
        Verb::PowerOff => Manner::find().go(),
        Verb::Halt => reboot(RebootCommand::Halt).map_err(io::Error::from).and_then(|()| Err(goes_on())),
        Verb::Reboot => reboot(RebootCommand::Restart).map_err(io::Error::from).and_then(|()| Err(goes_on())),
    };
    let Err(error) = ended;
    log::error(&format!("cannot end the guest: {error}"));
    ExitCode::FAILURE
}

/// Powers the machine off. Returns only when that fails.
pub fn off(init: InitKind) -> io::Result<()> {
    stopping::begin();
    let manner = Manner::find();
    if init == InitKind::Image && ask_init(manner) {
        thread::sleep(INIT_TIMEOUT);
        log::error("the image's init did not power off in time");
    }
    end_programs();
    leave_disks_clean();
    manner.go().map(|never| match never {})
}

/// Asks the image's init, where it is one that can be asked. The machine is off before the wait is over.
fn ask_init(manner: Manner) -> bool {
    if !Path::new("/run/systemd/system").is_dir() {
        return false;
    }
    // SAFETY: the number is that of a real-time signal, which the C library does not use for itself.
    #[expect(unsafe_code, reason = "real-time signals have no names")]
    let signal = unsafe { Signal::from_raw_unchecked(manner.signal()) };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reboot_is_one_also_where_the_monitor_has_no_power_switch() {
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
    fn the_host_says_how_a_machine_goes_off() {
        assert_eq!(Manner::of("console=ttyS0 quiet\n"), Manner::PowerOff);
        assert_eq!(Manner::of(&format!("quiet {OFF_BY_RESET}\n")), Manner::Reset);
        assert_eq!(Manner::of(&format!("x{OFF_BY_RESET} {OFF_BY_RESET}ly")), Manner::PowerOff);
    }
}
