//! The addresses of guests, and of the host among them. The subnet is chosen once, from networks that the host does
//! not use, and then kept, so that a sandbox's address stays the same.

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use super::prefix::Prefix4;

/// The prefix length of the subnet: enough for 65533 guests.
const LENGTH: u8 = 16;
/// The host's index in the subnet.
const GATEWAY: u32 = 1;
/// The first guest's index in the subnet.
const FIRST_GUEST: u32 = 2;
/// Private networks that others rarely use, the best first: Docker begins at 172.17, libvirt and home routers use
/// 192.168, and companies count up from 10.0.
const CANDIDATES: [(u8, u8); 12] = [
    (172, 30),
    (172, 29),
    (172, 31),
    (172, 28),
    (10, 213),
    (10, 187),
    (10, 229),
    (10, 171),
    (10, 151),
    (10, 247),
    (10, 139),
    (10, 109),
];

/// The host uses every candidate network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "all networks for guests, from {} to {}, are in use on this host; set `network.subnet` in the \
     configuration to a free /{LENGTH}",
    candidate(CANDIDATES[0]),
    candidate(CANDIDATES[CANDIDATES.len() - 1])
)]
pub struct NoFreeSubnet;

/// The text is not the two prefixes of a subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a subnet is a /{LENGTH} of IPv4 and a /64 of unique local IPv6: 172.30.0.0/16 fd12:3456:789a::/64")]
pub struct NotASubnet;

/// A guest's index among the addresses, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// How many guests fit.
const CAPACITY: u32 = (1 << (32 - LENGTH)) - FIRST_GUEST - 1;

impl Slot {
    /// Returns a free slot: the first one after the last that was given out, so that an address is not reused at
    /// once. `None` if all are taken.
    pub fn free(taken: impl Fn(Slot) -> bool, last: Option<Slot>) -> Option<Slot> {
        let first = last.map_or(0, |slot| slot.0.wrapping_add(1));
        (0..CAPACITY).map(|step| Slot((first % CAPACITY + step) % CAPACITY)).find(|slot| !taken(*slot))
    }
}

/// The addresses of guests, IPv4 and IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    v4: Prefix4,
    /// A unique local prefix of 64 bits, in the upper half.
    v6: Ipv6Addr,
}

impl Subnet {
    /// Chooses the first candidate that overlaps no occupied network, and an IPv6 prefix of these random bits (RFC
    /// 4193).
    pub fn choose(occupied: &[Prefix4], random: [u8; 5]) -> Result<Self, NoFreeSubnet> {
        // A default route covers everything and occupies nothing.
        let occupied = || occupied.iter().filter(|prefix| prefix.length() > 0);
        let mut candidates = CANDIDATES.into_iter().map(candidate);
        let v4 = candidates.find(|free| !occupied().any(|taken| taken.overlaps(*free)));
        v4.and_then(|v4| Self::at(v4, random)).ok_or(NoFreeSubnet)
    }

    /// Uses these IPv4 addresses, which an administrator chose, and an IPv6 prefix of these random bits (RFC 4193).
    /// `None` if the prefix does not have the length of a subnet.
    pub fn at(v4: Prefix4, random: [u8; 5]) -> Option<Self> {
        let [a, b, c, d, e] = random.map(u16::from);
        let v6 = Ipv6Addr::new(0xfd00 | a, b << 8 | c, d << 8 | e, 0, 0, 0, 0, 0);
        (v4.length() == LENGTH).then_some(Self { v4, v6 })
    }

    /// Returns the IPv4 addresses.
    pub fn v4(self) -> Prefix4 {
        self.v4
    }

    /// Returns the first of the IPv6 addresses, which share their first 64 bits.
    pub fn v6(self) -> Ipv6Addr {
        self.v6
    }

    /// Returns whether the address belongs to the subnet, as that of a guest, a future guest or the host.
    pub fn contains(self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.v4.contains(v4),
            IpAddr::V6(v6) => v6.segments()[..4] == self.v6.segments()[..4],
        }
    }

    /// Returns the host's addresses, where guests send packets for other networks and find DNS.
    pub fn gateway(self) -> (Ipv4Addr, Ipv6Addr) {
        // The subnet is large enough for its first address.
        (self.v4.nth(GATEWAY).unwrap_or(self.v4.network()), self.nth_v6(GATEWAY))
    }

    /// Returns the addresses of a guest. `None` beyond the last.
    pub fn guest(self, slot: Slot) -> Option<(Ipv4Addr, Ipv6Addr)> {
        let place = slot.0.checked_add(FIRST_GUEST)?;
        let v4 = self.v4.nth(place).filter(|address| *address != self.v4.broadcast())?;
        Some((v4, self.nth_v6(place)))
    }

    /// Returns the slot of the guest with this address.
    pub fn slot_of(self, v4: Ipv4Addr) -> Option<Slot> {
        let place = v4.to_bits().checked_sub(self.v4.network().to_bits())?;
        let slot = Slot(place.checked_sub(FIRST_GUEST)?);
        self.guest(slot).map(|_| slot)
    }

    /// Returns the slot of the guest with this address.
    pub fn slot_of_v6(self, v6: Ipv6Addr) -> Option<Slot> {
        let place = u32::try_from(v6.to_bits().checked_sub(self.v6.to_bits())?).ok()?;
        let slot = Slot(place.checked_sub(FIRST_GUEST)?);
        self.guest(slot).map(|_| slot)
    }

    fn nth_v6(self, place: u32) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.v6.to_bits() | u128::from(place))
    }
}

