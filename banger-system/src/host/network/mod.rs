//! The network of guests on Linux: a routed TAP for each, and a table of the kernel's packet filter.

mod checks;
mod filter;
mod forwarding;
mod links;
mod tap;

use std::{
    collections::BTreeSet,
    io,
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;

use self::{
    filter::Filter,
    links::{Link, Links},
    tap::NewTap,
};
use super::blocking::blocking;
use crate::{
    domain::{
        id::{Uid, VmId},
        net::{
            element::Ipv6,
            nic::{Nat, Nic, Scope, TapName, tap_alias, vm_of_alias},
            prefix::Prefix4,
            subnet::Subnet,
        },
    },
    ports::{Check, Error, Result, network::Network},
};

/// The network of guests in the network namespace of the process.
pub struct LinuxNetwork {
    links: Links,
    filter: Filter,
    prepared: Mutex<Option<Subnet>>,
    /// The links that lead outside on which we turned forwarding on.
    opened: Mutex<BTreeSet<String>>,
}

impl LinuxNetwork {
    /// The network; nothing is made yet. To be called in a runtime.
    pub fn new() -> Result<Self> {
        let links = Links::new().map_err(|source| Error::os("talk to the kernel about links", source))?;
        Ok(Self { links, filter: Filter::default(), prepared: Mutex::default(), opened: Mutex::default() })
    }

    /// The TAP of a machine, if it has one. A link of that name that is not the machine's is an error.
    async fn tap(&self, vm: VmId) -> Result<Option<Link>> {
        let link = self.links.find(TapName::of(vm).as_str()).await?;
        match link {
            Some(link) if link.alias != tap_alias(vm) => Err(Error::Taken {
                message: format!(
                    "there is a link {} that is not the machine's; rename it or remove it",
                    link.name
                ),
            }),
            link => Ok(link),
        }
    }

    /// Lets guests reach outside, on a host that forwards nothing else.
    async fn open_outside(&self) -> Result<()> {
        let outside = match forwarding::forwards_everything() {
            true => Vec::new(),
            false => self.links.outside().await?,
        };
        {
            let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
            if outside.iter().all(|link| opened.contains(link)) && opened.len() == outside.len() {
                return Ok(());
            }
            *opened = outside.iter().cloned().collect();
        }
        let filter = self.filter.clone();
        blocking("turn forwarding on", move || {
            // First what keeps strangers out, then what lets anybody in.
            filter.mark_opened(&outside)?;
            outside.iter().try_for_each(|link| forwarding::open(link))
        })
        .await
    }

    async fn open_outside_for(&self, nic: &Nic) -> Result<()> {
        let public = nic.ports.iter().any(|port| port.scope == Scope::All);
        if nic.nat == Nat::On || public { self.open_outside().await } else { Ok(()) }
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
        Ok(())
    }

    async fn withdraw(&self) -> Result<()> {
        let filter = self.filter.clone();
        let opened = std::mem::take(&mut *self.opened.lock().unwrap_or_else(PoisonError::into_inner));
        blocking("remove the rules of the packet filter", move || {
            // First what lets anybody in, then what keeps strangers out.
            opened.iter().try_for_each(|link| forwarding::close(link))?;
            filter.withdraw()
        })
        .await?;
        let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).take();
        match prepared {
            Some(subnet) => self.links.remove_shared(subnet).await,
            None => Ok(()),
        }
    }

    async fn plug(&self, nic: &Nic) -> Result<()> {
        let (name, ipv6) = (nic.tap(), forwarding::ipv6());
        let (new, link) = match self.tap(nic.vm).await? {
            Some(link) => (None, link),
            None => {
                let tap = name.clone();
                let new = blocking("make a TAP", move || {
                    NewTap::make(&tap).map_err(|source| cannot("make", &tap, source))
                })
                .await?;
                let gone = || cannot("find", &name, io::ErrorKind::NotFound.into());
                (Some(new), self.links.find(name.as_str()).await?.ok_or_else(gone)?)
            }
        };
        let set_up = self.links.set_up_tap(link.index, nic, ipv6).await;
        set_up.map_err(|error| links::failed(format!("set up the TAP {name}"), error))?;
        let (filter, nic_of_filter) = (self.filter.clone(), nic.clone());
        blocking("plug a guest in", move || {
            if ipv6 == Ipv6::Forwarded {
                forwarding::open_tap(name.as_str())?;
            }
            filter.put(&nic_of_filter)?;
            // Until here the TAP goes away by itself when something fails.
            new.map_or(Ok(()), NewTap::keep).map_err(|source| cannot("keep", &name, source))
        })
        .await?;
        self.open_outside_for(nic).await
    }

    async fn open_tap(&self, vm: VmId) -> Result<OwnedFd> {
        self.tap(vm).await?;
        let name = TapName::of(vm);
        blocking("open a TAP", move || tap::open(&name).map_err(|source| cannot("open", &name, source))).await
    }

    async fn give_tap(&self, vm: VmId, user: Uid) -> Result<()> {
        self.tap(vm).await?;
        let name = TapName::of(vm);
        blocking("give a TAP to a user", move || {
            tap::give(&name, user).map_err(|source| cannot("give away", &name, source))
        })
        .await
    }

    async fn change(&self, old: &Nic, new: &Nic) -> Result<()> {
        let (filter, old, changed) = (self.filter.clone(), old.clone(), new.clone());
        blocking("change what a guest may do", move || filter.change(&old, &changed)).await?;
        self.open_outside_for(new).await
    }

    async fn unplug(&self, vm: VmId) -> Result<()> {
        let filter = self.filter.clone();
        blocking("take a guest out of the packet filter", move || filter.remove(vm)).await?;
        match self.links.find(TapName::of(vm).as_str()).await? {
            Some(link) if link.alias == tap_alias(vm) => self.links.remove(&link).await,
            // Somebody else's, or none.
            _ => Ok(()),
        }
    }

    async fn found(&self) -> Result<Vec<VmId>> {
        let links = self.links.all().await?;
        let filter = self.filter.clone();
        let mut found: BTreeSet<VmId> = links.iter().filter_map(|link| vm_of_alias(&link.alias)).collect();
        found.extend(blocking("look for guests in the packet filter", move || filter.found()).await?);
        Ok(found.into_iter().collect())
    }

    async fn checks(&self) -> Vec<Check> {
        let filter = self.filter.clone();
        let checks = blocking("look at the network", move || Ok(checks::all(&filter))).await;
        checks.unwrap_or_default()
    }
}

/// The error of a system call about a TAP.
fn cannot(what: &str, tap: &TapName, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::NotFound if !std::path::Path::new(tap::DEVICE).exists() => {
            Error::HostNotReady { message: format!("{} is missing; run `modprobe tun`", tap::DEVICE) }
        }
        _ => Error::os(format!("{what} the TAP {tap}"), source),
    }
}

/// The TAP of a machine, opened for its monitor.
pub fn tap_of(vm: VmId) -> Result<OwnedFd> {
    let name = TapName::of(vm);
    tap::open(&name).map_err(|source| cannot("open", &name, source))
}
