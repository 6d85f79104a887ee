//! Holds the published ports of suspended guests, and carries the connections that wake them.
//!
//! The socket that reserves a port (`ports.rs`) listens while its guest is suspended. Each connection asks for the guest, and
//! is carried to it once it runs. From then on the packet filter forwards to the guest, so the service carries nothing but
//! the connections that came before.
//!
//! ```text
//!   doze    listen; the rules and the TAP of the guest are removed
//!   client ──► accept ──► request to wake ──► the guest runs ──► connect, carry
//!                                        └──► refused: reset
//!   plug    the rules are made; a handshake that has begun before is waited for; then the socket stops listening
//! ```
//!
//! While the service is down, systemd holds the listening socket, and so connections wait for the next service.

use core::net::{IpAddr, SocketAddr};
use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use banger_domain::{
    id::VmId,
    net::{nic::Nic, port::Port},
};
use rustix::{
    io::Errno,
    net::{
        Shutdown, shutdown,
        sockopt::{set_socket_reuseaddr, socket_acceptconn},
    },
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};

use super::ports::listen_beside_remains;
use crate::ports::wake::{Cause, Wakes, Woken};

/// How many connections to one suspended guest are carried or wait at a time; to those of one owner; and to all. Others are
/// closed.
const CONNECTIONS_OF_ONE: usize = 32;
const CONNECTIONS_OF_OWNER: usize = 64;
const CONNECTIONS_OF_ALL: usize = 256;
/// How many connections the kernel keeps that are not accepted yet.
const BACKLOG: i32 = 32;
/// How long a socket listens on after the rules forward to the guest, for handshakes that began before that.
const LAST_HANDSHAKES: Duration = Duration::from_secs(3);
/// How long the guest may take to accept. It ran a moment ago, so its program listens.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait if the process has no descriptor left for a connection.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// The guests that doze, or have been woken and still have connections that the service carries.
pub(super) struct Dozing {
    guests: Mutex<HashMap<VmId, Dozer>>,
    owners: Mutex<HashMap<u32, Arc<Semaphore>>>,
    all: Arc<Semaphore>,
    wakes: Arc<Wakes>,
}

/// One of them. Dropping it closes its connections.
struct Dozer {
    ports: HashMap<Port, JoinSet<()>>,
    awake: watch::Sender<bool>,
    connections: Arc<Semaphore>,
    is_over: IsOver,
}

/// Whether a dozer was dropped. Its tasks may run on for a moment, and must not stop the next one's listening, which uses the
/// same sockets.
type IsOver = Arc<Mutex<bool>>;

impl Drop for Dozer {
    fn drop(&mut self) {
        *self.is_over.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }
}

impl Default for Dozing {
    fn default() -> Self {
        Self {
            guests: Mutex::default(),
            owners: Mutex::default(),
            all: Arc::new(Semaphore::new(CONNECTIONS_OF_ALL)),
            wakes: Arc::default(),
        }
    }
}

/// What a listener needs.
#[derive(Clone)]
struct Doorway {
    vm: VmId,
    port: Port,
    /// The guest's address of the same family.
    guest: SocketAddr,
    /// Of this guest, of its owner, and of all.
    limits: [Arc<Semaphore>; 3],
    wakes: Arc<Wakes>,
    awake: watch::Receiver<bool>,
    is_over: IsOver,
}

impl Dozing {
    /// Waits for the next connection to a guest that dozes.
    pub(super) fn wakes(&self) -> Arc<Wakes> {
        Arc::clone(&self.wakes)
    }

    /// Listens on the sockets of these ports, and on no other ones of the guest. Ports on which it listens already keep
    /// their connections. Must be called in a runtime.
    pub(super) fn begin(&self, nic: &Nic, sockets: Vec<(Port, OwnedFd)>) -> io::Result<()> {
        let of_owner = self.of_owner(nic);
        let mut guests = self.lock();
        // What was carried to its last boot ends with that.
        guests.retain(|vm, dozer| *vm != nic.vm || !*dozer.awake.borrow());
        let dozer = guests.entry(nic.vm).or_insert_with(|| Dozer {
            ports: HashMap::new(),
            awake: watch::channel(false).0,
            connections: Arc::new(Semaphore::new(CONNECTIONS_OF_ONE)),
            is_over: IsOver::default(),
        });
        dozer.ports.retain(|port, _| sockets.iter().any(|(other, _)| other == port));
        let begun: Vec<Port> = dozer.ports.keys().copied().collect();
        for (port, socket) in sockets {
            if begun.contains(&port) {
                continue;
            }
            listen_beside_remains(&socket, BACKLOG)?;
            let listener = std::net::TcpListener::from(socket);
            listener.set_nonblocking(true)?;
            let address: IpAddr = match listener.local_addr()?.ip() {
                IpAddr::V4(_) => nic.v4.into(),
                IpAddr::V6(_) => nic.v6.into(),
            };
            let doorway = Doorway {
                vm: nic.vm,
                port,
                guest: SocketAddr::new(address, port.guest),
                limits: [Arc::clone(&dozer.connections), Arc::clone(&of_owner), Arc::clone(&self.all)],
                wakes: Arc::clone(&self.wakes),
                awake: dozer.awake.subscribe(),
                is_over: Arc::clone(&dozer.is_over),
            };
            let listener = TcpListener::from_std(listener)?;
            dozer.ports.entry(port).or_default().spawn(serve(doorway, listener));
        }
        Ok(())
    }

