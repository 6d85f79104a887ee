//! The ledger, and the only way to create and release a VM's resources on the host.
//!
//! A start creates five kinds of things: files, device-mapper nodes, sockets, a systemd unit, a network interface.
//! The service may crash between any two steps. So each resource is recorded before it is created, and its record is
//! struck only after it was released:
//!
//! ```text
//!    hold(resource, make)         release(lifetime)
//!    1. store.record(resource)    for each held resource, the youngest first:
//!    2. make                      1. release it on the host
//!                                 2. store.strike(resource)
//! ```
//!
//! Two things follow.
//!
//! - The ledger has at least what exists, and maybe a little more. Releasing a resource that does not exist is
//!   success, so a superfluous record costs only one call.
//! - There is one teardown (`release_resource`). A failed start, a stop, a deletion and recovery all use it, so the
//!   tests of each cover it. It continues after a failure: the other resources are released, the failed one stays
//!   in the ledger, and the next start, deletion or run of the service tries again.
//!
//! A resource lives until the end of the boot (unit, sockets, interface, mapper) or as long as the VM (disks). A stop
//! releases the former, a deletion both. The memory of a suspended VM is released once it is loaded or discarded.
//!
//! The order matters: a mapper node cannot be removed while a VMM has it open, and so the unit is released first.
//! [`Resource`] lists the resources in order of release, from last to first.

use std::collections::BTreeSet;

use banger_domain::{
    id::VmId,
    resource::{Resource, Scope},
};

use super::{
    error::{Error, Result, one_line},
    problems::{Problems, Subject, noun},
};
use crate::ports::Ports;

/// The host resources of one VM. Only this type writes the ledger.
pub(super) struct Lease {
    vm: VmId,
    held: BTreeSet<Resource>,
    ports: Ports,
    problems: Problems,
}

/// A resource that could not be released, and why.
pub(super) type Left = (Resource, Error);

impl Lease {
    /// Returns the lease of a new VM, which holds nothing.
    pub(super) fn new(vm: VmId, ports: Ports, problems: Problems) -> Self {
        Self { vm, held: BTreeSet::new(), ports, problems }
    }

    /// Returns the lease of a VM that may hold these, as the ledger or the host says.
    pub(super) fn of(
        vm: VmId,
        held: impl IntoIterator<Item = Resource>,
        ports: Ports,
        problems: Problems,
    ) -> Self {
        Self { vm, held: held.into_iter().collect(), ports, problems }
    }

    /// Adds resources that the VM may hold, as a late look at the host says.
    pub(super) fn add(&mut self, held: impl IntoIterator<Item = Resource>) {
        self.held.extend(held);
    }

    /// Records a resource in the ledger, then creates it. If that fails, the record stays until [`Lease::release`],
    /// because a part of the resource may exist.
    pub(super) async fn hold<T, E: Into<Error>>(
        &mut self,
        resource: Resource,
        make: impl Future<Output = Result<T, E>>,
    ) -> Result<T> {
        self.ports.store.record(self.vm, resource).await?;
        self.held.insert(resource);
        make.await.map_err(E::into)
    }

    /// Releases all resources of this lifetime, the youngest first. Continues after a failure: what failed stays in
    /// the ledger, and `doctor` shows it. Returns what is left.
    pub(super) async fn release(&mut self, scope: Scope) -> Vec<Left> {
        let held: Vec<Resource> = self.held.iter().copied().filter(|r| r.scope() == scope).collect();
        self.release_each(held).await
    }

    /// Does the same, but keeps one resource.
    pub(super) async fn release_but(&mut self, scope: Scope, kept: Resource) -> Vec<Left> {
        let held = self.held.iter().copied().filter(|r| r.scope() == scope && *r != kept);
        let held = held.collect();
        self.release_each(held).await
    }

    /// Releases one resource, if it is held. Returns it if it is left.
    pub(super) async fn release_one(&mut self, resource: Resource) -> Vec<Left> {
        let held = self.held.contains(&resource).then_some(resource);
        self.release_each(held.into_iter().collect()).await
    }

    /// Returns whether the VM may hold a resource.
    pub(super) fn holds(&self, resource: Resource) -> bool {
        self.held.contains(&resource)
    }

    async fn release_each(&mut self, held: Vec<Resource>) -> Vec<Left> {
        let mut left = Vec::new();
        for resource in held.into_iter().rev() {
            let released = match release_resource(&self.ports, self.vm, resource).await {
                Ok(()) => self.ports.store.strike(self.vm, resource).await.map_err(Error::from),
                Err(error) => Err(error),
            };
            match released {
                Ok(()) => {
                    self.held.remove(&resource);
                    self.problems.clear(Subject::Resource(self.vm, resource));
                    if resource == Resource::Nic {
                        self.problems.clear(Subject::Interface(self.vm));
                    }
                }
                Err(error) => {
                    tracing::error!(
                        vm = %self.vm,
                        resource = resource.as_str(),
                        error = %one_line(&error),
                        "cannot release"
                    );
                    self.problems.set(Subject::Resource(self.vm, resource), &error);
                    left.push((resource, error));
                }
            }
        }
        left
    }

    /// Releases everything, resources of the boot first.
    pub(super) async fn release_all(&mut self) -> Vec<Left> {
        let mut left = self.release(Scope::Boot).await;
        left.extend(self.release(Scope::Vm).await);
        left
    }
}

/// Returns the error about what is left of a VM of this name; none if nothing is.
pub(super) fn not_released(name: &str, left: Vec<Left>) -> Option<Error> {
    let nouns = left.iter().map(|(resource, _)| noun(*resource)).collect::<Vec<_>>().join(" and the ");
    let (_, why) = left.into_iter().next()?;
    Some(Error::NotReleased { name: name.to_owned(), left: nouns, why: Box::new(why) })
}

/// Releases one resource. Releasing what is already gone is success.
async fn release_resource(ports: &Ports, vm: VmId, resource: Resource) -> Result<()> {
    match resource {
        Resource::Unit => ports.supervisor.remove(vm).await?,
        Resource::Sockets => ports.vmm.remove_sockets(vm).await?,
        Resource::Nic => ports.network.unplug(vm).await?,
        Resource::Mapper => ports.disks.detach(vm).await?,
        Resource::Capture => ports.captures.remove(vm).await?,
        Resource::Disks => ports.disks.remove_directory(vm).await?,
    }
    Ok(())
}
