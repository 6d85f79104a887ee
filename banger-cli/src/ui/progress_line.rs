//! The line of a running job: what is shown, and what is left out where there is no room.
//!
//! A line has one time: how long the rest will take, or else how long the job has taken.

use std::{fmt, time::Duration};

use banger_proto::size::Bytes;
use unicode_width::UnicodeWidthStr;

use crate::ui::table::shorten;

/// A message is not shortened below this width to make room for numbers.
const LEAST_MESSAGE: usize = 8;

/// How much of a stage is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Amount {
    /// Bytes.
    pub done: u64,
    /// Bytes; 0 if unknown.
    pub total: u64,
    /// Bytes in a second, once it is known.
    pub rate: Option<f64>,
}

impl Amount {
    fn done(&self) -> String {
        match self.total {
            0 => rough(self.done),
            total => format!("{} of {}", rough(self.done), rough(total)),
        }
    }

    fn rate(&self) -> Option<String> {
        self.rate.map(|rate| format!("{}/s", rough(rate as u64)))
    }

    /// Returns how long the rest will take.
    fn left(&self) -> Option<String> {
        let rate = self.rate.filter(|_| self.total > 0)?;
        let seconds = (self.total.saturating_sub(self.done) as f64 / rate).ceil();
        Some(format!("{} left", span(seconds as u64)))
    }
}

impl fmt::Display for Amount {
    /// Prints everything: `3 MiB of 60 MiB, 1.5 MiB/s, 38 s left`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.done())?;
        [self.rate(), self.left()].iter().flatten().try_for_each(|part| write!(f, ", {part}"))
    }
}

/// Formats a line of at most this width.
pub fn line(message: &str, amount: Option<Amount>, elapsed: Duration, width: usize) -> String {
    let elapsed = match elapsed.as_secs() {
        0 => String::new(),
        seconds => format!(" ({})", span(seconds)),
    };
    // From all there is to say to the least.
    let ends = match amount {
        None => vec![elapsed],
        Some(amount) => match amount.left() {
            Some(left) => {
                vec![format!(": {amount}"), format!(": {}, {left}", amount.done()), format!(": {left}")]
            }
            None => vec![format!(": {amount}{elapsed}"), format!(": {}{elapsed}", amount.done()), elapsed],
        },
    };
    let room = |end: &String| width.checked_sub(end.width());
    if let Some(end) = ends.iter().find(|end| room(end).is_some_and(|room| message.width() <= room)) {
        return format!("{message}{end}");
    }
    let least = ends.last().filter(|end| room(end).is_some_and(|room| room >= LEAST_MESSAGE));
    match least {
        Some(end) => format!("{}{end}", shorten(message, width - end.width())),
        None => shorten(message, width),
    }
}

/// Formats a size with few digits, because it changes quickly.
fn rough(bytes: u64) -> String {
    let digits = 64 - bytes.leading_zeros();
    Bytes(bytes >> digits.saturating_sub(10) << digits.saturating_sub(10)).to_string()
}

/// Formats a number of seconds in one unit.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn amount(done: u64, total: u64, rate: Option<f64>) -> Option<Amount> {
        Some(Amount { done: done * MIB, total: total * MIB, rate: rate.map(|rate| rate * MIB as f64) })
    }

    #[test]
    fn every_state_and_width_has_its_line() {
        let message = "fetching 60 MiB of debian";
        let all = amount(3, 60, Some(1.5));
        let endless = amount(3, 0, Some(1.5));
        for (amount, seconds, width, expect) in [
            (None, 0, 80, "fetching 60 MiB of debian"),
            (None, 7, 80, "fetching 60 MiB of debian (7 s)"),
            (None, 7, 20, "fetching 60 M… (7 s)"),
            (amount(0, 60, None), 7, 80, "fetching 60 MiB of debian: 0 B of 60 MiB (7 s)"),
            (all, 7, 80, "fetching 60 MiB of debian: 3 MiB of 60 MiB, 1.5 MiB/s, 38 s left"),
            (all, 7, 55, "fetching 60 MiB of debian: 3 MiB of 60 MiB, 38 s left"),
            (all, 7, 40, "fetching 60 MiB of debian: 38 s left"),
            (all, 7, 30, "fetching 60 MiB of…: 38 s left"),
            (all, 7, 12, "fetching 60…"),
            (endless, 7, 80, "fetching 60 MiB of debian: 3 MiB, 1.5 MiB/s (7 s)"),
            (endless, 7, 40, "fetching 60 MiB of debian: 3 MiB (7 s)"),
            (endless, 7, 32, "fetching 60 MiB of debian (7 s)"),
        ] {
            let line = line(message, amount, Duration::from_secs(seconds), width);
            assert_eq!(line, expect, "{amount:?} {width}");
        }
    }

    #[test]
    fn a_line_fits_and_has_one_time() {
        let amounts = [
            None,
            amount(0, 60, None),
            amount(3, 60, Some(1.5)),
            amount(3, 0, Some(1.5)),
            amount(59, 60, Some(0.001)),
        ];
        let messages = ["x", "waiting for the guest's init", "日本語のメッセージ", &"m".repeat(200)];
        for message in messages {
            for amount in amounts {
                for seconds in [0, 5, 75, 600, 9000] {
                    for width in 1..130 {
                        let line = line(message, amount, Duration::from_secs(seconds), width);
                        assert!(line.width() <= width, "{width}: {line}");
                        let times = [" s left", " min left", " h left", " s)", " min)", " h)"];
                        let count: usize = times.iter().map(|time| line.matches(time).count()).sum();
                        assert!(count <= 1, "{line}");
                    }
                }
            }
        }
    }

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!(rough(u64::MAX).len(), "16352 PiB".len() + 3);
        for (seconds, expect) in
            [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h")]
        {
            assert_eq!(span(seconds), expect);
        }
    }
}
