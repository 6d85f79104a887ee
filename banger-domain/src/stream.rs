//! Assigns the streams to a guest's agent.
//!
//! A guest has a fixed number of streams, and a client holds one for as long as it likes. They are numbered, and the
//! first ones are reserved, so that no kind of use can lock out the others:
//!
//! ```text
//!   0 1 │ 2 … 9 │ 10 … 22
//!   questions
//!         questions, commands
//!                 questions, commands, connections
//! ```
//!
//! A browser behind `banger vm forward` leaves streams for commands, and commands that never end leave streams for
//! questions. The VMM knows which streams are held, so the service does not need to remember it.

/// Streams that only questions get.
const QUESTIONS: usize = 2;
/// Streams that connections do not get.
const RESERVED: usize = QUESTIONS + 8;

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Purpose {
    /// Something that the agent answers at once: the guest's state, or its open ports.
    Question,
    /// A command, or files.
    #[default]
    Command,
    /// A forwarded connection.
    Connection,
}

impl Purpose {
    /// All purposes.
    pub const ALL: [Self; 3] = [Self::Question, Self::Command, Self::Connection];

    /// Parses a word used on D-Bus.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|purpose| purpose.as_str() == word)
    }

    /// Returns the word used on D-Bus.
    pub const fn as_str(self) -> &'static str {
        use banger_proto::bus::option::agent;
        match self {
            Self::Question => agent::QUESTION,
            Self::Command => agent::COMMAND,
            Self::Connection => agent::CONNECTION,
        }
    }

    /// Returns the first stream that this purpose may have.
    const fn first(self) -> usize {
        match self {
            Self::Question => 0,
            Self::Command => QUESTIONS,
            Self::Connection => RESERVED,
        }
    }
}

/// Chooses one of `count` streams, or `None` if all that the purpose may have are held. The search continues after
/// the `last` one that was given out, so that a stream rests after it was returned: the guest has to notice that its
/// client is gone before the next one comes.
pub fn choose(purpose: Purpose, count: usize, last: usize, is_held: impl Fn(usize) -> bool) -> Option<usize> {
    let first = purpose.first().min(count);
    let after = (first..count).filter(|stream| *stream > last);
    let before = (first..count).filter(|stream| *stream <= last);
    after.chain(before).find(|stream| !is_held(*stream))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const COUNT: usize = 23;

    /// Returns how many clients of these purposes get a stream if nobody leaves.
    fn granted(asked: &[(Purpose, usize)]) -> Vec<usize> {
        let (mut held, mut last) = (BTreeSet::new(), 0);
        let mut grant = |purpose| {
            let stream = choose(purpose, COUNT, last, |stream| held.contains(&stream));
            stream.is_some_and(|stream| {
                last = stream;
                held.insert(stream)
            })
        };
        asked.iter().map(|(purpose, times)| (0..*times).filter(|_| grant(*purpose)).count()).collect()
    }

    #[test]
    fn no_purpose_locks_out_another() {
        use Purpose::{Command, Connection, Question};
        for (asked, expect) in [
            (vec![(Connection, 100), (Command, 100), (Question, 100)], vec![13, 8, 2]),
            (vec![(Command, 100), (Connection, 1), (Question, 100)], vec![21, 0, 2]),
            (vec![(Question, 100), (Command, 1)], vec![23, 0]),
            (vec![(Connection, 5), (Command, 30)], vec![5, 16]),
        ] {
            assert_eq!(granted(&asked), expect, "{asked:?}");
        }
    }

    #[test]
    fn a_returned_stream_rests() {
        let free = |_| false;
        assert_eq!(choose(Purpose::Command, COUNT, 5, free), Some(6));
        assert_eq!(choose(Purpose::Command, COUNT, 22, free), Some(2));
        assert_eq!(choose(Purpose::Connection, COUNT, 3, free), Some(10));
        assert_eq!(choose(Purpose::Command, COUNT, 5, |stream| stream != 5), Some(5));
        assert_eq!(choose(Purpose::Connection, 3, 0, free), None);
    }

    #[test]
    fn purposes_read_back() {
        for purpose in Purpose::ALL {
            assert_eq!(Purpose::parse(purpose.as_str()), Some(purpose));
        }
        assert_eq!(Purpose::parse("else"), None);
        assert_eq!(Purpose::default(), Purpose::Command);
    }
}
