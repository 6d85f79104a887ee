//! Addresses that no name on the internet may lead a guest to.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::Ipv6Net;

/// The networks on the links of the host. Their hosts may have global addresses, and still be those of a home or an office.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Neighbours(Vec<Ipv6Net>);

impl Neighbours {
    /// Returns the neighbours in these networks, each with the length of its prefix.
    pub fn of(nets: impl IntoIterator<Item = (Ipv6Addr, u8)>) -> Self {
        let nets = nets.into_iter().filter_map(|(address, length)| Ipv6Net::new(address, length).ok());
        let mut nets: Vec<Ipv6Net> = nets.collect();
        nets.sort();
        nets.dedup();
        Self(nets)
    }

    /// Returns whether one of them may have this address.
    pub fn have(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(_) => false,
            IpAddr::V6(v6) => self.0.iter().any(|net| net.contains(&v6)),
        }
    }
}

/// Returns whether an address is not one of the internet: private, of this host or its link, of a cloud's metadata
/// service, or of many hosts at once. An IPv6 address that carries such an IPv4 address is one, too.
pub fn is_internal(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_internal4(v4),
        IpAddr::V6(v6) => is_internal6(v6) || carried(v6).into_iter().flatten().any(is_internal4),
    }
}

/// Returns whether no policy can allow an address: it is this host's own, of its link, or of many hosts at once.
pub fn is_never_allowed(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.octets()[0] == 0
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
        }
        IpAddr::V6(v6) => {
            v6.is_unspecified()
                || v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_multicast()
                || carried(v6) != [None, None]
        }
    }
}

/// The metadata service of Azure. Those of other clouds are link-local, private, or behind a provider's NAT.
const METADATA: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

fn is_internal4(v4: Ipv4Addr) -> bool {
    let [a, b, ..] = v4.octets();
    a == 0
        || a >= 224
        || v4.is_private()
        || v4.is_loopback()
        || v4.is_link_local()
        // Behind a provider's NAT (RFC 6598).
        || (a == 100 && (64..128).contains(&b))
        || v4 == METADATA
}

fn is_internal6(v6: Ipv6Addr) -> bool {
    v6.is_unspecified()
        || v6.is_loopback()
        || v6.is_unique_local()
        || v6.is_unicast_link_local()
        || v6.is_multicast()
        // Site-local, which some networks still use (RFC 3879).
        || v6.segments()[0] & 0xffc0 == 0xfec0
        // NAT64 of a local network, which chooses where the IPv4 address is (RFC 8215).
        || v6.segments()[..3] == [0x64, 0xff9b, 1]
}

/// Returns the IPv4 addresses that an IPv6 address carries: mapped or compatible (RFC 4291), of NAT64 (RFC 6052), of
/// 6to4 (RFC 3056), or the server and the client of Teredo (RFC 4380).
fn carried(v6: Ipv6Addr) -> [Option<Ipv4Addr>; 2] {
    let joined = |high: u16, low: u16| Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] => [joined(high, low), None],
        [0, 0, 0, 0, 0, 0, high, low] if (high, low) > (0, 1) => [joined(high, low), None],
        [0x64, 0xff9b, 0 | 1, _, _, _, high, low] => [joined(high, low), None],
        [0x2002, high, low, ..] => [joined(high, low), None],
        [0x2001, 0, high, low, _, _, client_high, client_low] => {
            [joined(high, low), joined(!client_high, !client_low)]
        }
        _ => [None, None],
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_of_the_internet_are_told_from_others() {
        let check = |address: &str, internal, never| {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!((is_internal(address), is_never_allowed(address)), (internal, never), "{address}");
        };
        for public in ["93.184.216.34", "203.0.113.2", "100.63.0.1", "172.32.0.1", "2606:4700::1111"] {
            check(public, false, false);
        }
        for private in ["10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd00::1", "fec0::1"] {
            check(private, true, false);
        }
        for metadata in ["168.63.129.16", "100.100.100.200", "fd00:ec2::254"] {
            check(metadata, true, false);
        }
        for never in ["0.0.0.0", "0.1.2.3", "127.0.0.1", "127.8.8.8", "169.254.169.254", "224.0.0.1"] {
            check(never, true, true);
        }
        for never in ["::", "::1", "fe80::1", "ff02::1", "255.255.255.255"] {
            check(never, true, true);
        }
        for carrier in [
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:0.0.0.0",
            "::10.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b::168.63.129.16",
            "64:ff9b:1::93.184.216.34",
            "2002:a00:1::1",
            "2002:a83f:8110::",
            // Teredo behind the server 10.0.0.1, and for the client 192.168.1.1.
            "2001:0:a00:1::a247:28dd",
            "2001:0:5db8:d822::3f57:fefe",
        ] {
            check(carrier, true, true);
        }
        for carrier in ["64:ff9b::93.184.216.34", "2002:5db8:d822::1", "2001:0:5db8:d822::a247:28dd"] {
            check(carrier, false, true);
        }
        check("2001:1::1", false, false);
    }

    #[test]
    fn neighbours_are_known_by_the_networks_of_links() {
        let nets = ["2001:db8:1::", "2001:db8:1::", "2001:db8:2::"];
        let neighbours = Neighbours::of(nets.map(|net| (net.parse().unwrap(), 64)));
        let check = |address: &str, expect| assert_eq!(neighbours.have(address.parse().unwrap()), expect);
        check("2001:db8:1::5", true);
        check("2001:db8:2:0:1::1", true);
        check("2001:db8:3::1", false);
        check("192.0.2.1", false);
        assert!(!Neighbours::default().have("2001:db8:1::5".parse().unwrap()));
    }
}
