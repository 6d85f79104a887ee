//! Published ports are held by sockets of the service on which nobody listens: so a guest takes no port that
//! a program of the host has, and no program of the host gets one that leads to a guest.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with};

use crate::{
    domain::{
        id::VmId,
        net::port::{Port, Protocol, Scope},
    },
    ports::{Error, Result},
};

/// The ports of guests, held.
#[derive(Debug, Default)]
pub(super) struct HeldPorts(Mutex<HashMap<VmId, BTreeMap<Port, OwnedFd>>>);

impl HeldPorts {
    /// Holds these ports for a guest, and no others. When one of them is taken nothing changes.
    pub(super) fn hold(&self, vm: VmId, ports: &BTreeSet<Port>) -> Result<()> {
        let mut all = self.lock();
        let mut held = BTreeMap::new();
        for port in ports.iter().filter(|port| !all.get(&vm).is_some_and(|held| held.contains_key(port))) {
            held.insert(*port, take(*port)?.0);
        }
        held.extend(all.remove(&vm).unwrap_or_default().into_iter().filter(|(port, _)| ports.contains(port)));
        if !held.is_empty() {
            all.insert(vm, held);
        }
        Ok(())
    }

    /// Lets go of all ports of a guest.
    pub(super) fn release(&self, vm: VmId) {
        self.lock().remove(&vm);
    }

    /// How many ports lead to guests.
    pub(super) fn count(&self) -> usize {
        self.lock().values().map(BTreeMap::len).sum()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VmId, BTreeMap<Port, OwnedFd>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The port with a number that is free, when it has none yet.
pub(super) fn numbered(port: Port) -> Result<Port> {
    match port.host {
        0 => take(port).map(|(_, host)| Port { host, ..port }),
        _ => Ok(port),
    }
}

/// The socket, and the number that the kernel chose where the port has none.
fn take(port: Port) -> Result<(OwnedFd, u16)> {
    let (address, kind) = match (port.scope, port.protocol) {
        (Scope::Loopback, Protocol::Tcp) => (Ipv4Addr::LOCALHOST, SocketType::STREAM),
        (Scope::Loopback, Protocol::Udp) => (Ipv4Addr::LOCALHOST, SocketType::DGRAM),
        (Scope::All, Protocol::Tcp) => (Ipv4Addr::UNSPECIFIED, SocketType::STREAM),
        (Scope::All, Protocol::Udp) => (Ipv4Addr::UNSPECIFIED, SocketType::DGRAM),
    };
    let bound = || -> io::Result<(OwnedFd, u16)> {
        let socket = socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddrV4::new(address, port.host))?;
        let name = SocketAddrV4::try_from(getsockname(&socket)?)?;
        Ok((socket, name.port()))
    };
    bound().map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => Error::Taken {
            message: format!(
                "port {}/{} of this host is taken; choose another one",
                port.host, port.protocol
            ),
        },
        _ => Error::os(format!("take port {}/{}", port.host, port.protocol), error),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_port_is_held_once_and_never_taken_from_a_program() {
        let ports = HeldPorts::default();
        let (one, two) = (VmId::from_bits(1), VmId::from_bits(2));
        let wish = Port { scope: Scope::Loopback, protocol: Protocol::Tcp, host: 0, guest: 80 };
        let port = numbered(wish).unwrap();
        ports.hold(one, &[port].into()).unwrap();
        ports.hold(one, &[port].into()).unwrap();
        assert!(matches!(ports.hold(two, &[port].into()), Err(Error::Taken { .. })));
        assert!(TcpListener::bind(("127.0.0.1", port.host)).is_err());
        ports.release(one);
        let program = TcpListener::bind(("127.0.0.1", port.host)).unwrap();
        assert!(ports.hold(two, &[port].into()).is_err());
        drop(program);
        ports.hold(two, &[port].into()).unwrap();
        ports.hold(two, &BTreeSet::new()).unwrap();
        assert!(ports.lock().is_empty());
    }
}
