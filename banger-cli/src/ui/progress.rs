//! Shows progress on standard error: a spinner on a terminal, and plain lines elsewhere.

use std::{
    io::{self, IsTerminal, Read, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use banger_proto::size::Bytes;
use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::ui::sanitize;

/// Interval at which the spinner moves.
const TICK: Duration = Duration::from_millis(100);
/// Without a terminal, a line is printed for each of this many parts of a stage, at most once per interval.
const PARTS: u64 = 10;
const LINE_INTERVAL: Duration = Duration::from_secs(1);
/// The interval if the total is unknown.
const LINE_INTERVAL_UNKNOWN: Duration = Duration::from_secs(10);

/// The options of a command that shows progress.
#[derive(Debug, Clone, Copy, Args)]
pub struct ProgressArgs {
    /// Print nothing but errors to standard error
    #[arg(short, long)]
    pub quiet: bool,
}

/// How progress is shown.
#[derive(Debug, Clone)]
pub enum Progress {
    /// A line for each job, updated in place.
    Spinners(MultiProgress),
    /// A line for each stage.
    Lines,
    /// Not at all.
    Quiet,
}

impl Progress {
    /// Chooses how to show progress on standard error.
    pub fn new(args: ProgressArgs) -> Self {
        if args.quiet {
            Self::Quiet
        } else if io::stderr().is_terminal() {
            Self::Spinners(MultiProgress::new())
        } else {
            Self::Lines
        }
    }

    /// Starts to show a job, prefixed with `label` if there are several.
    pub fn track(&self, label: Option<&str>) -> Track {
        let bar = match self {
            Self::Spinners(bars) => Some(bars.add(spinner())),
            Self::Lines | Self::Quiet => None,
        };
        let label = label.map(|label| format!("{label}: ")).unwrap_or_default();
        let lines = matches!(self, Self::Lines);
        Track(Arc::new(Display { label, bar, lines, stage: Mutex::default() }))
    }

    /// Runs `act` without a spinner on the screen.
    pub fn suspend<T>(&self, act: impl FnOnce() -> T) -> T {
        match self {
            Self::Spinners(bars) => bars.suspend(act),
            Self::Lines | Self::Quiet => act(),
        }
    }

    /// Prints a message that is not an error.
    pub fn note(&self, line: &str) {
        if !matches!(self, Self::Quiet) {
            self.suspend(|| print_line(line));
        }
    }
}

/// The progress of one job. Dropping it removes it from the terminal.
#[derive(Debug)]
pub struct Track(Arc<Display>);

/// The displayed state of a job.
#[derive(Debug)]
struct Display {
    label: String,
    bar: Option<ProgressBar>,
    lines: bool,
    stage: Mutex<Stage>,
}

/// The current stage.
#[derive(Debug, Default)]
struct Stage {
    name: String,
    message: String,
    done: u64,
    /// 0 if unknown.
    total: u64,
    /// When bytes were first reported, and how many were done then.
    begun: Option<(Instant, u64)>,
    /// How many of the [`PARTS`] were printed.
    reported: u64,
    /// When a line was last printed.
    reported_at: Option<Instant>,
}

impl Stage {
    /// Formats the progress: `3 MiB of 60 MiB, 1.5 MiB/s, 38 s left`. Returns `None` if bytes are not counted.
    fn amount(&self, now: Instant) -> Option<String> {
        let (begun, first) = self.begun?;
        let mut text = match (self.done, self.total) {
            (0, 0) => return None,
            (done, 0) => rough(done),
            (done, total) => format!("{} of {}", rough(done), rough(total)),
        };
        let (seconds, new) = (now.duration_since(begun).as_secs_f64(), self.done.saturating_sub(first));
        // The first moment gives no useful rate.
        if seconds >= 0.5 && new > 0 {
            let rate = new as f64 / seconds;
            text.push_str(&format!(", {}/s", rough(rate as u64)));
            if self.total > 0 {
                let left = (self.total.saturating_sub(self.done) as f64 / rate).ceil();
                text.push_str(&format!(", {left} s left"));
            }
        }
        Some(text)
    }

    /// Returns whether to print a line now: for each part of a known total, and at intervals otherwise.
    fn is_line_due(&mut self, now: Instant) -> bool {
        let since = now.duration_since(*self.reported_at.get_or_insert(now));
        let part = self.done.saturating_mul(PARTS).checked_div(self.total);
        let due = match part {
            Some(part) => since >= LINE_INTERVAL && part > self.reported,
            None => since >= LINE_INTERVAL_UNKNOWN,
        };
        if due {
            self.reported = part.unwrap_or_default();
            self.reported_at = Some(now);
        }
        due
    }
}

/// Formats a size with few digits, because it changes quickly.
fn rough(bytes: u64) -> String {
    let digits = 64 - bytes.leading_zeros();
    Bytes(bytes >> digits.saturating_sub(10) << digits.saturating_sub(10)).to_string()
}

impl Track {
    /// Starts a stage.
    pub fn stage(&self, stage: &str, message: &str) {
        let Display { label, bar, lines, .. } = &*self.0;
        let message = sanitize::line(message);
        *self.0.lock() = Stage { name: stage.to_owned(), message: message.clone(), ..Stage::default() };
        if let Some(bar) = bar {
            bar.set_message(format!("{label}{message}"));
            bar.enable_steady_tick(TICK);
        }
        if *lines {
            print_line(&format!("{label}{stage}: {message}"));
        }
    }

    /// Reports the bytes done in the stage, and the total.
    pub fn bytes(&self, done: Option<u64>, total: Option<u64>) {
        let mut stage = self.0.lock();
        stage.done = done.unwrap_or(stage.done);
        stage.total = total.unwrap_or(stage.total);
        self.0.report(&mut stage);
    }

    /// Counts the bytes of the stage as they are transferred; a total of 0 means unknown.
    pub fn meter(&self, total: u64) -> Meter {
        self.bytes(Some(0), Some(total));
        Meter(Some(Arc::clone(&self.0)))
    }
}

impl Display {
    fn report(&self, stage: &mut Stage) {
        let now = Instant::now();
        let first = stage.done;
        stage.begun.get_or_insert((now, first));
        let (label, message) = (&self.label, &stage.message);
        if let Some(bar) = &self.bar
            && let Some(amount) = stage.amount(now)
        {
            bar.set_message(format!("{label}{message}: {amount}"));
        }
        if self.lines
            && stage.is_line_due(now)
            && let Some(amount) = stage.amount(now)
        {
            print_line(&format!("{label}{}: {amount}", stage.name));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Track {
    fn drop(&mut self) {
        if let Some(bar) = &self.0.bar {
            bar.finish_and_clear();
        }
    }
}

/// Counts transferred bytes.
#[derive(Debug, Clone)]
pub struct Meter(Option<Arc<Display>>);

impl Meter {
    /// Returns a meter that shows nothing.
    pub fn none() -> Self {
        Self(None)
    }

    /// Adds transferred bytes.
    pub fn add(&self, bytes: u64) {
        if let Some(shown) = &self.0 {
            let mut stage = shown.lock();
            stage.done += bytes;
            shown.report(&mut stage);
        }
    }
}

/// A reader that counts bytes.
#[derive(Debug)]
pub struct Metered<'a, R> {
    /// The underlying reader.
    pub from: R,
    /// The meter to count with.
    pub meter: &'a Meter,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(into)?;
        self.meter.add(count as u64);
        Ok(count)
    }
}

fn spinner() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}");
    ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

/// Prints a line. A failure does not matter.
fn print_line(line: &str) {
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
        let unknown = Stage { total: 0, ..stage(3 << 20) };
        assert_eq!(unknown.amount(after(2)).unwrap(), "3 MiB, 1.5 MiB/s");
        assert_eq!(Stage { done: 0, ..unknown }.amount(after(2)), None);
        assert_eq!(rough(u64::MAX).len(), "16352 PiB".len() + 3);
    }

    #[test]
    fn lines_are_few() {
        let begun = Instant::now();
        let mut stage = Stage { total: 100, ..Stage::default() };
        let mut lines = |done, msec| {
            stage.done = done;
            stage.is_line_due(begun + Duration::from_millis(msec))
        };
        assert!(!lines(0, 0) && !lines(50, 500));
        assert!(
            lines(50, 1000) && !lines(51, 3000) && lines(60, 3000) && !lines(90, 3500) && lines(90, 4000)
        );
        let mut unknown = Stage { done: 1 << 30, ..Stage::default() };
        let mut lines = |sec| unknown.is_line_due(begun + Duration::from_secs(sec));
        assert!(!lines(0) && !lines(9) && lines(10) && !lines(11) && lines(20));
    }
}
