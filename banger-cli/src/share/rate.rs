//! How often a sandbox may use credentials. A person would not notice one use among thousands.

use std::time::{Duration, Instant};

/// Limit on uses in a minute. A build that fetches many dependencies asks once for each.
pub const MAX_USES: u32 = 60;
/// Limit on connections in a minute. git makes three for a use: it asks, and reports whether the answer was right.
pub const MAX_CONNECTIONS: u32 = 4 * MAX_USES;
const MINUTE: Duration = Duration::from_secs(60);

/// The uses in the current minute.
#[derive(Debug)]
pub struct Rate {
    limit: u32,
    since: Option<Instant>,
    uses: u32,
}

/// What happens to one use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is fine.
    Allowed,
    /// It is refused, and is the first one.
    Last,
    /// It is refused.
    Refused,
}

impl Rate {
    /// Allows this many uses in a minute.
    pub fn new(limit: u32) -> Self {
        Self { limit, since: None, uses: 0 }
    }

    /// Counts a use.
    pub fn count(&mut self, now: Instant) -> Verdict {
        if self.since.is_none_or(|since| now.duration_since(since) >= MINUTE) {
            (self.since, self.uses) = (Some(now), 0);
        }
        self.uses = self.uses.saturating_add(1);
        match self.uses {
            uses if uses <= self.limit => Verdict::Allowed,
            uses if uses == self.limit + 1 => Verdict::Last,
            _ => Verdict::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_refused_until_the_minute_is_over() {
        let (mut rate, begun) = (Rate::new(MAX_USES), Instant::now());
        for _ in 0..MAX_USES {
            assert_eq!(rate.count(begun), Verdict::Allowed);
        }
        assert_eq!(rate.count(begun), Verdict::Last);
        assert_eq!(rate.count(begun + MINUTE / 2), Verdict::Refused);
        assert_eq!(rate.count(begun + MINUTE), Verdict::Allowed);
    }
}
