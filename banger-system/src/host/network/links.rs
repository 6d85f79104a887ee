//! Links, addresses, routes and neighbours, by netlink.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use banger_domain::net::{
    LINK, LINK_ALIAS, LINK_PEER, ROUTE_PROTOCOL,
    element::Ipv6,
    nic::{Mac, Nic, tap_alias},
    subnet::Subnet,
};
use futures_util::{Stream, TryStreamExt};
use rtnetlink::{
    Handle, LinkDummy, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::AddressHeaderFlags,
        link::{
            AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InetDevConf, LinkAttribute, LinkMessage,
        },
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::{RouteProtocol, RouteType},
    },
};
use rustix::io::Errno;
use tokio::sync::Mutex;

use crate::{
    ports::{
        FromHost as _,
        network::{Error, Result},
    },
    tasks::{Task, Tasks},
};

/// The kernel's answer to a change.
type Answer = Result<(), rtnetlink::Error>;

/// The host's links.
#[derive(Clone)]
pub(super) struct Links {
    pub(super) handle: Handle,
    /// Held by the one list that is under way: the kernel refuses a second one on the same socket with EBUSY.
    listing: Arc<Mutex<()>>,
}

/// A link of the host.
#[derive(Debug, Clone)]
pub(super) struct Link {
    /// Its index.
    pub(super) index: u32,
    /// Its name.
    pub(super) name: String,
    /// Its alias; empty if it has none.
    pub(super) alias: String,
}