fn candidate((a, b): (u8, u8)) -> Prefix4 {
    Prefix4::around(Ipv4Addr::new(a, b, 0, 0), LENGTH)
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/64", self.v4, self.v6)
    }
}

impl FromStr for Subnet {
    type Err = NotASubnet;

    fn from_str(text: &str) -> Result<Self, NotASubnet> {
        let (v4, v6) = text.split_once(' ').ok_or(NotASubnet)?;
        let v4: Prefix4 = v4.parse().map_err(|_| NotASubnet)?;
        let v6: Ipv6Addr = v6.strip_suffix("/64").and_then(|v6| v6.parse().ok()).ok_or(NotASubnet)?;
        let local = v6.is_unique_local() && v6.to_bits() << 64 == 0;
        if v4.length() == LENGTH && local { Ok(Self { v4, v6 }) } else { Err(NotASubnet) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn choose(occupied: &[&str]) -> Result<String, NoFreeSubnet> {
        let occupied: Vec<Prefix4> = occupied.iter().map(|text| text.parse().unwrap()).collect();
        Subnet::choose(&occupied, [0x12, 0x34, 0x56, 0x78, 0x9a]).map(|subnet| subnet.to_string())
    }

    #[test]
    fn a_network_that_the_host_uses_is_not_chosen() {
        let first = "172.30.0.0/16 fd12:3456:789a::/64";
        assert_eq!(choose(&[]).unwrap(), first);
        assert_eq!(choose(&["0.0.0.0/0", "192.168.1.0/24", "172.17.0.0/16"]).unwrap(), first);
        assert_eq!(choose(&["172.30.5.0/24"]).unwrap(), "172.29.0.0/16 fd12:3456:789a::/64");
        assert_eq!(choose(&["172.16.0.0/12"]).unwrap(), "10.213.0.0/16 fd12:3456:789a::/64");
        let refused = choose(&["172.16.0.0/12", "10.0.0.0/8"]).unwrap_err();
        assert!(refused.to_string().contains("172.30.0.0/16"), "{refused}");
    }

    #[test]
    fn a_subnet_reads_back_and_nothing_else_is_read() {
        let text = "10.213.0.0/16 fd12:3456:789a::/64";
        assert_eq!(text.parse::<Subnet>().unwrap().to_string(), text);
        for wrong in [
            "",
            "10.213.0.0/16",
            "10.213.0.0/24 fd12::/64",
            "10.213.0.0/16 2001:db8::/64",
            "10.213.0.0/16 fd12::1/64",
            "10.213.0.0/16 fd12::/48",
        ] {
            assert_eq!(wrong.parse::<Subnet>(), Err(NotASubnet), "{wrong}");
        }
    }

    #[test]
    fn every_guest_has_addresses_of_its_own_and_none_is_the_hosts() {
        let subnet: Subnet = "172.30.0.0/16 fd12:3456:789a::/64".parse().unwrap();
        assert_eq!(subnet.gateway().0, Ipv4Addr::new(172, 30, 0, 1));
        let guests: Vec<_> = (0..).map_while(|n| subnet.guest(Slot(n))).collect();
        assert_eq!(guests.len(), 65533);
        let v4: BTreeSet<_> = guests.iter().map(|(v4, _)| *v4).collect();
        let v6: BTreeSet<_> = guests.iter().map(|(_, v6)| *v6).collect();
        assert_eq!((v4.len(), v6.len()), (guests.len(), guests.len()));
        for special in [subnet.v4().network(), subnet.gateway().0, subnet.v4().broadcast()] {
            assert!(!v4.contains(&special), "{special}");
        }
        assert!(!v6.contains(&subnet.gateway().1) && !v6.contains(&subnet.v6()));
        for (n, (v4, v6)) in guests.iter().enumerate() {
            let slot = Some(Slot(u32::try_from(n).unwrap()));
            assert_eq!((subnet.slot_of(*v4), subnet.slot_of_v6(*v6)), (slot, slot));
        }
        assert_eq!(subnet.guest(Slot(u32::MAX)), None);
        assert_eq!(subnet.slot_of(subnet.gateway().0), None);
    }

    #[test]
    fn a_subnet_has_all_addresses_between_its_ends_and_no_others() {
        let subnet: Subnet = "172.30.0.0/16 fd12:3456:789a::/64".parse().unwrap();
        for inside in ["172.30.0.0", "172.30.255.255", "fd12:3456:789a::", "fd12:3456:789a:0:ffff::1"] {
            assert!(subnet.contains(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["172.29.255.255", "172.31.0.0", "fd12:3456:789a:1::", "fd12:3456:789b::1", "::1"] {
            assert!(!subnet.contains(outside.parse().unwrap()), "{outside}");
        }
    }

    proptest! {
        #[test]
        fn a_free_slot_is_never_a_taken_one(taken: BTreeSet<u8>, last: Option<u32>) {
            let subnet: Subnet = "172.30.0.0/16 fd12:3456:789a::/64".parse().unwrap();
            let taken: BTreeSet<Slot> = taken.into_iter().map(|n| Slot(n.into())).collect();
            let free = Slot::free(|slot| taken.contains(&slot), last.map(Slot)).unwrap();
            prop_assert!(!taken.contains(&free));
            prop_assert!(subnet.guest(free).is_some());
        }
    }

    #[test]
    fn slots_are_given_in_turn_and_run_out() {
        assert_eq!(Slot::free(|_| false, None), Some(Slot(0)));
        assert_eq!(Slot::free(|_| false, Some(Slot(7))), Some(Slot(8)));
        assert_eq!(Slot::free(|_| false, Some(Slot(65532))), Some(Slot(0)));
        assert_eq!(Slot::free(|_| true, None), None);
    }
}
