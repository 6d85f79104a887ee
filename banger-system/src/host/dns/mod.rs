//! Names of guests on Linux: a DNS server on the host's addresses in the guest network, and a systemd-resolved that
//! is configured to ask it.
//!
//! The server starts when the first names are published, which is after the link with these addresses was made. A
//! socket that fails is opened again.

mod checks;
mod forward;
mod gate;
mod lookups;
mod message;
mod quota;
mod refused;
mod resolved;
mod server;
mod socket;
mod upstream;
mod waking;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use banger_domain::{
    dns::{PORT, table::Table},
    id::VmId,
};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, netdevice::name_to_index, socket_with},
};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
};
use zbus::Connection;

use self::{
    lookups::Lookups,
    quota::Quotas,
    refused::Refused,
    resolved::Resolved,
    server::{Server, serve_connections, serve_datagrams},
    upstream::{RESOLV_CONF, Upstreams},
};
use crate::{
    ports::{
        Check,
        names::{self, Names},
        network::Network,
        wake::{Wake, Wakes},
    },
    tasks::{Task, Tasks},
};

/// The first and the longest wait before a socket is opened again.
const MIN_RETRY: Duration = Duration::from_millis(250);
const MAX_RETRY: Duration = Duration::from_secs(15);

/// The current names; `None` before the network is set up.
type Published = watch::Receiver<Option<Arc<Table>>>;

/// The name server.
pub struct NameServer {
    names: watch::Sender<Option<Arc<Table>>>,
    sockets: Sockets,
    refused: Refused,
    lookups: Lookups,
    wakes: Arc<Wakes>,
    resolved: Arc<Resolved>,
    task: AbortHandle,
}

impl NameServer {
    /// Returns a server that starts with the first names, and configures the systemd-resolved on this bus. The network
    /// lets restricted guests reach what the server answers. Must be called in a runtime.
    pub fn new(bus: Connection, network: Arc<dyn Network>, tasks: &Tasks) -> Self {
        Self::with_resolvers(bus, network, RESOLV_CONF.into(), tasks)
    }

    /// Returns a server that reads the host's resolvers from this file.
    pub fn with_resolvers(
        bus: Connection,
        network: Arc<dyn Network>,
        resolv_conf: PathBuf,
        tasks: &Tasks,
    ) -> Self {
        let (names, published) = watch::channel(None);
        let sockets = Sockets::default();
        let (resolved, refused) = (Arc::new(Resolved::new(bus)), Refused::default());
        let lookups = Lookups::default();
        let wakes = Arc::<Wakes>::default();
        let told = (sockets.clone(), refused.clone(), lookups.clone(), Arc::clone(&wakes));
        let serving = run(published, (resolv_conf, network), told, Arc::clone(&resolved));
        let task = tasks.spawn(Task::NameServer, serving);
        Self { names, sockets, refused, lookups, wakes, resolved, task }
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[async_trait]
impl Names for NameServer {
    fn publish(&self, names: Arc<Table>) {
        self.names.send_replace(Some(names));
    }

    fn refused(&self, vm: VmId) -> u64 {
        self.refused.of(vm)
    }

    fn lookups(&self) -> names::Lookups {
        self.lookups.counts()
    }

    async fn wanted(&self) -> Wake {
        self.wakes.next().await
    }

    async fn withdraw(&self) {
        self.task.abort();
        self.resolved.withdraw().await;
    }

    async fn checks(&self) -> Vec<Check> {
        let names = self.names.borrow().clone();
        checks::all(names.as_deref(), &self.sockets.failures(), &self.resolved.state())
    }
}

/// The state of each socket: the error for which it does not serve, if any.
#[derive(Clone, Default)]
struct Sockets(Arc<Mutex<Failures>>);

type Failures = BTreeMap<(SocketAddr, Kind), Option<String>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Datagrams,
    Connections,
}

impl Sockets {
    /// Notes the state of a socket. Returns whether it changed.
    fn note(&self, at: SocketAddr, kind: Kind, failure: Option<String>) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert((at, kind), failure.clone()) != Some(failure)
    }

    fn failures(&self) -> Vec<(SocketAddr, String)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(|((at, _), failure)| Some((*at, failure.clone()?))).collect()
    }
}

/// Runs until it is aborted.
async fn run(
    mut names: Published,
    (resolv_conf, network): (PathBuf, Arc<dyn Network>),
    (sockets, refused, lookups, wakes): (Sockets, Refused, Lookups, Arc<Wakes>),
    resolved: Arc<Resolved>,
) {
    let Ok(first) = names.wait_for(Option::is_some).await.map(|names| names.clone()) else { return };
    let Some(subnet) = first.map(|names| names.subnet()) else { return };
    let (gateway4, gateway6) = subnet.gateway();
    let server = Arc::new(Server {
        names: names.clone(),
        quotas: Quotas::default(),
        refused,
        lookups,
        network,
        upstreams: Upstreams::new(resolv_conf),
        wakes,
    });
    let mut parts = JoinSet::new();
    for address in [IpAddr::from(gateway4), IpAddr::from(gateway6)] {
        for kind in [Kind::Datagrams, Kind::Connections] {
            let at = SocketAddr::new(address, PORT);
            parts.spawn(keep_socket(Arc::clone(&server), at, kind, sockets.clone()));
        }
    }
    let told = names.clone();
    parts.spawn(async move { resolved.keep(subnet, told).await });
    loop {
        tokio::select! {
            changed = names.changed() => if changed.is_err() { return },
            // None of them ends by itself.
            Some(ended) = parts.join_next() => match ended {
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                _ => return,
            },
        }
        let current = names.borrow_and_update().clone();
        if let Some(current) = current {
            server.quotas.retain(&current);
            server.refused.retain(&current);
        }
    }
}

/// Serves at an address until aborted. On a host without IPv6, that address never appears.
async fn keep_socket(server: Arc<Server>, at: SocketAddr, kind: Kind, sockets: Sockets) {
    let mut wait = MIN_RETRY;
    loop {
        let served = async {
            match kind {
                Kind::Datagrams => {
                    let socket = socket::datagrams(at)?;
                    sockets.note(at, kind, None);
                    serve_datagrams(&server, socket).await
                }
                Kind::Connections => {
                    let listener = socket::connections(at)?;
                    sockets.note(at, kind, None);
                    serve_connections(&server, listener).await
                }
            }
        };
        if let Err(error) = served.await
            && sockets.note(at, kind, Some(error.to_string()))
        {
            let missing = error.raw_os_error() == Some(Errno::ADDRNOTAVAIL.raw_os_error());
            if at.is_ipv6() && missing {
                tracing::debug!(%at, %error, "cannot serve names at an address");
            } else {
                tracing::error!(%at, ?kind, %error, "cannot serve names at an address");
            }
            // It may have served for a long time.
            wait = MIN_RETRY;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(MAX_RETRY);
    }
}

/// Returns the index of a link. `None` if there is no such link.
fn link_index(name: &str) -> io::Result<Option<u32>> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    match name_to_index(&socket, name) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::NODEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