    /// Notes that the packet filter forwards to a guest now. Returns whether it dozed before this boot.
    pub(super) fn wake(&self, vm: VmId) -> bool {
        self.lock().get(&vm).map(|dozer| dozer.awake.send_replace(true)).is_some()
    }

    /// Closes the connections to ports that are no longer published.
    pub(super) fn keep(&self, nic: &Nic) {
        if let Some(dozer) = self.lock().get_mut(&nic.vm) {
            dozer.ports.retain(|port, _| nic.ports.contains(port));
        }
    }

    /// Closes all connections to a guest, and stops listening for it.
    pub(super) fn end(&self, vm: VmId) {
        self.lock().remove(&vm);
    }

    /// Closes all connections to all guests.
    pub(super) fn end_all(&self) {
        self.lock().clear();
    }

    fn of_owner(&self, nic: &Nic) -> Arc<Semaphore> {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
        let new = || Arc::new(Semaphore::new(CONNECTIONS_OF_OWNER));
        Arc::clone(owners.entry(nic.owner.0).or_insert_with(new))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VmId, Dozer>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a socket a bound one again that does not listen. Does nothing if it does not listen.
pub(super) fn stop_listening(socket: &OwnedFd) -> Result<(), Errno> {
    // Linux lets a listening socket keep its port: inet_shutdown() in net/ipv4/af_inet.c. It notes the shutdown of one
    // that does not listen, and then nothing could be read from connections that it accepts later.
    match socket_acceptconn(socket)? {
        true => shutdown(socket, Shutdown::Read),
        false => Ok(()),
    }
}

/// Accepts connections until the guest runs and all of them are accepted, and carries those that there are.
async fn serve(doorway: Doorway, listener: TcpListener) {
    let mut carried = JoinSet::new();
    let mut awake = doorway.awake.clone();
    let last = async {
        // The sender is dropped with this task only.
        let _ = awake.wait_for(|awake| *awake).await;
        tokio::time::sleep(LAST_HANDSHAKES).await;
    };
    tokio::pin!(last);
    let mut has_warned = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut last => break,
            Some(_) = carried.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                has_warned = false;
                match doorway.permits() {
                    Some(permits) => drop(carried.spawn(carry(doorway.clone(), stream, permits))),
                    None => reset(stream),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            // It does not listen any more.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
            Err(error) => {
                if !std::mem::replace(&mut has_warned, true) {
                    tracing::warn!(vm = %doorway.vm, port = %doorway.port, %error, "cannot accept a connection");
                }
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
    if let Ok(listener) = listener.into_std()
        && let Err(error) = doorway.stop_listening(&listener.into())
    {
        tracing::warn!(vm = %doorway.vm, port = %doorway.port, %error, "a published port still listens");
    }
    while carried.join_next().await.is_some() {}
}

impl Doorway {
    fn stop_listening(&self, socket: &OwnedFd) -> Result<(), Errno> {
        let is_over = self.is_over.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_over { Ok(()) } else { stop_listening(socket) }
    }

    fn permits(&self) -> Option<Vec<OwnedSemaphorePermit>> {
        self.limits.iter().map(|limit| Arc::clone(limit).try_acquire_owned().ok()).collect()
    }
}

/// Wakes the guest, and carries a connection to it until both sides have closed it.
async fn carry(doorway: Doorway, mut client: TcpStream, _permits: Vec<OwnedSemaphorePermit>) {
    // Its remains must not keep the port from the next boot (`ports.rs`).
    let _ = set_socket_reuseaddr(&client, true);
    if doorway.wakes.wake(doorway.vm, Cause::Port(doorway.port.host)).await == Woken::No {
        return reset(client);
    }
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(doorway.guest)).await;
    let Ok(Ok(mut guest)) = connected else { return reset(client) };
    let _ = (client.set_nodelay(true), guest.set_nodelay(true));
    // A side that fails closes the other one.
    let _ = copy_bidirectional(&mut client, &mut guest).await;
}

/// Closes a connection as if nobody had listened.
fn reset(stream: TcpStream) {
    let _ = stream.set_zero_linger();
}
