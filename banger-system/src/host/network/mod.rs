//! The network of guests on Linux: a routed TAP for each guest, and a table of the kernel's packet filter.
//!
//! ```text
//!   guest ── virtio-net ── VMM ── TAP bgr-… ── routes ── other TAPs, host (banger0), uplinks
//!                                    │
//!                                    ▼
//!                        table inet banger: who may reach whom
//!                          rules    made once              (ruleset.nft)
//!                          sets     elements of each guest (banger_domain::net::element)
//! ```
//!
//! There is no bridge. Each guest has a point-to-point route, and the link `banger0` holds the host's addresses,
//! which are the gateway and the DNS server of all guests ([`links`]). What the parts do, and when:
//!
//! | step | what happens | file |
//! |---|---|---|
//! | prepare, at the first start of a sandbox | `banger0` and the rules are made | [`links`], [`filter`] |
//! | plug, at each start | a TAP from the pool gets its name, addresses and elements | [`pool`], [`tap`], [`batch`] |
//! | change, while it runs | ports are reserved, then elements are swapped in one step | [`ports`], [`filter`] |
//! | doze, while it is suspended and wakes when it is used | TAP and elements are removed, and the sockets of its ports listen | [`doze`] |
//! | unplug | TAP, elements and reserved ports are removed; what is gone already counts as success | |
//! | maintain, all the time | flushed rules are made again, forwarding follows the default route, and neighbours the links | [`watch`], [`forwarding`] |
//!
//! The order matters for security. When access is opened, the restrictions come first and the permissions last; when
//! it is closed, it is the other way round. A new TAP is not persistent until everything is in place, so a failure in
//! between leaves nothing.
//!
//! The names and addresses of a guest are functions of its id and slot (`banger_domain::net`). So after a crash the
//! service finds everything again in the kernel: [`LinuxNetwork`] reports what exists, and recovery decides what
//! stays. Two things need a memory outside of the kernel's tables: systemd keeps the sockets that reserve published
//! ports, and a set of the table has the links whose forwarding was enabled for guests, to be disabled with the last
//! one.
//!
//! Guests are hostile, and so may be users of the host. A guest can send anything on its TAP; the rules drop packets with
//! another source address. A guest reaches no service of the host except DNS. Nobody reaches a guest except root, processes
//! and other guests of its owner, and clients of its published ports. docs/network.md says more.

mod batch;
mod checks;
mod denials;
mod doze;
mod filter;
mod forwarding;
mod grants;
mod links;
mod neighbours;
mod nft;
mod pool;
mod ports;
mod stream;
mod tap;
mod watch;

