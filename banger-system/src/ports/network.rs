//! The network of guests on a host.

use core::net::SocketAddr;
use std::{collections::BTreeSet, os::fd::OwnedFd, time::Duration};

use async_trait::async_trait;
use banger_domain::{
    id::{Uid, VmId},
    net::{nic::Nic, port::Port, prefix::Prefix4, subnet::Subnet},
};

use super::{Check, Result};

/// The network of guests: what they all share, and the interface of each.
#[async_trait]
pub trait Network: Send + Sync {
    /// The networks that the host has routes to, but for our own: where guests must not be.
    async fn occupied(&self) -> Result<Vec<Prefix4>>;
    /// Makes what all guests share: the link with the host's address among them, the rules of the packet
    /// filter, forwarding. What is there already is left as it is, and what somebody removed is made
    /// again, the guests' own part of it too.
    async fn prepare(&self, subnet: Subnet) -> Result<()>;
    /// Removes what all guests share.
    async fn withdraw(&self) -> Result<()>;
    /// Makes a guest's interface with all that belongs to it. What is there already, in use even, becomes
    /// what it is to be.
    async fn plug(&self, nic: &Nic) -> Result<()>;
    /// Does the same for a guest that an earlier run of the service plugged in. Returns the ports that something
    /// else on the host has taken since: they do not lead to the guest any more.
    async fn take_over(&self, nic: &Nic) -> Result<BTreeSet<Port>>;
    /// Stops every published port from leading to its guest, and lets go of the ports: for a service that ends
    /// and has nobody to hold them. [`Network::take_over`] opens them again.
    async fn close_ports(&self) -> Result<()>;
    /// Lets a user's process open the TAP of a machine by its name.
    async fn give_tap(&self, vm: VmId, user: Uid) -> Result<()>;
    /// A stream to what listens in a guest at this address, open to reading and writing without end; none
    /// when nothing listens there or nobody answers in time.
    async fn connect(&self, to: SocketAddr, timeout: Duration) -> Result<Option<OwnedFd>>;
    /// Makes an interface that was plugged as `old` into `new`, at once and as a whole. Connections that
    /// `new` does not allow end with their next packet. Only NAT and ports may differ.
    async fn change(&self, old: &Nic, new: &Nic) -> Result<()>;
    /// The port of the host with a number that is free, when it has none yet.
    async fn numbered(&self, port: Port) -> Result<Port>;
    /// Removes a guest's interface with all that belongs to it.
    async fn unplug(&self, vm: VmId) -> Result<()>;
    /// The machines that have anything of an interface.
    async fn found(&self) -> Result<Vec<VmId>>;
    /// What every guest's interface needs of the host, and whether that is there.
    async fn checks(&self) -> Vec<Check>;
    /// What a guest needs of the host to reach what lies beyond it, and whether that is there.
    async fn checks_of_nat(&self) -> Vec<Check>;
    /// What published ports need of the host, and whether that is there.
    async fn checks_of_ports(&self) -> Vec<Check>;
}
