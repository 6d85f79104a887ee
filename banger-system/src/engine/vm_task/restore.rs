//! Puts a VM that is down back to one of its snapshots.
//!
//! The VM keeps what it had until all of the snapshot is there for it, under an id of its own that no list has:
//!
//! ```text
//!   disks      a child of the snapshot is made           a failure or a crash: it is removed
//!   memory     the VM shares that of the snapshot        the same; a stopped VM needs none
//!   exchange   the VM and the child swap their disks
//!   row        `suspended`, if there is memory           a failure: they are swapped back
//!                                                        a crash: the VM boots with the disks of the snapshot
//!   remove     what the VM had
//! ```
//!
//! The sizes of its disks stay, so that the row is right at each step: the new ones grow if the snapshot had smaller ones.
//! A guest with memory continues as a child does (`copy.rs`), with the identity that the VM has now.

use std::sync::Arc;

use banger_domain::{
    id::JobId,
    lifecycle::{Event, Reason, State, step},
    name::Name,
    resource::Resource,
    vm::{Lifetime, Vm, VmSpec},
};
use tracing::Instrument;

use super::{
    Next, TaskEvent, VmTask,
    fork::{Child, make_disks, worker_for_copies},
};
use crate::{
    engine::{
        Shared,
        error::{Error, Result, one_line},
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
    child: Child,
    made: Result<()>,
}

impl VmTask {
    /// Starts to put the VM back to a snapshot. Everything that can be checked is checked before anything is created, and
    /// the state of the VM last, so that its user can end it knowing that nothing else is in the way.
    pub(super) async fn restore(&mut self, name: &Name) -> Result<JobId> {
        self.require_unread_disks().await?;
        let snapshot = self.snapshot(name)?.clone();
        self.check_restore(&snapshot)?;
        if self.vm.state.is_up() {
            step(self.vm.state, Event::Restored)?;
        }
        self.require_down()?;
        // A VMM that could not be removed may still write to the disks.
        self.release_boot().await?;
        let vm = Vm { snapshot_of: Some(self.vm.id), ..self.child(&snapshot, name.clone())? };
        let objects = vec![Object::Vm(self.vm.id)];
        let job = self.shared.jobs.begin(JobKind::VmRestore, self.vm.owner, objects, RESTORE)?;
        let id = job.id();
        self.forget_restart().await;
        // Recovery removes only the disks of ids that are unknown.
        let view = SnapshotView { vm: vm.clone(), captured: None, frozen: Vec::new(), is_made: false };
        self.shared.inventory.put_snapshot(view);
        self.forking = Some(id);
        let lease = Lease::new(vm.id, self.shared.ports.clone(), self.shared.problems.clone());
        let child = Child { vm, lease, inbox: None, captured: None };
        let (shared, now) = (Arc::clone(&self.shared), self.vm.clone());
        self.background.spawn(async move {
            let span = job.span();
            let restored = make(&shared, &job, &now, snapshot, child).instrument(span).await;
            TaskEvent::RestoreEnded(job, Box::new(restored))
        });
        Ok(id)
    }

    /// Refuses a restoration that does not fit the VM, in whatever state it is.
    fn check_restore(&self, snapshot: &Vm) -> Result<()> {
        let (now, then) = (&self.vm.spec, &snapshot.spec);
        let name = self.vm.name.to_string();
        if self.vm.lifetime == Lifetime::UntilStopped {
            return Err(Error::DeletedAtStop { name });
        }
        if snapshot.state == State::Suspended {
            if (now.disk_size, now.root_size) != (then.disk_size, then.root_size) {
                return Err(Error::GrownSince { name, snapshot: snapshot.name.to_string() });
            }
            self.shared.settings.limits.check_sizes(then.vcpus, then.memory, then.disk_size)?;
        }
        Ok(())
    }

    pub(super) async fn restore_ended(&mut self, job: JobHandle, restored: Restored) -> Next {
        self.forking = None;
        let Restored { snapshot, mut child, made } = restored;
        let done = match made {
            Ok(()) => self.get_back(&snapshot, &child.vm).await,
            failed => failed,
        };
        // What is left of it is a problem, and tried again.
        drop(child.lease.release_all().await);
        self.shared.inventory.remove_vm(child.vm.id);
        self.publish();
        self.shared.remove_old_host_kernels().await;
        job.finish(done);
        self.disks_are_free().await
    }

    /// Gives the VM its new disks, and the memory of the snapshot. After an error, it has what it had.
    async fn get_back(&mut self, snapshot: &Vm, child: &Vm) -> Result<()> {
        let disks = Arc::clone(&self.shared.ports.disks);
        let exchanged = match self.share_memory(snapshot, child).await {
            Ok(memory) => disks.exchange(self.vm.id, child.id).await.map(|()| memory).map_err(Error::from),
            Err(error) => Err(error),
        };
        let memory = match exchanged {
            Ok(memory) => memory,
            Err(error) => {
                self.discard_capture().await;
                return Err(error);
            }
        };
        let before = (self.vm.clone(), std::mem::take(&mut self.frozen));
        self.frozen = self.shared.frozen_layers(self.vm.id).await;
        self.captured = memory;
        self.vm.reason = Reason::UserRequest;
        if memory.is_some() {
            let VmSpec { vcpus, memory, .. } = snapshot.spec;
            self.vm.spec = VmSpec { vcpus, memory, ..self.vm.spec.clone() };
            self.vm.kernel = snapshot.kernel;
        }
        self.apply(if memory.is_some() { Event::Restored } else { Event::Stop });
        let Err(error) = self.save().await else { return Ok(()) };
        if let Err(stuck) = disks.exchange(self.vm.id, child.id).await {
            tracing::error!(vm = %self.vm.id, error = %one_line(&stuck), "a sandbox keeps the disks of its snapshot");
            return Err(error);
        }
        (self.vm, self.frozen) = before;
        self.discard_capture().await;
        Err(error)
    }

    /// Shares the memory of the snapshot, which can be loaded with the new disks; none if it has none.
    async fn share_memory(&mut self, snapshot: &Vm, child: &Vm) -> Result<Option<Stored>> {
        if snapshot.state != State::Suspended {
            return Ok(None);
        }
        let ports = self.shared.ports.clone();
        let disks = ports.disks.identity(child.id).await?;
        let share = ports.captures.share(snapshot.id, self.vm.id, &disks);
        self.lease.hold(Resource::Capture, share).await.map(Some)
    }
}

/// Makes a child of a snapshot, with disks as large as those of the VM.
async fn make(shared: &Shared, job: &JobHandle, now: &Vm, snapshot: Vm, mut child: Child) -> Restored {
    let disks = &shared.ports.disks;
    let made = async {
        let worker = worker_for_copies(job, &disks.frozen(snapshot.id).await?).await?;
        let parent = Vm { name: now.name.clone(), ..snapshot.clone() };
        make_disks(shared, job, &parent, std::slice::from_mut(&mut child), Parent::Down).await?;
        drop(worker);
        let (then, now) = (&snapshot.spec, &now.spec);
        if now.disk_size > then.disk_size {
            disks.grow_work_disk(child.vm.id, now.disk_size).await?;
        }
        if now.root_size > then.root_size {
            disks.grow_system_disk(child.vm.id, snapshot.image, now.root_size).await?;
        }
        Ok(())
    };
    let made = made.await;
    Restored { snapshot, child, made }
}
