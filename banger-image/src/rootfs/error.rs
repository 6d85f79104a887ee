//! Why an archive is refused.

use std::{fmt, io};

/// Why an archive is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source could not be read.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// It does not begin like a tar archive.
    #[error("it is not a tar archive")]
    NotTar,
    /// It ends in the middle of an entry.
    #[error("the archive is cut short")]
    Truncated,
    /// A header is inconsistent.
    #[error("the archive is damaged: {0}")]
    Damaged(&'static str),
    /// An entry cannot be kept.
    #[error("the entry {name} {why}")]
    Entry {
        /// Its name, safe to display.
        name: Shown,
        /// What is wrong with it, as the rest of the sentence.
        why: String,
    },
    /// There are too many of something.
    #[error("the image has more than {most} {what}")]
    TooMany {
        /// The limit.
        most: u64,
        /// Of what.
        what: &'static str,
    },
}

impl Error {
    /// Returns the error for an entry.
    pub fn entry(name: &[u8], why: impl Into<String>) -> Self {
        Self::Entry { name: Shown::of(name), why: why.into() }
    }
}

/// The name of an entry, shortened and without control characters, safe to display.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown(String);

impl Shown {
    /// The longest displayed part of a name, in bytes.
    const MOST: usize = 120;

    /// Returns the displayable name, or its beginning.
    pub fn of(name: &[u8]) -> Self {
        let (beginning, rest) = name.split_at(name.len().min(Self::MOST));
        let text = String::from_utf8_lossy(beginning).escape_debug().to_string();
        Self(if rest.is_empty() { text } else { text + "…" })
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_without_harm() {
        let shown = |name: &[u8]| Shown::of(name).to_string();
        assert_eq!(shown(b"usr/bin/env"), "usr/bin/env");
        assert_eq!(shown(b"a\n\x1b[31m\xff"), "a\\n\\u{1b}[31m\u{fffd}");
        assert!(shown(&[b'x'; 4096]).len() < 200);
    }
}
