//! Snapshots of a VM: children that are kept instead of started.
//!
//! A snapshot is made as the one child of a fork is (`fork.rs`): it has the same disks, its memory if the VM ran, a row, and a
//! lease. But it has no task, no address, and no name among the VMs, so it cannot be started, and nothing writes to it. The
//! task of its VM alone makes it, forks it and deletes it, one after the other, and deletes those that are left with the
//! VM.
//!
//! ```text
//!    VM ── create ──► snapshot ── fork ──► children, VMs like any other
//!                        │
//!                        ├── restore: the VM itself gets its disks and memory (`restore.rs`)
//!                        └── delete: the row first, then what it holds
//! ```
//!
//! A crash during a deletion leaves disks without a row, which recovery removes. A row without disks cannot be.

use banger_domain::{
    id::{JobId, VmId},
    lifecycle::State,
    name::Name,
    vm::Vm,
};

use super::{VmTask, fork::Child};
use crate::{
    engine::{
        Shared,
        error::{Error, Result, one_line},
        lease::Lease,
        view::{JobKind, SnapshotView, VmView},
    },
    ports::{captures::Stored, disks::FrozenLayer},
};

/// A snapshot that is made.
pub(in crate::engine) struct Snapshot {
    vm: Vm,
    lease: Lease,
}

impl Snapshot {
    /// Returns a snapshot from an earlier run of the service, and publishes it.
    pub(in crate::engine) async fn recovered(
        shared: &Shared,
        vm: Vm,
        lease: Lease,
        frozen: Vec<FrozenLayer>,
    ) -> Self {
        let captured = captured(shared, vm.id).await;
        shared.inventory.put_snapshot(SnapshotView { vm: vm.clone(), captured, frozen, is_made: true });
        Self { vm, lease }
    }
}

/// Returns what the memory of a snapshot takes, which only counts against a quota. A failure is logged.
async fn captured(shared: &Shared, vm: VmId) -> Option<Stored> {
    let stored = shared.ports.captures.stored(vm).await;
    stored.unwrap_or_else(|error| {
        tracing::error!(%vm, error = %one_line(&error), "cannot look at the memory of a snapshot");
        None
    })
}

impl VmTask {
    /// Starts to make a snapshot. Everything that can be checked is checked before anything is created.
    pub(super) async fn create_snapshot(&mut self, name: Name) -> Result<JobId> {
        let (source, freezing) = self.prepare_fork().await?;
        let vm = Vm { snapshot_of: Some(self.vm.id), ..self.child(&self.vm, name)? };
        let captured = source.memory(&self.vm).map(|size| Stored { size, at: vm.created_at, file: None });
        let view = SnapshotView { vm: vm.clone(), captured, frozen: Vec::new(), is_made: false };
        let parent = VmView { freezing, ..self.view() };
        self.shared.inventory.admit_snapshot(view, parent, &self.shared.settings.limits)?;
        let lease = Lease::new(vm.id, self.shared.ports.clone(), self.shared.problems.clone());
        let child = Child { vm, lease, inbox: None, captured: None };
        self.begin_fork(JobKind::VmSnapshot, self.vm.clone(), vec![child], source, freezing)
    }

    /// Takes over a snapshot that was made, with the layers that the VM has now.
    pub(super) fn add_snapshot(&mut self, made: Child) {
        let Child { vm, lease, captured, .. } = made;
        let (vm_row, frozen) = (vm.clone(), self.frozen.clone());
        self.shared.inventory.put_snapshot(SnapshotView { vm: vm_row, captured, frozen, is_made: true });
        self.snapshots.push(Snapshot { vm, lease });
    }

    /// Returns the row of a snapshot that children can be made of.
    pub(super) async fn snapshot_to_fork(&mut self, name: &Name) -> Result<Vm> {
        self.require_unread_disks().await?;
        let of = || self.vm.name.to_string();
        match self.vm.state {
            State::Deleting => return Err(Error::Deleted { name: of() }),
            // If that fails, all background work ends.
            State::Suspending | State::Resuming => return Err(Error::NotReady { name: of() }),
            _ => {}
        }
        Ok(self.snapshot(name)?.clone())
    }

    /// Returns the row of a snapshot.
    pub(super) fn snapshot(&self, name: &Name) -> Result<&Vm> {
        Ok(&self.snapshots[self.index_of(name)?].vm)
    }

    fn index_of(&self, name: &Name) -> Result<usize> {
        let found = self.snapshots.iter().position(|snapshot| snapshot.vm.name == *name);
        found.ok_or_else(|| Error::NoSuchSnapshot {
            name: self.vm.name.to_string(),
            snapshot: name.to_string(),
        })
    }

    /// Deletes a snapshot. Children that were made of it keep what they share.
    pub(super) async fn delete_snapshot(&mut self, name: &Name) -> Result<()> {
        // It may be the one that is being forked.
        self.require_not_forked()?;
        let index = self.index_of(name)?;
        self.remove_snapshot(index).await?;
        self.shared.remove_old_host_kernels().await;
        Ok(())
    }

    /// Refuses a deletion that would delete snapshots without a word.
    pub(super) fn require_no_snapshots(&self) -> Result<()> {
        match self.snapshots.len() {
            // One that has begun is only repeated.
            count if count > 0 && self.vm.state != State::Deleting => {
                Err(Error::HasSnapshots { name: self.vm.name.to_string(), count })
            }
            _ => Ok(()),
        }
    }

    /// Deletes all snapshots.
    pub(super) async fn remove_snapshots(&mut self) -> Result<()> {
        while let Some(last) = self.snapshots.len().checked_sub(1) {
            self.remove_snapshot(last).await?;
        }
        Ok(())
    }

    /// Deletes a snapshot, its row first: a row must not be without disks. What cannot be removed is a problem, and tried again.
    async fn remove_snapshot(&mut self, index: usize) -> Result<()> {
        let id = self.snapshots[index].vm.id;
        self.shared.ports.store.delete_vm(id).await?;
        let mut snapshot = self.snapshots.swap_remove(index);
        drop(snapshot.lease.release_all().await);
        self.shared.inventory.remove_vm(id);
        Ok(())
    }
}