impl Links {
    /// Returns the links of this network namespace. A task of the current runtime carries the messages.
    pub(super) fn new(tasks: &Tasks) -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tasks.spawn(Task::Netlink, connection);
        Ok(Self { handle, listing: Arc::default() })
    }

    /// Finds the link of this name.
    pub(super) async fn find(&self, name: &str) -> Result<Option<Link>> {
        let mut links = Box::pin(self.handle.link().get().match_name(name).execute());
        match links.try_next().await {
            Ok(link) => Ok(link.map(Link::from)),
            Err(error) if is(&error, Errno::NODEV) => Ok(None),
            Err(error) => Err(failed(format!("look for the link {name}"), error)),
        }
    }

    /// Returns the name of the link with this index; `None` if it is gone.
    pub(super) async fn name_of(&self, index: u32) -> Result<Option<String>> {
        let mut links = Box::pin(self.handle.link().get().match_index(index).execute());
        match links.try_next().await {
            Ok(link) => Ok(link.map(|link| Link::from(link).name)),
            Err(error) if is(&error, Errno::NODEV) => Ok(None),
            Err(error) => Err(failed("look for a link", error)),
        }
    }

    /// Returns every link.
    pub(super) async fn all(&self) -> Result<Vec<Link>> {
        let links = self.list("list the links", |handle| handle.link().get().execute()).await?;
        Ok(links.into_iter().map(Link::from).collect())
    }

    /// Asks the kernel for a list once no other one is under way. A caller that goes meanwhile does not end the list: the kernel
    /// goes on with it until it is read.
    pub(super) async fn list<T: Send + 'static, S>(
        &self,
        doing: &str,
        ask: impl FnOnce(Handle) -> S + Send + 'static,
    ) -> Result<Vec<T>>
    where
        S: Stream<Item = Result<T, rtnetlink::Error>> + Send + 'static,
    {
        let (handle, listing) = (self.handle.clone(), Arc::clone(&self.listing));
        let listed = tokio::spawn(async move {
            let _one_at_a_time = listing.lock_owned().await;
            ask(handle).try_collect().await
        });
        let listed = listed.await.map_err(|error| Error::os(doing, io::Error::other(error)))?;
        listed.map_err(|error| failed(doing, error))
    }

    /// Removes a link, with its addresses and routes.
    pub(super) async fn remove(&self, link: &Link) -> Result<()> {
        match self.handle.link().del(link.index).execute().await {
            Ok(()) => Ok(()),
            Err(error) if is(&error, Errno::NODEV) => Ok(()),
            Err(error) => Err(failed(format!("remove the link {}", link.name), error)),
        }
    }

    /// Makes the link that holds the host's addresses in the guest network, and nothing else.
    pub(super) async fn make_shared(&self, subnet: Subnet, ipv6: Ipv6) -> Result<bool> {
        let (index, is_new) = match self.find(LINK).await? {
            Some(link) if link.alias == LINK_ALIAS => (link.index, false),
            Some(_) => {
                let message =
                    format!("the host has a link {LINK} that is not banger's; rename it or remove it");
                return Err(Error::Taken { message });
            }
            None => (self.add_shared().await?, true),
        };
        let (v4, v6) = subnet.gateway();
        let result = async {
            self.set(LinkUnspec::new_with_index(index).alias(LINK_ALIAS).up()).await?;
            self.add_address(index, v4.into(), 32).await?;
            // Packets to an address without a guest are refused at once, and do not leave the host.
            self.add_route(
                v4_route(subnet.v4().network(), subnet.v4().length()).kind(RouteType::Unreachable),
            )
            .await?;
            if ipv6 != Ipv6::Absent {
                self.add_address(index, v6.into(), 128).await?;
                self.add_route(v6_route(subnet.v6(), 64).kind(RouteType::Unreachable)).await?;
            }
            Ok(is_new)
        };
        result.await.map_err(|error| failed(format!("set up the link {LINK}"), error))
    }

    /// Removes what [`Links::make_shared`] made.
    pub(super) async fn remove_shared(&self, subnet: Subnet) -> Result<()> {
        if let Some(link) = self.find(LINK).await?.filter(|link| link.alias == LINK_ALIAS) {
            self.remove(&link).await?;
        }
        let routes = [
            v4_route(subnet.v4().network(), subnet.v4().length()).build(),
            v6_route(subnet.v6(), 64).build(),
        ];
        for mut route in routes {
            route.header.kind = RouteType::Unreachable;
            match self.handle.route().del(route).execute().await {
                Ok(()) => {}
                Err(error) if is(&error, Errno::SRCH) || is(&error, Errno::AFNOSUPPORT) => {}
                Err(error) => return Err(failed("remove the route to all guests", error)),
            }
        }
        Ok(())
    }

    /// Adds a dummy link or, if the kernel has none, one end of a pair of virtual Ethernet links. The other end is up
    /// too, since the link has carrier only then.
    async fn add_shared(&self) -> Result<u32> {
        let pair = async {
            self.handle.link().add(LinkVeth::new(LINK, LINK_PEER).build()).execute().await?;
            let peer = LinkUnspec::new_with_name(LINK_PEER).alias(LINK_ALIAS).up();
            self.set(peer).await
        };
        let made = match self.handle.link().add(LinkDummy::new(LINK).build()).execute().await {
            Err(error) if is(&error, Errno::OPNOTSUPP) => pair.await,
            made => made,
        };
        made.map_err(|error| failed(format!("make the link {LINK}"), error))?;
        // Marked at once: a link without the mark is not banger's.
        let mark = LinkUnspec::new_with_name(LINK).alias(LINK_ALIAS);
        self.set(mark).await.map_err(|error| failed(format!("mark the link {LINK}"), error))?;
        let gone = || Error::Taken { message: format!("the link {LINK} was removed while it was made") };
        Ok(self.find(LINK).await?.ok_or_else(gone)?.index)
    }

    async fn set(&self, link: LinkMessageBuilder<LinkUnspec>) -> Answer {
        self.handle.link().set(link.build()).execute().await
    }

    async fn add_address(&self, index: u32, address: IpAddr, length: u8) -> Answer {
        let mut add = self.handle.address().add(index, address, length).replace();
        // Nobody else can have the address, so duplicate detection is not needed.
        add.message_mut().header.flags = AddressHeaderFlags::Nodad | AddressHeaderFlags::Permanent;
        add.execute().await
    }

    async fn add_route<A>(&self, route: RouteMessageBuilder<A>) -> Answer {
        self.handle.route().add(route.build()).replace().execute().await
    }
}

