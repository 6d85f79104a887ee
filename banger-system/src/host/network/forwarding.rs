//! Forwarding between guests and other networks.
//!
//! The global switch is left alone: it would turn any host into a router between all of its links. Forwarding is
//! enabled for TAPs and for the uplinks, whose packets are then forwarded to guests only: the rules drop all others.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::{self, Write},
    path::PathBuf,
};

use banger_domain::net::{LINK, ROUTE_PROTOCOL, element::Ipv6, prefix::Prefix4};
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::route::{RouteAddress, RouteAttribute, RouteMessage},
};

use super::links::Links;
use crate::ports::{
    FromHost as _,
    network::{Error, Result},
};

/// Enables IPv6 forwarding for one link, since Linux 6.17. Before, there is only the global switch, which also makes
/// the host ignore the router of its own network.
const FORCE_FORWARDING: &str = "force_forwarding";

fn setting(family: &str, link: &str, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/net/{family}/conf/{link}/{name}"))
}

fn is_on(family: &str, link: &str, name: &str) -> bool {
    fs::read_to_string(setting(family, link, name)).is_ok_and(|value| value.trim() == "1")
}

fn switch(family: &str, link: &str, name: &str, value: &str) -> Result<()> {
    let path = setting(family, link, name);
    // Opened without O_CREAT, for which procfs returns another error if there is no such switch.
    let written =
        OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(value.as_bytes()));
    match written {
        // The link is gone, has no IPv6, or the kernel lacks the switch.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written.map_err(|source| Error::os(format!("write {}", path.display()), source)),
    }
}

/// Returns whether the administrator made the host a router for IPv4.
pub(super) fn forwards_everything() -> bool {
    is_on("ipv4", "all", "forwarding")
}

/// Returns what the host supports of IPv6.
pub(super) fn ipv6() -> Ipv6 {
    let off = |link| !setting("ipv6", link, "disable_ipv6").exists() || is_on("ipv6", link, "disable_ipv6");
    if off("all") || off("default") {
        return Ipv6::Absent;
    }
    let per_link = setting("ipv6", "default", FORCE_FORWARDING).exists();
    if per_link || is_on("ipv6", "all", "forwarding") { Ipv6::Forwarded } else { Ipv6::Local }
}

/// Allows IPv6 packets from a TAP. IPv4 is enabled together with the link.
pub(super) fn open_tap(tap: &str) -> Result<()> {
    switch("ipv6", tap, FORCE_FORWARDING, "1")
}

/// Enables forwarding for an uplink.
pub(super) fn open(link: &str) -> Result<()> {
    switch("ipv4", link, "forwarding", "1")?;
    switch("ipv6", link, FORCE_FORWARDING, "1")
}

/// Returns whether IPv4 forwarding is enabled for an uplink.
pub(super) fn is_open(link: &str) -> bool {
    is_on("ipv4", link, "forwarding")
}

/// Disables it again.
pub(super) fn close(link: &str) -> Result<()> {
    switch("ipv4", link, "forwarding", "0")?;
    switch("ipv6", link, FORCE_FORWARDING, "0")
}

impl Links {
    /// Returns the names of the links with default routes.
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

    /// Returns the IPv4 networks in routes of others.
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
        self.list("list the routes", move |handle| handle.route().get(all).execute()).await
    }

    pub(super) async fn routes6(&self) -> Result<Vec<RouteMessage>> {
        let all = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
        self.list("list the routes of IPv6", move |handle| handle.route().get(all).execute()).await
    }
}

fn links_of(attribute: &RouteAttribute) -> Vec<u32> {
    match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    }
}
