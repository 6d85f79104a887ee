//! The keys that leave a session and let it continue: those of docker.

/// Ctrl-P.
const FIRST: u8 = 0x10;
/// Ctrl-Q.
const SECOND: u8 = 0x11;

/// Looks for the keys in what the user types.
#[derive(Debug, Default)]
pub struct DetachKeys {
    /// Whether the first key was typed, and nothing after it.
    first_typed: bool,
}

impl DetachKeys {
    /// Returns what the command gets of the typed bytes, and whether the user wants to leave. The first key reaches the
    /// command together with the next one.
    pub fn take(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len() + 1);
        for &byte in typed {
            if std::mem::take(&mut self.first_typed) {
                if byte == SECOND {
                    return (passed, true);
                }
                passed.push(FIRST);
            }
            if byte == FIRST {
                self.first_typed = true;
            } else {
                passed.push(byte);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_both_keys_in_a_row_leave() {
        for (typed, expect, leaves) in [
            (&[&b"ls\r"[..]][..], &b"ls\r"[..], false),
            (&[b"\x10\x11"], b"", true),
            (&[b"ab\x10\x11cd"], b"ab", true),
            (&[b"\x10", b"\x11"], b"", true),
            (&[b"\x11\x10"], b"\x11", false),
            (&[b"\x10x\x11"], b"\x10x\x11", false),
            (&[b"\x10\x10\x11"], b"\x10", true),
            (&[b"\x10", b"a", b"\x10"], b"\x10a", false),
            (&[b""], b"", false),
        ] {
            let mut keys = DetachKeys::default();
            let (mut passed, mut left) = (Vec::new(), false);
            for typed in typed {
                let (bytes, leaves) = keys.take(typed);
                passed.extend(bytes);
                left |= leaves;
            }
            assert_eq!((passed.as_slice(), left), (expect, leaves), "{typed:?}");
        }
    }
}
