//! The states of a sandbox, and the table of the transitions between them.
//!
//! The state is that of the VMM's process. Whether the guest answers is a separate fact, so that a
//! guest which never becomes ready stays up for its logs.

use std::fmt;

/// The state of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Created and never started.
    Created,
    /// The host side is being set up, or the VMM has just been started.
    Starting,
    /// The VMM runs.
    Running,
    /// The VMM exists and gets no processor time.
    Paused,
    /// The VMM stands still, and its memory is written to disk.
    Suspending,
    /// Its memory is on disk, and it has no VMM.
    Suspended,
    /// A new VMM loads its memory.
    Resuming,
    /// The VMM was asked to end.
    Stopping,
    /// The VMM ended as requested, by itself, or by a user's signal.
    Stopped,
    /// It could not be started, or the VMM ended unexpectedly. A stop clears this.
    Failed,
    /// It is being deleted. This state is final.
    Deleting,
}

/// An event in the life of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// A start is requested.
    Start,
    /// The VMM runs.
    Launched,
    /// The start failed, and what it made is released.
    LaunchFailed,
    /// A pause is requested.
    Pause,
    /// The end of a pause is requested.
    Unpause,
    /// A suspension is requested.
    Suspend,
    /// The memory is on disk, and the VMM has ended.
    Suspended,
    /// The suspension failed, and the guest runs on.
    SuspendFailed,
    /// A resumption is requested.
    Resume,
    /// It was put back to a snapshot with memory.
    Restored,
    /// A stop is requested.
    Stop,
    /// The VMM ended well, or because the service ended it.
    Exited,
    /// The VMM has ended because the guest rebooted.
    Rebooted,
    /// The VMM has ended on its own with an error, or the guest's kernel has.
    Crashed,
    /// A removal is requested.
    Delete,
}

/// The result of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// A new state.
    To(State),
    /// The sandbox is already in the requested state.
    Unchanged,
}

/// The event is not possible in this state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sandbox that is {state} cannot be {}", .event.participle())]
pub struct Refused {
    /// The current state.
    pub state: State,
    /// The refused event.
    pub event: Event,
}

/// Returns what `event` does in `state`. A repeated request changes nothing.
pub fn step(state: State, event: Event) -> Result<Transition, Refused> {
    use Event as E;
    use State as S;
    let to = |state| Ok(Transition::To(state));
    match (state, event) {
        (S::Deleting, E::Delete) => Ok(Transition::Unchanged),
        (S::Deleting, E::Exited | E::Rebooted | E::Crashed) => Ok(Transition::Unchanged),
        (S::Deleting, _) => Err(Refused { state, event }),

        (S::Created | S::Stopped | S::Failed, E::Start) => to(S::Starting),
        // Without the memory.
        (S::Suspended, E::Start) => to(S::Starting),
        (S::Starting | S::Resuming | S::Running, E::Start) => Ok(Transition::Unchanged),

        (S::Starting | S::Resuming, E::Launched) => to(S::Running),
        (S::Starting, E::LaunchFailed) => to(S::Failed),
        (S::Resuming, E::LaunchFailed) => to(S::Suspended),

        (S::Running, E::Pause) => to(S::Paused),
        (S::Paused, E::Unpause) => to(S::Running),
        (S::Paused, E::Pause) | (S::Running, E::Unpause) => Ok(Transition::Unchanged),

        (S::Running, E::Suspend) => to(S::Suspending),
        (S::Suspending | S::Suspended, E::Suspend) => Ok(Transition::Unchanged),
        (S::Suspending, E::Suspended) => to(S::Suspended),
        (S::Suspending, E::SuspendFailed) => to(S::Running),
        (S::Suspended, E::Resume) => to(S::Resuming),
        (S::Resuming | S::Running, E::Resume) => Ok(Transition::Unchanged),
        (S::Created | S::Stopped | S::Failed, E::Restored) => to(S::Suspended),

        (S::Starting | S::Running | S::Paused | S::Suspending | S::Resuming, E::Stop) => to(S::Stopping),
        // A suspended sandbox loses its memory.
        (S::Failed | S::Suspended, E::Stop) => to(S::Stopped),
        (S::Created | S::Stopping | S::Stopped, E::Stop) => Ok(Transition::Unchanged),

        (S::Starting | S::Running | S::Paused | S::Suspending | S::Resuming | S::Stopping, E::Exited) => {
            to(S::Stopped)
        }
        (S::Running | S::Paused | S::Suspending | S::Resuming, E::Rebooted) => to(S::Starting),
        (S::Starting, E::Rebooted) => Ok(Transition::Unchanged),
        (S::Starting | S::Running | S::Paused | S::Suspending | S::Resuming, E::Crashed) => to(S::Failed),
        (S::Stopping, E::Rebooted | E::Crashed) => to(S::Stopped),
        (S::Stopped | S::Failed | S::Suspended, E::Exited | E::Rebooted | E::Crashed) => {
            Ok(Transition::Unchanged)
        }

        (S::Created | S::Stopped | S::Failed | S::Suspended, E::Delete) => to(S::Deleting),

        (S::Paused | S::Suspending | S::Stopping, E::Start)
        | (S::Starting | S::Running | S::Paused | S::Suspending | S::Resuming | S::Stopping, E::Delete)
        | (S::Created, E::Exited | E::Rebooted | E::Crashed)
        | (_, E::Launched | E::LaunchFailed | E::Pause | E::Unpause)
        | (_, E::Suspend | E::Suspended | E::SuspendFailed | E::Resume | E::Restored) => {
            Err(Refused { state, event })
        }
    }
}

