//! The sides of a forwarding: ports, addresses with ports, and socket files.

use std::{fmt, str::FromStr};

use banger_proto::guest::message::Endpoint;

/// The address of a side that names none.
pub const LOOPBACK: &str = "127.0.0.1";
/// All addresses of the side that listens, as ssh writes it.
const EVERYWHERE: &str = "*";

/// Where to listen, and where to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    pub listen: Endpoint,
    pub connect: Endpoint,
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = split(text);
        // A word that is not a port begins a side of two words: an address.
        let is_whole = |part: &str| part.starts_with('/') || part.bytes().all(|byte| byte.is_ascii_digit());
        let length = |parts: &[&str]| if parts.first().is_some_and(|part| is_whole(part)) { 1 } else { 2 };
        let (listen, rest) = parts.split_at(length(&parts).min(parts.len()));
        let (connect, more) = rest.split_at(length(rest).min(rest.len()));
        let connect = if connect.is_empty() { listen } else { connect };
        let listen = match listen {
            [EVERYWHERE, port] => endpoint(&["0.0.0.0", port]),
            listen => endpoint(listen),
        };
        match (listen, endpoint(connect), more) {
            (Some(listen), Some(connect), []) => Ok(Self { listen, connect }),
            _ => {
                Err("write it like 8080:80, 127.0.0.1:8080:80, 8080:/run/x.sock or /tmp/a:/run/b".to_owned())
            }
        }
    }
}

/// Splits at colons that are not within brackets, which ssh wants around an IPv6 address.
fn split(text: &str) -> Vec<&str> {
    let mut is_within = false;
    text.split(|character| {
        is_within = (is_within || character == '[') && character != ']';
        character == ':' && !is_within
    })
    .collect()
}

fn endpoint(parts: &[&str]) -> Option<Endpoint> {
    match parts {
        [path] if path.starts_with('/') => Some(Endpoint::Unix((*path).to_owned())),
        [port] => Some(Endpoint::Tcp(LOOPBACK.to_owned(), port.parse().ok()?)),
        [host, port] if !host.is_empty() && *host != EVERYWHERE => {
            let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            Some(Endpoint::Tcp(bare.to_owned(), port.parse().ok()?))
        }
        _ => None,
    }
}

/// Formats an endpoint for people.
pub struct DisplayEndpoint<'a>(pub &'a Endpoint);

impl fmt::Display for DisplayEndpoint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Endpoint::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Endpoint::Tcp(host, port) => write!(f, "{host}:{port}"),
            Endpoint::Unix(path) => f.write_str(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_are_ports_addresses_or_sockets() {
        let tcp = |host: &str, port| Endpoint::Tcp(host.to_owned(), port);
        let unix = |path: &str| Endpoint::Unix(path.to_owned());
        for (text, listen, connect) in [
            ("8080:80", tcp(LOOPBACK, 8080), tcp(LOOPBACK, 80)),
            ("8080", tcp(LOOPBACK, 8080), tcp(LOOPBACK, 8080)),
            ("0.0.0.0:8080:80", tcp("0.0.0.0", 8080), tcp(LOOPBACK, 80)),
            ("*:8080:localhost:80", tcp("0.0.0.0", 8080), tcp("localhost", 80)),
            ("[::1]:8080:80", tcp("::1", 8080), tcp(LOOPBACK, 80)),
            ("8080:[::1]:80", tcp(LOOPBACK, 8080), tcp("::1", 80)),
            ("8080:10.0.0.1:80", tcp(LOOPBACK, 8080), tcp("10.0.0.1", 80)),
            ("localhost:1:localhost:2", tcp("localhost", 1), tcp("localhost", 2)),
            ("8080:/run/x.sock", tcp(LOOPBACK, 8080), unix("/run/x.sock")),
            ("/tmp/a:/run/b", unix("/tmp/a"), unix("/run/b")),
            ("/tmp/a:80", unix("/tmp/a"), tcp(LOOPBACK, 80)),
        ] {
            assert_eq!(text.parse(), Ok(Spec { listen, connect }), "{text}");
        }
        for text in [
            "",
            "x",
            "x:y",
            "1:2:3:4:5",
            "99999:1",
            ":80",
            "80:",
            "1:2:3",
            "1:*:2",
            "::1:80:80",
            "[::1:80:80",
        ] {
            assert!(text.parse::<Spec>().is_err(), "{text}");
        }
        assert_eq!(DisplayEndpoint(&tcp("::1", 80)).to_string(), "[::1]:80");
    }
}
