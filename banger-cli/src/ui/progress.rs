//! Shows progress on standard error: a spinner on a terminal, and plain lines elsewhere.

use std::{
    fmt,
    io::{self, IsTerminal, Read, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use tokio::sync::mpsc;

use crate::ui::{
    progress_line::{self, Amount},
    sanitize, terminal,
};

/// Interval at which the spinner moves.
const TICK: Duration = Duration::from_millis(100);
/// Columns that the spinner takes, and one that stays free at the end.
const SPINNER: usize = 3;
/// The width of a terminal that does not tell.
const USUAL_WIDTH: usize = 80;
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
    /// A message for each stage, to another task.
    Messages(mpsc::Sender<String>),
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
        let label = label.map(|label| format!("{label}: ")).unwrap_or_default();
        let stage = Arc::<Mutex<Stage>>::default();
        let bar = match self {
            Self::Spinners(bars) => Some(bars.add(spinner(label.clone(), Arc::clone(&stage)))),
            Self::Lines | Self::Messages(_) | Self::Quiet => None,
        };
        let messages = match self {
            Self::Messages(to) => Some(to.clone()),
            _ => None,
        };
        let lines = matches!(self, Self::Lines);
        Track(Arc::new(Display { label, bar, lines, messages, stage }))
    }

    /// Runs `act` without a spinner on the screen.
    pub fn suspend<T>(&self, act: impl FnOnce() -> T) -> T {
        match self {
            Self::Spinners(bars) => bars.suspend(act),
            Self::Lines | Self::Messages(_) | Self::Quiet => act(),
        }
    }

    /// Prints a message that is not an error.
    pub fn note(&self, line: &str) {
        if let Self::Messages(to) = self {
            send_message(to, sanitize::line(line));
        } else if !matches!(self, Self::Quiet) {
            // Parts of it may come from a guest or a repository.
            let line = sanitize::Filter::default().pass(line.as_bytes());
            self.suspend(|| print_line(&String::from_utf8_lossy(&line)));
        }
    }

    /// Prints a message while a command may have put the terminal into raw mode.
    pub fn note_in_raw_mode(&self, line: &str) {
        if !matches!(self, Self::Messages(_) | Self::Quiet) {
            let line = sanitize::line(line);
            self.suspend(|| terminal::line_in_raw_mode(&line));
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
    messages: Option<mpsc::Sender<String>>,
    stage: Arc<Mutex<Stage>>,
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
    /// Returns how much is done. Returns `None` if bytes are not counted.
    fn amount(&self, now: Instant) -> Option<Amount> {
        let (begun, first) = self.begun?;
        if (self.done, self.total) == (0, 0) {
            return None;
        }
        let (seconds, new) = (now.duration_since(begun).as_secs_f64(), self.done.saturating_sub(first));
        // The first moment gives no useful rate.
        let rate = (seconds >= 0.5 && new > 0).then(|| new as f64 / seconds);
        Some(Amount { done: self.done, total: self.total, rate })
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

impl Track {
    /// Prints a message that is not an error.
    pub fn note(&self, line: &str) {
        let Display { label, bar, lines, messages, .. } = &*self.0;
        let line = format!("{label}note: {}", sanitize::line(line));
        if let Some(to) = messages {
            send_message(to, line.clone());
        }
        match bar {
            Some(bar) => bar.suspend(|| print_line(&line)),
            None if *lines => print_line(&line),
            None => {}
        }
    }

    /// Starts a stage.
    pub fn stage(&self, stage: &str, message: &str) {
        let Display { label, bar, lines, messages, .. } = &*self.0;
        let message = sanitize::line(message);
        if let Some(to) = messages {
            send_message(to, format!("{stage}: {message}"));
        }
        *lock(&self.0.stage) = Stage { name: stage.to_owned(), message: message.clone(), ..Stage::default() };
        if let Some(bar) = bar {
            bar.enable_steady_tick(TICK);
        }
        if *lines {
            print_line(&format!("{label}{stage}: {message}"));
        }
    }

    /// Reports the bytes done in the stage, and the total.
    pub fn bytes(&self, done: Option<u64>, total: Option<u64>) {
        let mut stage = lock(&self.0.stage);
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
        if self.lines
            && stage.is_line_due(now)
            && let Some(amount) = stage.amount(now)
        {
            print_line(&format!("{}{}: {amount}", self.label, stage.name));
        }
    }
}

fn lock(stage: &Mutex<Stage>) -> MutexGuard<'_, Stage> {
    stage.lock().unwrap_or_else(PoisonError::into_inner)
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
            let mut stage = lock(&shown.stage);
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

/// Returns a spinner that shows a stage. Each tick writes the line again, for the current width of the terminal.
fn spinner(label: String, stage: Arc<Mutex<Stage>>) -> ProgressBar {
    let line = move |state: &ProgressState, into: &mut dyn fmt::Write| {
        let width = terminal::width(&io::stderr()).unwrap_or(USUAL_WIDTH).saturating_sub(SPINNER);
        let stage = lock(&stage);
        let message = format!("{label}{}", stage.message);
        let line = progress_line::line(&message, stage.amount(Instant::now()), state.elapsed(), width);
        // The line is complete, or the terminal is gone.
        let _ = into.write_str(&line);
    };
    let style = ProgressStyle::with_template("{spinner} {line}").map(|style| style.with_key("line", line));
    ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

/// Sends a message, unless its reader has fallen behind.
fn send_message(to: &mpsc::Sender<String>, message: String) {
    let _ = to.try_send(message);
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
        let shown =
            |stage: &Stage, now| stage.amount(now).map(|amount| amount.to_string()).unwrap_or_default();
        assert_eq!(shown(&stage(3 << 20), begun), "3 MiB of 60 MiB");
        assert_eq!(shown(&stage(3 << 20), after(2)), "3 MiB of 60 MiB, 1.5 MiB/s, 38 s left");
        assert_eq!(shown(&stage(0), after(2)), "0 B of 60 MiB");
        assert_eq!(Stage::default().amount(begun), None);
        let unknown = Stage { total: 0, ..stage(3 << 20) };
        assert_eq!(shown(&unknown, after(2)), "3 MiB, 1.5 MiB/s");
        assert_eq!(Stage { done: 0, ..unknown }.amount(after(2)), None);
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
