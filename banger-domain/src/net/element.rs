//! The elements that a guest has in the sets of the packet filter.
//!
//! Keys are encoded as the kernel compares them: each part is padded to a multiple of four bytes.

use core::{
    mem,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::{
    nic::{Nat, Nic, SameOwner, TapName},
    port::{Port, Scope},
};
use crate::id::Uid;

/// The length of a link's name in a key: `IFNAMSIZ`.
const NAME: usize = 16;

/// A set or map of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Set {
    /// TAP and the IPv4 address that its guest sends from.
    Source4,
    /// TAP and the IPv6 address that its guest sends from.
    Source6,
    /// Owner and the TAP of a guest of theirs, for guests.
    Peers,
    /// Owner and the TAP of a guest of theirs, for processes of the host.
    Reach,
    /// TAPs of guests that have NAT.
    Nat4,
    /// TAPs of guests that have NAT for IPv6.
    Nat6,
    /// TAP, protocol and the port of a guest that is published.
    Published,
    /// Protocol and port of 127.0.0.1, to the address and port of a guest.
    Loopback4,
    /// Protocol and port of every address, to the IPv4 address and port of a guest.
    Public4,
    /// Protocol and port of every address, to the IPv6 address and port of a guest.
    Public6,
    /// TAPs of guests that have opened connections. The kernel adds them.
    Connections,
    /// TAPs of guests that have asked the name server. The kernel adds them.
    Questions,
    /// TAPs of guests that have connected to the name server. The kernel adds them.
    Callers,
}

impl Set {
    /// All sets with elements that the service adds for guests.
    pub const ALL: [Set; 10] = [
        Set::Source4,
        Set::Source6,
        Set::Peers,
        Set::Reach,
        Set::Nat4,
        Set::Nat6,
        Set::Published,
        Set::Loopback4,
        Set::Public4,
        Set::Public6,
    ];

    /// The sets and maps of published ports.
    pub const OF_PORTS: [Set; 4] = [Set::Published, Set::Loopback4, Set::Public4, Set::Public6];

    /// Returns its name in the table.
    pub const fn name(self) -> &'static str {
        match self {
            Set::Source4 => "source4",
            Set::Source6 => "source6",
            Set::Peers => "peers",
            Set::Reach => "reach",
            Set::Nat4 => "nat4",
            Set::Nat6 => "nat6",
            Set::Published => "published",
            Set::Loopback4 => "loopback4",
            Set::Public4 => "public4",
            Set::Public6 => "public6",
            Set::Connections => "connections",
            Set::Questions => "questions",
            Set::Callers => "callers",
        }
    }
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    /// The set.
    pub set: Set,
    /// The key.
    pub key: Vec<u8>,
    /// The value, in a map.
    pub value: Option<Vec<u8>>,
}

/// What the host supports of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipv6 {
    /// Nothing.
    Absent,
    /// It reaches guests but does not forward for them.
    Local,
    /// Everything.
    Forwarded,
}

/// Returns the elements of a guest, ordered by set.
pub fn elements(nic: &Nic, ipv6: Ipv6) -> Vec<Element> {
    let (tap, owner) = (nic.tap(), nic.owner);
    let mut all = vec![element(Set::Source4, Key::new().tap(&tap).v4(nic.v4))];
    all.push(element(Set::Source6, Key::new().tap(&tap).v6(nic.v6)));
    if nic.same_owner == SameOwner::Connected {
        all.push(element(Set::Peers, Key::new().number(owner).tap(&tap)));
    }
    all.push(element(Set::Reach, Key::new().number(owner).tap(&tap)));
    if nic.nat == Nat::On {
        all.push(element(Set::Nat4, Key::new().tap(&tap)));
        all.push(element(Set::Nat6, Key::new().tap(&tap)));
    }
    for port in &nic.ports {
        let protocol = port.protocol.number();
        all.push(element(Set::Published, Key::new().tap(&tap).protocol(protocol).port(port.guest)));
        let here = host_key(*port);
        let guest4 = Key::new().v4(nic.v4).port(port.guest);
        match port.scope {
            Scope::Loopback => all.push(entry(Set::Loopback4, here, guest4)),
            Scope::All => {
                let guest6 = Key::new().v6(nic.v6).port(port.guest);
                all.push(entry(Set::Public4, here.clone(), guest4));
                all.push(entry(Set::Public6, here, guest6));
            }
        }
    }
    all.retain(|element| match element.set {
        Set::Source6 | Set::Public6 => ipv6 != Ipv6::Absent,
        Set::Nat6 => ipv6 == Ipv6::Forwarded,
        _ => true,
    });
    // Two ports of the host may lead to the same port of the guest.
    all.sort();
    all.dedup();
    all
}

