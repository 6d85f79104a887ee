//! Removes terminal control sequences from untrusted text.

/// Removes escape sequences and control characters from a byte stream, in whatever chunks it arrives. Line feeds,
/// tabs and all other bytes stay.
#[derive(Debug, Default)]
pub struct Filter {
    state: State,
    /// Bytes that are missing from a UTF-8 character.
    continuation: u8,
}

/// The position in a sequence of ECMA-48.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    /// After an escape character.
    Escape,
    /// In a control sequence, before its final byte.
    Control,
    /// In a control string, before BEL or ST.
    String,
    /// After an escape character in a control string.
    StringEscape,
    /// After 0xC2: a control character may follow.
    Latin,
}

const ESCAPE: u8 = 0x1b;
const BELL: u8 = 0x07;
const DELETE: u8 = 0x7f;

impl Filter {
    /// Returns these bytes without control sequences.
    pub fn pass(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut left = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            self.step(byte, &mut left);
        }
        left
    }

    fn step(&mut self, byte: u8, left: &mut Vec<u8>) {
        self.state = match (self.state, byte) {
            (State::String, BELL) => State::Text,
            (State::String, ESCAPE) => State::StringEscape,
            // An unterminated string would hide everything after it.
            (State::String | State::StringEscape, b'\n') => return self.text(byte, left),
            (State::String, _) => State::String,
            (State::StringEscape, b'\\') => State::Text,
            (_, ESCAPE) => State::Escape,
            (State::StringEscape, _) => State::String,
            (State::Escape, b'[') => State::Control,
            (State::Escape, b']' | b'P' | b'X' | b'^' | b'_') => State::String,
            // Intermediate bytes, as in the selection of a character set.
            (State::Escape, 0x20..=0x2f) => State::Escape,
            (State::Escape, 0x30..=0x7e) => State::Text,
            (State::Control, 0x20..=0x3f) => State::Control,
            (State::Control, 0x40..=0x7e) => State::Text,
            (State::Latin, 0x80..=0x9f) => State::Text,
            (State::Latin, 0xa0..=0xbf) => {
                left.extend([0xc2, byte]);
                State::Text
            }
            _ => return self.text(byte, left),
        };
        self.continuation = 0;
    }

    fn text(&mut self, byte: u8, left: &mut Vec<u8>) {
        self.state = State::Text;
        match byte {
            0x80..=0xbf if self.continuation > 0 => {
                self.continuation -= 1;
                left.push(byte);
                return;
            }
            // A single byte of this range is a control character of an 8-bit terminal.
            0x80..=0xbf => {}
            0xc2 => self.state = State::Latin,
            b'\n' | b'\t' => left.push(byte),
            0..=0x1f | DELETE => {}
            _ => left.push(byte),
        }
        self.continuation = match byte {
            0xc3..=0xdf => 1,
            0xe0..=0xef => 2,
            0xf0..=0xf7 => 3,
            _ => 0,
        };
    }
}

/// Returns a text as one line, without control sequences and with spaces instead of line breaks and tabs.
pub fn line(text: &str) -> String {
    let bytes = Filter::default().pass(text.as_bytes());
    String::from_utf8_lossy(&bytes).replace(['\n', '\t'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &[u8], expect: &[u8]) {
        for piece in [1, 2, 3, text.len().max(1)] {
            let mut filter = Filter::default();
            let left: Vec<u8> = text.chunks(piece).flat_map(|bytes| filter.pass(bytes)).collect();
            assert_eq!(left, expect, "{text:?} in pieces of {piece}");
        }
    }

    #[test]
    fn text_passes_unchanged() {
        check(b"hello\n\tworld 100%\n", b"hello\n\tworld 100%\n");
        check("größer — 日本語 😀 \u{a0}\n".as_bytes(), "größer — 日本語 😀 \u{a0}\n".as_bytes());
        check(b"", b"");
    }

    #[test]
    fn control_sequences_are_removed() {
        check(b"[\x1b[0;32m  OK  \x1b[0m] Started\r\n", b"[  OK  ] Started\n");
        check(b"\x1b]0;title\x07a\x1b]8;;http://x\x1b\\b", b"ab");
        check(b"\x1bPq#0\x1b\\x\x1b(By\x1bcz", b"xyz");
        check(b"a\x08b\x07c\x7fd\x00e\x1b[2J", b"abcde");
        check("a\u{9b}31mb\u{85}c".as_bytes(), b"a31mbc");
        check(b"a\x9b\x80b", b"ab");
        check(b"a\x1b\x1b[1mb", b"ab");
    }

    #[test]
    fn an_unterminated_string_hides_only_its_line() {
        check(b"\x1b]0;evil\nseen\n", b"\nseen\n");
    }

    #[test]
    fn a_line_is_one_line() {
        assert_eq!(line("a\nb\tc\x1b[31m\r"), "a b c");
    }
}
