//! `cargo xtask picture`: the picture in the README, of a real run of banger.
//!
//! A session of alice in the private host is recorded with its times in `docs/images/run.cast`, in the format of
//! [asciicast v2](https://docs.asciinema.org/manual/asciicast/v2/). The picture `docs/images/run.svg` is drawn from this
//! file and from nothing else, which a test checks.

mod svg;

use std::{fmt::Write, fs, num::NonZeroU16, path::PathBuf, process::Stdio};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::{Value, json};

use crate::{
    host,
    run::{output, repository, run as shell, say},
    try_it,
};

/// The size of the terminal.
const COLUMNS: NonZeroU16 = size(100);
const ROWS: NonZeroU16 = size(24);

const fn size(size: u16) -> NonZeroU16 {
    match NonZeroU16::new(size) {
        Some(size) => size,
        None => NonZeroU16::MIN,
    }
}

/// Arguments of `cargo xtask picture`.
#[derive(Parser)]
pub struct Arguments {
    /// Draw the kept recording again, without a run
    #[arg(long)]
    redraw: bool,
}

/// Records a run unless told otherwise, and draws it.
pub fn run(arguments: &Arguments) -> Result<()> {
    let (cast, picture) = (file("run.cast"), file("run.svg"));
    if !arguments.redraw {
        let recording = record()?;
        fs::create_dir_all(file(""))?;
        fs::write(&cast, recording.to_asciicast()).context("cannot write the recording")?;
    }
    let text = fs::read_to_string(&cast).with_context(|| format!("cannot read {}", cast.display()))?;
    fs::write(&picture, svg::draw(&Recording::parse(&text)?)).context("cannot write the picture")?;
    println!("{}\n{}", cast.display(), picture.display());
    Ok(())
}

fn file(name: &str) -> PathBuf {
    repository().join("docs/images").join(name)
}

/// What a program wrote to a terminal.
#[derive(Debug, PartialEq)]
struct Recording {
    columns: NonZeroU16,
    rows: NonZeroU16,
    /// The seconds since the beginning, and what was written then.
    events: Vec<(f64, String)>,
}

/// Records the session in the private host.
fn record() -> Result<Recording> {
    let host = host::up(&host::Up::default())?;
    try_it::provide(&host)?;
    say("recording");
    let session = script!(
        "picture/record.sh",
        session = script_text!("picture/session.sh"),
        columns = COLUMNS,
        rows = ROWS
    );
    shell(host.session("alice", false, &session)?.stdin(Stdio::null()))?;
    let read = |name: &str| output(&mut host.enter(&["cat", &format!("/home/alice/picture/{name}")]));
    Recording::of_script(&read("times")?, &read("output")?)
}

impl Recording {
    /// Reads the files of script(1): lines of a delay in seconds and a number of bytes, and the bytes after a first
    /// line of its own.
    fn of_script(times: &str, output: &str) -> Result<Self> {
        let (_, mut left) = output.split_once('\n').context("the recording is empty")?;
        let (mut now, mut owed, mut events) = (0.0, 0, Vec::new());
        for line in times.lines() {
            let (delay, count) = line.split_once(' ').with_context(|| format!("not a time: {line:?}"))?;
            now += delay.parse::<f64>()?;
            owed += count.parse::<usize>()?;
            ensure!(owed <= left.len(), "the recording is shorter than its times");
            // The rest of a character comes with the next event.
            let length = left.floor_char_boundary(owed);
            let (text, rest) = left.split_at(length);
            events.push(((now * 1000.0).round() / 1000.0, text.to_owned()));
            (left, owed) = (rest, owed - length);
        }
        Ok(Self { columns: COLUMNS, rows: ROWS, events })
    }

    fn to_asciicast(&self) -> String {
        let header = json!({ "version": 2, "width": self.columns, "height": self.rows });
        let mut text = format!("{header}\n");
        for (time, written) in &self.events {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{}", json!([time, "o", written]));
        }
        text
    }

    fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        let header: Value = serde_json::from_str(lines.next().context("the recording is empty")?)?;
        let size = |key: &str| -> Result<NonZeroU16> {
            serde_json::from_value(header[key].clone()).with_context(|| format!("the recording has no {key}"))
        };
        let events = lines.map(|line| {
            let (time, _, written): (f64, String, String) = serde_json::from_str(line)?;
            Ok((time, written))
        });
        Ok(Self { columns: size("width")?, rows: size("height")?, events: events.collect::<Result<_>>()? })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_script_records_is_kept_with_its_times() {
        let output = "Script started on a day\r\nhé\u{1b}[1mllo\n\nScript done\n";
        // The first event ends in the middle of the second character.
        let recording = Recording::of_script("0.5 2\n0.25 9\n", &output.replace('\r', "")).unwrap();
        assert_eq!(recording.events, [(0.5, "h".to_owned()), (0.75, "é\u{1b}[1mllo\n".to_owned())]);
        assert_eq!(Recording::parse(&recording.to_asciicast()).unwrap(), recording);
        assert!(Recording::of_script("0.5 200\n", output).is_err());
    }

    #[test]
    fn the_picture_in_the_repository_is_drawn_from_its_recording() {
        // Both are made by `cargo xtask picture`.
        let (cast, picture) = (fs::read_to_string(file("run.cast")), fs::read_to_string(file("run.svg")));
        assert_eq!(cast.is_ok(), picture.is_ok(), "one of recording and picture is missing");
        let (Ok(cast), Ok(picture)) = (cast, picture) else { return };
        assert!(svg::draw(&Recording::parse(&cast).unwrap()) == picture, "run: cargo xtask picture --redraw");
        let readme = fs::read_to_string(repository().join("README.md")).unwrap();
        assert!(readme.contains("](docs/images/run.svg)"), "the README does not show the picture");
    }
}
