//! How long ago something was, as people say it.

use std::time::{SystemTime, UNIX_EPOCH};

const UNITS: [(u64, &str); 5] =
    [(86_400 * 365, "year"), (86_400 * 30, "month"), (86_400, "day"), (3_600, "hour"), (60, "minute")];

/// The present in microseconds since the Unix epoch.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// How long before `now` something was; both in microseconds since the Unix epoch. `-` for never.
pub fn ago(then: u64, now: u64) -> String {
    if then == 0 {
        return "-".to_owned();
    }
    let seconds = now.saturating_sub(then) / 1_000_000;
    match UNITS.iter().find(|(unit, _)| seconds >= *unit) {
        None if seconds < 5 => "just now".to_owned(),
        None => format!("{seconds} seconds ago"),
        Some((unit, noun)) => match seconds / unit {
            1 => format!("1 {noun} ago"),
            count => format!("{count} {noun}s ago"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_people_say_them() {
        let check = |seconds: u64, expect: &str| {
            let then = 1_700_000_000_000_000;
            assert_eq!(ago(then, then + seconds * 1_000_000), expect);
        };
        check(0, "just now");
        check(59, "59 seconds ago");
        check(60, "1 minute ago");
        check(3 * 60 + 59, "3 minutes ago");
        check(3_600, "1 hour ago");
        check(47 * 3_600, "1 day ago");
        check(45 * 86_400, "1 month ago");
        check(800 * 86_400, "2 years ago");
        assert_eq!(ago(0, 5), "-");
        assert_eq!(ago(9_000_000, 5), "just now");
    }
}
