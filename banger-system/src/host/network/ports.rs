//! Published ports are reserved by bound sockets that do not listen, except while a guest sleeps (`doze.rs`). So a guest
//! gets no port that a program of the host uses, and no program of the host gets a published one.
//!
//! A port is bound at exactly the addresses from which the packet filter forwards to the guest. systemd keeps the
//! sockets while the service restarts.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use banger_domain::{
    id::VmId,
    net::port::{Port, Protocol, Scope},
};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, socket_with,
        sockopt::{set_ipv6_v6only, set_socket_reuseaddr, socket_type},
    },
};

use super::doze::stop_listening;

use crate::{
    host::process::descriptor_store::DescriptorStore,
    ports::{
        FromHost as _,
        network::{Error, Result},
    },
};

/// The reserved ports of guests. Clones share them.
#[derive(Debug, Default, Clone)]
pub(super) struct HeldPorts {
    held: Arc<Mutex<HashMap<VmId, BTreeMap<Port, Sockets>>>>,
    store: Arc<DescriptorStore>,
}

/// The sockets that reserve one port, one for each address family.
type Sockets = Vec<OwnedFd>;

impl HeldPorts {
    /// Returns a value without ports. Those of an earlier run are taken over from the store.
    pub(super) fn new(store: Arc<DescriptorStore>) -> Self {
        Self { held: Arc::default(), store }
    }

