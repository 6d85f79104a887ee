//! The most that sandboxes of an agent may reach.
//!
//! Only the service knows what is in presets. So entries are compared one by one: one is within a bound if it is an entry of
//! the bound, or plainly a part of one. Any other is refused, even if the service would find that it is a part.

use std::{fmt, net::IpAddr};

/// The words of policies that are no entries.
const NOTHING: &str = "none";
const EVERYTHING: &str = "all";

/// Why words are not a bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WrongBound {
    /// `none` or `all` is among other entries.
    #[error("`none` and `all` cannot be combined with other entries")]
    NotAlone,
    /// A word is no entry.
    #[error("{0:?} is neither a preset, a host, an address nor a network")]
    Malformed(String),
}

/// The most that a sandbox may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EgressBound {
    /// There is no bound.
    Everything,
    /// At most these entries, in the form that the service prints. An empty list allows nothing.
    Only(Vec<String>),
}

impl EgressBound {
    /// Returns the bound of these words.
    pub fn of(words: &[String]) -> Result<Self, WrongBound> {
        match words {
            [word] if word == EVERYTHING => Ok(Self::Everything),
            [word] if word == NOTHING => Ok(Self::Only(Vec::new())),
            words if words.iter().any(|word| [NOTHING, EVERYTHING].contains(&word.as_str())) => {
                Err(WrongBound::NotAlone)
            }
            words => {
                let entry = |word: &String| match Entry::parse(word) {
                    Some(entry) => Ok(entry.to_string()),
                    None => Err(WrongBound::Malformed(word.clone())),
                };
                words.iter().map(entry).collect::<Result<_, _>>().map(Self::Only)
            }
        }
    }

    /// Returns the words of the policy that allows as much as the bound.
    pub fn words(&self) -> Vec<String> {
        match self {
            Self::Everything => vec![EVERYTHING.to_owned()],
            Self::Only(entries) => entries.clone(),
        }
    }

    /// Returns the first entry of a policy that is not within the bound.
    pub fn first_beyond<'a>(&self, policy: &'a [String]) -> Option<&'a str> {
        policy.iter().map(String::as_str).find(|entry| !self.has(entry))
    }

    /// Returns what is left of a policy within the bound.
    pub fn cut(&self, policy: Vec<String>) -> Vec<String> {
        match policy.iter().any(|entry| entry == EVERYTHING) {
            true => self.words(),
            false => policy.into_iter().filter(|entry| self.has(entry)).collect(),
        }
    }

    fn has(&self, entry: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Only(bounds) => Entry::parse(entry).is_some_and(|entry| {
                bounds.iter().filter_map(|bound| Entry::parse(bound)).any(|bound| entry.is_part_of(&bound))
            }),
        }
    }
}

/// An entry of a policy: a preset, or a host with a port or without one.
struct Entry {
    /// A preset, a name, `*.` and a domain, an address or a network, as the service prints it.
    host: String,
    port: Option<(u16, &'static str)>,
}

impl Entry {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        let (text, protocol) = match text.rsplit_once('/') {
            Some((rest, "tcp")) => (rest, Some("")),
            Some((rest, "udp")) => (rest, Some("/udp")),
            _ => (text.as_str(), None),
        };
        let (host, port) = match (text.strip_prefix('['), text.split_once(':')) {
            (Some(rest), _) => match rest.split_once(']')? {
                (host, "") => (host, None),
                (host, rest) => (host, Some(rest.strip_prefix(':')?)),
            },
            // Several colons are those of an address.
            (None, Some((host, port))) if !port.contains(':') => (host, Some(port)),
            _ => (text, None),
        };
        let port = match (port, protocol) {
            (Some(port), protocol) if port.bytes().all(|b| b.is_ascii_digit()) => {
                Some((port.parse().ok().filter(|port| *port > 0)?, protocol.unwrap_or_default()))
            }
            (None, None) => None,
            _ => return None,
        };
        let is_preset =
            |host: &str| host.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let host = match network(host) {
            Some(network) => network,
            None if is_preset(host) && !host.is_empty() && port.is_none() => host.to_owned(),
            None => name(host)?.to_owned(),
        };
        Some(Self { host, port })
    }

