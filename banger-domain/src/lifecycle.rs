//! The states of a sandbox, and the table of the transitions between them.
//!
//! The state is that of the VMM's process. Whether the guest answers is a separate fact, so that a
//! guest which never becomes ready stays up for its logs.

use std::fmt;

/// The state of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Made, and never started.
    Created,
    /// The host side is being put together, or the monitor was just started.
    Starting,
    /// The monitor runs.
    Running,
    /// It was asked to end.
    Stopping,
    /// It has ended as it should, or by a signal that a user sent.
    Stopped,
    /// It could not be started, or ended in a way that nobody asked for.
    Failed,
    /// It is being removed; nothing leads out of this.
    Deleting,
}

/// Something that happens to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// A start is requested.
    Start,
    /// The monitor runs.
    Launched,
    /// The start did not work, and what it made is released.
    LaunchFailed,
    /// A stop is requested.
    Stop,
    /// The monitor has ended well, or because we ended it.
    Exited,
    /// The VMM has ended because the guest rebooted.
    Rebooted,
    /// The VMM has ended on its own with an error, or the guest's kernel has.
    Crashed,
    /// A removal is requested.
    Delete,
}

/// What an event leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// A new state.
    To(State),
    /// It is so already.
    Unchanged,
}

/// The event cannot happen to a machine in this state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a machine that is {state} cannot be {}", .event.participle())]
pub struct Refused {
    /// The state that refuses.
    pub state: State,
    /// What was asked.
    pub event: Event,
}

/// What `event` does to a machine that is in `state`. A repeated request changes nothing.
pub fn step(state: State, event: Event) -> Result<Transition, Refused> {
    use Event as E;
    use State as S;
    let to = |state| Ok(Transition::To(state));
    match (state, event) {
        (S::Deleting, E::Delete) => Ok(Transition::Unchanged),
        (S::Deleting, E::Exited | E::Rebooted | E::Crashed) => Ok(Transition::Unchanged),
        (S::Deleting, _) => Err(Refused { state, event }),

        (S::Created | S::Stopped | S::Failed, E::Start) => to(S::Starting),
        (S::Starting | S::Running, E::Start) => Ok(Transition::Unchanged),

        (S::Starting, E::Launched) => to(S::Running),
        (S::Starting, E::LaunchFailed) => to(S::Failed),

        (S::Starting | S::Running, E::Stop) => to(S::Stopping),
        (S::Created | S::Stopping | S::Stopped | S::Failed, E::Stop) => Ok(Transition::Unchanged),

        (S::Starting | S::Running | S::Stopping, E::Exited) => to(S::Stopped),
        (S::Running, E::Rebooted) => to(S::Starting),
        (S::Starting, E::Rebooted) => Ok(Transition::Unchanged),
        (S::Starting | S::Running, E::Crashed) => to(S::Failed),
        (S::Stopping, E::Rebooted | E::Crashed) => to(S::Stopped),
        (S::Stopped | S::Failed, E::Exited | E::Rebooted | E::Crashed) => Ok(Transition::Unchanged),

        (S::Created | S::Stopped | S::Failed, E::Delete) => to(S::Deleting),

        (S::Stopping, E::Start)
        | (S::Starting | S::Running | S::Stopping, E::Delete)
        | (S::Created, E::Exited | E::Rebooted | E::Crashed)
        | (_, E::Launched | E::LaunchFailed) => Err(Refused { state, event }),
    }
}

impl State {
    /// Every state.
    pub const ALL: [State; 7] = [
        State::Created,
        State::Starting,
        State::Running,
        State::Stopping,
        State::Stopped,
        State::Failed,
        State::Deleting,
    ];

    /// Whether what lives only while a machine is up (its process, its sockets) may exist in this state.
    pub const fn is_up(self) -> bool {
        matches!(self, State::Starting | State::Running | State::Stopping)
    }

    /// The word on the bus and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Created => "created",
            State::Starting => "starting",
            State::Running => "running",
            State::Stopping => "stopping",
            State::Stopped => "stopped",
            State::Failed => "failed",
            State::Deleting => "deleting",
        }
    }

    /// The state that [`State::as_str`] calls so.
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
    pub const ALL: [Event; 8] = [
        Event::Start,
        Event::Launched,
        Event::LaunchFailed,
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
            Event::Stop => "stopped",
            Event::Exited => "ended",
            Event::Rebooted => "rebooted",
            Event::Crashed => "crashing",
            Event::Delete => "deleted",
        }
    }
}

/// Why a machine is in its state.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Reason {
    /// Nothing to say.
    #[default]
    None,
    /// A user asked for it.
    UserRequest,
    /// The guest powered itself off.
    GuestShutdown,
    /// The guest rebooted: it runs again, unless the configuration forbids that.
    GuestReboot,
    /// The guest halted, and the VMM was ended because nothing ran in it any more.
    GuestHalt,
    /// The guest's kernel panicked.
    GuestPanic,
    /// The guest rebooted too often in a short time.
    RebootLoop,
    /// The VMM was killed because memory ran out: the host's, or what the sandbox may have of it.
    VmmOutOfMemory,
    /// The monitor ended with this status, as systemd words it.
    VmmExit(String),
    /// It could not be started: one line of why.
    StartFailed(String),
    /// The guest did not become ready in time. It is still up.
    BootTimeout,
    /// The client that it was bound to went away.
    CallerVanished,
    /// The service found it gone when it started.
    Lost,
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
            Reason::Lost => f.write_str("lost"),
        }
    }
}

impl Reason {
    /// The reason that `Display` writes so; text of no known form reads as none.
    pub fn parse(text: &str) -> Self {
        match text.split_once(':') {
            Some(("vmm-exit", status)) => Reason::VmmExit(status.to_owned()),
            Some(("start-failed", why)) => Reason::StartFailed(why.to_owned()),
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

    /// The table of `docs/lifecycle.md`.
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
            for event in [Event::Start, Event::Stop, Event::Delete] {
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
        /// Up begins with a start and ends with an exit or a failure, whatever happens in between.
        #[test]
        fn a_machine_goes_up_only_by_start_and_down_only_by_an_end(events in prop::collection::vec(0..Event::ALL.len(), 0..40)) {
            let mut state = State::Created;
            for event in events.into_iter().map(|i| Event::ALL[i]) {
                let Ok(Transition::To(next)) = step(state, event) else { continue };
                match (state.is_up(), next.is_up()) {
                    (false, true) => prop_assert_eq!(event, Event::Start),
                    (true, false) => prop_assert!(matches!(
                        event,
                        Event::Exited | Event::Rebooted | Event::Crashed | Event::LaunchFailed
                    )),
                    _ => {}
                }
                state = next;
            }
        }
    }
}
