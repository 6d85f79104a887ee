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
        if self.more > 0 {
            lines.push(format!("{} more notes are not shown", self.more));
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
    }
}