/// Renames a TAP that is down to this guest's name. Linux before 6.2 renames no link that is up, not even to its
/// current name.
pub(super) fn name_tap(index: u32, nic: &Nic) -> RouteNetlinkMessage {
    let name = LinkUnspec::new_with_index(index).name(nic.tap().to_string());
    RouteNetlinkMessage::SetLink(name.build())
}

/// Sets up a TAP for this guest. May be repeated while a VMM uses the TAP.
///
/// The TAP has no address. The guest sends to the addresses of [`LINK`], and knows the TAP's hardware address
/// beforehand; an address would add routes for each TAP, in a list that the kernel walks for each new one.
pub(super) fn set_up_tap(index: u32, nic: &Nic, ipv6: Ipv6) -> Vec<RouteNetlinkMessage> {
    let mut requests = vec![
        RouteNetlinkMessage::SetLink(identity(index, nic, ipv6).build()),
        RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(index).up().build()),
        RouteNetlinkMessage::NewRoute(v4_route(nic.v4, 32).output_interface(index).build()),
        neighbour(index, nic.v4.into(), nic.mac()),
    ];
    if ipv6 != Ipv6::Absent {
        requests.extend([
            RouteNetlinkMessage::NewRoute(v6_route(nic.v6, 128).output_interface(index).build()),
            neighbour(index, nic.v6.into(), nic.mac()),
        ]);
    }
    requests
}

/// Returns a permanent neighbour entry, so that nobody has to ask for the guest's hardware address and nobody else
/// can answer.
fn neighbour(index: u32, guest: IpAddr, mac: Mac) -> RouteNetlinkMessage {
    let (family, destination) = match guest {
        IpAddr::V4(guest) => (AddressFamily::Inet, NeighbourAddress::Inet(guest)),
        IpAddr::V6(guest) => (AddressFamily::Inet6, NeighbourAddress::Inet6(guest)),
    };
    let mut message = NeighbourMessage::default();
    (message.header.family, message.header.ifindex) = (family, index);
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(destination),
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
    ];
    RouteNetlinkMessage::NewNeighbour(message)
}

/// Returns the attributes of a TAP: it is ours, belongs to this owner, and packets are forwarded from it. Packets
/// with a loopback address may leave on it, for ports that are published there; the rules of the packet filter ensure
/// that none comes in.
fn identity(index: u32, nic: &Nic, ipv6: Ipv6) -> LinkMessageBuilder<LinkUnspec> {
    let mut inet = InetDevConf::default();
    (inet.forwarding, inet.route_localnet) = (1, 1);
    let mut families = vec![AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(inet)])];
    if ipv6 != Ipv6::Absent {
        families.push(AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]));
    }
    LinkUnspec::new_with_index(index)
        .alias(tap_alias(nic.vm))
        .address(Mac::HOST.0.to_vec())
        .link_group(nic.owner.0)
        .append_extra_attribute(LinkAttribute::AfSpecUnspec(families))
}

fn v4_route(to: Ipv4Addr, length: u8) -> RouteMessageBuilder<Ipv4Addr> {
    let protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, length).protocol(protocol)
}

fn v6_route(to: Ipv6Addr, length: u8) -> RouteMessageBuilder<Ipv6Addr> {
    let protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to, length).protocol(protocol)
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self { index: message.header.index, name: String::new(), alias: String::new() };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                _ => {}
            }
        }
        link
    }
}

/// Returns whether the kernel refused for this reason.
pub(super) fn is(error: &rtnetlink::Error, reason: Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -reason.raw_os_error())
}

/// Returns the error of a request made for `doing`.
pub(super) fn failed(doing: impl Into<String>, error: rtnetlink::Error) -> Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => Error::os(doing, message.to_io()),
        other => Error::other(doing, other),
    }
}
