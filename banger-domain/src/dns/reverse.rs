//! Names of addresses (RFC 1035, section 3.5, and RFC 3596, section 2.5).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::question::Zone;
use crate::net::subnet::Subnet;

/// How many octets and nibbles of an address belong to the zone: subnets are a /16 and a /64.
const ZONE_OCTETS: usize = 2;
const ZONE_NIBBLES: usize = 16;

/// Meaning of a name in a reverse zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReverseName {
    /// The zone itself.
    Apex,
    /// A part of an address, with addresses below it.
    Between,
    /// An address.
    Address(IpAddr),
    /// Nothing: it is not part of an address.
    Nowhere,
}

/// Returns the reverse zone for IPv4, without the last dot.
pub fn zone4(subnet: Subnet) -> String {
    let [a, b, ..] = subnet.v4().network().octets();
    format!("{b}.{a}.in-addr.arpa")
}

/// Returns the reverse zone for IPv6, without the last dot.
pub fn zone6(subnet: Subnet) -> String {
    let digits = nibbles(subnet.v6());
    let digits: Vec<String> = digits[..ZONE_NIBBLES].iter().rev().map(|digit| format!("{digit:x}")).collect();
    format!("{}.ip6.arpa", digits.join("."))
}

/// Parses a name, given as lower-case labels. `None` if it is outside the reverse zones.
pub fn parse(subnet: Subnet, labels: &[&[u8]]) -> Option<(Zone, ReverseName)> {
    match labels {
        [rest @ .., b"in-addr", b"arpa"] => parse4(subnet, rest).map(|name| (Zone::Reverse4, name)),
        [rest @ .., b"ip6", b"arpa"] => parse6(subnet, rest).map(|name| (Zone::Reverse6, name)),
        _ => None,
    }
}

fn parse4(subnet: Subnet, labels: &[&[u8]]) -> Option<ReverseName> {
    let network = subnet.v4().network().octets();
    let (own, zone) = split(labels, ZONE_OCTETS)?;
    if !zone.iter().rev().zip(network).all(|(label, octet)| decimal(label) == Some(octet)) {
        return None;
    }
    Some(below(own, 4 - ZONE_OCTETS, decimal, |digits| {
        Ipv4Addr::new(network[0], network[1], digits[0], digits[1]).into()
    }))
}

fn parse6(subnet: Subnet, labels: &[&[u8]]) -> Option<ReverseName> {
    let network = nibbles(subnet.v6());
    let (own, zone) = split(labels, ZONE_NIBBLES)?;
    if !zone.iter().rev().zip(network).all(|(label, nibble)| hexadecimal(label) == Some(nibble)) {
        return None;
    }
    Some(below(own, 32 - ZONE_NIBBLES, hexadecimal, |digits| {
        let low = digits.iter().fold(0u128, |bits, digit| bits << 4 | u128::from(*digit));
        Ipv6Addr::from_bits(subnet.v6().to_bits() | low).into()
    }))
}

/// Splits the labels into those before the zone and those of the zone.
fn split<L>(labels: &[L], zone: usize) -> Option<(&[L], &[L])> {
    labels.len().checked_sub(zone).map(|own| labels.split_at(own))
}

fn below(
    labels: &[&[u8]],
    wanted: usize,
    digit: fn(&[u8]) -> Option<u8>,
    address: impl Fn(&[u8]) -> IpAddr,
) -> ReverseName {
    let digits: Option<Vec<u8>> = labels.iter().rev().map(|label| digit(label)).collect();
    match digits {
        Some(digits) if digits.is_empty() => ReverseName::Apex,
        Some(digits) if digits.len() == wanted => ReverseName::Address(address(&digits)),
        Some(digits) if digits.len() < wanted => ReverseName::Between,
        _ => ReverseName::Nowhere,
    }
}

/// Parses 0 to 255 in its only canonical form.
fn decimal(label: &[u8]) -> Option<u8> {
    let text = core::str::from_utf8(label).ok()?;
    let number: u8 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

fn hexadecimal(label: &[u8]) -> Option<u8> {
    match label {
        [digit @ b'0'..=b'9'] => Some(digit - b'0'),
        [digit @ b'a'..=b'f'] => Some(digit - b'a' + 10),
        _ => None,
    }
}

fn nibbles(address: Ipv6Addr) -> [u8; 32] {
    let mut nibbles = [0; 32];
    for (pair, octet) in nibbles.chunks_exact_mut(2).zip(address.octets()) {
        pair.copy_from_slice(&[octet >> 4, octet & 15]);
    }
    nibbles
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn subnet() -> Subnet {
        "172.30.0.0/16 fd12:3456:789a::/64".parse().unwrap()
    }

    fn check(name: &str, expect: Option<(Zone, ReverseName)>) {
        let labels: Vec<&[u8]> = name.split('.').map(str::as_bytes).collect();
        assert_eq!(parse(subnet(), &labels), expect, "{name}");
    }

    #[test]
    fn names_of_addresses_are_read() {
        let four = |parse| Some((Zone::Reverse4, parse));
        check("30.172.in-addr.arpa", four(ReverseName::Apex));
        check("7.30.172.in-addr.arpa", four(ReverseName::Between));
        check("9.7.30.172.in-addr.arpa", four(ReverseName::Address("172.30.7.9".parse().unwrap())));
        check("09.7.30.172.in-addr.arpa", four(ReverseName::Nowhere));
        check("256.7.30.172.in-addr.arpa", four(ReverseName::Nowhere));
        check("x.9.7.30.172.in-addr.arpa", four(ReverseName::Nowhere));
        check("1.9.7.30.172.in-addr.arpa", four(ReverseName::Nowhere));
        check("31.172.in-addr.arpa", None);
        check("172.in-addr.arpa", None);
        check("in-addr.arpa", None);
        check("vm", None);

        let six = |parse| Some((Zone::Reverse6, parse));
        let zone = zone6(subnet());
        assert_eq!(zone, "0.0.0.0.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa");
        check(&zone, six(ReverseName::Apex));
        check(&format!("0.{zone}"), six(ReverseName::Between));
        let host = "a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0";
        check(&format!("{host}.{zone}"), six(ReverseName::Address("fd12:3456:789a::a".parse().unwrap())));
        check(&format!("g.{zone}"), six(ReverseName::Nowhere));
        check(&format!("1.{host}.{zone}"), six(ReverseName::Nowhere));
        check("8.b.d.0.1.0.0.2.ip6.arpa", None);
    }

    #[test]
    fn the_zones_are_those_of_the_subnet() {
        assert_eq!(zone4(subnet()), "30.172.in-addr.arpa");
    }
}
