//! Names of hosts in the DNS, and patterns of names.

use core::{fmt, str::FromStr};

/// The longest name (RFC 1035, section 2.3.4), without the last dot.
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;
/// What a pattern begins with.
const SUB_DOMAINS: &str = "*.";

/// The name of a host: two labels or more, in lower case, without the last dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(String);

/// A text is not the name of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a host")]
pub struct NotAHostName;

impl HostName {
    /// Returns the name of these labels of a question; `None` if no host can have it.
    pub fn of_labels(labels: &[&[u8]]) -> Option<Self> {
        // A dot inside of a label is not one between two labels.
        if labels.iter().any(|label| label.contains(&b'.')) {
            return None;
        }
        let labels: Option<Vec<&str>> = labels.iter().map(|label| core::str::from_utf8(label).ok()).collect();
        labels?.join(".").parse().ok()
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = NotAHostName;

    fn from_str(text: &str) -> Result<Self, NotAHostName> {
        let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let labels: Vec<&str> = text.split('.').collect();
        let is_number = |label: &&str| label.bytes().all(|b| b.is_ascii_digit()) || label.starts_with("0x");
        match text.len() <= MAX_NAME
            && labels.len() >= 2
            && labels.iter().all(|label| is_label(label))
            && !labels.last().is_some_and(is_number)
        {
            true => Ok(Self(text)),
            false => Err(NotAHostName),
        }
    }
}

fn is_label(label: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    (1..=MAX_LABEL).contains(&label.len())
        && label.bytes().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which names an entry allows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pattern {
    /// This one.
    Name(HostName),
    /// The sub-domains of this one at any depth, and not itself.
    SubDomains(HostName),
}

impl Pattern {
    /// Returns whether the name is allowed.
    pub fn allows(&self, name: &HostName) -> bool {
        match self {
            Self::Name(this) => this == name,
            Self::SubDomains(domain) => is_below(name, domain),
        }
    }

    /// Returns whether every name that `other` allows is allowed.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::Name(name)) => self.allows(name),
            (Self::Name(_), Self::SubDomains(_)) => false,
            (Self::SubDomains(domain), Self::SubDomains(other)) => domain == other || is_below(other, domain),
        }
    }

    /// Returns the pattern of the names that both allow, if there are any.
    pub fn meet(&self, other: &Self) -> Option<Self> {
        match (self.covers(other), other.covers(self)) {
            (true, _) => Some(other.clone()),
            (_, true) => Some(self.clone()),
            _ => None,
        }
    }
}

fn is_below(name: &HostName, domain: &HostName) -> bool {
    name.0.strip_suffix(&domain.0).is_some_and(|rest| rest.ends_with('.'))
}

impl FromStr for Pattern {
    type Err = NotAHostName;

    fn from_str(text: &str) -> Result<Self, NotAHostName> {
        match text.strip_prefix(SUB_DOMAINS) {
            Some(domain) => domain.parse().map(Self::SubDomains),
            None => text.parse().map(Self::Name),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::SubDomains(domain) => write!(f, "{SUB_DOMAINS}{domain}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_pattern_allows_its_name_or_its_sub_domains() {
        let check = |pattern: &str, name: &str, expect| {
            let (pattern, name): (Pattern, HostName) = (pattern.parse().unwrap(), name.parse().unwrap());
            assert_eq!(pattern.allows(&name), expect, "{pattern} {name}");
        };
        check("example.com", "EXAMPLE.com.", true);
        check("example.com", "www.example.com", false);
        check("*.example.com", "www.example.com", true);
        check("*.example.com", "a.b.example.com", true);
        check("*.example.com", "example.com", false);
        check("*.example.com", "badexample.com", false);
        check("*.example.com", "example.com.evil.org", false);
    }

    #[test]
    fn a_pattern_covers_what_it_allows() {
        let check = |pattern: &str, other: &str, expect| {
            let (pattern, other): (Pattern, Pattern) = (pattern.parse().unwrap(), other.parse().unwrap());
            assert_eq!(pattern.covers(&other), expect, "{pattern} {other}");
        };
        check("*.example.com", "*.example.com", true);
        check("*.example.com", "*.b.example.com", true);
        check("*.example.com", "a.example.com", true);
        check("*.example.com", "example.com", false);
        check("a.example.com", "*.a.example.com", false);
        check("*.b.example.com", "*.example.com", false);
    }

    #[test]
    fn labels_of_a_question_are_a_name_or_none() {
        let check = |labels: &[&[u8]], expect: Option<&str>| {
            assert_eq!(HostName::of_labels(labels).as_ref().map(HostName::as_str), expect, "{labels:?}");
        };
        check(&[b"example", b"com"], Some("example.com"));
        check(&[b"localhost"], None);
        check(&[b"a.b", b"com"], None);
        check(&[b"www.", b"example", b"com"], None);
        check(&[b"\xff", b"com"], None);
        check(&[b"a b", b"com"], None);
        check(&[], None);
    }
}
