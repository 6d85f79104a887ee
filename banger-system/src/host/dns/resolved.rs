//! Configures systemd-resolved to ask banger for names of guests and for nothing else.
//!
//! org.freedesktop.resolve1(5). The configuration belongs to one link and lasts until the link or resolved goes away,
//! so it is repeated when either comes back.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use banger_domain::{
    dns::{DOMAIN, reverse, table::Table},
    net::{LINK, subnet::Subnet},
};
use futures_util::StreamExt;
use rustix::net::AddressFamily as Family;
use tokio::time::timeout;
use zbus::{Connection, fdo::DBusProxy, proxy};

use super::{Published, link_index};

const NAME: &str = "org.freedesktop.resolve1";
/// How long it may take to answer, which normally takes milliseconds.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often to check whether the link was replaced or something failed.
const CHECK_INTERVAL: Duration = Duration::from_secs(15);
/// The shortest time between two flushes of lost names.
const FLUSH_PAUSE: Duration = Duration::from_millis(200);
const OFF: &str = "no";

#[proxy(
    interface = "org.freedesktop.resolve1.Manager",
    default_service = "org.freedesktop.resolve1",
    default_path = "/org/freedesktop/resolve1"
)]
trait Resolve {
    #[zbus(name = "SetLinkDNS")]
    fn set_link_dns(&self, link: i32, servers: &[(i32, Vec<u8>)]) -> zbus::Result<()>;
    fn set_link_domains(&self, link: i32, domains: &[(String, bool)]) -> zbus::Result<()>;
    fn set_link_default_route(&self, link: i32, default: bool) -> zbus::Result<()>;
    #[zbus(name = "SetLinkLLMNR")]
    fn set_link_llmnr(&self, link: i32, mode: &str) -> zbus::Result<()>;
    #[zbus(name = "SetLinkMulticastDNS")]
    fn set_link_multicast_dns(&self, link: i32, mode: &str) -> zbus::Result<()>;
    #[zbus(name = "SetLinkDNSSEC")]
    fn set_link_dnssec(&self, link: i32, mode: &str) -> zbus::Result<()>;
    #[zbus(name = "SetLinkDNSOverTLS")]
    fn set_link_dns_over_tls(&self, link: i32, mode: &str) -> zbus::Result<()>;
    fn revert_link(&self, link: i32) -> zbus::Result<()>;
    fn flush_caches(&self) -> zbus::Result<()>;
}

/// The state of resolved's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ResolvedState {
    /// Not known yet.
    Unknown,
    /// It asks banger.
    Configured {
        /// The index of the link.
        link: u32,
    },
    /// It does not run.
    Absent,
    /// It could not be configured.
    Failed(String),
}

/// systemd-resolved.
pub(super) struct Resolved {
    bus: Connection,
    state: Mutex<ResolvedState>,
}

impl Resolved {
    pub(super) fn new(bus: Connection) -> Self {
        Self { bus, state: Mutex::new(ResolvedState::Unknown) }
    }

    pub(super) fn state(&self) -> ResolvedState {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Configures it, repeats that when needed, and flushes names that are gone. Never returns.
    pub(super) async fn keep(&self, subnet: Subnet, mut names: Published) {
        let mut owners = loop {
            match self.watch_owner().await {
                Some(owners) => break owners,
                None => tokio::time::sleep(CHECK_INTERVAL).await,
            }
        };
        let mut known: Option<Arc<Table>> = names.borrow_and_update().clone();
        self.configure_if_needed(subnet).await;
        loop {
            tokio::select! {
                change = owners.next() => {
                    if change.is_none() {
                        return;
                    }
                    // A new instance has no configuration.
                    self.set_state(ResolvedState::Unknown);
                    self.configure_if_needed(subnet).await;
                }
                changed = names.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let current = names.borrow_and_update().clone();
                    let lost = current.as_ref().zip(known.as_ref()).is_some_and(|(new, old)| new.has_lost_names_of(old));
                    known = current;
                    if lost {
                        self.forget_names().await;
                    }
                }
                () = tokio::time::sleep(CHECK_INTERVAL) => self.configure_if_needed(subnet).await,
            }
        }
    }

