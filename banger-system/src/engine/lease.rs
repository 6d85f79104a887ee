//! What a machine holds of the host. The ledger is written before a thing is made, so that whatever
//! happens in between, there is a record of everything that may exist.

use std::collections::BTreeSet;

use banger_domain::{
    id::VmId,
    resource::{Resource, Scope},
};

use crate::ports::{self, Ports};

/// The resources of one machine. Only this writes the ledger.
pub(super) struct Lease {
    vm: VmId,
    held: BTreeSet<Resource>,
    ports: Ports,
}

impl Lease {
    /// The lease of a new machine: it holds nothing.
    pub(super) fn new(vm: VmId, ports: Ports) -> Self {
        Self { vm, held: BTreeSet::new(), ports }
    }

    /// The lease of a machine that may hold these, as the ledger or the host says.
    pub(super) fn of(vm: VmId, held: impl IntoIterator<Item = Resource>, ports: Ports) -> Self {
        Self { vm, held: held.into_iter().collect(), ports }
    }

    /// Records the resource, then makes it. When making fails, the record stays until [`Lease::release`]:
    /// half of it may be there.
    pub(super) async fn hold<T>(
        &mut self,
        resource: Resource,
        make: impl Future<Output = ports::Result<T>>,
    ) -> ports::Result<T> {
        self.ports.store.record(self.vm, resource).await?;
        self.held.insert(resource);
        make.await
    }

    /// Undoes everything of this span, the youngest first. Continues after a failure; what failed stays
    /// in the ledger; returns what went wrong.
    pub(super) async fn release(&mut self, scope: Scope) -> Vec<ports::Error> {
        let mut errors = Vec::new();
        let held: Vec<Resource> = self.held.iter().copied().filter(|r| r.scope() == scope).collect();
        for resource in held.into_iter().rev() {
            let undone = match undo(&self.ports, self.vm, resource).await {
                Ok(()) => self.ports.store.strike(self.vm, resource).await,
                Err(error) => Err(error),
            };
            match undone {
                Ok(()) => drop(self.held.remove(&resource)),
                Err(error) => {
                    tracing::error!(vm = %self.vm, resource = resource.as_str(), %error, "cannot release");
                    errors.push(error);
                }
            }
        }
        errors
    }

    /// Undoes everything, what lives shortest first.
    pub(super) async fn release_all(&mut self) -> Vec<ports::Error> {
        let mut errors = self.release(Scope::Boot).await;
        errors.extend(self.release(Scope::Vm).await);
        errors
    }
}

/// The one teardown. Undoing what is gone already is success.
async fn undo(ports: &Ports, vm: VmId, resource: Resource) -> ports::Result<()> {
    match resource {
        Resource::Unit => ports.supervisor.remove(vm).await,
        Resource::Sockets => ports.vmm.remove_sockets(vm).await,
        Resource::Nic => ports.network.unplug(vm).await,
        Resource::Mapper => ports.disks.detach(vm).await,
        Resource::Disks => ports.disks.remove_directory(vm).await,
    }
}