    /// Reserves exactly these ports for a guest. If one is taken, nothing changes. Blocks.
    pub(super) fn hold(&self, vm: VmId, ports: &BTreeSet<Port>) -> Result<()> {
        let mut all = self.lock();
        let mut new = BTreeMap::new();
        for port in ports.iter().filter(|port| !all.get(&vm).is_some_and(|held| held.contains_key(port))) {
            match take(*port, |address| self.inherit(vm, *port, address)) {
                Ok((sockets, _)) => new.insert(*port, sockets),
                Err(error) => {
                    new.insert(*port, Sockets::new());
                    self.let_go(vm, new);
                    return Err(error);
                }
            };
        }
        for (port, sockets) in &new {
            for (address, socket) in addresses(port.scope).iter().zip(sockets) {
                self.store.keep(&name(vm, *port, *address), socket);
            }
        }
        let held = all.remove(&vm).unwrap_or_default();
        let (still, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            held.into_iter().partition(|(port, _)| ports.contains(port));
        self.let_go(vm, gone);
        new.extend(still);
        if !new.is_empty() {
            all.insert(vm, new);
        }
        Ok(())
    }

    /// Reserves as many of these ports as are free, and no others. Returns the taken ones. Blocks.
    pub(super) fn hold_what_is_free(&self, vm: VmId, ports: &BTreeSet<Port>) -> Result<BTreeSet<Port>> {
        let (mut free, mut taken) = (BTreeSet::new(), BTreeSet::new());
        for port in ports {
            free.insert(*port);
            match self.hold(vm, &free) {
                Ok(()) => {}
                Err(Error::Taken { .. }) => {
                    free.remove(port);
                    taken.insert(*port);
                }
                Err(error) => return Err(error),
            }
        }
        self.hold(vm, &free)?;
        self.forget_left(vm);
        Ok(taken)
    }

    /// Releases all ports of a guest. Blocks.
    pub(super) fn release(&self, vm: VmId) {
        let gone = self.lock().remove(&vm).unwrap_or_default();
        self.let_go(vm, gone);
        self.forget_left(vm);
    }

    /// Returns the guests with ports of an earlier run that this one has not taken over.
    pub(super) fn found(&self) -> Vec<VmId> {
        self.store.left().iter().filter_map(|name| vm_of(name)).collect()
    }

    /// Releases the ports of all guests. Blocks.
    pub(super) fn release_all(&self) {
        let gone: Vec<_> = self.lock().drain().collect();
        gone.into_iter().for_each(|(vm, ports)| self.let_go(vm, ports));
    }

    /// Returns copies of the sockets that reserve the TCP ports of a guest.
    pub(super) fn tcp_sockets(&self, vm: VmId) -> io::Result<Vec<(Port, OwnedFd)>> {
        let all = self.lock();
        let held = all.get(&vm).into_iter().flatten();
        let tcp = held.filter(|(port, _)| port.protocol == Protocol::Tcp);
        let sockets = tcp.flat_map(|(port, sockets)| sockets.iter().map(|socket| (*port, socket)));
        sockets.map(|(port, socket)| Ok((port, socket.try_clone()?))).collect()
    }

    /// Stops listening on the ports of a guest, as the service did that ran before this one.
    pub(super) fn stop_listening(&self, vm: VmId) -> io::Result<()> {
        for (_, socket) in self.tcp_sockets(vm)? {
            stop_listening(&socket)?;
        }
        Ok(())
    }

    /// Returns the number of published ports.
    pub(super) fn count(&self) -> usize {
        self.lock().values().map(BTreeMap::len).sum()
    }

    /// Returns whether a TCP port of the host is published.
    pub(super) fn has_tcp(&self, number: u16) -> bool {
        let is_it = |port: &Port| port.protocol == Protocol::Tcp && port.host == number;
        self.lock().values().any(|ports| ports.keys().any(is_it))
    }

    /// Returns the socket with which an earlier run reserved a port.
    fn inherit(&self, vm: VmId, port: Port, address: IpAddr) -> Option<OwnedFd> {
        let name = name(vm, port, address);
        let socket = self.store.take(&name)?;
        let is_it = socket_type(&socket).is_ok_and(|found| found == kind(port.protocol))
            && bound_to(&socket).is_ok_and(|found| found == SocketAddr::new(address, port.host));
        if !is_it {
            self.store.forget([name.as_str()]);
        }
        is_it.then_some(socket)
    }

    /// Closes sockets, and asks systemd to close its copies: from then on others may take the ports.
    fn let_go(&self, vm: VmId, gone: BTreeMap<Port, Sockets>) {
        let names: Vec<String> = gone
            .keys()
            .flat_map(|port| addresses(port.scope).into_iter().map(|address| name(vm, *port, address)))
            .collect();
        drop(gone);
        self.store.forget(names.iter().map(String::as_str));
    }

    /// Closes the sockets of an earlier run that this one does not use.
    fn forget_left(&self, vm: VmId) {
        let left = self.store.left();
        self.store.forget(left.iter().map(String::as_str).filter(|name| vm_of(name) == Some(vm)));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VmId, BTreeMap<Port, Sockets>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the ports, each with a free number if it has none. Fails if another number is in use.
pub(super) fn free_ports(wishes: &[Port]) -> Result<Vec<Port>> {
    // All are bound at the same time, the given numbers first, so that none is chosen twice.
    let mut wishes = wishes.to_vec();
    wishes.sort_by_key(|wish| wish.host == 0);
    let bound = wishes.into_iter().map(|wish| take(wish, |_| None).map(|taken| (wish, taken)));
    let bound: Vec<_> = bound.collect::<Result<_>>()?;
    Ok(bound.iter().map(|(wish, (_, host))| Port { host: *host, ..*wish }).collect())
}

/// Returns the addresses of the host at which a port is published. The rules of the packet filter
/// (`banger-domain/src/net/ruleset.nft`, `publish` and `publish_here`) use the same ones.
fn addresses(scope: Scope) -> Vec<IpAddr> {
    match scope {
        Scope::Loopback => vec![Ipv4Addr::LOCALHOST.into()],
        Scope::All => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
    }
}

/// Returns the name of a socket in systemd's store.
fn name(vm: VmId, port: Port, address: IpAddr) -> String {
    let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
    format!("port-{vm}-{}-{}-{}-{family}", port.scope.as_str(), port.protocol, port.host)
}

/// Returns the guest for which the socket of this name reserves a port.
fn vm_of(name: &str) -> Option<VmId> {
    name.strip_prefix("port-")?.split('-').next()?.parse().ok()
}

fn kind(protocol: Protocol) -> SocketType {
    match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    }
}

/// Binds or inherits the sockets of a port. Returns them, and the kernel's choice if the port has no number.
fn take(port: Port, mut inherited: impl FnMut(IpAddr) -> Option<OwnedFd>) -> Result<(Sockets, u16)> {
    let mut number = port.host;
    let mut sockets = Sockets::new();
    for address in addresses(port.scope) {
        let socket = match inherited(address) {
            Some(socket) => Ok(socket),
            None => bound(port.protocol, SocketAddr::new(address, number)),
        };
        match socket.and_then(|socket| Ok((bound_to(&socket)?.port(), socket))) {
            Ok((bound, socket)) => {
                number = bound;
                sockets.push(socket);
            }
            // A kernel without IPv6 has nothing to reserve there.
            Err(Errno::AFNOSUPPORT) if address.is_ipv6() => {}
            Err(Errno::ADDRINUSE) => {
                let message =
                    format!("port {number}/{} of this host is taken; choose another one", port.protocol);
                return Err(Error::Taken { message });
            }
            Err(error) => {
                let error = io::Error::from(error);
                return Err(Error::os(format!("take port {number}/{}", port.protocol), error));
            }
        }
    }
    Ok((sockets, number))
}

/// Binds a socket. It shares its port with nobody: neither SO_REUSEADDR nor SO_REUSEPORT is set.
fn bound(protocol: Protocol, address: SocketAddr) -> Result<OwnedFd, Errno> {
    match (try_bind(protocol, address, false), protocol) {
        // What is left of connections that were carried to a guest does not count. A program that listens does, and so
        // does a socket without SO_REUSEADDR.
        (Err(Errno::ADDRINUSE), Protocol::Tcp) if address.port() != 0 => {
            let socket = try_bind(protocol, address, true)?;
            set_socket_reuseaddr(&socket, false)?;
            Ok(socket)
        }
        (bound, _) => bound,
    }
}

/// Listens on a bound socket, whatever is left of connections that were carried to a guest.
pub(super) fn listen_beside_remains(socket: &OwnedFd, backlog: i32) -> Result<(), Errno> {
    match listen(socket, backlog) {
        // Linux looks at the users of the port once more.
        Err(Errno::ADDRINUSE) => {
            set_socket_reuseaddr(socket, true)?;
            let listens = listen(socket, backlog);
            set_socket_reuseaddr(socket, false)?;
            listens
        }
        listens => listens,
    }
}

fn try_bind(protocol: Protocol, address: SocketAddr, beside_remains: bool) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind(protocol), SocketFlags::CLOEXEC, None)?;
    if address.is_ipv6() {
        set_ipv6_v6only(&socket, true)?;
    }
    if beside_remains {
        set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &address)?;
    Ok(socket)
}