impl State {
    /// Every state.
    pub const ALL: [State; 11] = [
        State::Created,
        State::Starting,
        State::Running,
        State::Paused,
        State::Suspending,
        State::Suspended,
        State::Resuming,
        State::Stopping,
        State::Stopped,
        State::Failed,
        State::Deleting,
    ];

    /// Returns whether the VMM's process, sockets and other parts of a boot may exist in this state.
    pub const fn is_up(self) -> bool {
        matches!(
            self,
            State::Starting
                | State::Running
                | State::Paused
                | State::Suspending
                | State::Resuming
                | State::Stopping
        )
    }

    /// Returns the word used on D-Bus and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Created => "created",
            State::Starting => "starting",
            State::Running => "running",
            State::Paused => "paused",
            State::Suspending => "suspending",
            State::Suspended => "suspended",
            State::Resuming => "resuming",
            State::Stopping => "stopping",
            State::Stopped => "stopped",
            State::Failed => "failed",
            State::Deleting => "deleting",
        }
    }

    /// Parses a word of [`State::as_str`].
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Event {
    /// Every event.
    pub const ALL: [Event; 15] = [
        Event::Start,
        Event::Launched,
        Event::LaunchFailed,
        Event::Pause,
        Event::Unpause,
        Event::Suspend,
        Event::Suspended,
        Event::SuspendFailed,
        Event::Resume,
        Event::Restored,
        Event::Stop,
        Event::Exited,
        Event::Rebooted,
        Event::Crashed,
        Event::Delete,
    ];

    fn participle(self) -> &'static str {
        match self {
            Event::Start => "started",
            Event::Launched => "launched",
            Event::LaunchFailed => "failing to launch",
            Event::Pause => "paused",
            Event::Unpause => "continued",
            Event::Suspend => "suspended",
            Event::Suspended => "written to disk",
            Event::SuspendFailed => "failing to suspend",
            Event::Resume => "resumed",
            Event::Restored => "restored",
            Event::Stop => "stopped",
            Event::Exited => "ended",
            Event::Rebooted => "rebooted",
            Event::Crashed => "crashing",
            Event::Delete => "deleted",
        }
    }
}

/// Why a sandbox is in its state.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Reason {
    /// No reason.
    #[default]
    None,
    /// A user asked for it.
    UserRequest,
    /// The guest powered itself off.
    GuestShutdown,
    /// The guest rebooted. It is started again unless the configuration forbids that.
    GuestReboot,
    /// The guest halted, and the VMM was ended because nothing ran in it any more.
    GuestHalt,
    /// The guest's kernel panicked.
    GuestPanic,
    /// The guest rebooted too often in a short time.
    RebootLoop,
    /// The VMM was killed because the host, or the sandbox's limit, ran out of memory.
    VmmOutOfMemory,
    /// The VMM ended with this status, in the words of systemd.
    VmmExit(String),
    /// It could not be started, with the cause in one line.
    StartFailed(String),
    /// The guest did not become ready in time. It is still up.
    BootTimeout,
    /// The client that the sandbox was bound to disconnected.
    CallerVanished,
    /// It has idled for this long, in words.
    Idle(String),
    /// The service found it gone when it started.
    Lost,
    /// It was up when the host was shut down or restarted.
    HostRestart,
    /// It was started because the host has booted.
    HostBoot,
    /// Its restart policy has started it again, after it ended for this reason.
    Restarted(Box<Reason>),
    /// It was suspended because it idled, and this has used it: `port 8080` or `name`.
    Woken(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::None => Ok(()),
            Reason::UserRequest => f.write_str("user-request"),
            Reason::GuestShutdown => f.write_str("guest-shutdown"),
            Reason::GuestReboot => f.write_str("guest-reboot"),
            Reason::GuestHalt => f.write_str("guest-halt"),
            Reason::GuestPanic => f.write_str("guest-panic"),
            Reason::RebootLoop => f.write_str("reboot-loop"),
            Reason::VmmOutOfMemory => f.write_str("vmm-out-of-memory"),
            Reason::VmmExit(status) => write!(f, "vmm-exit:{status}"),
            Reason::StartFailed(why) => write!(f, "start-failed:{why}"),
            Reason::BootTimeout => f.write_str("boot-timeout"),
            Reason::CallerVanished => f.write_str("caller-vanished"),
            Reason::Idle(time) => write!(f, "idle:{time}"),
            Reason::Lost => f.write_str("lost"),
            Reason::HostRestart => f.write_str("host-restart"),
            Reason::HostBoot => f.write_str("host-boot"),
            Reason::Restarted(end) => write!(f, "restarted:{end}"),
            Reason::Woken(by) => write!(f, "woken:{by}"),
        }
    }
}

