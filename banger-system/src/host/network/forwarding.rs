//! Forwarding between guests and the rest of the world.
//!
//! The global switch is not touched: it would turn any host into a router between all of its
//! links. It is turned on for TAPs, and for the links that lead outside, from which packets then go to
//! guests alone: the rules drop the others.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::{self, Write},
    path::PathBuf,
};

use banger_domain::net::{LINK, ROUTE_PROTOCOL, element::Ipv6, prefix::Prefix4};
use futures_util::TryStreamExt;
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::route::{RouteAddress, RouteAttribute, RouteMessage},
};

use super::links::{Links, failed};
use crate::ports::{Error, Result};

/// Turns forwarding of IPv6 on for one link, from Linux 6.17 on. Before, there is the global switch only,
/// which also makes the host deaf to the router of its own network.
const FORCE_FORWARDING: &str = "force_forwarding";

fn setting(family: &str, link: &str, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/net/{family}/conf/{link}/{name}"))
}

fn is_on(family: &str, link: &str, name: &str) -> bool {
    fs::read_to_string(setting(family, link, name)).is_ok_and(|value| value.trim() == "1")
}

fn switch(family: &str, link: &str, name: &str, value: &str) -> Result<()> {
    let path = setting(family, link, name);
    // Never made: asked to, procfs gives another error than that there is no such switch.
    let written =
        OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(value.as_bytes()));
    match written {
        // The link is gone, or has no IPv6, or the kernel has no such switch.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written.map_err(|source| Error::os(format!("write {}", path.display()), source)),
    }
}

/// Whether the host forwards IPv4 between all of its links, by its owner's choice.
pub(super) fn forwards_everything() -> bool {
    is_on("ipv4", "all", "forwarding")
}

/// What the host can do of IPv6.
pub(super) fn ipv6() -> Ipv6 {
    let off = |link| !setting("ipv6", link, "disable_ipv6").exists() || is_on("ipv6", link, "disable_ipv6");
    if off("all") || off("default") {
        return Ipv6::Absent;
    }
    let per_link = setting("ipv6", "default", FORCE_FORWARDING).exists();
    if per_link || is_on("ipv6", "all", "forwarding") { Ipv6::Forwarded } else { Ipv6::Local }
}

/// Lets IPv6 packets in from a TAP. IPv4 is turned on with the link.
pub(super) fn open_tap(tap: &str) -> Result<()> {
    switch("ipv6", tap, FORCE_FORWARDING, "1")
}

/// Turns forwarding on for a link that leads outside.
pub(super) fn open(link: &str) -> Result<()> {
    switch("ipv4", link, "forwarding", "1")?;
    switch("ipv6", link, FORCE_FORWARDING, "1")
}

/// Turns it off again.
pub(super) fn close(link: &str) -> Result<()> {
    switch("ipv4", link, "forwarding", "0")?;
    switch("ipv6", link, FORCE_FORWARDING, "0")
}

impl Links {
    /// The names of the links that default routes lead to.
    pub(super) async fn outside(&self) -> Result<BTreeSet<String>> {
        let mut routes = self.routes4().await?;
        routes.extend(self.routes6().await?);
        let indices: BTreeSet<u32> = routes
            .iter()
            .filter(|route| route.header.destination_prefix_length == 0)
            .flat_map(|route| route.attributes.iter().flat_map(links_of))
            .collect();
        let mut links = BTreeSet::new();
        for index in indices {
            links.extend(self.name_of(index).await?);
        }
        Ok(links)
    }

    /// The IPv4 networks that routes of others lead to.
    pub(super) async fn occupied(&self) -> Result<Vec<Prefix4>> {
        let shared = self.find(LINK).await?.map(|link| link.index);
        let ours = |route: &RouteMessage| {
            let on_shared = |attribute| links_of(attribute).into_iter().any(|link| Some(link) == shared);
            u8::from(route.header.protocol) == ROUTE_PROTOCOL || route.attributes.iter().any(on_shared)
        };
        let destination = |route: &RouteMessage| {
            route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(to)) => {
                    Some(Prefix4::around(*to, route.header.destination_prefix_length))
                }
                _ => None,
            })
        };
        let routes = self.routes4().await?;
        Ok(routes.iter().filter(|route| !ours(route)).filter_map(destination).collect())
    }

    async fn routes4(&self) -> Result<Vec<RouteMessage>> {
        let all = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
        let routes = self.handle.route().get(all).execute().try_collect();
        routes.await.map_err(|error| failed("list the routes", error))
    }

    async fn routes6(&self) -> Result<Vec<RouteMessage>> {
        let all = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
        let routes = self.handle.route().get(all).execute().try_collect();
        routes.await.map_err(|error| failed("list the routes of IPv6", error))
    }
}

fn links_of(attribute: &RouteAttribute) -> Vec<u32> {
    match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    }
}
