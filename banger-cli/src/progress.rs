//! How far things have come, on standard error: a spinner on a terminal, plain lines anywhere else.

use std::{
    io::{self, IsTerminal, Write},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use banger_proto::size::Bytes;
use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::plain;

/// How often the spinner moves.
const TICK: Duration = Duration::from_millis(100);
/// Where there is no terminal, a line for each of so many parts of a stage.
const PARTS: u64 = 10;

/// The options of a command that shows progress.
#[derive(Debug, Clone, Copy, Args)]
pub struct ProgressArgs {
    /// Say nothing on standard error unless something goes wrong
    #[arg(short, long)]
    pub quiet: bool,
}

/// Where progress is shown.
#[derive(Debug, Clone)]
pub enum Progress {
    /// A line for each operation, in place.
    Spinners(MultiProgress),
    /// A line for each stage.
    Lines,
    /// Nowhere.
    Quiet,
}

impl Progress {
    /// As it fits standard error.
    pub fn new(args: ProgressArgs) -> Self {
        if args.quiet {
            Self::Quiet
        } else if io::stderr().is_terminal() {
            Self::Spinners(MultiProgress::new())
        } else {
            Self::Lines
        }
    }

    /// An operation, shown behind `label` where there are several.
    pub fn track(&self, label: Option<&str>) -> Track {
        let bar = match self {
            Self::Spinners(bars) => Some(bars.add(spinner())),
            Self::Lines | Self::Quiet => None,
        };
        let label = label.map(|label| format!("{label}: ")).unwrap_or_default();
        Track { label, bar, lines: matches!(self, Self::Lines), stage: Mutex::default() }
    }

    /// Does something while no spinner is on the screen.
    pub fn suspend<T>(&self, act: impl FnOnce() -> T) -> T {
        match self {
            Self::Spinners(bars) => bars.suspend(act),
            Self::Lines | Self::Quiet => act(),
        }
    }

    /// Says something that is no error.
    pub fn note(&self, line: &str) {
        if !matches!(self, Self::Quiet) {
            self.suspend(|| say(line));
        }
    }
}

/// The progress of one operation; it disappears from a terminal when it is dropped.
#[derive(Debug)]
pub struct Track {
    label: String,
    bar: Option<ProgressBar>,
    lines: bool,
    stage: Mutex<Stage>,
}

/// The stage that is under way.
#[derive(Debug, Default)]
struct Stage {
    name: String,
    message: String,
    done: u64,
    total: u64,
    /// When bytes were first told of, and how many were done then.
    begun: Option<(Instant, u64)>,
    /// How many of the [`PARTS`] were told.
    told: u64,
}

impl Stage {
    /// How far it is: `3 MiB of 60 MiB, 1.5 MiB/s, 38 s left`. Nothing where nobody counts.
    fn amount(&self, now: Instant) -> Option<String> {
        if self.total == 0 {
            return None;
        }
        let mut text = format!("{} of {}", rough(self.done), rough(self.total));
        let (begun, first) = self.begun?;
        let (seconds, new) = (now.duration_since(begun).as_secs_f64(), self.done.saturating_sub(first));
        // A rate of the first moment says nothing.
        if seconds >= 0.5 && new > 0 {
            let rate = new as f64 / seconds;
            let left = (self.total.saturating_sub(self.done) as f64 / rate).ceil();
            text.push_str(&format!(", {}/s, {left} s left", rough(rate as u64)));
        }
        Some(text)
    }
}

/// A size without more digits than anybody reads while it changes.
fn rough(bytes: u64) -> String {
    let digits = 64 - bytes.leading_zeros();
    Bytes(bytes >> digits.saturating_sub(10) << digits.saturating_sub(10)).to_string()
}

impl Track {
    /// A stage has begun.
    pub fn stage(&self, stage: &str, message: &str) {
        let (label, message) = (&self.label, plain::line(message));
        *self.lock() = Stage { name: stage.to_owned(), message: message.clone(), ..Stage::default() };
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{label}{message}"));
            bar.enable_steady_tick(TICK);
        }
        if self.lines {
            say(&format!("{label}{stage}: {message}"));
        }
    }

    /// So many bytes are done of the stage, of so many.
    pub fn bytes(&self, done: Option<u64>, total: Option<u64>) {
        let mut stage = self.lock();
        stage.done = done.unwrap_or(stage.done);
        stage.total = total.unwrap_or(stage.total);
        let (now, first) = (Instant::now(), stage.done);
        stage.begun.get_or_insert((now, first));
        let Some(amount) = stage.amount(now) else { return };
        let (label, message) = (&self.label, &stage.message);
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{label}{message}: {amount}"));
        }
        let part = stage.done.saturating_mul(PARTS) / stage.total;
        if self.lines && part > stage.told {
            say(&format!("{label}{}: {amount}", stage.name));
            stage.told = part;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Track {
    /// Counts bytes on their way; a total of 0 is not known.
    pub fn meter(&self, message: &str, total: u64) -> Meter {
        if let Some(bar) = &self.bar {
            let template = match total {
                0 => "{spinner} {msg}: {bytes} ({bytes_per_sec})",
                _ => "{spinner} {msg}: {bytes} of {total_bytes} ({bytes_per_sec}, {eta} to go)",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_length(total);
            bar.set_message(plain::line(message));
            bar.enable_steady_tick(TICK);
        }
        Meter(self.bar.clone())
    }
}

/// Counts bytes on their way.
#[derive(Debug, Clone)]
pub struct Meter(Option<ProgressBar>);

impl Meter {
    /// One that shows nothing.
    pub fn none() -> Self {
        Self(None)
    }

    /// So many more.
    pub fn add(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(bytes);
        }
    }
}

impl Drop for Track {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn spinner() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}");
    ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

/// Nothing is lost when nobody reads this.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_amount_has_a_rate_once_there_is_one() {
        let begun = Instant::now();
        let stage = |done| Stage { done, total: 60 << 20, begun: Some((begun, 0)), ..Stage::default() };
        let after = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(stage(3 << 20).amount(begun).unwrap(), "3 MiB of 60 MiB");
        assert_eq!(stage(3 << 20).amount(after(2)).unwrap(), "3 MiB of 60 MiB, 1.5 MiB/s, 38 s left");
        assert_eq!(stage(0).amount(after(2)).unwrap(), "0 B of 60 MiB");
        assert_eq!(Stage::default().amount(begun), None);
        assert_eq!(rough(u64::MAX).len(), "16352 PiB".len() + 3);
    }
}
