//! The network of guests on a host.

use core::net::{IpAddr, SocketAddr};
use std::{collections::BTreeSet, os::fd::OwnedFd, sync::Arc, time::Duration};

use async_trait::async_trait;
use banger_domain::{
    egress::{
        address::Neighbours,
        host_name::HostName,
        log::{Denial, EgressLog, Totals},
    },
    id::{Uid, VmId},
    limits::Exceeded,
    net::{nic::Nic, port::Port, prefix::Prefix4, subnet::Subnet},
};

use super::{Check, HostError, wake::Wake};

/// What [`Network::restore`] has made again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Restored {
    /// The link with the host's address.
    pub link: bool,
    /// Rules of the packet filter that were missing, changed or added by others.
    pub rules: bool,
    /// Elements of guests in the packet filter.
    pub guests: bool,
    /// Forwarding for the links that lead outside.
    pub forwarding: bool,
}

/// The network of guests: what they all share, and the interface of each.
#[async_trait]
pub trait Network: Send + Sync {
    /// Returns the networks that the host has routes to, except its own for guests: guests must not be there.
    async fn occupied(&self) -> Result<Vec<Prefix4>>;
    /// Creates what all guests share: the link with the host's address, the packet filter rules, forwarding. A repeat
    /// is safe, and restores what somebody removed, including the interfaces of guests.
    async fn prepare(&self, subnet: Subnet) -> Result<()>;
    /// Makes again what others have removed of what all guests share, and returns what that was. Changes nothing in a
    /// packet filter that has everything, and gives a guest no destination back whose time has ended. A repeat is safe.
    /// Does nothing before the network is prepared.
    async fn restore(&self) -> Result<Restored>;
    /// Removes what all guests share.
    async fn withdraw(&self) -> Result<()>;
    /// Creates a guest's interface with everything that belongs to it. An existing one is changed to these settings,
    /// even while in use, so a repeat is safe. Fails with [`Error::Taken`] if a port is in use.
    async fn plug(&self, nic: &Nic) -> Result<()>;
    /// Plugs in a guest of an earlier run of the service. Returns the published ports that another program has taken
    /// since; they are not published any more.
    async fn reattach(&self, nic: &Nic) -> Result<BTreeSet<Port>>;
    /// Closes all published ports, because the service ends and nothing would hold them. [`Network::reattach`] opens
    /// them again.
    async fn unpublish_all(&self) -> Result<()>;
    /// Makes a user the owner of a VM's TAP, so that its process may open it by name.
    async fn set_tap_owner(&self, vm: VmId, user: Uid) -> Result<()>;
    /// Connects to a service in a guest. Returns none if nothing listens there or nothing answers in time.
    async fn connect(&self, to: SocketAddr, timeout: Duration) -> Result<Option<OwnedFd>>;
    /// Changes an interface from `old` to `new`, atomically. Connections that `new` does not allow end with their
    /// next packet. Only NAT, what is allowed without it, and ports may differ.
    async fn change(&self, old: &Nic, new: &Nic) -> Result<()>;
    /// Lets a restricted guest send to the addresses of a name that it has looked up, for some minutes or as long as it
    /// uses them. Does nothing if the guest may not reach the name (any more), and leaves internal addresses and those of
    /// neighbours out. A repeat is safe. Must return before the guest gets the addresses.
    async fn grant(&self, vm: VmId, name: &HostName, addresses: &[IpAddr]) -> Result<Granted>;
    /// Returns the networks on the links of the host, to which no name may lead a restricted guest. Never waits.
    fn neighbours(&self) -> Arc<Neighbours>;
    /// Counts the look-up of a name that a restricted guest may not reach.
    fn deny(&self, vm: VmId, name: &HostName);
    /// Returns what a restricted guest was allowed and denied since it started.
    fn egress_log(&self, vm: VmId) -> EgressLog;
    /// Returns how often a restricted guest was allowed and denied something since it started.
    fn egress_totals(&self, vm: VmId) -> Totals;
    /// Returns how many connections the host tracks, of all its programs and guests. None if it tracks none.
    fn connections(&self) -> Option<Connections>;
    /// Waits for denials, and returns those of which the owners should hear.
    async fn denials(&self) -> Vec<Denial>;
    /// Returns these ports, each with a free number of the host if it has none. Fails with [`Error::Taken`] if another
    /// number is in use. Reserves nothing.
    async fn free_ports(&self, ports: &[Port]) -> Result<Vec<Port>>;
    /// Removes a guest's interface with everything that belongs to it. A repeat is safe.
    async fn unplug(&self, vm: VmId) -> Result<()>;
    /// Leaves a suspended guest nothing of its interface but its published ports. Connections to those of TCP become
    /// requests ([`Network::wanted`]), and are carried to the guest once it runs. [`Network::plug`] ends that, and
    /// [`Network::unplug`] releases the ports as well. A repeat is safe, and changes the ports to these. Fails with
    /// [`Error::Taken`] if a port is in use.
    async fn doze(&self, nic: &Nic) -> Result<()>;
    /// Waits for the next connection to a port of a guest that dozes. It is closed if the request is refused.
    async fn wanted(&self) -> Wake;
    /// Returns the VMs that have any part of an interface.
    async fn found(&self) -> Result<Vec<VmId>>;
    /// Checks what every guest's interface needs from the host.
    async fn checks(&self) -> Vec<Check>;
    /// Checks what NAT needs from the host.
    async fn nat_checks(&self) -> Vec<Check>;
    /// Checks what published ports need from the host.
    async fn port_checks(&self) -> Vec<Check>;
}

/// The connections that the host's packet filter tracks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    /// How many there are.
    pub tracked: u64,
    /// How many there may be.
    pub limit: u64,
}

/// What a restricted guest may get of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granted {
    /// The addresses.
    All,
    /// Nothing: it uses as many addresses as it may have at a time. That is counted as a denial of the name.
    Nothing,
}

/// Why the network cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name or a port on the host is taken by something else.
    #[error("{message}")]
    Taken {
        /// What it is, who has it, and what to do about it.
        message: String,
    },
    /// There are too many networks in egress policies.
    #[error(transparent)]
    Limit(#[from] Exceeded),
    /// The call to the host failed.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// The result of this port.
pub type Result<T, E = Error> = std::result::Result<T, E>;
