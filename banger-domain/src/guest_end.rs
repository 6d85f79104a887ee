//! How a guest ended, told by the end of its console, and what follows from it.
//!
//! A VMM exits in the same way whether its guest powers off, reboots or panics: QEMU with status 0, and so does
//! Firecracker, which knows only resets. The guest's kernel says which it was, in lines that have been stable for
//! years and that no log level hides (Linux, kernel/reboot.c and kernel/panic.c). A guest may lie about this, but
//! only harms itself.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use banger_proto::guest::POWER_OFF_MARK;

use super::lifecycle::{Event, Reason, State};

/// How much of the end of a console is read: a panic writes a few KiB after the line that matters.
pub const CONSOLE_TAIL: usize = 16 << 10;

/// How often a guest may reboot within [`REBOOT_WINDOW`]. More is a boot loop.
const MAX_REBOOTS: usize = 5;
/// Longer than five boots of an emulated guest take on a busy host.
const REBOOT_WINDOW: Duration = Duration::from_secs(5 * 60);

/// What a guest did last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestEnd {
    /// It powered off.
    PowerOff,
    /// It tried to power off, which the VMM does not support, and halted.
    PowerOffByHalt,
    /// It rebooted.
    Reboot,
    /// It halted.
    Halt,
    /// Its kernel panicked.
    Panic,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// With status 0.
    Clean,
    /// With another status or by a signal, as in `exited:1` or `killed:9`.
    Failed(String),
    /// It is gone, and its exit status was not seen.
    Unknown,
}

/// The signals that end a VMM, by number on every architecture (signal(7)).
const SIGNALS: &[(&str, &str)] = &[
    ("1", "HUP"),
    ("2", "INT"),
    ("3", "QUIT"),
    ("4", "ILL"),
    ("6", "ABRT"),
    ("7", "BUS"),
    ("8", "FPE"),
    ("9", "KILL"),
    ("11", "SEGV"),
    ("13", "PIPE"),
    ("15", "TERM"),
    ("31", "SYS"),
];

impl Ended {
    /// Returns how a VMM ended, in words.
    pub fn in_words(&self) -> String {
        let how = match self {
            Self::Clean => return "the VMM exited normally".to_owned(),
            Self::Failed(how) if how == OUT_OF_MEMORY => {
                return "memory ran out, and the kernel killed the VMM".to_owned();
            }
            Self::Failed(how) => how,
            Self::Unknown => return "the VMM is gone, and how it ended is unknown".to_owned(),
        };
        match how.split_once(':') {
            Some(("exited", status)) => format!("the VMM exited with status {status}"),
            Some(("killed" | "dumped", signal)) => {
                let name = SIGNALS.iter().find(|(number, _)| *number == signal);
                let name = name.map(|(_, name)| format!(" ({name})")).unwrap_or_default();
                format!("signal {signal}{name} ended the VMM")
            }
            _ => format!("the VMM failed: {how}"),
        }
    }
}

/// The result that systemd records for a process that was killed because memory ran out.
const OUT_OF_MEMORY: &str = "oom-kill";

/// The kernel's messages, without their time stamps.
const KERNEL: &[(&str, GuestEnd)] = &[
    ("reboot: Power down", GuestEnd::PowerOff),
    ("reboot: Power off not available: System halted instead", GuestEnd::PowerOffByHalt),
    ("reboot: System halted", GuestEnd::Halt),
    ("reboot: Restarting system", GuestEnd::Reboot),
    ("sysrq: Resetting", GuestEnd::Reboot),
    ("Kernel panic - not syncing", GuestEnd::Panic),
];

impl GuestEnd {
    /// Reads the end of a console. `None` if it does not say.
    pub fn read(console: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(console);
        let (mut end, mut powers_off) = (None, false);
        for line in text.lines().map(message) {
            // A guest that cannot power off says so before it reboots.
            powers_off |= line.strip_prefix("banger-agent: ") == Some(POWER_OFF_MARK);
            let said = KERNEL.iter().find(|(words, _)| line.starts_with(words)).map(|(_, end)| *end);
            end = match (said, end) {
                // What comes after a panic is a consequence of it.
                (_, Some(GuestEnd::Panic)) | (None, _) => end,
                (Some(GuestEnd::Reboot), _) if powers_off => Some(GuestEnd::PowerOff),
                (said, _) => said,
            };
        }
        end
    }

