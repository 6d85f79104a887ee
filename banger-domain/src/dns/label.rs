//! The owner's part of a sandbox's name.

use core::fmt;

use crate::id::Uid;

/// The longest label (RFC 1035, section 2.3.4).
const MAX_LENGTH: usize = 63;

/// The label of a user. No two users have the same one.
///
/// It is the login name if that consists of lower-case letters, digits, `-` and `_` and has a letter, and the uid
/// otherwise. Nothing is escaped: DNS ignores case, so `Bob` and `bob` would become the same, and no escaped form of
/// `jane.doe@example.org` would be a name that people type. A login name of digits alone is not used, since it could
/// be another user's uid.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserLabel(String);

impl UserLabel {
    /// Returns the label of the user with this login name and uid.
    pub fn of(login: &str, uid: Uid) -> Self {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
        let fits = (1..=MAX_LENGTH).contains(&login.len())
            && login.bytes().all(inner)
            && login.bytes().any(|b| b.is_ascii_lowercase())
            && !login.starts_with('-')
            && !login.ends_with('-');
        Self(if fits { login.to_owned() } else { uid.to_string() })
    }

    /// Returns the label as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_name_that_is_not_a_label_is_replaced_by_the_uid() {
        let check = |login: &str, expect: &str| {
            assert_eq!(UserLabel::of(login, Uid(1000)).as_str(), expect, "{login}")
        };
        check("alice", "alice");
        check("build_7-x", "build_7-x");
        check("7zip", "7zip");
        check("", "1000");
        check("Alice", "1000");
        check("jane.doe", "1000");
        check("EXAMPLE\\jane", "1000");
        check("jane@example.org", "1000");
        check("-x", "1000");
        check("x-", "1000");
        check("jürgen", "1000");
        check(&"x".repeat(63), &"x".repeat(63));
        check(&"x".repeat(64), "1000");
    }

    #[test]
    fn no_login_name_takes_the_number_of_another_user() {
        assert_ne!(UserLabel::of("1001", Uid(1000)), UserLabel::of("jane.doe", Uid(1001)));
    }
}