fn bound_to(socket: &OwnedFd) -> Result<SocketAddr, Errno> {
    SocketAddr::try_from(getsockname(socket)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
    };

    use super::*;

    fn free(scope: Scope) -> Port {
        let wish = Port { scope, protocol: Protocol::Tcp, host: 0, guest: 80 };
        free_ports(&[wish]).unwrap().remove(0)
    }

    #[test]
    fn free_ports_differ_and_taken_ones_are_refused() {
        let wish = |host| Port { scope: Scope::Loopback, protocol: Protocol::Tcp, host, guest: 80 };
        let (given, wishes) = (free(Scope::Loopback), [wish(0); 20]);
        let found = free_ports(&[&wishes[..], &[given]].concat()).unwrap();
        let numbers: BTreeSet<u16> = found.iter().map(|port| port.host).collect();
        assert!(numbers.len() == 21 && numbers.contains(&given.host) && !numbers.contains(&0), "{numbers:?}");
        // Nothing is reserved.
        let program = TcpListener::bind(("127.0.0.1", given.host)).unwrap();
        assert!(matches!(free_ports(&[wish(0), given]), Err(Error::Taken { .. })));
        drop(program);
        free_ports(&[given]).unwrap();
    }

    #[test]
    fn a_port_is_held_once_and_never_taken_from_a_program() {
        let ports = HeldPorts::default();
        let (one, two) = (VmId::from_bits(1), VmId::from_bits(2));
        let port = free(Scope::Loopback);
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

    #[test]
    fn a_port_on_all_addresses_is_held_at_those_of_both_families() {
        let ports = HeldPorts::default();
        let (vm, port) = (VmId::from_bits(1), free(Scope::All));
        ports.hold(vm, &[port].into()).unwrap();
        for address in ["0.0.0.0", "127.0.1.1", "::", "::1"] {
            let address: IpAddr = address.parse().unwrap();
            assert!(TcpListener::bind((address, port.host)).is_err(), "{address}");
        }
        ports.release(vm);
        let address = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port.host);
        let program = bound(Protocol::Tcp, address).unwrap();
        assert!(matches!(ports.hold(vm, &[port].into()), Err(Error::Taken { .. })));
        drop(program);
    }

    #[test]
    fn ports_of_an_earlier_run_are_kept_or_released() {
        let (vm, port, old) = (VmId::from_bits(1), free(Scope::All), free(Scope::Loopback));
        let names =
            |port: Port| addresses(port.scope).into_iter().map(move |address| name(vm, port, address));
        let found = [port, old].map(|port| names(port).zip(take(port, |_| None).unwrap().0));
        let next = HeldPorts::new(Arc::new(DescriptorStore::of(found.into_iter().flatten())));
        assert_eq!(next.found(), [vm, vm, vm]);
        // A new socket could not be bound there.
        assert_eq!(next.hold_what_is_free(vm, &[port].into()).unwrap(), BTreeSet::new());
        assert!(TcpListener::bind(("127.0.0.1", port.host)).is_err());
        assert_eq!(next.found(), []);
        drop(TcpListener::bind(("127.0.0.1", old.host)).unwrap());
    }

    #[test]
    fn a_socket_that_is_not_what_its_name_says_holds_nothing() {
        let (vm, port, other) = (VmId::from_bits(1), free(Scope::Loopback), free(Scope::Loopback));
        let socket = take(other, |_| None).unwrap().0.remove(0);
        let store = DescriptorStore::of([(name(vm, port, Ipv4Addr::LOCALHOST.into()), socket)]);
        HeldPorts::new(Arc::new(store)).hold(vm, &[port].into()).unwrap();
        drop(TcpListener::bind(("127.0.0.1", other.host)).unwrap());
    }

    #[test]
    fn a_port_listens_for_a_while_and_stays_held() {
        let (ports, vm, port) = (HeldPorts::default(), VmId::from_bits(1), free(Scope::All));
        ports.hold(vm, &[port].into()).unwrap();
        let connect = || std::net::TcpStream::connect(("127.0.0.1", port.host));
        ports.stop_listening(vm).unwrap();
        for _ in 0..2 {
            assert!(connect().is_err());
            let sockets = ports.tcp_sockets(vm).unwrap();
            sockets.iter().for_each(|(_, socket)| listen(socket, 1).unwrap());
            let mut client = connect().unwrap();
            let (_, first) = sockets.into_iter().next().unwrap();
            let (mut accepted, _) = TcpListener::from(first).accept().unwrap();
            client.write_all(b"x").unwrap();
            accepted.read_exact(&mut [0]).unwrap();
            // The client closes first, so nothing is left at the port.
            drop((client, accepted));
            ports.stop_listening(vm).unwrap();
            ports.stop_listening(vm).unwrap();
            assert!(TcpListener::bind(("127.0.0.1", port.host)).is_err());
        }
        ports.release(vm);
        drop(TcpListener::bind(("127.0.0.1", port.host)).unwrap());
    }

    #[test]
    fn what_is_left_of_a_connection_does_not_keep_a_port() {
        let (ports, vm, port) = (HeldPorts::default(), VmId::from_bits(1), free(Scope::Loopback));
        ports.hold(vm, &[port].into()).unwrap();
        let socket = ports.tcp_sockets(vm).unwrap().remove(0).1;
        listen(&socket, 1).unwrap();
        let listener = TcpListener::from(socket);
        let mut client = std::net::TcpStream::connect(("127.0.0.1", port.host)).unwrap();
        let (ours, _) = listener.accept().unwrap();
        set_socket_reuseaddr(&ours, true).unwrap();
        // This side closes first, so the port is in use for a minute.
        drop((ours, listener));
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        ports.release(vm);
        ports.hold(vm, &[port].into()).unwrap();
        assert!(TcpListener::bind(("127.0.0.1", port.host)).is_err(), "a program shares it");
        let socket = ports.tcp_sockets(vm).unwrap().remove(0).1;
        listen_beside_remains(&socket, 1).unwrap();
        std::net::TcpStream::connect(("127.0.0.1", port.host)).unwrap();
        assert!(TcpListener::bind(("127.0.0.1", port.host)).is_err(), "a program shares it");
    }

    #[test]
    fn taken_ports_are_reported_and_the_rest_is_held() {
        let ports = HeldPorts::default();
        let (ours, theirs) = (free(Scope::Loopback), free(Scope::Loopback));
        let program = TcpListener::bind(("127.0.0.1", theirs.host)).unwrap();
        let taken = ports.hold_what_is_free(VmId::from_bits(1), &[ours, theirs].into()).unwrap();
        assert_eq!(taken, BTreeSet::from([theirs]));
        assert!(TcpListener::bind(("127.0.0.1", ours.host)).is_err());
        drop(program);
        assert_eq!(ports.count(), 1);
    }
}