    /// Returns whether this is plainly a part of another entry, or the same one: the same host with a port, or a sub-domain.
    fn is_part_of(&self, whole: &Self) -> bool {
        let is_below = whole
            .host
            .strip_prefix('*')
            .is_some_and(|domain| self.host.len() > domain.len() && self.host.ends_with(domain));
        (self.host == whole.host || is_below) && (whole.port.is_none() || self.port == whole.port)
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            None => f.write_str(&self.host),
            Some((port, protocol)) if self.host.contains(':') => {
                write!(f, "[{}]:{port}{protocol}", self.host)
            }
            Some((port, protocol)) => write!(f, "{}:{port}{protocol}", self.host),
        }
    }
}

/// Returns an address or a network as the service prints it.
fn network(text: &str) -> Option<String> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length.parse::<u8>().ok()?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let whole = if address.is_ipv4() { 32 } else { 128 };
    match length {
        Some(length) if length > whole => None,
        Some(length) if length < whole => Some(format!("{address}/{length}")),
        _ => Some(address.to_string()),
    }
}

/// Returns a name without its last dot, and perhaps with `*.` before it.
fn name(text: &str) -> Option<&str> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let labels: Vec<&str> = text.strip_prefix("*.").unwrap_or(text).split('.').collect();
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    let is_label = |label: &&str| !label.is_empty() && label.bytes().all(inner);
    (labels.len() >= 2 && labels.iter().all(is_label)).then_some(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn bound(text: &str) -> EgressBound {
        EgressBound::of(&words(text)).unwrap()
    }

    #[test]
    fn only_plain_parts_of_a_bound_are_within_it() {
        let check = |bound: &str, entry: &str, expect| {
            let beyond = self::bound(bound).first_beyond(&words(entry)).is_none();
            assert_eq!(beyond, expect, "{entry} within {bound}");
        };
        for (bound, entry) in [
            ("git", "git"),
            ("git a.example", "a.example"),
            ("a.example", "A.Example:443"),
            ("a.example", "a.example:53/udp"),
            ("a.example:443", "a.example:443"),
            ("*.example.com", "*.example.com"),
            ("*.example.com", "a.b.example.com:22"),
            ("*.example.com", "*.b.example.com"),
            ("*.example.com:443", "a.example.com:443"),
            ("10.0.0.0/8", "10.0.0.0/8:80"),
            ("2001:db8::/32", "2001:DB8::/32"),
            ("2001:db8::1", "[2001:db8:0::1]:443"),
            ("[2001:db8::1]:443/tcp", "[2001:db8::1]:443"),
            ("192.0.2.7/32", "192.0.2.7"),
            ("a.example.:0443/tcp", "a.example:443"),
            ("all", "all"),
            ("all", "a.example"),
            ("git", ""),
            ("none", ""),
        ] {
            check(bound, entry, true);
        }
        for (bound, entry) in [
            ("none", "git"),
            ("git", "all"),
            ("git a.example", "git b.example"),
            ("a.example", "b.a.example"),
            ("a.example:443", "a.example"),
            ("a.example:443", "a.example:80"),
            ("a.example:443", "a.example:443/udp"),
            ("*.example.com", "example.com"),
            ("*.example.com", "badexample.com"),
            ("*.example.com", ".example.com"),
            ("*.example.com:443", "a.example.com"),
            ("*.example.com", "evil.org/.example.com"),
            ("*.example.com", "evil.org:80/.example.com"),
            ("*.b.example.com", "*.example.com"),
            ("2001:db8::1", "2001:db8::1:80"),
            ("2001:db8::1", "2001:db8::1:2"),
            ("10.0.0.0/8", "10.1.0.0/16"),
            ("a.example", "a.example:"),
            ("a.example", "a.example:80:80"),
        ] {
            check(bound, entry, false);
        }
    }

    #[test]
    fn a_policy_is_cut_at_a_bound() {
        let check = |bound: &str, policy: &str, expect: &str| {
            assert_eq!(self::bound(bound).cut(words(policy)), words(expect), "{policy} within {bound}");
        };
        check("git a.example", "git b.example a.example:443", "git a.example:443");
        check("git a.example", "all", "git a.example");
        check("git", "", "");
        check("none", "all", "");
        check("all", "all", "all");
        check("all", "git", "git");
        assert_eq!(bound("A.Example.:443/tcp 192.0.2.7/32").words(), ["a.example:443", "192.0.2.7"]);
        for wrong in ["git all", "none git", "a.example/tcp", "git:443", "a.example:0", "a..b", "*", "[::1"] {
            assert!(EgressBound::of(&words(wrong)).is_err(), "{wrong}");
        }
        assert!(EgressBound::of(&[String::new()]).is_err());
    }
}
