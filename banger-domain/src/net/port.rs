//! Published ports: ports of the host that reach guests.

use core::{fmt, str::FromStr};

use banger_proto::bus::option::publish::scope;

/// The most ports that may be published for one guest.
pub const MAX_PORTS: usize = 64;
/// The first port that every user may publish. Those below are privileged on every Unix.
pub const FIRST_UNPRIVILEGED: u16 = 1024;

/// A published port. As text: `loopback/tcp/8080/80`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// On which addresses of the host.
    pub scope: Scope,
    /// The protocol.
    pub protocol: Protocol,
    /// The port on the host.
    pub host: u16,
    /// The port in the guest.
    pub guest: u16,
}

/// On which addresses of the host a port is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Scope {
    /// On loopback addresses: for processes of the host.
    #[default]
    Loopback,
    /// On every address: for everybody who reaches the host.
    All,
}

/// A protocol that has ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Port {
    /// Returns whether both need the same port of the host. TCP and UDP have ports of their own.
    pub fn clashes_with(self, other: Port) -> bool {
        (self.protocol, self.host) == (other.protocol, other.host)
    }
}

impl Scope {
    /// Returns the word used in options.
    pub const fn as_str(self) -> &'static str {
        match self {
            Scope::Loopback => scope::LOOPBACK,
            Scope::All => scope::ALL,
        }
    }

    /// Parses the word.
    pub fn parse(word: &str) -> Option<Self> {
        [Scope::Loopback, Scope::All].into_iter().find(|scope| scope.as_str() == word)
    }
}

impl Protocol {
    /// Returns the word used in options.
    pub const fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }

    /// Parses the word.
    pub fn parse(word: &str) -> Option<Self> {
        [Protocol::Tcp, Protocol::Udp].into_iter().find(|protocol| protocol.as_str() == word)
    }

    /// Returns its number in an IP header.
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.scope.as_str(), self.protocol.as_str(), self.host, self.guest)
    }
}

/// The text is not a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a port")]
pub struct NotAPort;

impl FromStr for Port {
    type Err = NotAPort;

    fn from_str(text: &str) -> Result<Self, NotAPort> {
        let mut parts = text.split('/');
        let mut next = || parts.next().ok_or(NotAPort);
        let port = Port {
            scope: Scope::parse(next()?).ok_or(NotAPort)?,
            protocol: Protocol::parse(next()?).ok_or(NotAPort)?,
            host: next()?.parse().map_err(|_| NotAPort)?,
            guest: next()?.parse().map_err(|_| NotAPort)?,
        };
        parts.next().is_none().then_some(port).ok_or(NotAPort)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_port_is_read_as_it_is_written() {
        let port = Port { scope: Scope::All, protocol: Protocol::Udp, host: 5353, guest: 53 };
        assert_eq!(port.to_string(), "all/udp/5353/53");
        assert_eq!(port.to_string().parse(), Ok(port));
        for text in ["", "all/udp/1", "all/udp/1/2/3", "all/sctp/1/2", "none/tcp/1/2", "all/tcp/65536/1"] {
            assert_eq!(text.parse::<Port>(), Err(NotAPort), "{text}");
        }
    }

    #[test]
    fn the_host_has_a_port_once() {
        let web: Port = "loopback/tcp/8080/80".parse().unwrap();
        assert!(web.clashes_with("all/tcp/8080/81".parse().unwrap()));
        assert!(!web.clashes_with("loopback/udp/8080/80".parse().unwrap()));
        assert!(!web.clashes_with("loopback/tcp/8081/80".parse().unwrap()));
    }
}
