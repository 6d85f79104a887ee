//! Notes about what a devcontainer.json asks for and does not get.

use super::{Devcontainer, find::listed};
use crate::{ui::sanitize, workspace::source::DisplayPath};

/// Limits on the ignored settings that are listed, and on the length of each and of its reason.
pub const MAX_IGNORED: usize = 24;
pub const MAX_IGNORED_LENGTH: usize = 80;

/// A setting that is not applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ignored {
    /// Its key.
    pub key: String,
    /// The reason; empty if there is nothing to say.
    pub why: String,
}

impl Ignored {
    /// Creates one with a reason.
    pub fn new(key: impl Into<String>, why: &str) -> Self {
        Self { key: key.into(), why: why.to_owned() }
    }
}

impl Devcontainer {
    /// Returns notes about what is not applied. `image` is whether the user has chosen one.
    pub fn notes(&self, image: bool) -> Vec<String> {
        let advice = self.advice.iter().filter(|_| !image);
        let mut notes: Vec<String> = self.choice.iter().chain(advice).cloned().collect();
        let mut all: Vec<(String, &str)> =
            self.ignored.iter().map(|ignored| (ignored.key.clone(), ignored.why.as_str())).collect();
        if image {
            let given = [
                ("image", self.image.is_some() || self.unknown_image.is_some()),
                ("build", self.build.is_some()),
                ("features", !self.features.is_empty()),
            ];
            all.extend(given.iter().filter(|(_, given)| *given).map(|(key, _)| ((*key).to_owned(), "")));
        }
        let more = all.len().saturating_sub(MAX_IGNORED);
        let mut shown: Vec<String> = all.iter().take(MAX_IGNORED).map(|(key, why)| entry(key, why)).collect();
        if more > 0 {
            shown.push(format!("and {more} more"));
        }
        if !shown.is_empty() {
            notes.push(format!(
                "note: ignored in {}: {}.",
                DisplayPath(self.file.as_bytes()),
                shown.join(", ")
            ));
        }
        notes
    }
}

/// Says that the user has to choose, if there is a choice.
pub fn choices(others: &[&str]) -> Option<String> {
    let others = Some(listed(others)).filter(|_| !others.is_empty())?;
    Some(format!("note: `--devcontainer PATH` chooses one of {others}; none is used."))
}

/// Formats an ignored setting on one line of limited length.
pub fn entry(key: &str, why: &str) -> String {
    let key = clipped(key, MAX_IGNORED_LENGTH);
    match why.is_empty() {
        true => key,
        false => format!("{key} ({})", clipped(why, MAX_IGNORED_LENGTH)),
    }
}

/// Returns a text as one line of limited length.
pub fn clipped(text: &str, length: usize) -> String {
    let line = sanitize::line(text);
    match line.char_indices().nth(length) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
