//! The networks of IPv6 on the host's links. Behind a home's or an office's router, all hosts have global addresses: what
//! keeps the internet away from them is the router, and not their addresses.

use std::net::Ipv6Addr;

use banger_domain::egress::address::Neighbours;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};

use super::links::Links;
use crate::ports::network::Result;

/// Who makes a route to a network that is on a link: the kernel, from an address of the host or from the announcement of a
/// router, and network services, from such an announcement (`RTPROT_KERNEL` and `RTPROT_RA`). Routes into tunnels, which
/// may be to all of the internet, are made by others.
pub(super) const ON_LINK: [u8; 2] = [2, 9];

impl Links {
    /// Returns who is on the links of the host.
    pub(super) async fn neighbours(&self) -> Result<Neighbours> {
        Ok(Neighbours::of(self.routes6().await?.iter().filter_map(on_link)))
    }
}

/// Returns the network of a route that leads to it without a router.
fn on_link(route: &RouteMessage) -> Option<(Ipv6Addr, u8)> {
    let header = &route.header;
    let length = header.destination_prefix_length;
    let has_router = route.attributes.iter().any(|attribute| {
        matches!(
            attribute,
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_)
        )
    });
    if header.kind != RouteType::Unicast
        || !ON_LINK.contains(&u8::from(header.protocol))
        || !(1..128).contains(&length)
        || has_router
    {
        return None;
    }
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet6(to)) => Some((*to, length)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rtnetlink::{RouteMessageBuilder, packet_route::route::RouteProtocol};

    use super::*;

    #[test]
    fn networks_of_links_are_told_from_other_routes() {
        let net: Ipv6Addr = "2001:db8::".parse().unwrap();
        let route = |length, protocol| {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(net, length).protocol(protocol)
        };
        let check = |route: RouteMessageBuilder<Ipv6Addr>, expect: Option<(Ipv6Addr, u8)>| {
            assert_eq!(on_link(&route.build()), expect);
        };
        check(route(64, RouteProtocol::Kernel), Some((net, 64)));
        check(route(64, RouteProtocol::Ra), Some((net, 64)));
        check(route(3, RouteProtocol::Static), None);
        check(route(128, RouteProtocol::Kernel), None);
        check(route(0, RouteProtocol::Ra), None);
        check(route(64, RouteProtocol::Ra).gateway("fe80::1".parse().unwrap()), None);
        check(route(64, RouteProtocol::Kernel).kind(RouteType::Unreachable), None);
    }
}