impl Reason {
    /// Parses the text that `Display` writes. An unknown text counts as no reason.
    pub fn parse(text: &str) -> Self {
        match text.split_once(':') {
            Some(("vmm-exit", status)) => Reason::VmmExit(status.to_owned()),
            Some(("idle", time)) => Reason::Idle(time.to_owned()),
            Some(("start-failed", why)) => Reason::StartFailed(why.to_owned()),
            Some(("restarted", end)) => Reason::Restarted(Box::new(Reason::parse(end))),
            Some(("woken", by)) => Reason::Woken(by.to_owned()),
            _ => match text {
                "user-request" => Reason::UserRequest,
                "guest-shutdown" => Reason::GuestShutdown,
                "guest-reboot" => Reason::GuestReboot,
                "guest-halt" => Reason::GuestHalt,
                "guest-panic" => Reason::GuestPanic,
                "reboot-loop" => Reason::RebootLoop,
                "vmm-out-of-memory" => Reason::VmmOutOfMemory,
                "boot-timeout" => Reason::BootTimeout,
                "caller-vanished" => Reason::CallerVanished,
                "lost" => Reason::Lost,
                "host-restart" => Reason::HostRestart,
                "host-boot" => Reason::HostBoot,
                _ => Reason::None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// Returns the table of `docs/lifecycle.md`.
    fn table() -> String {
        let mut text = String::from("| state |");
        for event in Event::ALL {
            write!(text, " {event:?} |").unwrap();
        }
        text.push_str("\n|---|");
        text.push_str(&"---|".repeat(Event::ALL.len()));
        for state in State::ALL {
            write!(text, "\n| {state} |").unwrap();
            for event in Event::ALL {
                match step(state, event) {
                    Ok(Transition::To(next)) => write!(text, " {next} |").unwrap(),
                    Ok(Transition::Unchanged) => text.push_str(" – |"),
                    Err(_) => text.push_str(" refused |"),
                }
            }
        }
        text.push('\n');
        text
    }

    #[test]
    fn the_documented_table_is_this_one() {
        let page = include_str!("../../docs/lifecycle.md");
        assert!(page.contains(&table()), "docs/lifecycle.md should hold:\n{}", table());
    }

    #[test]
    fn a_repeated_request_changes_nothing() {
        for state in State::ALL {
            let requests = [
                Event::Start,
                Event::Pause,
                Event::Unpause,
                Event::Suspend,
                Event::Resume,
                Event::Stop,
                Event::Delete,
            ];
            for event in requests {
                if let Ok(Transition::To(next)) = step(state, event) {
                    assert_eq!(step(next, event), Ok(Transition::Unchanged), "{state} {event:?}");
                }
            }
        }
    }

    #[test]
    fn reasons_read_back_and_are_documented() {
        let page = include_str!("../../docs/lifecycle.md");
        for reason in [
            Reason::None,
            Reason::UserRequest,
            Reason::GuestShutdown,
            Reason::GuestReboot,
            Reason::GuestHalt,
            Reason::GuestPanic,
            Reason::RebootLoop,
            Reason::VmmOutOfMemory,
            Reason::BootTimeout,
            Reason::CallerVanished,
            Reason::VmmExit("killed:9".into()),
            Reason::StartFailed("no qemu: not found".into()),
            Reason::Lost,
            Reason::HostRestart,
            Reason::HostBoot,
            Reason::Restarted(Box::new(Reason::VmmExit("killed:9".into()))),
            Reason::Woken("port 8080".into()),
        ] {
            assert_eq!(Reason::parse(&reason.to_string()), reason);
            let text = reason.to_string();
            let word = text.split(':').next().unwrap();
            assert!(
                word.is_empty() || page.contains(&format!("| `{word}")),
                "{word} is not in docs/lifecycle.md"
            );
        }
    }

    proptest! {
        /// Whatever happens in between, only a start or a resumption leads up, and only an end or a failure leads down.
        #[test]
        fn a_vm_goes_up_only_by_start_or_resume_and_down_only_by_an_end(events in prop::collection::vec(0..Event::ALL.len(), 0..40)) {
            let mut state = State::Created;
            for event in events.into_iter().map(|i| Event::ALL[i]) {
                let Ok(Transition::To(next)) = step(state, event) else { continue };
                match (state.is_up(), next.is_up()) {
                    (false, true) => prop_assert!(matches!(event, Event::Start | Event::Resume)),
                    (true, false) => prop_assert!(matches!(
                        event,
                        Event::Exited
                            | Event::Rebooted
                            | Event::Crashed
                            | Event::LaunchFailed
                            | Event::Suspended
                    )),
                    _ => {}
                }
                state = next;
            }
        }
    }
}
