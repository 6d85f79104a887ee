//! How far things have come, on standard error: a spinner on a terminal, plain lines anywhere else.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::plain;

/// How often the spinner moves.
const TICK: Duration = Duration::from_millis(100);

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
        Track { label, bar, lines: matches!(self, Self::Lines) }
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
}

impl Track {
    /// A stage has begun.
    pub fn stage(&self, stage: &str, message: &str) {
        let (label, message) = (&self.label, plain::line(message));
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{label}{message}"));
            bar.enable_steady_tick(TICK);
        }
        if self.lines {
            say(&format!("{label}{stage}: {message}"));
        }
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