/// Returns the elements in which the kernel counts what the guest with this TAP does.
pub fn counters(tap: &TapName) -> [Element; 3] {
    [Set::Connections, Set::Questions, Set::Callers].map(|set| element(set, Key::new().tap(tap)))
}

/// Removes and returns those elements that belong to the guest with this TAP. The guest's addresses, which are the
/// values in the maps, are learned from the elements themselves.
pub fn take_elements_of(found: &mut Vec<Element>, tap: &TapName) -> Vec<Element> {
    let name = Key::new().tap(tap).0;
    let sources: Vec<Vec<u8>> = found
        .iter()
        .filter(|element| matches!(element.set, Set::Source4 | Set::Source6))
        .filter_map(|element| element.key.strip_prefix(name.as_slice()).map(<[u8]>::to_vec))
        .collect();
    let leads_there = |element: &Element| {
        let target = element.value.as_ref().and_then(|value| value.split_last_chunk::<4>());
        target.is_some_and(|(address, _port)| sources.iter().any(|source| source == address))
    };
    let (taken, rest) = mem::take(found).into_iter().partition(|element| match element.set {
        Set::Source4
        | Set::Source6
        | Set::Nat4
        | Set::Nat6
        | Set::Published
        | Set::Connections
        | Set::Questions
        | Set::Callers => element.key.starts_with(&name),
        Set::Peers | Set::Reach => element.key.ends_with(&name),
        Set::Loopback4 | Set::Public4 | Set::Public6 => leads_there(element),
    });
    *found = rest;
    taken
}

/// Returns whether one of these elements maps the port to another guest.
pub fn conflicts(all: &[Element], nic: &Nic, port: Port) -> bool {
    let key = host_key(port).0;
    let leads_to = Key::new().v4(nic.v4).port(port.guest).0;
    let set = match port.scope {
        Scope::Loopback => Set::Loopback4,
        Scope::All => Set::Public4,
    };
    all.iter().any(|e| e.set == set && e.key == key && e.value.as_ref() != Some(&leads_to))
}

fn host_key(port: Port) -> Key {
    Key::new().protocol(port.protocol.number()).port(port.host)
}

fn element(set: Set, key: Key) -> Element {
    Element { set, key: key.0, value: None }
}

fn entry(set: Set, key: Key, value: Key) -> Element {
    Element { set, key: key.0, value: Some(value.0) }
}

/// A key or value under construction.
#[derive(Debug, Clone)]
struct Key(Vec<u8>);

impl Key {
    fn new() -> Self {
        Self(Vec::with_capacity(2 * NAME))
    }

    fn part(mut self, bytes: &[u8], size: usize) -> Self {
        let end = self.0.len() + size;
        self.0.extend_from_slice(bytes);
        self.0.resize(end, 0);
        self
    }

    fn tap(self, tap: &TapName) -> Self {
        self.part(tap.as_str().as_bytes(), NAME)
    }

    fn v4(self, address: Ipv4Addr) -> Self {
        self.part(&address.octets(), 4)
    }

    fn v6(self, address: Ipv6Addr) -> Self {
        self.part(&address.octets(), 16)
    }

