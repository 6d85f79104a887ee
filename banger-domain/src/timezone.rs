//! The time zone of a guest. It comes from a user and becomes part of a path in the guest, so it is parsed strictly.

use std::{fmt, str::FromStr};

/// The longest name. The time zone database has none with more than 32 characters.
const MAX_NAME: usize = 64;
/// The longest rule: two names, two offsets, and two days with a time.
const MAX_RULE: usize = 80;

/// A time zone: its name in the time zone database, and its current rule if that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timezone {
    name: String,
    rule: Option<String>,
}

/// Why a text is not a time zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The name is not valid.
    #[error("a time zone has a name such as Europe/Berlin or UTC")]
    Name,
    /// The rule is not valid.
    #[error("the rule of a time zone looks like CET-1CEST,M3.5.0,M10.5.0/3")]
    Rule,
}

impl Timezone {
    /// Makes a time zone of a name and a rule in the format of POSIX' `TZ` (IEEE Std 1003.1, section 8.3).
    pub fn new(name: &str, rule: Option<&str>) -> Result<Self, Error> {
        if !is_name(name) {
            return Err(Error::Name);
        }
        if !rule.is_none_or(is_rule) {
            return Err(Error::Rule);
        }
        Ok(Self { name: name.to_owned(), rule: rule.map(str::to_owned) })
    }

    /// Returns the name: up to three words, separated by slashes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the current rule of the zone.
    pub fn rule(&self) -> Option<&str> {
        self.rule.as_deref()
    }
}

/// Accepts what the time zone database allows (its file `theory.html`, "Names of timezones"), and slashes.
fn is_name(name: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-+_".contains(&byte);
    let is_word = |word: &str| {
        word.starts_with(|first: char| first.is_ascii_alphabetic()) && word.bytes().all(is_letter)
    };
    name.len() <= MAX_NAME && name.split('/').count() <= 3 && name.split('/').all(is_word)
}

/// Accepts a rule, which begins with a letter, or with an angle bracket if its name has other characters.
fn is_rule(rule: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"<>+-,./:".contains(&byte);
    let begins = rule.starts_with(|first: char| first.is_ascii_alphabetic() || first == '<');
    begins && rule.len() <= MAX_RULE && rule.bytes().all(is_letter)
}

/// Writes the name, and the rule after a space. This is the stored format.
impl fmt::Display for Timezone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.rule.as_ref().map_or(Ok(()), |rule| write!(f, " {rule}"))
    }
}

impl FromStr for Timezone {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.split_once(' ') {
            Some((name, rule)) => Self::new(name, Some(rule)),
            None => Self::new(text, None),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn zones_of_the_database_are_taken_and_read_back() {
        for (name, rule) in [
            ("UTC", None),
            ("Europe/Berlin", Some("CET-1CEST,M3.5.0,M10.5.0/3")),
            ("America/Argentina/ComodRivadavia", Some("<-03>3")),
            ("America/Port-au-Prince", Some("EST5EDT,M3.2.0,M11.1.0")),
            ("Etc/GMT+5", Some("<-05>5")),
            ("America/Nuuk", Some("<-02>2<-01>,M3.5.0/-1,M10.5.0/0")),
            ("EST5EDT", None),
        ] {
            let zone = Timezone::new(name, rule).unwrap();
            assert_eq!((zone.name(), zone.rule()), (name, rule));
            assert_eq!(zone.to_string().parse(), Ok(zone));
        }
    }

    #[test]
    fn an_invalid_name_or_one_that_leaves_the_directory_is_refused() {
        let long = "A".repeat(65);
        for name in [
            "",
            "/",
            "/etc/passwd",
            "../../etc/passwd",
            "Europe/../../etc",
            "Europe/",
            "Europe//Berlin",
            "a/b/c/d",
            ".hidden",
            "Europe/.x",
            "-x",
            "5",
            "Europe Berlin",
            "Europe/Berlin\n",
            "Europe/B\u{e9}",
            &long,
        ] {
            assert_eq!(Timezone::new(name, None), Err(Error::Name), "{name:?}");
        }
        let long = format!("A{}", "0".repeat(80));
        for rule in ["", " ", "5", "CET-1 ", "CET-1\n", "$(x)", ":Europe/Berlin", "CET\0", &long] {
            assert_eq!(Timezone::new("UTC", Some(rule)), Err(Error::Rule), "{rule:?}");
        }
    }
}
