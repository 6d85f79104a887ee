//! Compiled terminal descriptions (term(5)), which a host sends to guests that do not have its terminal.

use serde::{Deserialize, Serialize};

/// Limit on a description. ncurses itself allows 32 KiB; those of known terminals have less than 8.
pub const MAX_ENTRY: usize = 16 << 10;
/// Limit on a name.
const MAX_NAME: usize = 64;
/// Length of the header, and the numbers that it begins with: 16-bit and 32-bit descriptions.
const HEADER: usize = 12;
const MAGIC: [u16; 2] = [0o432, 0o1036];

/// The directories in which the ncurses of distributions look for descriptions.
pub const DIRECTORIES: [&str; 5] = [
    "/etc/terminfo",
    "/lib/terminfo",
    "/usr/share/terminfo",
    "/usr/lib/terminfo",
    "/run/current-system/sw/share/terminfo",
];

/// The terminal of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TerminalType {
    /// The value of `TERM` on the host.
    pub name: String,
    /// Its description there; absent if the host has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<Vec<u8>>,
}

/// Returns whether this can be the name of a terminal. It is also a file name.
pub fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._".contains(&byte);
    name.len() <= MAX_NAME
        && name.bytes().all(is_plain)
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
}

/// Returns the paths of a description below a directory: by the first letter, and by its code, as on file systems that
/// ignore case.
pub fn paths(name: &str) -> [String; 2] {
    let first = name.chars().next().unwrap_or_default();
    [format!("{first}/{name}"), format!("{:02x}/{name}", u32::from(first))]
}

/// Returns whether these bytes are a description of this terminal.
pub fn describes(entry: &[u8], name: &str) -> bool {
    let number = |at: usize| entry.get(at..at + 2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
    let Some(length) = number(2).map(usize::from) else { return false };
    let names = entry.get(HEADER..HEADER + length).and_then(|names| names.strip_suffix(&[0]));
    entry.len() <= MAX_ENTRY
        && number(0).is_some_and(|magic| MAGIC.contains(&magic))
        && names.is_some_and(|names| names.split(|byte| *byte == b'|').any(|known| known == name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a description without capabilities.
    fn entry(magic: u16, names: &str) -> Vec<u8> {
        let names = [names.as_bytes(), &[0]].concat();
        let header = [magic, names.len() as u16, 0, 0, 0, 0];
        [&header.map(u16::to_le_bytes).concat()[..], &names].concat()
    }

    #[test]
    fn a_description_has_the_name_of_its_terminal() {
        let ghostty = entry(0o1036, "xterm-ghostty|ghostty|Ghostty");
        assert!(describes(&ghostty, "xterm-ghostty") && describes(&ghostty, "ghostty"));
        assert!(describes(&entry(0o432, "foot"), "foot"));
        let large = [ghostty.clone(), vec![0; MAX_ENTRY]].concat();
        let cut = &ghostty[..20];
        for (wrong, name) in [
            (&ghostty[..], "xterm"),
            (&entry(0o433, "foot"), "foot"),
            (&large, "ghostty"),
            (cut, "ghostty"),
            (b"#!/bin/sh\n", "sh"),
            (&[], ""),
        ] {
            assert!(!describes(wrong, name), "{name}");
        }
    }

    #[test]
    fn a_name_is_a_plain_file_name() {
        for name in ["xterm-256color", "rxvt-unicode", "st.old", "ibm5151", "9term", "vt100+fnkeys"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", ".", "..", "../x", "a/b", "-x", "a b", "é", "x\n", &"x".repeat(65)] {
            assert!(!is_name(name), "{name}");
        }
        assert_eq!(paths("foot"), ["f/foot", "66/foot"]);
    }
}
