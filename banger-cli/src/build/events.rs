//! Shows a build: its steps and their output on standard error, or as a JSON object on each line of standard output.

use std::io::{self, Write};

use serde_json::{Value, json};

use crate::ui::{output, progress::Progress, sanitize::Filter};

/// The longest line of output that is shown in one piece.
const MAX_LINE: usize = 16 << 10;
/// How much of a failed step's output is shown if its output was not.
const MAX_TAIL: usize = 4 << 10;

/// Where a build is shown.
#[derive(Debug, Clone)]
pub struct Reporter {
    progress: Progress,
    json: bool,
}

impl Reporter {
    /// Shows a build to people, or as JSON.
    pub fn new(progress: Progress, json: bool) -> Self {
        Self { progress: if json { Progress::Quiet } else { progress }, json }
    }

    /// Returns where jobs show their progress.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Reports that a step begins.
    pub fn step(&self, index: usize, count: usize, line: usize, text: &str) {
        if self.json {
            return event(step(index, count, line, text));
        }
        self.progress.note(&format!("step {index} of {count}: {}", crate::ui::sanitize::line(text)));
    }

    /// Reports a fact that is not an error.
    pub fn note(&self, text: &str) {
        match self.json {
            true => event(text_of("note", text)),
            false => self.progress.note(text),
        }
    }

    /// Reports the image.
    pub fn image(&self, image: &Value) {
        if self.json {
            event(made(image));
        }
    }

    /// Returns where the output of a step goes.
    pub fn output(&self) -> StepOutput {
        StepOutput { reporter: self.clone(), filter: Filter::default(), line: Vec::new(), tail: Vec::new() }
    }

    fn lines(&self, bytes: &[u8]) {
        if self.json {
            return event(text_of("output", &String::from_utf8_lossy(bytes)));
        }
        if !matches!(self.progress, Progress::Quiet) {
            // If standard error fails, there is nowhere to report it.
            self.progress.suspend(|| drop(io::stderr().write_all(bytes)));
        }
    }
}

fn step(index: usize, count: usize, line: usize, text: &str) -> Value {
    let line = (line > 0).then_some(line);
    json!({"event": "step", "index": index, "count": count, "line": line, "text": text})
}

fn text_of(event: &str, text: &str) -> Value {
    json!({"event": event, "text": text})
}

fn made(image: &Value) -> Value {
    json!({"event": "image", "image": image})
}

/// Prints an event. A reader that has gone must not leave a sandbox behind, so a failure does not matter.
fn event(event: Value) {
    let _ = output::text(&format!("{event}\n"));
}

/// The output of a step, without control sequences and in whole lines.
#[derive(Debug)]
pub struct StepOutput {
    reporter: Reporter,
    filter: Filter,
    line: Vec<u8>,
    tail: Vec<u8>,
}

impl StepOutput {
    /// Adds output.
    pub fn add(&mut self, bytes: &[u8]) {
        let bytes = self.filter.pass(bytes);
        self.tail.extend_from_slice(&bytes);
        self.tail.drain(..self.tail.len().saturating_sub(MAX_TAIL));
        self.line.extend(bytes);
        let whole = match self.line.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => end + 1,
            None if self.line.len() > MAX_LINE => self.line.len(),
            None => return,
        };
        let rest = self.line.split_off(whole);
        self.reporter.lines(&self.line);
        self.line = rest;
    }

    /// Shows what is left. After a failure, also shows the end of an output that was not shown.
    pub fn finish(mut self, failed: bool) {
        if !self.line.is_empty() {
            self.line.push(b'\n');
            self.reporter.lines(&self.line);
        }
        if failed && matches!(self.reporter.progress, Progress::Quiet) && !self.reporter.json {
            let _ = io::stderr().write_all(&self.tail);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn events_match_their_schema() {
        let schema = crate::ui::schema::of_verb("image build").unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        for event in
            [step(1, 2, 7, "RUN x"), step(1, 1, 0, ""), text_of("output", "x\n"), text_of("note", "x")]
        {
            assert!(validator.is_valid(&event), "{event}");
        }
        let image: Value = json!({"name": "x"});
        assert_eq!(made(&image)["image"], image);
        assert!(!validator.is_valid(&text_of("other", "x")));
    }

    #[test]
    fn output_is_shown_in_whole_lines_without_control_sequences() {
        let mut output = Reporter::new(Progress::Quiet, false).output();
        for piece in ["one\ntw", "o\x1b[31m", " more", "\nthree"] {
            output.add(piece.as_bytes());
        }
        assert_eq!(
            (output.line.as_slice(), output.tail.as_slice()),
            (&b"three"[..], &b"one\ntwo more\nthree"[..])
        );
        output.add(&vec![b'x'; MAX_LINE]);
        assert_eq!((output.line.len(), output.tail.len()), (0, MAX_TAIL));
    }
}