    /// Returns whether nothing runs in the guest any more although its VMM does.
    pub fn is_halted(self) -> bool {
        matches!(self, GuestEnd::PowerOffByHalt | GuestEnd::Halt)
    }

    /// Returns why a sandbox stopped whose guest ended like this.
    pub fn reason(self) -> Reason {
        match self {
            GuestEnd::PowerOff | GuestEnd::PowerOffByHalt => Reason::GuestShutdown,
            GuestEnd::Reboot => Reason::GuestReboot,
            GuestEnd::Halt => Reason::GuestHalt,
            GuestEnd::Panic => Reason::GuestPanic,
        }
    }
}

/// Returns the kernel's message in a line of the console, without what is before it: the time stamp, and often a
/// login prompt.
fn message(line: &str) -> &str {
    let line = line.trim();
    let stamped = line.rmatch_indices('[').find_map(|(at, _)| {
        let (time, message) = line[at + 1..].split_once("] ")?;
        let is_time = time.contains('.') && time.bytes().all(|b| b" .0123456789".contains(&b));
        is_time.then_some(message)
    });
    stamped.unwrap_or(line)
}

/// Returns the lifecycle event, and its reason, for the end of a VMM in this state.
pub fn event_of_exit(
    state: State,
    reason: &Reason,
    ended: &Ended,
    guest: Option<GuestEnd>,
) -> (Event, Reason) {
    match (ended, guest) {
        // A requested stop is the reason, however the guest ended.
        _ if state == State::Stopping => (Event::Exited, reason.clone()),
        (_, Some(GuestEnd::Panic)) => (Event::Crashed, Reason::GuestPanic),
        (Ended::Clean | Ended::Unknown, Some(GuestEnd::Reboot)) => (Event::Rebooted, Reason::GuestReboot),
        (Ended::Clean | Ended::Unknown, Some(end)) => (Event::Exited, end.reason()),
        (Ended::Clean, None) => (Event::Exited, Reason::GuestShutdown),
        (Ended::Failed(how), _) if how == OUT_OF_MEMORY => (Event::Crashed, Reason::VmmOutOfMemory),
        (Ended::Failed(how), _) => (Event::Crashed, Reason::VmmExit(how.clone())),
        (Ended::Unknown, None) => (Event::Crashed, Reason::Lost),
    }
}

/// Counts the reboots of a guest.
#[derive(Debug, Default)]
pub struct Reboots(VecDeque<Instant>);

