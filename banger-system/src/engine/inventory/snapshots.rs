//! The snapshots of sandboxes in the inventory. They count against the quota of their owner as sandboxes do, and no list
//! of sandboxes has them.

use std::sync::Arc;

use banger_domain::{id::VmId, limits::Limits};

use super::{Inventory, State, admission::Fork};
use crate::engine::{
    error::{Error, Result},
    view::{SnapshotView, VmView},
};

impl Inventory {
    /// Adds the snapshot of a VM that is about to be made, if its name is free and the owner's quota allows it, and
    /// publishes the VM. What is going to be frozen of it counts at once.
    pub(in crate::engine) fn admit_snapshot(
        &self,
        snapshot: SnapshotView,
        parent: VmView,
        limits: &Limits,
    ) -> Result<()> {
        let mut state = self.lock();
        let mut others = state.snapshots.values().filter(|other| other.is_of(parent.vm.id));
        if others.any(|other| other.vm.name == snapshot.vm.name) {
            let (name, snapshot) = (parent.vm.name.to_string(), snapshot.vm.name.to_string());
            return Err(Error::SnapshotExists { name, snapshot });
        }
        let memory = snapshot.captured.map(|captured| captured.size);
        state.check_fork(Fork { vms: &[&snapshot.vm], memory, parent: &parent }, limits)?;
        state.snapshots.insert(snapshot.vm.id, Arc::new(snapshot));
        self.replace(&mut state, parent);
        Ok(())
    }

    /// Adds or changes a snapshot that is made. Only the task of its VM, and recovery, call this.
    pub(in crate::engine) fn put_snapshot(&self, snapshot: SnapshotView) {
        self.lock().snapshots.insert(snapshot.vm.id, Arc::new(snapshot));
    }

    /// Returns whether this is the id of a snapshot.
    pub(in crate::engine) fn is_snapshot(&self, id: VmId) -> bool {
        self.lock().snapshots.contains_key(&id)
    }

    /// Returns the snapshots of a VM that are made, the oldest first.
    pub(in crate::engine) fn snapshots_of(&self, vm: VmId) -> Vec<Arc<SnapshotView>> {
        let state = self.lock();
        let made = state.snapshots.values().filter(|snapshot| snapshot.is_of(vm) && snapshot.is_made);
        let mut all: Vec<_> = made.cloned().collect();
        all.sort_by_key(|snapshot| (snapshot.vm.created_at, snapshot.vm.id));
        all
    }
}

impl State {
    /// Returns how an error names a snapshot that uses an image or a kernel.
    pub(super) fn snapshot_user(&self, snapshot: &SnapshotView) -> String {
        let of = snapshot.vm.snapshot_of.and_then(|vm| self.vms.get(&vm));
        let of = of.map_or_else(String::new, |entry| format!(" of {}", entry.view.vm.name));
        format!("the snapshot {}{of}", snapshot.vm.name)
    }
}