    /// Restores its original configuration, including what an earlier run of the service set. Succeeds if resolved or
    /// the link is gone.
    pub(super) async fn withdraw(&self) {
        self.set_state(ResolvedState::Unknown);
        let Some(link) = link_index(LINK).ok().flatten().and_then(|link| i32::try_from(link).ok()) else {
            return;
        };
        let revert = async {
            match self.is_running().await? {
                true => ResolveProxy::new(&self.bus).await?.revert_link(link).await,
                false => Ok(()),
            }
        };
        match timeout(TIMEOUT, revert).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot reset systemd-resolved"),
            Err(late) => tracing::warn!(%late, "cannot reset systemd-resolved"),
        }
    }

    /// Returns whether it runs. A method call would start it on a host whose administrator does not want it.
    async fn is_running(&self) -> zbus::Result<bool> {
        Ok(DBusProxy::new(&self.bus).await?.name_has_owner(NAME.try_into()?).await?)
    }

    /// Returns a stream of its starts and stops.
    async fn watch_owner(&self) -> Option<zbus::fdo::NameOwnerChangedStream> {
        let watch = async {
            DBusProxy::new(&self.bus).await?.receive_name_owner_changed_with_args(&[(0, NAME)]).await
        };
        match watch.await {
            Ok(owners) => Some(owners),
            Err(error) => {
                self.fail(&error);
                None
            }
        }
    }

    async fn configure_if_needed(&self, subnet: Subnet) {
        let link = match link_index(LINK) {
            Ok(Some(link)) => link,
            // The link is being made.
            Ok(None) => return self.set_state(ResolvedState::Unknown),
            Err(error) => return self.fail(&error),
        };
        if self.state() == (ResolvedState::Configured { link }) {
            return;
        }
        match timeout(TIMEOUT, self.configure(subnet, link)).await {
            Ok(Ok(state)) => {
                if self.state() != state {
                    tracing::info!(?state, "state of systemd-resolved");
                }
                self.set_state(state);
            }
            Ok(Err(error)) => self.fail(&error),
            Err(late) => self.fail(&late),
        }
    }

    async fn configure(&self, subnet: Subnet, link: u32) -> zbus::Result<ResolvedState> {
        if !self.is_running().await? {
            return Ok(ResolvedState::Absent);
        }
        let number = i32::try_from(link).map_err(|error| zbus::Error::Failure(error.to_string()))?;
        let resolve = ResolveProxy::new(&self.bus).await?;
        resolve.set_link_default_route(number, false).await?;
        resolve.set_link_llmnr(number, OFF).await?;
        resolve.set_link_multicast_dns(number, OFF).await?;
        resolve.set_link_dnssec(number, OFF).await?;
        resolve.set_link_dns_over_tls(number, OFF).await?;
        resolve.set_link_domains(number, &domains(subnet)).await?;
        resolve.set_link_dns(number, &servers(subnet)).await?;
        Ok(ResolvedState::Configured { link })
    }

    async fn forget_names(&self) {
        if !matches!(self.state(), ResolvedState::Configured { .. }) {
            return;
        }
        let flush = async { ResolveProxy::new(&self.bus).await?.flush_caches().await };
        match timeout(TIMEOUT, flush).await {
            Ok(Ok(())) => {}
            // They expire after five seconds anyway.
            Ok(Err(error)) => tracing::debug!(%error, "cannot flush the cache of systemd-resolved"),
            Err(late) => tracing::debug!(%late, "cannot flush the cache of systemd-resolved"),
        }
        tokio::time::sleep(FLUSH_PAUSE).await;
    }

    fn fail(&self, error: &(dyn std::error::Error + Sync)) {
        let failed = ResolvedState::Failed(error.to_string());
        if self.state() != failed {
            tracing::warn!(%error, "cannot configure systemd-resolved");
        }
        self.set_state(failed);
    }

    fn set_state(&self, state: ResolvedState) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

/// Returns the domains to ask banger for, as routing domains and not for searches: `web` alone is not asked for.
fn domains(subnet: Subnet) -> Vec<(String, bool)> {
    [DOMAIN.to_owned(), reverse::zone4(subnet), reverse::zone6(subnet)].map(|domain| (domain, true)).into()
}

/// Returns our address. One is enough, and every host has IPv4.
fn servers(subnet: Subnet) -> Vec<(i32, Vec<u8>)> {
    let (gateway, _): (Ipv4Addr, Ipv6Addr) = subnet.gateway();
    vec![(i32::from(Family::INET.as_raw()), gateway.octets().to_vec())]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn resolved_asks_us_about_guests_and_nothing_else() {
        let subnet = "172.30.0.0/16 fd12:3456:789a::/64".parse().unwrap();
        let domains = domains(subnet);
        assert!(domains.iter().all(|(_, route_only)| *route_only));
        assert_eq!(domains[0].0, "vm");
        assert_eq!(domains[1].0, "30.172.in-addr.arpa");
        assert_eq!(servers(subnet), [(2, vec![172, 30, 0, 1])]);
    }
}
