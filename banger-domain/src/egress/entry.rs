//! An entry of an egress policy: `PRESET`, or `HOST[:PORT][/PROTOCOL]` where HOST is a name, `*.` and a domain, an
//! address or a network. IPv6 with a port is in brackets.

use core::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;

use super::{address::is_never_allowed, host_name::Pattern};
use crate::{name::Name, net::port::Protocol};

/// The longest entry: a name with its port and protocol.
const MAX_LENGTH: usize = 270;

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entry {
    /// The entries of a preset.
    Preset(Name),
    /// The addresses of names.
    Host(Pattern, Ports),
    /// A network, or one address.
    Net(IpNet, Ports),
}

/// Which ports of a destination are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// All, and protocols without ports.
    Any,
    /// One port.
    One(Protocol, u16),
}

impl Ports {
    /// Returns whether all of `other` are allowed.
    pub fn cover(self, other: Self) -> bool {
        self == Self::Any || self == other
    }

    /// Returns the ports that both allow, if there are any.
    pub fn meet(self, other: Self) -> Option<Self> {
        match (self.cover(other), other.cover(self)) {
            (true, _) => Some(other),
            (_, true) => Some(self),
            _ => None,
        }
    }
}

/// Why a text is not an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WrongEntry {
    /// It has none of the forms.
    #[error("{} is neither a preset, a host, an address nor a network", printable(.0))]
    Malformed(String),
    /// It is the address of a page.
    #[error("{} is a URL; use its host alone", printable(.0))]
    Url(String),
    /// It has letters that the DNS does not have.
    #[error("{} has letters beyond a to z; use the form of the name that begins with xn--", printable(.0))]
    NotAscii(String),
    /// A port is no number from 1 to 65535.
    #[error("{} has no port from 1 to 65535 after the colon", printable(.0))]
    Port(String),
    /// A protocol without a port.
    #[error("{} has a protocol without a port", printable(.0))]
    NoPort(String),
    /// A network has a bit beyond its prefix.
    #[error("{} is no network; did you mean {}?", printable(.0), .1)]
    HostBits(String, IpNet),
    /// It cannot be allowed.
    #[error("{} cannot be allowed: no sandbox reaches loopback, link-local, multicast and translated addresses", printable(.0))]
    Never(String),
    /// A network is everything.
    #[error("{} is every address; use all", printable(.0))]
    Everything(String),
}

/// Returns the text in quotes, shortened and without characters that could confuse a terminal.
fn printable(text: &str) -> String {
    format!("{:?}", text.chars().take(80).collect::<String>())
}

impl FromStr for Entry {
    type Err = WrongEntry;

    fn from_str(text: &str) -> Result<Self, WrongEntry> {
        let wrong = || WrongEntry::Malformed(text.to_owned());
        if text.len() > MAX_LENGTH {
            return Err(wrong());
        }
        if !text.is_ascii() {
            return Err(WrongEntry::NotAscii(text.to_owned()));
        }
        if text.contains("://") {
            return Err(WrongEntry::Url(text.to_owned()));
        }
        if let Ok(preset) = text.parse::<Name>() {
            return Ok(Self::Preset(preset));
        }
        let (destination, protocol) = split_protocol(text);
        let (host, port) = split_port(destination).ok_or_else(wrong)?;
        let ports = match (port, protocol) {
            (None, None) => Ports::Any,
            (None, Some(_)) => return Err(WrongEntry::NoPort(text.to_owned())),
            (Some(port), protocol) => {
                let number = if port.starts_with('+') { None } else { port.parse::<u16>().ok() };
                let number = number.filter(|port| *port > 0);
                Ports::One(
                    protocol.unwrap_or(Protocol::Tcp),
                    number.ok_or_else(|| WrongEntry::Port(text.to_owned()))?,
                )
            }
        };
        match net(host) {
            Some(net) => checked(text, net).map(|net| Self::Net(net, ports)),
            None => host.parse().map(|pattern| Self::Host(pattern, ports)).map_err(|_| wrong()),
        }
    }
}

/// Splits a protocol off.
fn split_protocol(text: &str) -> (&str, Option<Protocol>) {
    let split = text.rsplit_once('/');
    match split.and_then(|(rest, word)| Some((rest, Protocol::parse(&word.to_ascii_lowercase())?))) {
        Some((rest, protocol)) => (rest, Some(protocol)),
        None => (text, None),
    }
}

/// Splits a port off. `None` if brackets do not match.
fn split_port(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        return match rest {
            "" => Some((host, None)),
            rest => Some((host, Some(rest.strip_prefix(':')?))),
        };
    }
    Some(match text.split_once(':') {
        // Several colons are those of an IPv6 address.
        Some((host, port)) if !port.contains(':') => (host, Some(port)),
        _ => (text, None),
    })
}

