//! Formats times for people: how long ago, and in local time.

use jiff::{Timestamp, Unit, Zoned, tz::TimeZone};

/// Returns the current time in microseconds since the Unix epoch.
pub fn now() -> u64 {
    u64::try_from(Timestamp::now().as_microsecond()).unwrap_or_default()
}

/// Formats how long before `now` something was, in the largest unit that fits; both in microseconds since the Unix
/// epoch. `-` for never.
pub fn ago(then: u64, now: u64) -> String {
    if then == 0 {
        return "-".to_owned();
    }
    match largest_unit(then, now) {
        None => "just now".to_owned(),
        Some((1, noun)) => format!("1 {noun} ago"),
        Some((count, noun)) => format!("{count} {noun}s ago"),
    }
}

/// Returns the time between two moments in the largest unit of the calendar that fits. `None` for less than 5 seconds.
fn largest_unit(then: u64, now: u64) -> Option<(i64, &'static str)> {
    let (then, now) = (moment(then, &TimeZone::UTC)?, moment(now, &TimeZone::UTC)?);
    let span = then.until((Unit::Year, &now)).ok()?;
    let units = [
        (i64::from(span.get_years()), "year"),
        (i64::from(span.get_months()), "month"),
        (i64::from(span.get_days()), "day"),
        (i64::from(span.get_hours()), "hour"),
        (span.get_minutes(), "minute"),
        (span.get_seconds(), "second"),
    ];
    let largest = units.into_iter().find(|(count, _)| *count > 0);
    largest.filter(|(count, noun)| *noun != "second" || *count >= 5)
}

/// Formats the date, the time and how long ago that was. `-` for never.
pub fn date(then: u64, now: u64) -> String {
    match local_time(then, &TimeZone::system()) {
        Some(date) if then != 0 => format!("{date} ({})", ago(then, now)),
        _ => ago(then, now),
    }
}

/// Formats the date and the time in the user's zone, as set by `TZ` or `/etc/localtime`.
pub fn stamp(then: u64) -> String {
    local_time(then, &TimeZone::system()).unwrap_or_default()
}

/// Formats the date and the time in a zone, with the offset from UTC. `None` if it is out of range.
fn local_time(then: u64, zone: &TimeZone) -> Option<String> {
    Some(moment(then, zone)?.strftime("%Y-%m-%d %H:%M:%S %:z").to_string())
}

/// Returns a moment in a zone. `None` if it is out of range.
fn moment(usec: u64, zone: &TimeZone) -> Option<Zoned> {
    let moment = Timestamp::from_microsecond(i64::try_from(usec).ok()?).ok()?;
    Some(moment.to_zoned(zone.clone()))
}

#[cfg(test)]
mod tests {
    use jiff::tz::{self, Offset};

    use super::*;

    #[test]
    fn dates_are_in_the_zone() {
        // `date -u -d @1772283599` is 2026-02-28 12:59:59.
        let then = 1_772_283_599_000_000;
        let check = |hours: i8, expect: &str| {
            let zone = TimeZone::fixed(tz::offset(hours));
            assert_eq!(local_time(then, &zone).as_deref(), Some(expect));
        };
        check(0, "2026-02-28 12:59:59 +00:00");
        check(12, "2026-03-01 00:59:59 +12:00");
        check(-8, "2026-02-28 04:59:59 -08:00");
        assert_eq!(local_time(u64::MAX, &TimeZone::fixed(Offset::UTC)), None);
        assert_eq!(date(0, then), "-");
        assert!(date(then, then + 60_000_000).ends_with(" (1 minute ago)"));
    }

    #[test]
    fn ages_have_one_unit() {
        let check = |seconds: u64, expect: &str| {
            let then = 1_700_000_000_000_000;
            assert_eq!(ago(then, then + seconds * 1_000_000), expect);
        };
        check(0, "just now");
        check(4, "just now");
        check(5, "5 seconds ago");
        check(59, "59 seconds ago");
        check(60, "1 minute ago");
        check(3 * 60 + 59, "3 minutes ago");
        check(3_600, "1 hour ago");
        check(47 * 3_600, "1 day ago");
        check(45 * 86_400, "1 month ago");
        // Months and years are those of the calendar: 2024 is a leap year.
        check(365 * 86_400, "11 months ago");
        check(366 * 86_400, "1 year ago");
        check(800 * 86_400, "2 years ago");
        assert_eq!(ago(0, 5), "-");
        assert_eq!(ago(9_000_000, 5), "just now");
    }
}
