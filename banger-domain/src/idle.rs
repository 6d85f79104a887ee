//! What happens to a sandbox that idles: that its user does not use, and whose guest does next to nothing.

use std::{fmt, time::Duration};

use banger_proto::count::counted;

/// The shortest time after which a sandbox counts as idle. It is looked at once a minute.
pub const MIN_IDLE: Duration = Duration::from_secs(60);
/// The longest such time.
pub const MAX_IDLE: Duration = Duration::from_secs(30 * 24 * 3600);
/// The part of one processor that an idle guest may use, in percent: room for the timers and daemons of a distribution, and
/// less than a build or a server with clients takes.
pub const IDLE_PERCENT: u32 = 5;

/// What happens to a sandbox that has idled for some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdlePolicy {
    /// What happens.
    pub action: IdleAction,
    /// After how long.
    pub after: Duration,
}

/// What happens to an idle sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleAction {
    /// It is suspended, and a connection to a published port or a look-up of its name resumes it.
    Suspend,
    /// It is suspended until a user resumes it.
    SuspendNoWake,
    /// It is stopped.
    Stop,
}

/// There is no such policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPolicy {
    /// The action is unknown.
    #[error("an idle sandbox can be suspended (suspend, suspend-no-wake) or stopped (stop), not \"{0}\"")]
    Action(String),
    /// The time is too short or too long.
    #[error("the time until a sandbox counts as idle is between a minute and 30 days")]
    Time,
}

impl IdlePolicy {
    /// Returns the policy of this action after this time.
    pub fn new(action: &str, after: Duration) -> Result<Self, NoPolicy> {
        let action = IdleAction::parse(action).ok_or_else(|| NoPolicy::Action(action.to_owned()))?;
        match (MIN_IDLE..=MAX_IDLE).contains(&after) {
            true => Ok(Self { action, after }),
            false => Err(NoPolicy::Time),
        }
    }

    /// Returns the time until it applies in words, such as `30 minutes`.
    pub fn in_words(&self) -> String {
        let seconds = self.after.as_secs();
        let units = [(24 * 3600, "day"), (3600, "hour"), (60, "minute"), (1, "second")];
        let (size, unit) =
            units.into_iter().find(|(size, _)| seconds.is_multiple_of(*size)).unwrap_or((1, "second"));
        counted(seconds / size, unit)
    }
}

impl IdleAction {
    /// Returns the word of the D-Bus API and of the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            IdleAction::Suspend => "suspend",
            IdleAction::SuspendNoWake => "suspend-no-wake",
            IdleAction::Stop => "stop",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        let all = [IdleAction::Suspend, IdleAction::SuspendNoWake, IdleAction::Stop];
        all.into_iter().find(|action| action.as_str() == word)
    }
}

/// Why a sandbox is not idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Busy {
    /// A client has a stream to its agent: a command, a shell, a copy, a forward.
    Streams,
    /// A detached command or a session runs in it.
    Commands,
    /// Its guest has a connection over the network.
    Connections,
    /// Its guest uses the processor.
    Load,
    /// A job works on it, or its guest does not answer.
    Unknown,
}

impl Busy {
    /// Returns the word of the D-Bus API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Busy::Streams => "streams",
            Busy::Commands => "commands",
            Busy::Connections => "connections",
            Busy::Load => "load",
            Busy::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is known of the use of a sandbox at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Use {
    /// Streams to its agent that clients hold.
    pub streams: u32,
    /// Detached commands and sessions that run.
    pub commands: u32,
    /// Established connections of the guest with others.
    pub connections: u32,
    /// The time for which the guest's processors were busy since it booted.
    pub busy: Duration,
}

impl Use {
    /// Returns why the sandbox is not idle, `period` after it was last looked at.
    pub fn busy_since(&self, last: &Use, period: Duration) -> Option<Busy> {
        let load = self.busy.saturating_sub(last.busy);
        match self {
            Use { streams: 1.., .. } => Some(Busy::Streams),
            Use { commands: 1.., .. } => Some(Busy::Commands),
            Use { connections: 1.., .. } => Some(Busy::Connections),
            _ if load > period * IDLE_PERCENT / 100 => Some(Busy::Load),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_policy_has_an_action_and_a_sensible_time() {
        for (action, after, works) in [
            ("suspend", MINUTE, true),
            ("suspend-no-wake", MINUTE, true),
            ("stop", MAX_IDLE, true),
            ("delete", MINUTE, false),
            ("", MINUTE, false),
            ("suspend", MINUTE - Duration::from_micros(1), false),
            ("suspend", MAX_IDLE + Duration::from_micros(1), false),
        ] {
            let policy = IdlePolicy::new(action, after);
            assert_eq!(policy.is_ok(), works, "{action} {after:?}");
            let words = policy.map(|policy| (policy.action.as_str(), policy.after));
            assert!(words.is_err() || words == Ok((action, after)));
        }
    }

    #[test]
    fn a_time_is_told_in_the_largest_unit_that_divides_it() {
        for (seconds, words) in [
            (60, "1 minute"),
            (1800, "30 minutes"),
            (5400, "90 minutes"),
            (7200, "2 hours"),
            (86_400, "1 day"),
            (90, "90 seconds"),
        ] {
            let policy = IdlePolicy { action: IdleAction::Stop, after: Duration::from_secs(seconds) };
            assert_eq!(policy.in_words(), words);
        }
    }

    #[test]
    fn a_guest_is_busy_that_is_used_or_works() {
        let load = |percent: u32| Use { busy: MINUTE * (100 + percent) / 100, ..Use::default() };
        let last = load(0);
        for (now, expect) in [
            (load(0), None),
            (load(IDLE_PERCENT), None),
            (load(IDLE_PERCENT + 1), Some(Busy::Load)),
            // A guest that was booted again counts from zero.
            (Use::default(), None),
            (Use { streams: 1, ..load(50) }, Some(Busy::Streams)),
            (Use { commands: 2, ..last }, Some(Busy::Commands)),
            (Use { connections: 1, ..last }, Some(Busy::Connections)),
        ] {
            assert_eq!(now.busy_since(&last, MINUTE), expect, "{now:?}");
        }
    }
}