fn net(host: &str) -> Option<IpNet> {
    host.parse().ok().or_else(|| host.parse::<IpAddr>().ok().map(IpNet::from))
}

fn checked(text: &str, net: IpNet) -> Result<IpNet, WrongEntry> {
    if net.prefix_len() == 0 {
        return Err(WrongEntry::Everything(text.to_owned()));
    }
    if net.trunc() != net {
        return Err(WrongEntry::HostBits(text.to_owned(), net.trunc()));
    }
    match is_never_allowed(net.addr()) {
        true => Err(WrongEntry::Never(text.to_owned())),
        false => Ok(net),
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, ports, is_v6) = match self {
            Self::Preset(name) => return name.fmt(f),
            Self::Host(pattern, ports) => (pattern.to_string(), ports, false),
            Self::Net(net, ports) => (shown(net), ports, matches!(net, IpNet::V6(_))),
        };
        match ports {
            Ports::Any => f.write_str(&host),
            Ports::One(protocol, port) => {
                let host = if is_v6 { format!("[{host}]") } else { host };
                let protocol = if *protocol == Protocol::Udp { "/udp" } else { "" };
                write!(f, "{host}:{port}{protocol}")
            }
        }
    }
}

/// Returns a network as text, and that of one address without its length.
fn shown(net: &IpNet) -> String {
    match net.prefix_len() == net.max_prefix_len() {
        true => net.addr().to_string(),
        false => net.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn entries_are_read_and_printed() {
        let check = |text: &str, expect: &str| {
            let entry: Entry = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(entry.to_string(), expect);
            assert_eq!(expect.parse(), Ok(entry), "{expect} does not read back");
        };
        check("packages", "packages");
        check("Example.COM.", "example.com");
        check("xn--mnchen-3ya.example", "xn--mnchen-3ya.example");
        check("_acme.example.com", "_acme.example.com");
        check("*.Example.com", "*.example.com");
        check("example.com:443", "example.com:443");
        check("example.com:443/TCP", "example.com:443");
        check("example.com:53/udp", "example.com:53/udp");
        check("example.com:65535", "example.com:65535");
        check("203.0.113.7", "203.0.113.7");
        check("203.0.113.7/32", "203.0.113.7");
        check("10.0.0.0/8", "10.0.0.0/8");
        check("10.0.0.0/8:5432", "10.0.0.0/8:5432");
        check("10.0.0.0/8:53/udp", "10.0.0.0/8:53/udp");
        check("2001:DB8::/32", "2001:db8::/32");
        check("[2001:db8::1]", "2001:db8::1");
        check("[2001:db8::1]:443", "[2001:db8::1]:443");
        check("[2001:db8::/32]:53/udp", "[2001:db8::/32]:53/udp");
    }

    #[test]
    fn hostile_entries_are_refused_with_a_reason() {
        let check = |text: &str, expect: &str| {
            let error = text.parse::<Entry>().map(|entry| format!("{entry:?}")).unwrap_err();
            assert!(error.to_string().contains(expect), "{text}: {error}");
        };
        for text in ["", ".", "*", "*.", "*.*", "*.com", "a.*.example", "*example.com", "www.*"] {
            check(text, "neither a preset");
        }
        for text in ["..", "a..b", ".example.com", "example.com..", "-a.example", "a b.example", "Packages"] {
            check(text, "neither a preset");
        }
        for text in ["localhost:80", "1.2.3", "0x7f.0x1", "256.1.1.1", "[::1", "[::1]x", "10.0.0.0/33"] {
            check(text, "neither a preset");
        }
        check(&format!("{}.example", "a".repeat(64)), "neither a preset");
        check(&format!("{}example", "a.".repeat(200)), "neither a preset");
        check("https://example.com", "is a URL; use its host alone");
        check("user@example.com", "neither a preset");
        check("example.com\u{1b}[2J", "neither a preset");
        check("münchen.example", "xn--");
        check("exаmple.com", "xn--");
        for text in
            ["example.com:0", "example.com:65536", "example.com:", "example.com:+80", "example.com:http"]
        {
            check(text, "no port from 1 to 65535");
        }
        check("example.com/udp", "protocol without a port");
        check("10.0.0.1/8", "did you mean 10.0.0.0/8?");
        check("0.0.0.0/0", "use all");
        check("::/0", "use all");
        for text in ["127.0.0.1", "169.254.169.254:80", "224.0.0.1", "0.0.0.0", "::1", "fe80::/10"] {
            check(text, "cannot be allowed");
        }
        for text in ["::ffff:10.0.0.1", "[::ffff:192.0.2.1]:80", "64:ff9b::/96"] {
            check(text, "cannot be allowed");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_reads_back(text in "[a-z0-9.:/*\\[\\]-]{0,24}") {
            if let Ok(entry) = text.parse::<Entry>() {
                prop_assert_eq!(entry.to_string().parse(), Ok(entry));
            }
        }
    }
}
