//! The elements that a guest has in the sets of the packet filter.
//!
//! Keys are encoded as the kernel compares them: each part is padded to a multiple of four bytes.

use core::{
    mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use super::{
    nic::{Nat, Nic, SameOwner, TapName},
    port::{Port, Protocol, Scope},
};
use crate::{
    egress::{entry::Ports, grants::Grant, host_name::HostName},
    id::Uid,
};

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
    /// TAPs of guests that reach only what they are allowed.
    Restricted4,
    /// TAPs of guests that reach only what they are allowed by IPv6.
    Restricted6,
    /// TAP and IPv4 address of an allowed name. Elements end by themselves.
    Hosts4,
    /// TAP and IPv6 address of an allowed name. Elements end by themselves.
    Hosts6,
    /// TAP, IPv4 address, protocol and port of an allowed name. Elements end by themselves.
    Services4,
    /// TAP, IPv6 address, protocol and port of an allowed name. Elements end by themselves.
    Services6,
    /// TAP and allowed IPv4 network.
    Nets4,
    /// TAP and allowed IPv6 network.
    Nets6,
    /// TAP, allowed IPv4 network, protocol and port.
    NetServices4,
    /// TAP, allowed IPv6 network, protocol and port.
    NetServices6,
    /// TAP, IPv4 address, protocol and port that were denied. The kernel adds them.
    Denied4,
    /// TAP, IPv6 address, protocol and port that were denied. The kernel adds them.
    Denied6,
    /// TAPs of guests that were denied something. The kernel adds them.
    Denials,
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
    pub const ALL: [Set; 20] = [
        Set::Source4,
        Set::Source6,
        Set::Peers,
        Set::Reach,
        Set::Nat4,
        Set::Nat6,
        Set::Restricted4,
        Set::Restricted6,
        Set::Hosts4,
        Set::Hosts6,
        Set::Services4,
        Set::Services6,
        Set::Nets4,
        Set::Nets6,
        Set::NetServices4,
        Set::NetServices6,
        Set::Published,
        Set::Loopback4,
        Set::Public4,
        Set::Public6,
    ];

    /// The sets in which the kernel counts denied destinations.
    pub const DENIED: [Set; 2] = [Set::Denied4, Set::Denied6];

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
            Set::Restricted4 => "restricted4",
            Set::Restricted6 => "restricted6",
            Set::Hosts4 => "hosts4",
            Set::Hosts6 => "hosts6",
            Set::Services4 => "services4",
            Set::Services6 => "services6",
            Set::Nets4 => "nets4",
            Set::Nets6 => "nets6",
            Set::NetServices4 => "netservices4",
            Set::NetServices6 => "netservices6",
            Set::Denied4 => "denied4",
            Set::Denied6 => "denied6",
            Set::Denials => "denials",
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
    /// The last key, in a set of ranges.
    pub end: Option<Vec<u8>>,
    /// The value, in a map.
    pub value: Option<Vec<u8>>,
    /// A note for a later run of the service: the sandbox of a source, or the name that led to an address.
    pub comment: Option<String>,
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
    let source = element(Set::Source4, Key::new().tap(&tap).v4(nic.v4));
    let mut all = vec![Element { comment: Some(nic.vm.to_string()), ..source }];
    all.push(element(Set::Source6, Key::new().tap(&tap).v6(nic.v6)));
    if nic.same_owner == SameOwner::Connected {
        all.push(element(Set::Peers, Key::new().number(owner).tap(&tap)));
    }
    all.push(element(Set::Reach, Key::new().number(owner).tap(&tap)));
    if nic.nat == Nat::On {
        all.push(element(Set::Nat4, Key::new().tap(&tap)));
        all.push(element(Set::Nat6, Key::new().tap(&tap)));
    }
    if nic.is_restricted() {
        all.push(element(Set::Restricted4, Key::new().tap(&tap)));
        all.push(element(Set::Restricted6, Key::new().tap(&tap)));
        all.extend(nic.allowed.nets().iter().map(|(net, ports)| net_element(&tap, *net, *ports)));
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
        Set::Nat6 | Set::Restricted6 | Set::Nets6 | Set::NetServices6 => ipv6 == Ipv6::Forwarded,
        _ => true,
    });
    // Two ports of the host may lead to the same port of the guest.
    all.sort();
    all.dedup();
    all
}

/// Returns the element that lets a guest reach a destination. A name is noted for a later run of the service.
pub fn grant_element(tap: &TapName, grant: Grant, name: Option<&HostName>) -> Element {
    let set = match (grant.address, grant.ports) {
        (IpAddr::V4(_), Ports::Any) => Set::Hosts4,
        (IpAddr::V6(_), Ports::Any) => Set::Hosts6,
        (IpAddr::V4(_), Ports::One(..)) => Set::Services4,
        (IpAddr::V6(_), Ports::One(..)) => Set::Services6,
    };
    let element = element(set, Key::new().tap(tap).address(grant.address).ports(grant.ports));
    Element { comment: name.map(HostName::to_string), ..element }
}

/// Returns the destination and the name of an element that lets a guest reach it; `None` for other elements.
pub fn named_grant(element: &Element) -> Option<(Grant, HostName)> {
    Some((grant_of(element)?, element.comment.as_ref()?.parse().ok()?))
}