impl Reboots {
    /// Counts a reboot. `false` after too many recent reboots: the guest should not boot again.
    pub fn admit(&mut self, now: Instant) -> bool {
        self.0.retain(|then| now.saturating_duration_since(*then) < REBOOT_WINDOW);
        if self.0.len() >= MAX_REBOOTS {
            return false;
        }
        self.0.push_back(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_of_a_kernel_say_how_its_guest_ended() {
        let check = |console: &str, expect: Option<GuestEnd>| {
            assert_eq!(GuestEnd::read(console.as_bytes()), expect, "{console:?}");
        };
        check("", None);
        check("Debian GNU/Linux 12 box ttyS0\r\n\r\nbox login: ", None);
        check("[   31.415926] reboot: Power down\r\n", Some(GuestEnd::PowerOff));
        check("[    3.1] reboot: Restarting system\r\n", Some(GuestEnd::Reboot));
        check("[    3.1] reboot: Restarting system with command 'x'\n", Some(GuestEnd::Reboot));
        check("reboot: Restarting system", Some(GuestEnd::Reboot));
        check("\r\nbox login: [   33.939720] reboot: Restarting system\r\n", Some(GuestEnd::Reboot));
        check("[ok] done [   33.9] reboot: Power down [x]\r\n", Some(GuestEnd::PowerOff));
        check("[    3.1] sysrq: Resetting\n", Some(GuestEnd::Reboot));
        check("[    3.1] reboot: System halted\n", Some(GuestEnd::Halt));
        check(
            "[1.0] reboot: Power off not available: System halted instead\n",
            Some(GuestEnd::PowerOffByHalt),
        );
        check(
            "[   12.0] Kernel panic - not syncing: sysrq triggered crash\n[   12.1] CPU: 0 PID: 1\n[   12.2] Rebooting in 1 seconds..\n",
            Some(GuestEnd::Panic),
        );
        check(
            "[12.0] Kernel panic - not syncing: x\n[12.1] reboot: Restarting system\n",
            Some(GuestEnd::Panic),
        );
        // Without a power switch, the agent powers the guest off by a reset.
        let off = format!("[   9.1] banger-agent: {POWER_OFF_MARK}\n");
        check(&off, None);
        check(&format!("{off}[   9.2] reboot: Restarting system\n"), Some(GuestEnd::PowerOff));
        // Text of a program that looks similar does not count.
        check("user said: reboot: Power down\n", None);
        check("[x] reboot: Power down\n", None);
        assert_eq!(GuestEnd::read(b"\xff\xfe[ 1.0] reboot: Power down\n\xff"), Some(GuestEnd::PowerOff));
        assert_eq!(GuestEnd::read(b"\xff\n[ 1.0] reboot: Power down\n\xff"), Some(GuestEnd::PowerOff));
    }

    #[test]
    fn each_end_has_its_event_and_its_reason() {
        use GuestEnd as G;
        let failed = |how: &str| Ended::Failed(how.to_owned());
        let check = |ended: Ended, guest, expect: (Event, Reason)| {
            assert_eq!(
                event_of_exit(State::Running, &Reason::None, &ended, guest),
                expect,
                "{ended:?} {guest:?}"
            );
            let asked = event_of_exit(State::Stopping, &Reason::UserRequest, &ended, guest);
            assert_eq!(asked, (Event::Exited, Reason::UserRequest), "{ended:?} {guest:?}");
        };
        check(Ended::Clean, None, (Event::Exited, Reason::GuestShutdown));
        check(Ended::Clean, Some(G::PowerOff), (Event::Exited, Reason::GuestShutdown));
        check(Ended::Clean, Some(G::PowerOffByHalt), (Event::Exited, Reason::GuestShutdown));
        check(Ended::Clean, Some(G::Halt), (Event::Exited, Reason::GuestHalt));
        check(Ended::Clean, Some(G::Reboot), (Event::Rebooted, Reason::GuestReboot));
        check(Ended::Clean, Some(G::Panic), (Event::Crashed, Reason::GuestPanic));
        check(failed("exited:1"), Some(G::Panic), (Event::Crashed, Reason::GuestPanic));
        check(failed("exited:1"), None, (Event::Crashed, Reason::VmmExit("exited:1".into())));
        check(failed("killed:9"), Some(G::Reboot), (Event::Crashed, Reason::VmmExit("killed:9".into())));
        check(failed("oom-kill"), None, (Event::Crashed, Reason::VmmOutOfMemory));
        // The service was not running when it happened.
        check(Ended::Unknown, None, (Event::Crashed, Reason::Lost));
        check(Ended::Unknown, Some(G::PowerOff), (Event::Exited, Reason::GuestShutdown));
        check(Ended::Unknown, Some(G::Reboot), (Event::Rebooted, Reason::GuestReboot));
    }

    #[test]
    fn the_end_of_a_vmm_is_told_in_words() {
        let check = |ended: Ended, expect| assert_eq!(ended.in_words(), expect);
        let failed = |how: &str| Ended::Failed(how.to_owned());
        check(Ended::Clean, "the VMM exited normally");
        check(failed("exited:1"), "the VMM exited with status 1");
        check(failed("killed:9"), "signal 9 (KILL) ended the VMM");
        check(failed("dumped:31"), "signal 31 (SYS) ended the VMM");
        check(failed("killed:34"), "signal 34 ended the VMM");
        check(failed("oom-kill"), "memory ran out, and the kernel killed the VMM");
        check(failed("watchdog"), "the VMM failed: watchdog");
        check(Ended::Unknown, "the VMM is gone, and how it ended is unknown");
    }

    #[test]
    fn a_guest_in_a_reboot_loop_is_not_booted_again() {
        let (mut reboots, begin) = (Reboots::default(), Instant::now());
        let mut after = |seconds| reboots.admit(begin + Duration::from_secs(seconds));
        for seconds in 0..5 {
            assert!(after(seconds), "{seconds}");
        }
        assert!(!after(5) && !after(299));
        assert!(after(300), "the first is long ago");
        assert!(!after(300));
    }
}