use core::net::{IpAddr, SocketAddr};
use std::{
    collections::BTreeSet,
    convert::Infallible,
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use banger_domain::{
    egress::{
        address::Neighbours,
        host_name::HostName,
        log::{Denial, EgressLog, EgressLogs, Totals},
    },
    id::{Uid, VmId},
    net::{
        TABLE,
        element::Ipv6,
        nic::{Nic, TapName, tap_alias, vm_of_alias},
        port::Port,
        prefix::Prefix4,
        subnet::Subnet,
    },
};
use crabtables::{AsyncMonitor, Object, monitor::Event};
use tokio::{sync::Notify, time::MissedTickBehavior};

use self::{
    denials::{COLLECT, Failing, now},
    doze::Dozing,
    filter::Filter,
    grants::Granting,
    links::{Link, Links},
    pool::{TapPool, WarmTap},
    ports::HeldPorts,
    tap::NewTap,
    watch::Watch,
};
use super::{blocking::blocking, process::descriptor_store::DescriptorStore};
use crate::{
    ports::{
        Check, FromHost as _, HostError,
        network::{Connections, Error, Granted, Network, Restored, Result},
        wake::Wake,
    },
    tasks::Tasks,
};

/// The network of guests in the network namespace of the process.
pub struct LinuxNetwork {
    links: Links,
    filter: Filter,
    ports: HeldPorts,
    dozing: Dozing,
    pool: TapPool,
    prepared: Mutex<Option<Subnet>>,
    /// Whether forwarding was enabled once; from then on [`LinuxNetwork::maintain`] updates it.
    outside_is_open: AtomicBool,
    /// The networks on the links of the host.
    neighbours: Mutex<Arc<Neighbours>>,
    /// What restricted guests were allowed and denied.
    egress_logs: Mutex<EgressLogs>,
    /// Notified when a guest was denied something.
    denied: Notify,
}

impl LinuxNetwork {
    /// Returns the network, without making anything yet. From the first start on, `warm_taps` TAPs are kept ready. The
    /// sockets that reserve published ports are kept in `store`. Must be called in a runtime.
    pub fn new(warm_taps: usize, store: Arc<DescriptorStore>, tasks: &Tasks) -> Result<Self> {
        let links =
            Links::new(tasks).map_err(|source| Error::os("talk to the kernel about links", source))?;
        Ok(Self {
            pool: TapPool::new(warm_taps, links.clone()),
            links,
            filter: Filter::default(),
            ports: HeldPorts::new(store),
            dozing: Dozing::default(),
            prepared: Mutex::default(),
            outside_is_open: AtomicBool::default(),
            neighbours: Mutex::default(),
            egress_logs: Mutex::default(),
            denied: Notify::default(),
        })
    }

    /// Returns whether a TCP port of the host is published.
    pub fn is_published(&self, port: u16) -> bool {
        self.ports.has_tcp(port)
    }

    /// Returns the TAP of a sandbox, if it has one. Another link of that name is an error.
    async fn tap(&self, vm: VmId) -> Result<Option<Link>> {
        let link = self.links.find(TapName::of(vm).as_str()).await?;
        match link {
            Some(link) if link.alias != tap_alias(vm) => Err(Error::Taken {
                message: format!(
                    "the host has a link {} that is not the sandbox's; rename it or remove it",
                    link.name
                ),
            }),
            link => Ok(link),
        }
    }

    /// Maintains what all guests share: makes the rules again after somebody flushed the packet filter, and follows the
    /// host's default routes. Returns only with an error. Run it as a task.
    pub async fn maintain(&self) -> Result<Infallible> {
        let watch = Watch::new().map_err(|source| Error::os("watch the routes of the host", source))?;
        let mut rules = AsyncMonitor::new().map_err(|error| Error::other(WATCH_RULES, error))?;
        let mut collect = tokio::time::interval(COLLECT);
        collect.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = Failing::default();
        // They may have changed while nobody watched.
        self.follow_neighbours().await?;
        loop {
            tokio::select! {
                changed = watch.changed() => {
                    changed.map_err(|source| Error::os("watch the routes of the host", source))?;
                    self.follow_links().await?;
                }
                // What is not counted now is counted later; nothing else depends on it.
                _ = collect.tick() => failing.note(self.collect_denials().await),
                events = rules.recv() => {
                    let events = events.map_err(|error| Error::other(WATCH_RULES, error))?;
                    if events.iter().any(is_about_a_lost_table) {
                        self.restore_rules().await?;
                    }
                }
            }
        }
    }

    /// Makes the rules again if they are gone.
    async fn restore_rules(&self) -> Result<()> {
        let prepared = *self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        let filter = self.filter.clone();
        let there = blocking("look for the rules of the packet filter", move || filter.is_there()).await?;
        match prepared {
            Some(subnet) if !there => {
                tracing::warn!("the rules of the packet filter were removed; adding them again");
                self.prepare(subnet).await
            }
            _ => Ok(()),
        }
    }

    /// Follows the links and the default routes of the host. Neither part waits for the other one to work.
    async fn follow_links(&self) -> Result<()> {
        let neighbours = self.follow_neighbours().await;
        self.follow_way_out().await.and(neighbours)
    }

    async fn follow_way_out(&self) -> Result<()> {
        let filter = self.filter.clone();
        match blocking("look for guests", move || Ok::<_, Error>(filter.reaches_outside())).await? {
            true => drop(self.open_outside().await?),
            // The next guest that needs forwarding enables it again.
            false => self.outside_is_open.store(false, Ordering::Relaxed),
        }
        Ok(())
    }

    /// Looks at the networks on the links of the host.
    async fn follow_neighbours(&self) -> Result<()> {
        let neighbours = match forwarding::ipv6() {
            Ipv6::Absent => Neighbours::default(),
            Ipv6::Local | Ipv6::Forwarded => self.links.neighbours().await?,
        };
        *self.neighbours.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(neighbours.clone());
        let filter = self.filter.clone();
        blocking("set the neighbours of the host", move || filter.set_neighbours(neighbours)).await
    }

    /// Enables forwarding for the current uplinks, and disables it for earlier ones. Returns whether it was not so before.
    async fn open_outside(&self) -> Result<bool> {
        // A host that its administrator made a router needs nothing, and must stay one.
        let router = forwarding::forwards_everything();
        let outside = if router { BTreeSet::new() } else { self.links.outside().await? };
        let filter = self.filter.clone();
        let changed = blocking("turn forwarding on", move || {
            let before = filter.opened()?;
            let changed = before != outside || !outside.iter().all(|link| forwarding::is_open(link));
            let both = if router { before.clone() } else { before.union(&outside).cloned().collect() };
            if !router {
                // First the restrictions, then the permissions.
                filter.mark_opened(&before, &both)?;
                outside.iter().try_for_each(|link| forwarding::open(link))?;
                before.difference(&outside).try_for_each(|link| forwarding::close(link))?;
            }
            filter.mark_opened(&both, &outside)?;
            Ok::<_, Error>(changed)
        })
        .await?;
        self.outside_is_open.store(true, Ordering::Relaxed);
        Ok(changed)
    }

    /// Reserves exactly these ports for a guest.
    async fn hold_ports(&self, vm: VmId, ports: BTreeSet<Port>) -> Result<()> {
        let held = self.ports.clone();
        blocking("hold the ports of a guest", move || held.hold(vm, &ports)).await
    }

    /// Gives a guest these rules instead of those that it has.
    async fn put(&self, nic: &Nic) -> Result<()> {
        let (filter, nic) = (self.filter.clone(), nic.clone());
        blocking("change the network rules of a guest", move || filter.put(&nic)).await
    }

    /// Removes what a guest has beside its published ports.
    async fn remove_interface(&self, vm: VmId) -> Result<()> {
        let filter = self.filter.clone();
        blocking("remove a guest from the packet filter", move || filter.remove(vm)).await?;
        self.logs().forget(vm);
        match self.links.find(TapName::of(vm).as_str()).await? {
            Some(link) if link.alias == tap_alias(vm) => self.links.remove(&link).await,
            // There is none, or it is another program's.
            _ => Ok(()),
        }
    }

    async fn open_outside_for(&self, nic: &Nic) -> Result<()> {
        match nic.reaches_outside() && !self.outside_is_open.load(Ordering::Relaxed) {
            true => self.open_outside().await.map(drop),
            false => Ok(()),
        }
    }
}

/// What failed, in errors.
const WATCH_RULES: &str = "watch the rules of the packet filter";

/// Returns whether our table may be gone: it was deleted, or messages were lost.
fn is_about_a_lost_table(event: &Event) -> bool {
    match event {
        Event::Del(Object::Table(table)) => table.name == TABLE,
        event => matches!(event, Event::Overrun),
    }
}

#[async_trait]
impl Network for LinuxNetwork {
    async fn occupied(&self) -> Result<Vec<Prefix4>> {
        self.links.occupied().await
    }

    async fn prepare(&self, subnet: Subnet) -> Result<()> {
        let ipv6 = forwarding::ipv6();
        self.links.make_shared(subnet, ipv6).await?;
        let filter = self.filter.clone();
        blocking("make the rules of the packet filter", move || filter.prepare(subnet, ipv6)).await?;
        *self.prepared.lock().unwrap_or_else(PoisonError::into_inner) = Some(subnet);
        // Before a guest can look anything up.
        self.follow_neighbours().await?;
        let guests = self.filter.clone();
        match blocking("look for guests", move || Ok::<_, Error>(guests.reaches_outside())).await? {
            true => self.open_outside().await.map(drop),
            false => Ok(()),
        }
    }

    async fn restore(&self) -> Result<Restored> {
        let prepared = *self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(subnet) = prepared else { return Ok(Restored::default()) };
        let ipv6 = forwarding::ipv6();
        let link = self.links.make_shared(subnet, ipv6).await?;
        let filter = self.filter.clone();
        let restored = blocking("restore the packet filter", move || filter.restore(ipv6)).await?;
        self.follow_neighbours().await?;
        let guests = self.filter.clone();
        let reaches = blocking("look for guests", move || Ok::<_, Error>(guests.reaches_outside())).await?;
        let forwarding = reaches && self.open_outside().await?;
        Ok(Restored { link, forwarding, ..restored })
    }

    async fn withdraw(&self) -> Result<()> {
        let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.outside_is_open.store(false, Ordering::Relaxed);
        while self.pool.take().is_some() {}
        let filter = self.filter.clone();
        blocking("remove the rules of the packet filter", move || {
            // First the permissions, then the restrictions.
            filter.opened()?.iter().try_for_each(|link| forwarding::close(link))?;
            filter.withdraw()
        })
        .await?;
        match prepared {
            Some(subnet) => self.links.remove_shared(subnet).await,
            None => Ok(()),
        }
    }

    async fn plug(&self, nic: &Nic) -> Result<()> {
        let (name, ipv6) = (nic.tap(), forwarding::ipv6());
        self.hold_ports(nic.vm, nic.ports.clone()).await?;
        let (new, link) = match self.tap(nic.vm).await? {
            Some(link) => (None, link.index),
            None => {
                let WarmTap { tap, index } = match self.pool.take() {
                    Some(warm) => warm,
                    None => self.pool.make().await?,
                };
                (Some(tap), index)
            }
        };
        let (filter, nic_of_filter) = (self.filter.clone(), nic.clone());
        blocking("connect a guest to the network", move || {
            let nic = &nic_of_filter;
            let mut requests: Vec<_> = new.iter().map(|_| links::name_tap(link, nic)).collect();
            requests.extend(links::set_up_tap(link, nic, ipv6));
            batch::commit(requests).map_err(|source| cannot("set up", &name, source))?;
            if ipv6 == Ipv6::Forwarded {
                forwarding::open_tap(name.as_str())?;
            }
            filter.put(nic)?;
            // Until here the TAP is removed automatically if something fails.
            new.map_or(Ok(()), NewTap::keep).map_err(|source| Error::from(cannot("keep", &name, source)))
        })
        .await?;
        if !self.dozing.wake(nic.vm) {
            let stopped = self.ports.stop_listening(nic.vm);
            stopped.map_err(|source| Error::os("stop listening for a guest", source))?;
        }
        self.pool.fill();
        self.follow_denials(nic);
        self.open_outside_for(nic).await
    }

    async fn reattach(&self, nic: &Nic) -> Result<BTreeSet<Port>> {
        let (held, vm, ports) = (self.ports.clone(), nic.vm, nic.ports.clone());
        let taken = blocking("hold the ports of a guest", move || held.hold_what_is_free(vm, &ports)).await?;
        let ports = nic.ports.difference(&taken).copied().collect();
        self.plug(&Nic { ports, ..nic.clone() }).await?;
        Ok(taken)
    }

    async fn unpublish_all(&self) -> Result<()> {
        let (filter, held) = (self.filter.clone(), self.ports.clone());
        self.dozing.end_all();
        blocking("close published ports", move || {
            filter.unpublish_all()?;
            held.release_all();
            Ok(())
        })
        .await
    }

    async fn set_tap_owner(&self, vm: VmId, user: Uid) -> Result<()> {
        self.tap(vm).await?;
        let name = TapName::of(vm);
        blocking("give a TAP to the VMM's user", move || {
            tap::give(&name, user).map_err(|source| cannot("give away", &name, source).into())
        })
        .await
    }

    async fn connect(&self, to: SocketAddr, timeout: Duration) -> Result<Option<OwnedFd>> {
        stream::connect(to, timeout).await
    }

    async fn change(&self, old: &Nic, new: &Nic) -> Result<()> {
        // Reserved before the port is published, and until it is not.
        self.hold_ports(new.vm, old.ports.union(&new.ports).copied().collect()).await?;
        if let Err(error) = self.put(new).await {
            self.hold_ports(new.vm, old.ports.clone()).await?;
            return Err(error);
        }
        let reaches = match self.hold_ports(new.vm, new.ports.clone()).await {
            Ok(()) => self.open_outside_for(new).await,
            failed => failed,
        };
        if reaches.is_err() {
            // The caller keeps the old policy.
            let back = match self.put(old).await {
                Ok(()) => self.hold_ports(new.vm, old.ports.clone()).await,
                failed => failed,
            };
            if let Err(error) = back {
                tracing::error!(vm = %new.vm, %error, "cannot take a change of the network rules back");
            }
            return reaches;
        }
        self.dozing.keep(new);
        self.follow_denials(new);
        Ok(())
    }

    async fn grant(&self, vm: VmId, name: &HostName, addresses: &[IpAddr]) -> Result<Granted> {
        let (filter, granted, addresses) = (self.filter.clone(), name.clone(), addresses.to_vec());
        let granting =
            blocking("let a guest reach a name", move || filter.grant(vm, &granted, &addresses)).await?;
        match granting {
            Granting::Done => self.logs().allow(vm, name, now()),
            Granting::NotAllowed => {}
            Granting::NoRoom => {
                self.deny_name(vm, name);
                return Ok(Granted::Nothing);
            }
        }
        Ok(Granted::All)
    }

    fn neighbours(&self) -> Arc<Neighbours> {
        Arc::clone(&self.neighbours.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn deny(&self, vm: VmId, name: &HostName) {
        self.deny_name(vm, name);
    }

    fn egress_log(&self, vm: VmId) -> EgressLog {
        self.logs().of(vm)
    }

    fn egress_totals(&self, vm: VmId) -> Totals {
        self.logs().totals(vm)
    }

    fn connections(&self) -> Option<Connections> {
        let number = |name: &str| {
            let text =
                std::fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}")).ok()?;
            text.trim().parse().ok()
        };
        Some(Connections { tracked: number("count")?, limit: number("max")? })
    }

    async fn denials(&self) -> Vec<Denial> {
        loop {
            let pending = self.logs().take_pending();
            if !pending.is_empty() {
                return pending;
            }
            self.denied.notified().await;
        }
    }

    async fn free_ports(&self, wishes: &[Port]) -> Result<Vec<Port>> {
        ports::free_ports(wishes)
    }

    async fn unplug(&self, vm: VmId) -> Result<()> {
        self.dozing.end(vm);
        // A port is free once nobody is forwarded to the guest any more.
        let removed = self.remove_interface(vm).await;
        let held = self.ports.clone();
        blocking("release the ports of a guest", move || {
            held.release(vm);
            Ok::<_, Error>(())
        })
        .await?;
        removed
    }

    async fn doze(&self, nic: &Nic) -> Result<()> {
        self.hold_ports(nic.vm, nic.ports.clone()).await?;
        let begun = self.ports.tcp_sockets(nic.vm).and_then(|sockets| self.dozing.begin(nic, sockets));
        begun.map_err(|source| Error::os("listen on the ports of a suspended guest", source))?;
        // Last, so that no connection comes between the two.
        self.remove_interface(nic.vm).await
    }

    async fn wanted(&self) -> Wake {
        self.dozing.wakes().next().await
    }

    async fn found(&self) -> Result<Vec<VmId>> {
        let links = self.links.all().await?;
        let filter = self.filter.clone();
        let mut found: BTreeSet<VmId> = links.iter().filter_map(|link| vm_of_alias(&link.alias)).collect();
        found.extend(self.ports.found());
        found.extend(blocking("look for guests in the packet filter", move || filter.found()).await?);
        Ok(found.into_iter().collect())
    }

    async fn checks(&self) -> Vec<Check> {
        blocking("look at the network", move || Ok::<_, Error>(checks::of_interfaces()))
            .await
            .unwrap_or_default()
    }

    async fn nat_checks(&self) -> Vec<Check> {
        let filter = self.filter.clone();
        blocking("look at the network", move || Ok::<_, Error>(checks::of_nat(&filter)))
            .await
            .unwrap_or_default()
    }

    async fn port_checks(&self) -> Vec<Check> {
        vec![checks::of_ports(self.ports.count())]
    }
}

/// Returns the error of a system call about a TAP.
fn cannot(what: &str, tap: &TapName, source: io::Error) -> HostError {
    match source.kind() {
        io::ErrorKind::NotFound if !std::path::Path::new(tap::DEVICE).exists() => {
            HostError::not_ready(format!("{} is missing; run `modprobe tun`", tap::DEVICE))
        }
        _ => HostError::os(format!("{what} the TAP {tap}"), source),
    }
}

/// Opens the TAP of a plugged-in sandbox for its VMM: whole packets with a virtio header. There is one reader at a
/// time.
pub fn tap_of(vm: VmId) -> Result<OwnedFd, HostError> {
    let name = TapName::of(vm);
    tap::open(&name).map_err(|source| cannot("open", &name, source))
}
