//! Parses points in time as users of docker and journalctl write them.

use jiff::{
    Span, Timestamp, ToSpan, Zoned,
    civil::{DateTime, Time},
};

/// Parses a point in time. Returns microseconds since the Unix epoch.
pub fn point_in_time(text: &str) -> Result<u64, String> {
    parse(text, &Zoned::now())
        .and_then(|time| u64::try_from(time.as_microsecond()).ok())
        .ok_or_else(|| "write a period such as 10m or 1h30m, or a time such as 2026-01-31T12:00".to_owned())
}

fn parse(text: &str, now: &Zoned) -> Option<Timestamp> {
    let text = text.trim();
    let zoned = match text {
        "now" => now.clone(),
        "today" => now.start_of_day().ok()?,
        "yesterday" => now.checked_sub(1.day()).ok()?.start_of_day().ok()?,
        _ => {
            if let Some(time) = seconds(text) {
                return Some(time);
            }
            if let Ok(time) = text.parse::<Timestamp>() {
                return Some(time);
            }
            if let Ok(span) = text.parse::<Span>() {
                // Both `10m` and `10 minutes ago` are in the past.
                now.checked_sub(span.abs()).ok()?
            } else if let Ok(time) = text.parse::<DateTime>() {
                time.to_zoned(now.time_zone().clone()).ok()?
            } else {
                let time: Time = text.parse().ok()?;
                now.with().time(time).build().ok()?
            }
        }
    };
    Some(zoned.timestamp())
}

/// Parses seconds since the Unix epoch, which may have a fraction.
fn seconds(text: &str) -> Option<Timestamp> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let micros: i64 = format!("{fraction:0<6}").get(..6)?.parse().ok()?;
    let whole = whole.parse::<i64>().ok()?.checked_mul(1_000_000)?;
    Timestamp::from_microsecond(whole.checked_add(micros)?).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_are_written_as_for_docker_and_journalctl() {
        let now: Zoned = "2026-03-05T12:30:00+01:00[+01:00]".parse().unwrap();
        for (text, expect) in [
            ("now", "2026-03-05T11:30:00Z"),
            ("10m", "2026-03-05T11:20:00Z"),
            ("1h30m", "2026-03-05T10:00:00Z"),
            ("1m30s", "2026-03-05T11:28:30Z"),
            ("90s", "2026-03-05T11:28:30Z"),
            ("7d", "2026-02-26T11:30:00Z"),
            ("-1h", "2026-03-05T10:30:00Z"),
            ("1 hour ago", "2026-03-05T10:30:00Z"),
            ("2 days ago", "2026-03-03T11:30:00Z"),
            ("today", "2026-03-04T23:00:00Z"),
            ("yesterday", "2026-03-03T23:00:00Z"),
            ("2026-01-02", "2026-01-01T23:00:00Z"),
            ("2026-01-02 10:00", "2026-01-02T09:00:00Z"),
            ("2026-01-02 10:00:07", "2026-01-02T09:00:07Z"),
            ("2026-01-02T10:00:07", "2026-01-02T09:00:07Z"),
            ("2026-01-02T10:00:07.5Z", "2026-01-02T10:00:07.5Z"),
            ("2026-01-02T10:00:07+02:00", "2026-01-02T08:00:07Z"),
            ("10:15", "2026-03-05T09:15:00Z"),
            ("1136073600", "2006-01-01T00:00:00Z"),
            ("1136073600.25", "2006-01-01T00:00:00.25Z"),
        ] {
            let found = parse(text, &now).map(|time| time.to_string());
            assert_eq!(found.as_deref(), Some(expect), "{text}");
        }
        for text in ["", "soon", "10", "m", "1.x", "2026-13-01", "99999999999999999999", "1é"] {
            assert!(parse(text, &now).is_none_or(|time| text == "10" && time.as_second() == 10), "{text}");
        }
    }
}
