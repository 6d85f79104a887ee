//! Names of sandboxes, images and kernels, references to them, and generated names.

use std::{fmt, str::FromStr};

/// The longest name: a label of a host name (RFC 1035).
const MAX_LENGTH: usize = 63;
/// The shortest prefix of an id that counts as a reference.
const MIN_ID_PREFIX: usize = 6;

/// A name: `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`, so that it is a host name, a file name and a unit name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is empty, too long, or has characters that a host name cannot have.
    #[error("{} is not a valid name: use 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit", printable(.0))]
    Malformed(String),
    /// It consists of 6 or more hexadecimal digits, which look like an id.
    #[error("{0} looks like an id; use a name with a letter other than a to f")]
    LooksLikeAnId(String),
}

/// Returns the text, shortened and without characters that could confuse a terminal.
fn printable(text: &str) -> String {
    text.chars().take(80).collect::<String>().escape_debug().to_string()
}

impl Name {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Generates a name such as `calm-otter` from random bits.
    pub fn generated(bits: u64) -> Self {
        let adjective = ADJECTIVES[(bits % ADJECTIVES.len() as u64) as usize];
        let animal = ANIMALS[((bits >> 32) % ANIMALS.len() as u64) as usize];
        Self(format!("{adjective}-{animal}"))
    }

    /// Generates a name with a number, for use when the short ones are taken.
    pub fn generated_numbered(bits: u64) -> Self {
        let Self(base) = Self::generated(bits);
        Self(format!("{base}-{}", (bits >> 16) & 0xffff))
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let bytes = text.as_bytes();
        let well_formed = bytes.len() <= MAX_LENGTH
            && edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().copied().all(inner);
        if !well_formed {
            return Err(Error::Malformed(text.to_owned()));
        }
        if is_id_prefix(text) {
            return Err(Error::LooksLikeAnId(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_id_prefix(text: &str) -> bool {
    (MIN_ID_PREFIX..=32).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Accepts what useradd accepts, and numbers: letters, digits, `_`, `-` and `.`, not beginning with the last two.
fn is_login_name(text: &str) -> bool {
    let first = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= 64
        && text.bytes().next().is_some_and(first)
        && text.bytes().all(|b| first(b) || matches!(b, b'-' | b'.'))
}

/// How a person refers to an object. No text is ambiguous, since no name looks like an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// The first digits of an id, 6 or more.
    IdPrefix(String),
    /// A name among the caller's own and the shared objects.
    Name(Name),
    /// `user/name`, where the user is a login name or a number.
    Owned {
        /// The owner.
        user: String,
        /// The name.
        name: Name,
    },
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if is_id_prefix(text) {
            return Ok(Self::IdPrefix(text.to_owned()));
        }
        match text.split_once('/') {
            Some((user, name)) if is_login_name(user) => {
                Ok(Self::Owned { user: user.to_owned(), name: name.parse()? })
            }
            Some(_) => Err(Error::Malformed(text.to_owned())),
            None => text.parse().map(Self::Name),
        }
    }
}

const ADJECTIVES: [&str; 48] = [
    "amber", "bold", "brave", "brisk", "calm", "clever", "cosy", "crisp", "dapper", "deft", "eager", "early",
    "fair", "fancy", "fleet", "fond", "gentle", "glad", "golden", "grand", "happy", "honest", "humble",
    "jolly", "keen", "kind", "lively", "lucky", "mellow", "merry", "mild", "neat", "nimble", "noble",
    "patient", "plucky", "proud", "quick", "quiet", "ready", "silver", "snug", "steady", "sunny", "swift",
    "tidy", "warm", "witty",
];

const ANIMALS: [&str; 48] = [
    "badger", "beaver", "bison", "bittern", "cheetah", "civet", "condor", "coyote", "crane", "curlew",
    "dolphin", "dormouse", "egret", "falcon", "ferret", "finch", "gannet", "gazelle", "gecko", "heron",
    "ibex", "jackal", "kestrel", "koala", "lemur", "linnet", "lynx", "marmot", "marten", "moose", "narwhal",
    "newt", "ocelot", "osprey", "otter", "panda", "pelican", "pika", "plover", "puffin", "raven", "robin",
    "seal", "stoat", "tapir", "turtle", "walrus", "wombat",
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, valid: bool) {
        assert_eq!(text.parse::<Name>().is_ok(), valid, "{text:?}");
    }

    #[test]
    fn names_are_host_name_labels_that_are_not_ids() {
        check("a", true);
        check("calm-otter", true);
        check("0", true);
        check("debian-bookworm", true);
        check(&"x".repeat(63), true);
        check(&"x".repeat(64), false);
        check("", false);
        check("-a", false);
        check("a-", false);
        check("A", false);
        check("a.b", false);
        check("a/b", false);
        check("a\u{1b}[31m", false);
        check("deadbeef", false);
        check("dead-beef", true);
    }

    #[test]
    fn references_are_ids_names_or_owned_names() {
        let check = |text: &str, expect: Option<Reference>| {
            assert_eq!(text.parse::<Reference>().ok(), expect, "{text:?}");
        };
        let name = |text: &str| text.parse::<Name>().unwrap();
        check("0123ab", Some(Reference::IdPrefix("0123ab".into())));
        check("calm-otter", Some(Reference::Name(name("calm-otter"))));
        check("bob/calm-otter", Some(Reference::Owned { user: "bob".into(), name: name("calm-otter") }));
        check("/calm-otter", None);
        check("bob/", None);
        check("../x", None);
    }

    #[test]
    fn the_message_about_a_name_never_carries_control_characters() {
        let message = "\u{1b}]0;owned\u{7}".parse::<Name>().unwrap_err().to_string();
        assert!(!message.chars().any(char::is_control), "{message:?}");
    }

    proptest! {
        #[test]
        fn generated_names_are_valid(bits: u64) {
            prop_assert!(Name::generated(bits).as_str().parse::<Name>().is_ok());
            prop_assert!(Name::generated_numbered(bits).as_str().parse::<Name>().is_ok());
        }
    }
}