/// Returns the destination that an element lets a guest reach, or that it counts as denied; `None` for other elements.
pub fn grant_of(element: &Element) -> Option<Grant> {
    let rest = element.key.get(NAME..)?;
    let (address, rest): (IpAddr, _) = match element.set {
        Set::Hosts4 | Set::Services4 | Set::Denied4 => {
            let (bytes, rest) = rest.split_first_chunk::<4>()?;
            ((*bytes).into(), rest)
        }
        Set::Hosts6 | Set::Services6 | Set::Denied6 => {
            let (bytes, rest) = rest.split_first_chunk::<16>()?;
            ((*bytes).into(), rest)
        }
        _ => return None,
    };
    let ports = match rest {
        [] => Ports::Any,
        [number, _, _, _, high, low, ..] => {
            let protocol =
                [Protocol::Tcp, Protocol::Udp].into_iter().find(|known| known.number() == *number)?;
            Ports::One(protocol, u16::from_be_bytes([*high, *low]))
        }
        _ => return None,
    };
    Some(Grant { address, ports })
}

/// Returns the element that lets a guest reach a network.
fn net_element(tap: &TapName, net: IpNet, ports: Ports) -> Element {
    let set = match (net, ports) {
        (IpNet::V4(_), Ports::Any) => Set::Nets4,
        (IpNet::V6(_), Ports::Any) => Set::Nets6,
        (IpNet::V4(_), Ports::One(..)) => Set::NetServices4,
        (IpNet::V6(_), Ports::One(..)) => Set::NetServices6,
    };
    let key = |address| Key::new().tap(tap).address(address).ports(ports);
    Element { end: Some(key(net.broadcast()).0), ..element(set, key(net.network())) }
}

/// Returns the elements in which the kernel counts what the guest with this TAP does.
pub fn counters(tap: &TapName) -> [Element; 4] {
    [Set::Connections, Set::Questions, Set::Callers, Set::Denials]
        .map(|set| element(set, Key::new().tap(tap)))
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
        | Set::Restricted4
        | Set::Restricted6
        | Set::Hosts4
        | Set::Hosts6
        | Set::Services4
        | Set::Services6
        | Set::Nets4
        | Set::Nets6
        | Set::NetServices4
        | Set::NetServices6
        | Set::Denied4
        | Set::Denied6
        | Set::Denials
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
    Element { set, key: key.0, end: None, value: None, comment: None }
}

fn entry(set: Set, key: Key, value: Key) -> Element {
    Element { value: Some(value.0), ..element(set, key) }
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

    fn address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.v4(address),
            IpAddr::V6(address) => self.v6(address),
        }
    }

    fn ports(self, ports: Ports) -> Self {
        match ports {
            Ports::Any => self,
            Ports::One(protocol, port) => self.protocol(protocol.number()).port(port),
        }
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
    use std::sync::Arc;

    use super::*;
    use crate::{
        egress::{Egress, allow_list::AllowList, preset::Presets},
        id::VmId,
        net::subnet::{Slot, Subnet},
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

    fn restricted(bits: u128, words: &[&str]) -> Nic {
        let policy = Egress::parse(words).unwrap();
        Nic { allowed: Arc::new(AllowList::of(&policy, &Presets::default())), ..nic(bits, 5, Nat::Off, &[]) }
    }

    #[test]
    fn a_restricted_guest_has_its_networks_and_nothing_of_its_names() {
        let words = ["example.com", "10.0.0.0/8", "192.0.2.7:53/udp", "2001:db8::/32", "[2001:db9::1]:443"];
        let some = restricted(3, &words);
        let egress = |nic: &Nic, ipv6| {
            let mut sets = sets(nic, ipv6);
            sets.retain(|set| !["source4", "source6", "peers", "reach"].contains(set));
            sets
        };
        assert_eq!(
            egress(&some, Ipv6::Forwarded),
            ["restricted4", "restricted6", "nets4", "nets6", "netservices4", "netservices6"]
        );
        assert_eq!(egress(&some, Ipv6::Local), ["restricted4", "nets4", "netservices4"]);
        assert_eq!(egress(&Nic { nat: Nat::On, ..some.clone() }, Ipv6::Local), ["nat4"]);
        let all = elements(&some, Ipv6::Local);
        let range = |set| {
            let element = all.iter().find(|element| element.set == set).unwrap();
            (element.key[NAME..].to_vec(), element.end.as_ref().unwrap()[NAME..].to_vec())
        };
        assert_eq!(range(Set::Nets4), (vec![10, 0, 0, 0], vec![10, 255, 255, 255]));
        let one = vec![192, 0, 2, 7, 17, 0, 0, 0, 0, 53, 0, 0];
        assert_eq!(range(Set::NetServices4), (one.clone(), one));
    }

    #[test]
    fn a_destination_is_read_back_from_its_element() {
        let tap = TapName::of(VmId::from_bits(1));
        for address in ["192.0.2.7", "2001:db8::1"].map(|address| address.parse().unwrap()) {
            for ports in [Ports::Any, Ports::One(Protocol::Tcp, 443), Ports::One(Protocol::Udp, 65535)] {
                let (grant, name) = (Grant { address, ports }, "a.example".parse().unwrap());
                let element = grant_element(&tap, grant, Some(&name));
                assert_eq!(named_grant(&element), Some((grant, name)));
                assert_eq!(named_grant(&grant_element(&tap, grant, None)), None);
            }
        }
        assert_eq!(grant_of(&element(Set::Nat4, Key::new().tap(&tap))), None);
        assert_eq!(
            grant_of(&element(Set::Services4, Key::new().tap(&tap).v4([1, 2, 3, 4].into()).protocol(6))),
            None
        );
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