    /// Adds a uid or a link group: a number in the host's byte order.
    fn number(self, uid: Uid) -> Self {
        self.part(&uid.0.to_ne_bytes(), 4)
    }

    fn protocol(self, number: u8) -> Self {
        self.part(&[number], 4)
    }

    fn port(self, port: u16) -> Self {
        self.part(&port.to_be_bytes(), 4)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{
        id::VmId,
        net::{
            port::Protocol,
            subnet::{Slot, Subnet},
        },
    };

    fn nic(bits: u128, slot: u32, nat: Nat, ports: &[(Scope, u16, u16)]) -> Nic {
        let subnet: Subnet = "172.30.0.0/16 fd12:3456:789a::/64".parse().unwrap();
        let port = |&(scope, host, guest)| Port { scope, protocol: Protocol::Tcp, host, guest };
        let ports = ports.iter().map(port).collect();
        Nic { nat, ports, ..Nic::new(VmId::from_bits(bits << 64), Uid(1000), subnet, Slot(slot)).unwrap() }
    }

    fn sets(nic: &Nic, ipv6: Ipv6) -> Vec<&'static str> {
        elements(nic, ipv6).iter().map(|element| element.set.name()).collect()
    }

    #[test]
    fn a_guest_is_a_few_elements() {
        let quiet = nic(1, 0, Nat::Off, &[]);
        assert_eq!(sets(&quiet, Ipv6::Forwarded), ["source4", "source6", "peers", "reach"]);
        assert_eq!(sets(&quiet, Ipv6::Absent), ["source4", "peers", "reach"]);
        let open = nic(1, 0, Nat::On, &[(Scope::All, 80, 8080), (Scope::Loopback, 81, 8080)]);
        assert_eq!(
            sets(&open, Ipv6::Local),
            ["source4", "source6", "peers", "reach", "nat4", "published", "loopback4", "public4", "public6"]
        );
        assert!(sets(&open, Ipv6::Forwarded).contains(&"nat6"));
        assert!(!sets(&open, Ipv6::Absent).contains(&"public6"));
    }

    #[test]
    fn keys_are_as_the_kernel_compares_them() {
        let open = nic(0x0123_4567_89ab_cdef, 3, Nat::Off, &[(Scope::Loopback, 0x1234, 80)]);
        let all = elements(&open, Ipv6::Local);
        let key = |set| &all.iter().find(|element| element.set == set).unwrap().key[..];
        assert_eq!(key(Set::Source4), b"bgr-0123456789a\0\xac\x1e\0\x05");
        assert_eq!(key(Set::Reach), [&1000u32.to_ne_bytes()[..], b"bgr-0123456789a\0"].concat());
        assert_eq!(key(Set::Published), b"bgr-0123456789a\0\x06\0\0\0\0\x50\0\0");
        assert_eq!(key(Set::Loopback4), [6, 0, 0, 0, 0x12, 0x34, 0, 0]);
        let map = all.iter().find(|element| element.set == Set::Loopback4).unwrap();
        assert_eq!(map.value.as_deref(), Some(&[172, 30, 0, 5, 0, 80, 0, 0][..]));
    }

    #[test]
    fn the_elements_of_one_guest_are_found_among_all() {
        let ports = [(Scope::All, 80, 80), (Scope::Loopback, 81, 80)];
        let (one, other) =
            (nic(1 << 60, 0, Nat::On, &ports), nic(2 << 60, 1, Nat::On, &[(Scope::All, 82, 80)]));
        let (ours, theirs) = (elements(&one, Ipv6::Forwarded), elements(&other, Ipv6::Forwarded));
        let mut all = [ours.clone(), theirs.clone()].concat();
        assert_eq!(take_elements_of(&mut all, &TapName::of(VmId::from_bits(7))), []);
        assert_eq!(take_elements_of(&mut all, &one.tap()), ours);
        assert_eq!(all, theirs);
        assert_eq!(take_elements_of(&mut all, &other.tap()), theirs);
        assert_eq!(all, []);
    }
}
