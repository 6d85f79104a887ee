//! The keys that answer a question of banger's while a command has the terminal: two in a row, so that what the user types for
//! the command is no answer.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::mpsc;

/// Ctrl-].
const FIRST: u8 = 0x1d;
/// More answers than somebody gives before they are read.
const QUEUE: usize = 16;

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Ctrl-] y.
    Yes,
    /// Ctrl-] n.
    No,
}

/// Looks for answers in what the user types, while there is a question.
#[derive(Debug)]
pub struct AnswerKeys {
    is_asked: Arc<AtomicBool>,
    answers: mpsc::Sender<Answer>,
    /// Whether the first key was typed, and nothing after it.
    first_typed: bool,
}

/// The other side of [`AnswerKeys`]: it asks, and gets the answers.
#[derive(Debug)]
pub struct Answers {
    is_asked: Arc<AtomicBool>,
    answers: mpsc::Receiver<Answer>,
}

/// Returns both sides.
pub fn answers() -> (AnswerKeys, Answers) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let is_asked = Arc::<AtomicBool>::default();
    let keys = AnswerKeys { is_asked: Arc::clone(&is_asked), answers: sender, first_typed: false };
    (keys, Answers { is_asked, answers: receiver })
}

impl AnswerKeys {
    /// Returns what the command gets of the typed bytes. The first key reaches it together with the next one, or at once if
    /// there is no question.
    pub fn take(&mut self, typed: &[u8]) -> Vec<u8> {
        let mut passed = Vec::with_capacity(typed.len() + 1);
        for &byte in typed {
            if std::mem::take(&mut self.first_typed) {
                let answer = match byte {
                    b'y' | b'Y' => Some(Answer::Yes),
                    b'n' | b'N' => Some(Answer::No),
                    _ => None,
                };
                if let Some(answer) = answer {
                    // An answer to a question that was given up is dropped.
                    let _ = self.answers.try_send(answer);
                    continue;
                }
                passed.push(FIRST);
            }
            if byte == FIRST && self.is_asked.load(Ordering::Relaxed) {
                self.first_typed = true;
            } else {
                passed.push(byte);
            }
        }
        passed
    }
}

impl Answers {
    /// Sets whether there is a question.
    pub fn ask(&self, is_asked: bool) {
        self.is_asked.store(is_asked, Ordering::Relaxed);
    }

    /// Waits for an answer; `None` once the command has ended. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Answer> {
        self.answers.recv().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_both_keys_in_a_row_answer_and_only_a_question() {
        let check = |is_asked, typed: &[&[u8]], expect: &[u8], given: &[Answer]| {
            let (mut keys, mut answers) = answers();
            answers.ask(is_asked);
            let passed: Vec<u8> = typed.iter().flat_map(|bytes| keys.take(bytes)).collect();
            let found: Vec<Answer> = std::iter::from_fn(|| answers.answers.try_recv().ok()).collect();
            assert_eq!((passed.as_slice(), found.as_slice()), (expect, given), "{typed:?}");
        };
        check(true, &[b"ls y n\r"], b"ls y n\r", &[]);
        check(true, &[b"\x1dy"], b"", &[Answer::Yes]);
        check(true, &[b"a\x1d", b"Nb"], b"ab", &[Answer::No]);
        check(true, &[b"\x1dx\x1d", b"\x1dy"], b"\x1dx\x1d", &[Answer::Yes]);
        check(true, &[b"\x1dy\x1dn"], b"", &[Answer::Yes, Answer::No]);
        check(false, &[b"\x1dy"], b"\x1dy", &[]);
        check(true, &[b""], b"", &[]);
    }
}
