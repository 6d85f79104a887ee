//! The release of a kernel: what `uname -r` prints, and the name of its directory under `/lib/modules`.

use std::{fmt, str::FromStr};

/// The kernel's own limit: `__NEW_UTS_LEN` in its `include/uapi/linux/utsname.h`.
const MAX_LENGTH: usize = 64;

/// A kernel release such as `6.1.0-41-cloud-amd64`; always one safe path component.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Release(String);

/// The text is not a kernel release.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a kernel release")]
pub struct Error(pub String);

impl Release {
    /// Returns the release as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Release {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let starts_well = text.starts_with(|c: char| c.is_ascii_digit());
        let plain = |c: char| c.is_ascii_alphanumeric() || "._+~-".contains(c);
        if starts_well && text.len() <= MAX_LENGTH && text.chars().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error(text.chars().take(MAX_LENGTH).collect()))
        }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
    use super::*;

    #[test]
    fn releases_of_distributions_are_accepted() {
        for text in [
            "6.1.0-41-cloud-amd64",
            "6.17.1-300.fc43.x86_64",
            "6.8.0-87-generic",
            "6.17.5-arch1-1",
            "6.12~rc3+",
        ] {
            assert_eq!(text.parse::<Release>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn a_text_that_could_leave_its_directory_is_not_a_release() {
        for text in ["", ".", "..", "6.1/../..", "-rf", "6.1\n", "6 1", "6.1\0", "%s", &"6".repeat(65)] {
            assert!(text.parse::<Release>().is_err(), "{text:?}");
        }
    }
}
