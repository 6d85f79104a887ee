//! The most that sandboxes of an agent may reach.
//!
//! Only the service knows what is in presets. So entries are compared by their words: one is within a bound if it is an entry
//! of the bound, or plainly a part of one. Any other is refused, even if the service would find that it is a part.

/// The words of policies that are no entries.
const NOTHING: &str = "none";
const EVERYTHING: &str = "all";

/// `none` or `all` is among other entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`none` and `all` cannot be combined with other entries")]
pub struct NotAlone;

/// The most that a sandbox may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EgressBound {
    /// There is no bound.
    Everything,
    /// These entries, in lower case; nothing if there are none.
    Only(Vec<String>),
}

impl EgressBound {
    /// Returns the bound of these words.
    pub fn of(words: &[String]) -> Result<Self, NotAlone> {
        let words: Vec<String> = words.iter().map(|word| word.trim().to_ascii_lowercase()).collect();
        match words.as_slice() {
            [word] if word == EVERYTHING => Ok(Self::Everything),
            [word] if word == NOTHING => Ok(Self::Only(Vec::new())),
            words if words.iter().any(|word| [NOTHING, EVERYTHING].contains(&word.as_str())) => Err(NotAlone),
            words => Ok(Self::Only(words.to_vec())),
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
        let entry = entry.trim().to_ascii_lowercase();
        match self {
            Self::Everything => true,
            Self::Only(bounds) => bounds.iter().any(|bound| is_part(&entry, bound)),
        }
    }
}

/// Returns whether an entry is equal to another one, or plainly a part of it: the same host with a port, or a sub-domain.
fn is_part(entry: &str, whole: &str) -> bool {
    if entry == whole {
        return true;
    }
    // Colons are also in addresses of IPv6, which are not looked into.
    let (host, port) = match entry.split_once(':') {
        Some((host, port)) if is_port(port) => (host, Some(port)),
        Some(_) => return false,
        None => (entry, None),
    };
    let (whole_host, whole_port) = match whole.split_once(':') {
        Some((host, port)) if is_port(port) => (host, Some(port)),
        Some(_) => return false,
        None => (whole, None),
    };
    let is_same_host = host == whole_host;
    let is_below = whole_host.strip_prefix('*').is_some_and(|domain| {
        domain.starts_with('.') && is_name(host) && host.len() > domain.len() && host.ends_with(domain)
    });
    (is_same_host || is_below) && (whole_port.is_none() || port == whole_port)
}

/// Returns whether a text is a port, perhaps with a protocol.
fn is_port(text: &str) -> bool {
    let number = text.strip_suffix("/tcp").or_else(|| text.strip_suffix("/udp")).unwrap_or(text);
    !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
}

/// Returns whether a text has only characters of names, and perhaps `*.` before them.
fn is_name(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b))
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
        assert!(EgressBound::of(&words("git all")).is_err() && EgressBound::of(&words("none git")).is_err());
    }
}
