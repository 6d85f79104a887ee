//! Notes about what a copy left out or changed.

use std::path::Path;

/// Limit on the notes that are kept; the rest are counted.
const MAX_NOTES: usize = 20;

/// Notes on a copy: phrases without a full stop.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notes {
    lines: Vec<String>,
    more: usize,
}

impl Notes {
    /// Adds a note about a path.
    pub fn add(&mut self, path: &Path, what: &str) {
        match self.lines.len() < MAX_NOTES {
            true => self.lines.push(format!("{} {what}", path.display())),
            false => self.more += 1,
        }
    }

    /// Returns the notes, and the number of the others.
    pub fn into_lines(self) -> Vec<String> {
        let mut lines = self.lines;
        match self.more {
            0 => {}
            1 => lines.push("1 more note is not shown".to_owned()),
            more => lines.push(format!("{more} more notes are not shown")),
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_notes_are_a_few_lines() {
        let mut notes = Notes::default();
        (0..1_000_000).for_each(|_| notes.add(Path::new("x"), "is a socket, and was not copied"));
        let lines = notes.into_lines();
        assert_eq!(
            (lines.len(), lines[MAX_NOTES].as_str()),
            (MAX_NOTES + 1, "999980 more notes are not shown")
        );
        let mut notes = Notes::default();
        (0..=MAX_NOTES).for_each(|_| notes.add(Path::new("x"), "is a socket, and was not copied"));
        assert_eq!(notes.into_lines().last().map(String::as_str), Some("1 more note is not shown"));
    }
}
