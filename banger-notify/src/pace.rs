//! How many notifications a person gets: a few a minute, and one that sums up the others.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::news::Note;

/// The most notifications in [`PERIOD`].
const MOST: usize = 5;
const PERIOD: Duration = Duration::from_secs(60);
/// How many of the notes that are summed up are named.
const NAMED: usize = 3;
/// What the sum is about: a later one replaces an earlier one.
const SUM: &str = "sum";

/// Notes that wait, and when the last ones were shown.
#[derive(Debug, Default)]
pub struct Pace {
    shown: VecDeque<Instant>,
    /// The first ones that wait.
    waiting: Vec<Note>,
    /// How many more wait.
    more: usize,
}

impl Pace {
    /// Adds a note to those that wait.
    pub fn add(&mut self, note: Note) {
        if let Some(earlier) = self.waiting.iter_mut().find(|waiting| waiting.about == note.about) {
            *earlier = note;
        } else if self.waiting.len() < NAMED {
            self.waiting.push(note);
        } else {
            self.more += 1;
        }
    }

    /// Returns the time until a note that waits may be shown; nothing if none waits.
    pub fn due(&self, now: Instant) -> Option<Duration> {
        self.waiting.first()?;
        let oldest = self.shown.front().filter(|_| self.shown.len() >= MOST);
        Some(oldest.map_or(Duration::ZERO, |oldest| (*oldest + PERIOD).saturating_duration_since(now)))
    }

    /// Returns the note to show now. The last one of a period sums up all that wait.
    pub fn next(&mut self, now: Instant) -> Option<Note> {
        while self.shown.front().is_some_and(|shown| now.saturating_duration_since(*shown) >= PERIOD) {
            self.shown.pop_front();
        }
        if self.waiting.is_empty() || self.shown.len() >= MOST {
            return None;
        }
        self.shown.push_back(now);
        let is_last = self.shown.len() == MOST || self.more > 0;
        if is_last && self.waiting.len() > 1 { Some(self.sum()) } else { Some(self.waiting.remove(0)) }
    }

    fn sum(&mut self) -> Note {
        let named = std::mem::take(&mut self.waiting);
        let more = std::mem::take(&mut self.more);
        let mut lines: Vec<&str> = named.iter().map(|note| note.summary.as_str()).collect();
        let rest = format!("and {more} more");
        if more > 0 {
            lines.push(&rest);
        }
        Note {
            about: SUM.to_owned(),
            summary: format!("{} events of sandboxes", named.len() + more),
            body: lines.join("\n"),
            is_failure: named.iter().any(|note| note.is_failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(about: usize) -> Note {
        let summary = format!("{about} failed");
        Note { about: about.to_string(), summary, body: String::new(), is_failure: true }
    }

    fn shown(pace: &mut Pace, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| pace.next(now)).map(|note| note.summary).collect()
    }

    #[test]
    fn a_flood_is_summed_up() {
        let (mut pace, begin) = (Pace::default(), Instant::now());
        for about in 0..4 {
            pace.add(note(about));
            assert_eq!(shown(&mut pace, begin), [format!("{about} failed")]);
        }
        for about in 4..1000 {
            pace.add(note(about));
            let expect: &[&str] = if about == 4 { &["4 failed"] } else { &[] };
            assert_eq!(shown(&mut pace, begin), expect);
        }
        assert_eq!(pace.waiting.len(), NAMED);
        let later = begin + PERIOD - Duration::from_secs(1);
        assert_eq!(pace.due(later), Some(Duration::from_secs(1)));
        assert_eq!(shown(&mut pace, begin + PERIOD), ["995 events of sandboxes"]);
        assert_eq!(pace.due(begin + PERIOD), None);
    }

    #[test]
    fn a_later_note_about_the_same_thing_replaces_an_earlier_one() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            pace.add(note(1));
        }
        assert_eq!(shown(&mut pace, Instant::now()), ["1 failed"]);
    }
}
