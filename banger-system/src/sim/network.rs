//! A network in memory: its interfaces, and which ports are in use.

use core::net::{IpAddr, SocketAddr};
use std::{
    collections::BTreeSet,
    io::Write,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use banger_domain::{
    egress::{
        address::Neighbours,
        host_name::HostName,
        log::{Denial, Destination, EgressLog, Totals},
    },
    id::{Timestamp, Uid, VmId},
    net::{nic::Nic, port::Port, prefix::Prefix4, subnet::Subnet},
    resource::Resource,
};

use super::{Sim, State};
use crate::ports::{
    Check, FromHost as _, Status,
    network::{Connections, Error, Granted, Network, Restored, Result},
    wake::{Cause, Wake, Woken},
};

/// What every guest sends to a client before it closes the connection.
pub const GREETING: &[u8] = b"SSH-2.0-memory\r\n";
/// The first port that Linux assigns.
const FIRST_EPHEMERAL: u16 = 32768;

impl Sim {
    /// Makes the next connections find no listener.
    pub fn refuse_connections(&self, count: u32) {
        self.lock().no_listeners = count;
    }

    /// Makes a program of the host use this port, or release it.
    pub fn occupy_port(&self, port: u16, occupied: bool) {
        let mut state = self.lock();
        match occupied {
            true => state.occupied_ports.insert(port),
            false => state.occupied_ports.remove(&port),
        };
    }

    /// Makes taking over guests of an earlier run fail.
    pub fn lose_nics(&self, lost: bool) {
        self.lock().lost_nics = lost;
    }

    /// Loses the rules of the packet filter.
    pub fn lose_rules(&self) {
        self.lock().lost_rules = true;
    }

    /// Connects to a published port. Returns whether its VM runs; none if nobody listens.
    pub async fn knock(&self, port: u16) -> Option<Woken> {
        let (vm, wakes) = {
            let state = self.lock();
            let is_it = |nic: &&Nic| nic.ports.iter().any(|published| published.host == port);
            let vm = state.dozing.values().find(is_it)?.vm;
            (vm, Arc::clone(&state.connections_to_wake))
        };
        Some(wakes.wake(vm, Cause::Port(port)).await)
    }

    /// Returns the VMs whose ports are held while they sleep.
    pub fn dozing(&self) -> Vec<VmId> {
        self.lock().dozing.keys().copied().collect()
    }

    /// Returns the interface of a VM.
    pub fn nic(&self, vm: VmId) -> Option<Nic> {
        self.lock().nics.get(&vm).cloned()
    }
}

#[async_trait]
impl Network for Sim {
    async fn occupied(&self) -> Result<Vec<Prefix4>> {
        Ok(Vec::new())
    }

    async fn prepare(&self, subnet: Subnet) -> Result<()> {
        self.step("prepare the network")?.subnet = Some(subnet);
        Ok(())
    }

    async fn restore(&self) -> Result<Restored> {
        let rules = std::mem::take(&mut self.step("restore the network")?.lost_rules);
        Ok(Restored { rules, ..Restored::default() })
    }

    async fn withdraw(&self) -> Result<()> {
        self.lock().subnet = None;
        Ok(())
    }

    async fn plug(&self, nic: &Nic) -> Result<()> {
        let mut state = self.step("plug a guest in")?;
        if state.subnet.is_none() {
            return Err(Error::not_ready("the network for guests is not set up"));
        }
        put(&mut state, nic)?;
        state.dozing.remove(&nic.vm);
        Ok(())
    }

    async fn reattach(&self, nic: &Nic) -> Result<BTreeSet<Port>> {
        let mut state = self.step("take a guest over")?;
        if state.lost_nics {
            return Err(Error::not_ready("the network for guests is not set up"));
        }
        state.dozing.remove(&nic.vm);
        let (taken, ports) = nic.ports.iter().partition(|port| state.occupied_ports.contains(&port.host));
        put(&mut state, &Nic { ports, ..nic.clone() })?;
        Ok(taken)
    }

    async fn unpublish_all(&self) -> Result<()> {
        let mut state = self.lock();
        state.nics.values_mut().for_each(|nic| nic.ports.clear());
        state.dozing.values_mut().for_each(|nic| nic.ports.clear());
        Ok(())
    }

    async fn set_tap_owner(&self, vm: VmId, _user: Uid) -> Result<()> {
        require_plugged(&*self.step("give a TAP to a user")?, vm)
    }

    async fn connect(&self, _to: SocketAddr, _timeout: Duration) -> Result<Option<OwnedFd>> {
        let mut state = self.step("connect to a guest")?;
        if state.no_listeners > 0 {
            state.no_listeners -= 1;
            return Ok(None);
        }
        let os = |error| Error::os("make a socket", error);
        let (theirs, mut ours) = UnixStream::pair().map_err(os)?;
        ours.write_all(GREETING).map_err(os)?;
        Ok(Some(theirs.into()))
    }

    async fn change(&self, _old: &Nic, new: &Nic) -> Result<()> {
        put(&mut *self.step("change what a guest may do")?, new)
    }

    async fn grant(&self, vm: VmId, name: &HostName, _addresses: &[IpAddr]) -> Result<Granted> {
        let mut state = self.lock();
        if state.nics.get(&vm).is_some_and(|nic| !nic.allowed.ports_of(name).is_empty()) {
            state.egress_logs.allow(vm, name, Timestamp(1));
        }
        Ok(Granted::All)
    }

    fn neighbours(&self) -> Arc<Neighbours> {
        Arc::default()
    }

    fn deny(&self, vm: VmId, name: &HostName) {
        let mut state = self.lock();
        state.egress_logs.deny(vm, Destination::Name(name.clone()), 1, Timestamp(1));
        state.denied.notify_one();
    }

    fn egress_log(&self, vm: VmId) -> EgressLog {
        self.lock().egress_logs.of(vm)
    }

    fn egress_totals(&self, vm: VmId) -> Totals {
        self.lock().egress_logs.totals(vm)
    }

    fn connections(&self) -> Option<Connections> {
        Some(Connections { tracked: self.lock().nics.len() as u64, limit: 1024 })
    }

    async fn denials(&self) -> Vec<Denial> {
        loop {
            let denied = Arc::clone(&self.lock().denied);
            let pending = self.lock().egress_logs.take_pending();
            if !pending.is_empty() {
                return pending;
            }
            denied.notified().await;
        }
    }

    async fn free_ports(&self, wishes: &[Port]) -> Result<Vec<Port>> {
        let state = self.step("look for free ports")?;
        let nics = state.nics.values().chain(state.dozing.values());
        let published = nics.flat_map(|nic| nic.ports.iter().map(|port| port.host));
        let given = wishes.iter().map(|wish| wish.host);
        let mut used: BTreeSet<u16> = published.chain(state.occupied_ports.iter().copied()).collect();
        if let Some(wish) = wishes.iter().find(|wish| used.contains(&wish.host)) {
            return Err(taken(*wish));
        }
        used.extend(given);
        let number = |wish: &Port| {
            let free = (FIRST_EPHEMERAL..=u16::MAX).find(|host| !used.contains(host));
            let host = if wish.host == 0 { free.unwrap_or(FIRST_EPHEMERAL) } else { wish.host };
            used.insert(host);
            Port { host, ..*wish }
        };
        Ok(wishes.iter().map(number).collect())
    }

    async fn unplug(&self, vm: VmId) -> Result<()> {
        let mut state = self.removal(Resource::Nic)?;
        state.nics.remove(&vm);
        state.dozing.remove(&vm);
        state.egress_logs.forget(vm);
        Ok(())
    }

    async fn doze(&self, nic: &Nic) -> Result<()> {
        let mut state = self.step("hold the ports of a suspended guest")?;
        put(&mut state, nic)?;
        state.nics.remove(&nic.vm);
        state.egress_logs.forget(nic.vm);
        state.dozing.insert(nic.vm, nic.clone());
        Ok(())
    }

    async fn wanted(&self) -> Wake {
        let wakes = Arc::clone(&self.lock().connections_to_wake);
        wakes.next().await
    }

    async fn found(&self) -> Result<Vec<VmId>> {
        let state = self.scan(Resource::Nic)?;
        let all: BTreeSet<VmId> = state.nics.keys().chain(state.dozing.keys()).copied().collect();
        Ok(all.into_iter().collect())
    }

    async fn checks(&self) -> Vec<Check> {
        vec![Check {
            name: "network",
            status: Status::Warn,
            message: "the network exists in memory only".to_owned(),
            hint: "start banger-system without --sim".to_owned(),
        }]
    }

    async fn nat_checks(&self) -> Vec<Check> {
        Vec::new()
    }

    async fn port_checks(&self) -> Vec<Check> {
        Vec::new()
    }
}

fn put(state: &mut State, nic: &Nic) -> Result<()> {
    let others = || state.nics.values().chain(state.dozing.values()).filter(|other| other.vm != nic.vm);
    let taken = nic
        .ports
        .iter()
        .find(|port| others().any(|other| other.ports.iter().any(|other| other.clashes_with(**port))));
    if let Some(port) = nic.ports.iter().find(|port| state.occupied_ports.contains(&port.host)) {
        return Err(self::taken(*port));
    }
    if let Some(port) = taken {
        let message = format!(
            "port {}/{} of the host is published by another sandbox; choose another one",
            port.host, port.protocol
        );
        return Err(Error::Taken { message });
    }
    state.nics.insert(nic.vm, nic.clone());
    if nic.is_restricted() {
        state.egress_logs.follow(nic.vm);
    }
    Ok(())
}

fn taken(port: Port) -> Error {
    let message = format!("port {}/{} of this host is taken; choose another one", port.host, port.protocol);
    Error::Taken { message }
}

fn require_plugged(state: &State, vm: VmId) -> Result<()> {
    match state.nics.contains_key(&vm) {
        true => Ok(()),
        false => {
            Err(Error::os("open the TAP of a sandbox", std::io::Error::from(std::io::ErrorKind::NotFound)))
        }
    }
}
