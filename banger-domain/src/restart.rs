//! When a sandbox starts by itself: after an end, and when the host boots. The policies and the pauses are Docker's.

use std::{fmt, time::Duration};

use banger_proto::bus::option::restart;

use super::lifecycle::Reason;

/// The pause before the first start.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long a guest has to answer before its end counts as the first one again.
const STEADY: Duration = Duration::from_secs(10);

/// Which ends of a sandbox start it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RestartPolicy {
    /// None.
    #[default]
    No,
    /// Those that no user asked for: of the VMM, of the guest's kernel, or unseen.
    OnFailure,
    /// All but those that a user asked for. It also starts when the host boots.
    Always,
}

impl RestartPolicy {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::No, Self::OnFailure, Self::Always];

    /// Returns the word used on D-Bus and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::No => restart::NO,
            Self::OnFailure => restart::ON_FAILURE,
            Self::Always => restart::ALWAYS,
        }
    }

    /// Parses a word of [`Self::as_str`].
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.as_str() == word)
    }

    /// Returns whether a sandbox that ended for this reason starts again.
    pub const fn restarts_after(self, reason: &Reason) -> bool {
        match reason {
            Reason::None
            | Reason::UserRequest
            | Reason::CallerVanished
            | Reason::Idle(_)
            | Reason::BootTimeout
            | Reason::HostBoot
            | Reason::Restarted(_)
            | Reason::Woken(_) => false,
            Reason::GuestShutdown | Reason::GuestHalt | Reason::GuestReboot | Reason::HostRestart => {
                matches!(self, Self::Always)
            }
            Reason::GuestPanic
            | Reason::RebootLoop
            | Reason::VmmOutOfMemory
            | Reason::VmmExit(_)
            | Reason::StartFailed(_)
            | Reason::Lost => matches!(self, Self::Always | Self::OnFailure),
        }
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The pauses before the restarts of one sandbox: each is twice as long as the one before, until a guest was steady.
#[derive(Debug, Default)]
pub struct Backoff {
    last: Option<Duration>,
}

impl Backoff {
    /// Returns the pause before the next start, after a guest that answered for this long.
    pub fn next_pause(&mut self, answered_for: Duration) -> Duration {
        let pause = match self.last {
            Some(last) if answered_for < STEADY => (last * 2).min(LONGEST_PAUSE),
            _ => FIRST_PAUSE,
        };
        self.last = Some(pause);
        pause
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_policy_restarts_after_its_ends() {
        let check = |reason: Reason, expect: [bool; 3]| {
            assert_eq!(RestartPolicy::ALL.map(|policy| policy.restarts_after(&reason)), expect, "{reason:?}");
        };
        let (never, always, failures) = ([false; 3], [false, false, true], [false, true, true]);
        check(Reason::None, never);
        check(Reason::UserRequest, never);
        check(Reason::CallerVanished, never);
        check(Reason::GuestShutdown, always);
        check(Reason::GuestHalt, always);
        check(Reason::GuestReboot, always);
        check(Reason::HostRestart, always);
        check(Reason::GuestPanic, failures);
        check(Reason::RebootLoop, failures);
        check(Reason::VmmOutOfMemory, failures);
        check(Reason::VmmExit("killed:9".into()), failures);
        check(Reason::StartFailed("no qemu".into()), failures);
        check(Reason::Lost, failures);
    }

    #[test]
    fn words_read_back() {
        for policy in RestartPolicy::ALL {
            assert_eq!(RestartPolicy::parse(policy.as_str()), Some(policy));
        }
        assert_eq!(RestartPolicy::parse("unless-stopped"), None);
    }

    #[test]
    fn pauses_double_up_to_a_minute_and_begin_again_after_a_steady_guest() {
        let (mut backoff, at_once) = (Backoff::default(), Duration::ZERO);
        let pauses: Vec<u128> = (0..12).map(|_| backoff.next_pause(at_once).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000]);
        assert_eq!(backoff.next_pause(Duration::from_secs(9)), LONGEST_PAUSE);
        assert_eq!(backoff.next_pause(Duration::from_secs(10)), FIRST_PAUSE);
        assert_eq!(backoff.next_pause(at_once), FIRST_PAUSE * 2);
    }
}
