//! A range of IPv4 addresses with a common prefix.

use core::{fmt, net::Ipv4Addr, str::FromStr};

/// The text is not ADDRESS/LENGTH, or the address has bits beyond the length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a prefix is an address and a length, such as 172.30.0.0/16, with no bits beyond the length")]
pub struct NotAPrefix;

/// All addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix4 {
    network: u32,
    length: u8,
}

impl Prefix4 {
    /// Returns the prefix of this length around an address.
    ///
    /// A length beyond 32 counts as 32.
    pub fn around(address: Ipv4Addr, length: u8) -> Self {
        let length = length.min(32);
        Self { network: address.to_bits() & mask(length), length }
    }

    /// Returns the first address.
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network)
    }

    /// Returns how many bits are fixed.
    pub fn length(self) -> u8 {
        self.length
    }

    /// Returns the last address.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network | !mask(self.length))
    }

    /// Returns the `n`-th address, counted from 0. `None` beyond the last.
    pub fn nth(self, n: u32) -> Option<Ipv4Addr> {
        let inside = n & mask(self.length) == 0;
        inside.then(|| Ipv4Addr::from_bits(self.network | n))
    }

    /// Returns whether the address is in the range.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.length) == self.network
    }

    /// Returns whether the ranges have an address in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.network()) || other.contains(self.network())
    }
}

fn mask(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

impl fmt::Display for Prefix4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.length)
    }
}

impl FromStr for Prefix4 {
    type Err = NotAPrefix;

    fn from_str(text: &str) -> Result<Self, NotAPrefix> {
        let (address, length) = text.split_once('/').ok_or(NotAPrefix)?;
        let address: Ipv4Addr = address.parse().map_err(|_| NotAPrefix)?;
        let length = length.parse().ok().filter(|&length: &u8| length <= 32).ok_or(NotAPrefix)?;
        let prefix = Self::around(address, length);
        if prefix.network() == address { Ok(prefix) } else { Err(NotAPrefix) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Prefix4 {
        text.parse().unwrap()
    }

    #[test]
    fn a_prefix_reads_back_and_nothing_else_is_read() {
        for text in ["0.0.0.0/0", "10.0.0.0/8", "172.30.0.0/16", "192.168.1.7/32"] {
            assert_eq!(prefix(text).to_string(), text);
        }
        for wrong in ["", "10.0.0.0", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0/8", "a/8"] {
            assert_eq!(wrong.parse::<Prefix4>(), Err(NotAPrefix), "{wrong}");
        }
    }

    #[test]
    fn the_ends_of_a_prefix_are_in_it_and_their_neighbours_are_not() {
        let subnet = prefix("172.30.0.0/16");
        assert_eq!(subnet.broadcast(), Ipv4Addr::new(172, 30, 255, 255));
        assert_eq!(subnet.nth(0xffff), Some(subnet.broadcast()));
        assert_eq!(subnet.nth(0x1_0000), None);
        assert!(!subnet.contains(Ipv4Addr::new(172, 31, 0, 0)));
        assert!(!subnet.contains(Ipv4Addr::new(172, 29, 255, 255)));
    }

    proptest! {
        #[test]
        fn prefixes_overlap_exactly_when_one_holds_the_other(a: u32, b: u32, i in 0u8..=32, j in 0u8..=32) {
            let (a, b) = (Prefix4::around(Ipv4Addr::from_bits(a), i), Prefix4::around(Ipv4Addr::from_bits(b), j));
            let apart = a.broadcast() < b.network() || b.broadcast() < a.network();
            prop_assert_eq!(a.overlaps(b), !apart);
            prop_assert_eq!(a.overlaps(b), b.overlaps(a));
        }
    }
}
