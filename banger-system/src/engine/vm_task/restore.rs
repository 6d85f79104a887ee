//! Puts a VM that is down back to one of its snapshots.
//!
//! The VM keeps what it had until all of the snapshot is there for it, under an id of its own that no list has:
//!
//! ```text
//!   disks      a child of the snapshot is made           a failure or a crash: it is removed
//!   memory     the VM shares that of the snapshot        the same; a stopped VM needs none
//!   exchange   the VM and the child swap their disks
//!   row        `suspended`, if there is memory           a crash before: the VM boots with the disks of the snapshot
//!   remove     what the VM had
//! ```
//!
//! A guest with memory continues as a child does (`copy.rs`), with the identity that the VM has now.

use std::sync::Arc;

use banger_domain::{
    id::{JobId, VmId},
    lifecycle::{Event, Reason, State, step},
    name::Name,
    resource::Resource,
    vm::{Vm, VmSpec},
};
use tracing::Instrument;

use super::{Next, TaskEvent, VmTask};
use crate::{
    engine::{
        Shared,
        error::{Error, Result},
        job::{JobHandle, Stages},
        lease::Lease,
        view::{JobKind, Object, SnapshotView},
    },
    ports::{captures::Stored, disks::Parent},
};

const RESTORE: Stages = &["disk"];

/// The disks for a VM that is put back, until it has them. Then they are those that it had.
pub(super) struct Restored {
    snapshot: Vm,
    id: VmId,
    lease: Lease,
    made: Result<()>,
}

impl VmTask {
    /// Starts to put the VM back to a snapshot. Everything that can be checked is checked before anything is created.
    pub(super) async fn restore(&mut self, name: &Name) -> Result<JobId> {
        self.require_unread_disks().await?;
        if self.vm.state.is_up() {
            step(self.vm.state, Event::Restored)?;
        }
        self.require_down()?;
        // A VMM that could not be removed may still write to the disks.
        self.release_boot().await?;
        let snapshot = self.snapshot(name)?.clone();
        let spec = self.restored_spec(&snapshot);
        self.shared.settings.limits.check_sizes(spec.vcpus, spec.memory, spec.disk_size)?;
        let child = Vm { snapshot_of: Some(self.vm.id), ..self.child(&snapshot, name.clone())? };
        let objects = vec![Object::Vm(self.vm.id)];
        let job = self.shared.jobs.begin(JobKind::VmRestore, self.vm.owner, objects, RESTORE)?;
        let id = job.id();
        let lease = Lease::new(child.id, self.shared.ports.clone(), self.shared.problems.clone());
        let restored = Restored { snapshot, id: child.id, lease, made: Ok(()) };
        // Recovery removes only the disks of ids that are unknown.
        let view = SnapshotView { vm: child, captured: None, frozen: Vec::new(), is_made: false };
        self.shared.inventory.put_snapshot(view);
        self.forking = Some(id);
        let (shared, of) = (Arc::clone(&self.shared), self.vm.name.clone());
        self.background.spawn(async move {
            let span = job.span();
            let restored = restored.with_disks(&shared, &job, &of).instrument(span).await;
            TaskEvent::RestoreEnded(job, Box::new(restored))
        });
        Ok(id)
    }

    /// Returns the settings of the VM with the sizes of the snapshot's disks and, if it has memory, of its guest.
    fn restored_spec(&self, snapshot: &Vm) -> VmSpec {
        let (now, then) = (&self.vm.spec, &snapshot.spec);
        let (vcpus, memory) = match snapshot.state {
            State::Suspended => (then.vcpus, then.memory),
            _ => (now.vcpus, now.memory),
        };
        VmSpec { vcpus, memory, disk_size: then.disk_size, root_size: then.root_size, ..now.clone() }
    }

    pub(super) async fn restore_ended(&mut self, job: JobHandle, mut restored: Restored) -> Next {
        self.forking = None;
        let done = match std::mem::replace(&mut restored.made, Ok(())) {
            Ok(()) => self.take_over(&restored).await,
            failed => failed,
        };
        // What is left of it is a problem, and tried again.
        drop(restored.lease.release_all().await);
        self.shared.inventory.remove_vm(restored.id);
        self.publish();
        job.finish(done);
        self.disks_are_free().await
    }

    /// Gives the VM its new disks, and the memory of the snapshot.
    async fn take_over(&mut self, restored: &Restored) -> Result<()> {
        let memory = match self.share_memory(restored).await {
            Ok(memory) => memory,
            Err(error) => {
                self.discard_capture().await;
                return Err(error);
            }
        };
        let disks = Arc::clone(&self.shared.ports.disks);
        if let Err(error) = disks.exchange(self.vm.id, restored.id).await {
            self.discard_capture().await;
            return Err(error.into());
        }
        self.vm.spec = self.restored_spec(&restored.snapshot);
        self.vm.kernel = restored.snapshot.kernel;
        self.frozen = self.shared.frozen_layers(self.vm.id).await;
        self.captured = memory;
        self.apply(if memory.is_some() { Event::Restored } else { Event::Stop });
        self.vm.reason = Reason::UserRequest;
        self.save().await
    }

    /// Shares the memory of the snapshot, which can be loaded with the new disks; none if it has none.
    async fn share_memory(&mut self, restored: &Restored) -> Result<Option<Stored>> {
        if restored.snapshot.state != State::Suspended {
            return Ok(None);
        }
        let ports = self.shared.ports.clone();
        let disks = ports.disks.identity(restored.id).await?;
        let share = ports.captures.share(restored.snapshot.id, self.vm.id, &disks);
        self.lease.hold(Resource::Capture, share).await.map(Some)
    }
}

impl Restored {
    /// Makes the disks.
    async fn with_disks(mut self, shared: &Shared, job: &JobHandle, of: &Name) -> Self {
        self.made = self.make(shared, job, of).await;
        self
    }

    async fn make(&mut self, shared: &Shared, job: &JobHandle, of: &Name) -> Result<()> {
        let disks = &shared.ports.disks;
        let (id, snapshot) = (self.id, self.snapshot.id);
        job.stage("disk", format!("restoring the disks of {of}"));
        // Whole disks are copied.
        let worker = match disks.frozen(snapshot).await?.is_empty() {
            true => Some(job.acquire_worker().await?),
            false => None,
        };
        let make = async {
            disks.create_directory(id).await?;
            disks.create_child(id, snapshot, Parent::Down, job.progress("disk")).await
        };
        let made = self.lease.hold(Resource::Disks, make).await;
        drop(worker);
        match job.is_canceled() {
            true => Err(Error::Canceled),
            false => made,
        }
    }
}
