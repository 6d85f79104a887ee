//! Ports to publish, as users of docker write them: `[ADDRESS:][HOST:]GUEST[/PROTOCOL]`.

use std::{net::IpAddr, str::FromStr};

use banger_proto::bus::option::publish::scope;

/// The most ports that a sandbox can have.
const MAX_PORTS: u16 = 64;

/// The form, for the help.
pub const FORM: &str = "[ADDRESS:][HOST:]GUEST[/PROTOCOL]";

/// Ports to publish: one, or a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    /// On which addresses of the host; the default of the command when absent.
    scope: Option<&'static str>,
    /// The first port of the host; 0 lets the service choose all of them.
    host: u16,
    /// The first port of the guest.
    guest: u16,
    count: u16,
    protocol: &'static str,
}

/// A port to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    pub scope: &'static str,
    /// 0 lets the service choose.
    pub host: u16,
    pub guest: u16,
    pub protocol: &'static str,
}

impl PortSpec {
    /// Returns the ports, at the addresses of the host that this scope means if none is given.
    pub fn wishes(&self, default: &'static str) -> impl Iterator<Item = Wish> {
        let Self { scope, host, guest, count, protocol } = *self;
        (0..count).map(move |step| Wish {
            scope: scope.unwrap_or(default),
            host: if host == 0 { 0 } else { host + step },
            guest: guest + step,
            protocol,
        })
    }
}

impl FromStr for PortSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (ports, protocol) = protocol(text)?;
        let (address, ports) = address(ports)?;
        let (host, guest) = match ports.split(':').collect::<Vec<_>>()[..] {
            [guest] => ((0, 1), range(guest)?),
            ["" | "0", guest] => ((0, 1), range(guest)?),
            [host, guest] => (range(host)?, range(guest)?),
            _ => return Err(format!("write it as {FORM}, such as 8080:80")),
        };
        if host.0 != 0 && host.1 != guest.1 {
            return Err("both ranges must have the same length".to_owned());
        }
        if guest.1 > MAX_PORTS {
            return Err(format!("a sandbox can have at most {MAX_PORTS} published ports"));
        }
        let scope = address.map(scope_of).transpose()?.flatten();
        Ok(Self { scope, host: host.0, guest: guest.0, count: guest.1, protocol })
    }
}

/// Splits off the protocol.
pub fn protocol(text: &str) -> Result<(&str, &'static str), String> {
    match text.split_once('/') {
        None => Ok((text, "tcp")),
        Some((ports, word)) if word.eq_ignore_ascii_case("tcp") => Ok((ports, "tcp")),
        Some((ports, word)) if word.eq_ignore_ascii_case("udp") => Ok((ports, "udp")),
        Some(_) => Err("the protocol must be tcp or udp".to_owned()),
    }
}

/// Parses a port.
pub fn port(text: &str) -> Result<u16, String> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = if is_number { text.parse().ok() } else { None };
    number.filter(|port| *port != 0).ok_or_else(|| "a port is a number from 1 to 65535".to_owned())
}

/// Splits off the address, which comes before two other parts. An IPv6 address has brackets.
fn address(text: &str) -> Result<(Option<&str>, &str), String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, ports) = rest.split_once("]:").ok_or("an address in brackets ends with ]:")?;
        return Ok((Some(address), ports));
    }
    match text.split_once(':') {
        Some((address, ports)) if ports.contains(':') => Ok((Some(address), ports)),
        _ => Ok((None, text)),
    }
}

/// Returns what an address of the host means; `None` for an empty one.
fn scope_of(address: &str) -> Result<Option<&'static str>, String> {
    match (address, address.parse::<IpAddr>()) {
        ("", _) => Ok(None),
        ("localhost" | "127.0.0.1", _) => Ok(Some(scope::LOOPBACK)),
        (_, Ok(address)) if address.is_unspecified() => Ok(Some(scope::ALL)),
        (_, Ok(_)) => Err(format!(
            "banger publishes at 127.0.0.1, or at every address with 0.0.0.0, and not at {address} alone"
        )),
        (_, Err(_)) => Err(format!("{address} is not an address")),
    }
}

/// Parses a port, or a range such as `8000-8010`. Returns the first one and their number.
fn range(text: &str) -> Result<(u16, u16), String> {
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    match last.checked_sub(first) {
        Some(steps) => Ok((first, steps.saturating_add(1))),
        None => Err(format!("the range {text} ends before it begins")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ports_parse_as_docker_has_them() {
        let (loopback, all) = (Some(scope::LOOPBACK), Some(scope::ALL));
        for (text, scope, host, guest, count, protocol) in [
            ("80", None, 0, 80, 1, "tcp"),
            (":80", None, 0, 80, 1, "tcp"),
            ("0:80", None, 0, 80, 1, "tcp"),
            ("::80", None, 0, 80, 1, "tcp"),
            ("8080:80", None, 8080, 80, 1, "tcp"),
            ("5353:53/udp", None, 5353, 53, 1, "udp"),
            ("8080:80/TCP", None, 8080, 80, 1, "tcp"),
            ("8000-8010:8000-8010", None, 8000, 8000, 11, "tcp"),
            ("8000-8010:9000-9010/udp", None, 8000, 9000, 11, "udp"),
            ("8000-8010", None, 0, 8000, 11, "tcp"),
            ("65535:65535", None, 65535, 65535, 1, "tcp"),
            ("127.0.0.1:8080:80", loopback, 8080, 80, 1, "tcp"),
            ("localhost:8080:80", loopback, 8080, 80, 1, "tcp"),
            ("127.0.0.1::80", loopback, 0, 80, 1, "tcp"),
            ("0.0.0.0:8080:80", all, 8080, 80, 1, "tcp"),
            ("[::]:8080:80", all, 8080, 80, 1, "tcp"),
            ("[::]::80", all, 0, 80, 1, "tcp"),
        ] {
            assert_eq!(text.parse(), Ok(PortSpec { scope, host, guest, count, protocol }), "{text}");
        }
    }

    #[test]
    fn other_forms_are_refused_with_the_reason() {
        for (text, why) in [
            ("", "a port is a number"),
            (":", "a port is a number"),
            ("80:", "a port is a number"),
            ("80:0", "a port is a number"),
            ("65536", "a port is a number"),
            ("-1", "a port is a number"),
            ("+1", "a port is a number"),
            ("http", "a port is a number"),
            ("80/sctp", "the protocol must be tcp or udp"),
            ("1:2:3:4", "write it as"),
            ("web:8080:80", "web is not an address"),
            ("192.168.1.5:8080:80", "not at 192.168.1.5 alone"),
            ("[::1]:8080:80", "not at ::1 alone"),
            ("[::1:8080:80", "in brackets"),
            ("8000-8010:80", "the same length"),
            ("8010-8000:8010-8000", "ends before it begins"),
            ("1-65535:1-65535", "at most 64"),
        ] {
            let refused = text.parse::<PortSpec>().unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }

    #[test]
    fn a_range_is_one_port_after_the_other() {
        let wishes = |text: &str| {
            let spec: PortSpec = text.parse().unwrap();
            spec.wishes(scope::LOOPBACK).map(|wish| (wish.scope, wish.host, wish.guest)).collect::<Vec<_>>()
        };
        assert_eq!(wishes("65534-65535:81-82"), [("loopback", 65534, 81), ("loopback", 65535, 82)]);
        assert_eq!(wishes("0.0.0.0::81-82"), [("all", 0, 81), ("all", 0, 82)]);
    }
}
