//! Makes new sandboxes with the disks of another one, or a snapshot of it.
//!
//! A snapshot is a child without a task, which is in no list (`snapshot.rs`). Its own children share its layers and its
//! memory, and the sandbox is left alone.
//!
//! What the parent has written is frozen first, and the children share it ([`Disks`](crate::ports::disks::Disks)). Then
//! each child gets a directory of its own, by way of its own lease. The rows come last: after a crash before that, the
//! directories are orphans. So there are all children or none, unless the service crashes while it stores the rows; then
//! those that have one are whole.
//!
//! The disks of a parent that is down stay as they are meanwhile. One that runs is captured (`fork_memory.rs`), and
//! writes to its new layers. Its children are suspended VMs, whose first start is in `copy.rs`.
//!
//! A VMM that ends during a fork is dealt with once the fork has ended ([`VmTask::ended_in_fork`]).

use std::{collections::BTreeSet, sync::Arc};

use banger_domain::{
    id::{JobId, VmId},
    lifecycle::{Reason, State},
    limits::check_fork,
    name::Name,
    net::subnet::Slot,
    resource::Resource,
    restart::RestartPolicy,
    ssh::HostKey,
    vm::{Lifetime, Token, Vm, VmSpec},
};
use banger_proto::size::Bytes;
use tokio::sync::mpsc;
use tracing::Instrument;

use super::{Command, INBOX, Next, TaskEvent, VmTask, fork_memory, suspend::most_of};
use crate::{
    engine::{
        Shared,
        error::{Error, Result, one_line},
        inventory::Admission,
        job::{JobHandle, Stages},
        lease::{Lease, not_released},
        now,
        queue::Ticket,
        request::ForkVm,
        view::{JobKind, Object, VmView},
    },
    ports::{
        FromHost as _, HostError,
        captures::{HostFacts, Stored},
        disks::{self, FrozenLayer, Parent},
        supervisor::Ended,
    },
    tasks::Task,
};

const FORK: Stages = &["disk"];
const FORK_RUNNING: Stages = &["save", "disk"];

/// A sandbox that has a name and an address, and no task yet; or a snapshot.
pub(super) struct Child {
    pub(super) vm: Vm,
    pub(super) lease: Lease,
    /// The end of the channel for its task. A snapshot has none.
    pub(super) inbox: Option<mpsc::Receiver<Command>>,
    /// Its memory on disk, if its parent ran.
    pub(super) captured: Option<Stored>,
}

/// The parent of a fork.
pub(super) enum Source {
    Down,
    /// It runs, and its state depends on these facts.
    Running(HostFacts),
    /// It is a snapshot, which nothing writes to.
    Snapshot,
}

impl Source {
    fn parent(&self) -> Parent {
        match self {
            Source::Down | Source::Snapshot => Parent::Down,
            Source::Running(_) => Parent::Up,
        }
    }

    /// Returns the most that the memory of its children can take.
    pub(super) fn memory(&self, vm: &Vm) -> Option<Bytes> {
        match self {
            Source::Down | Source::Snapshot => None,
            Source::Running(_) => Some(most_of(vm.spec.memory)),
        }
    }
}

/// The result of a fork.
pub(super) struct Forked {
    made: Result<()>,
    /// The frozen layers of the parent; none if they are as before.
    layers: Option<Vec<FrozenLayer>>,
    /// The snapshot that was made.
    snapshot: Option<Child>,
}

impl VmTask {
    /// Starts to make children. Everything that can be checked is checked before anything is created.
    pub(super) async fn fork(&mut self, request: ForkVm) -> Result<(Vec<VmId>, JobId)> {
        let (parent, source, freezing) = match &request.snapshot {
            Some(name) => (self.snapshot_to_fork(name).await?, Source::Snapshot, Bytes(0)),
            None => {
                let (source, freezing) = self.prepare_fork().await?;
                (self.vm.clone(), source, freezing)
            }
        };
        let children = self.admit_children(&parent, request, freezing, source.memory(&self.vm))?;
        let ids: Vec<VmId> = children.iter().map(|child| child.vm.id).collect();
        let job = self.begin_fork(JobKind::VmFork, parent, children, source, freezing)?;
        Ok((ids, job))
    }

    /// Checks that the VM can be forked as it is. Returns what its children are made of, and what would be frozen.
    pub(super) async fn prepare_fork(&mut self) -> Result<(Source, Bytes)> {
        self.require_unread_disks().await?;
        let source = self.source().await?;
        let freezable = self.shared.ports.disks.freezable(self.vm.id, source.parent()).await;
        let freezing = match freezable {
            // It must be stopped first, so that they can be copied.
            Err(disks::Error::NotLayered) => Err(Error::StillWriting { name: self.vm.name.to_string() }),
            freezable => freezable.map_err(Error::from),
        }?;
        Ok((source, freezing))
    }

    /// Starts the job that makes children, which are admitted, of the VM or of a snapshot of it.
    pub(super) fn begin_fork(
        &mut self,
        kind: JobKind,
        parent: Vm,
        children: Vec<Child>,
        source: Source,
        freezing: Bytes,
    ) -> Result<JobId> {
        // A snapshot is no object of its own.
        let vms = children.iter().filter(|child| child.inbox.is_some()).map(|child| child.vm.id);
        let objects = [self.vm.id].into_iter().chain(vms).map(Object::Vm).collect();
        let stages = if matches!(source, Source::Running(_)) { FORK_RUNNING } else { FORK };
        let job = match self.shared.jobs.begin(kind, self.vm.owner, objects, stages) {
            Ok(job) => job,
            Err(error) => {
                children.iter().for_each(|child| self.shared.inventory.remove_vm(child.vm.id));
                self.publish();
                return Err(error);
            }
        };
        let id = job.id();
        (self.forking, self.freezing) = (Some(id), freezing);
        let shared = Arc::clone(&self.shared);
        self.background.spawn(async move {
            let span = job.span();
            let forked = make(&shared, &job, &parent, children, source).instrument(span).await;
            TaskEvent::ForkEnded(job, Box::new(forked))
        });
        Ok(id)
    }

    /// Checks that the VM can be forked in its state.
    async fn source(&mut self) -> Result<Source> {
        match self.vm.state {
            State::Running => {
                // What it was resumed from must not be left when its guest stands still.
                let left = self.lease.release_one(Resource::Capture).await;
                not_released(self.vm.name.as_str(), left).map_or(Ok(()), Err)?;
                Ok(Source::Running(self.capturable().await?))
            }
            State::Paused => Err(Error::Paused { name: self.vm.name.to_string() }),
            _ => {
                self.require_down()?;
                // A VMM that could not be removed may still write to the disks.
                self.release_boot().await?;
                Ok(Source::Down)
            }
        }
    }

    /// Refuses what would end or stop a guest that is being captured, or change disks that are being forked.
    pub(super) fn require_not_forked(&self) -> Result<()> {
        match self.forking {
            Some(_) => Err(Error::DisksBusy { name: self.vm.name.to_string() }),
            None => Ok(()),
        }
    }

    /// Notes that the VMM has ended during a fork, which fails by itself if it still needs the VMM.
    pub(super) fn ended_in_fork(&mut self, ended: Ended) {
        self.ended = Some(ended);
    }

    pub(super) async fn fork_ended(&mut self, job: JobHandle, forked: Forked) -> Next {
        (self.forking, self.freezing) = (None, Bytes(0));
        if let Some(layers) = forked.layers {
            self.frozen = layers;
        }
        if let Some(snapshot) = forked.snapshot {
            self.add_snapshot(snapshot);
        }
        self.publish();
        let is_stuck = matches!(forked.made, Err(Error::DoesNotContinue { .. }));
        job.finish(forked.made);
        if let Some(ended) = self.ended.take()
            && self.vmm_ended(ended).await == Next::Leave
        {
            return Next::Leave;
        }
        if is_stuck && self.vm.state == State::Running {
            self.suspect();
            self.let_continue();
        }
        self.disks_are_free().await
    }

    /// Gives every child a name and an address, if the owner's quota allows all of them, what freezing adds, and the memory
    /// that they share.
    fn admit_children(
        &self,
        parent: &Vm,
        request: ForkVm,
        freezing: Bytes,
        memory: Option<Bytes>,
    ) -> Result<Vec<Child>> {
        let limits = &self.shared.settings.limits;
        let owned = self.shared.inventory.usage(self.vm.owner).vms;
        let lifetime = request.lifetime.clone();
        let names = candidates(&self.vm.name, request, owned)?;
        let (mut admissions, mut inboxes) = (Vec::new(), Vec::new());
        for names in names {
            let (sender, inbox) = mpsc::channel(INBOX);
            let child = Vm { lifetime: lifetime.clone(), ..self.child(parent, names[0].clone())? };
            let mut view = self.shared.view(child, String::new(), 0);
            if admissions.is_empty() {
                view.captured = memory.map(|size| Stored { size, at: view.vm.created_at, file: None });
            }
            admissions.push(Admission { view, names, inbox: sender });
            inboxes.push(inbox);
        }
        let subnet = self.shared.subnet.get();
        let parent = VmView { freezing, ..self.view() };
        let admitted = self.shared.inventory.admit_all(admissions, parent, subnet, limits)?;
        let child = |(view, inbox): (Arc<VmView>, _)| {
            let mut vm = view.vm.clone();
            vm.spec.hostname = vm.name.clone();
            let lease = Lease::new(vm.id, self.shared.ports.clone(), self.shared.problems.clone());
            Child { vm, lease, inbox: Some(inbox), captured: None }
        };
        Ok(admitted.into_iter().zip(inboxes).map(child).collect())
    }

    /// Returns the row of a child, which has nothing by which the parent is known. Ports of the host can only be
    /// published once.
    pub(super) fn child(&self, parent: &Vm, name: Name) -> Result<Vm> {
        let host_key = HostKey::random().map_err(|error| HostError::other("make a host key", error))?;
        let spec = VmSpec {
            ports: BTreeSet::new(),
            hostname: name.clone(),
            restart: RestartPolicy::No,
            autostart: false,
            ..parent.spec.clone()
        };
        Ok(Vm {
            id: VmId::random(),
            name,
            spec,
            // The inventory assigns a free one.
            slot: Slot(0),
            state: State::Created,
            reason: Reason::None,
            lifetime: Lifetime::Persistent,
            token: Token::random(),
            host_key,
            created_at: now(&*self.shared.ports.clock),
            started_at: Default::default(),
            ready_at: Default::default(),
            boot_id: String::new(),
            booted_from: None,
            snapshot_of: None,
            ..parent.clone()
        })
    }

    /// Starts the task of a child whose disks and row exist.
    fn forked(shared: &Arc<Shared>, child: Child, inbox: mpsc::Receiver<Command>, layers: Vec<FrozenLayer>) {
        let mut task = Self::new(Arc::clone(shared), child.vm, child.lease, inbox);
        (task.frozen, task.captured) = (layers, child.captured);
        // Its layers count from now on, and its host name is final.
        task.publish();
        let (vm, span) = (task.vm.id, task.span());
        shared.tasks.clone().spawn_finite(Task::Vm(vm), task.run().instrument(span));
    }
}

/// Makes the children, or none of them.
async fn make(
    shared: &Arc<Shared>,
    job: &JobHandle,
    parent: &Vm,
    mut children: Vec<Child>,
    source: Source,
) -> Forked {
    let (mut layers, mut snapshot) = (None, None);
    let is_changed = !matches!(source, Source::Snapshot);
    let made = make_all(shared, job, parent, &mut children, source, &mut layers).await;
    for mut child in children {
        match (&made, child.inbox.take()) {
            (Ok(()), Some(inbox)) => VmTask::forked(shared, child, inbox, layers.clone().unwrap_or_default()),
            (Ok(()), None) => snapshot = Some(child),
            (Err(_), _) => undo(shared, child).await,
        }
    }
    Forked { made, layers: layers.filter(|_| is_changed), snapshot }
}

async fn make_all(
    shared: &Shared,
    job: &JobHandle,
    parent: &Vm,
    children: &mut [Child],
    source: Source,
    layers: &mut Option<Vec<FrozenLayer>>,
) -> Result<()> {
    let disks = &shared.ports.disks;
    let state = source.parent();
    let is_snapshot = matches!(source, Source::Snapshot);
    let frozen = match (source, children.first_mut()) {
        (Source::Running(facts), Some(first)) => {
            fork_memory::capture(shared, job, parent, facts, first).await.map(Some)
        }
        (Source::Snapshot, _) => Ok(None),
        _ => disks.freeze(parent.id).await.map(|()| None).map_err(Error::from),
    };
    // A fork that fails later has frozen them, too.
    *layers = Some(disks.frozen(parent.id).await?);
    let captured = frozen?;
    let worker = worker_for_copies(job, layers.as_deref().unwrap_or_default()).await?;
    make_disks(shared, job, parent, children, state).await?;
    drop(worker);
    if let Some(captured) = captured {
        fork_memory::give(shared, captured, parent, children).await?;
    } else if is_snapshot && parent.state == State::Suspended {
        fork_memory::share(shared, parent.id, children).await?;
    }
    // From the first row on, they exist.
    if job.is_canceled() {
        return Err(Error::Canceled);
    }
    for child in children {
        shared.ports.store.put_vm(&child.vm).await?;
    }
    Ok(())
}

/// Waits for a worker, if disks with these layers are copied: whole ones are.
pub(super) async fn worker_for_copies(job: &JobHandle, layers: &[FrozenLayer]) -> Result<Option<Ticket>> {
    match layers.is_empty() {
        true => job.acquire_worker().await.map(Some),
        false => Ok(None),
    }
}

/// Gives each child disks of its own, made of those of the parent. Fails with [`Error::Canceled`] once the job is cancelled.
pub(super) async fn make_disks(
    shared: &Shared,
    job: &JobHandle,
    parent: &Vm,
    children: &mut [Child],
    state: Parent,
) -> Result<()> {
    let disks = &shared.ports.disks;
    let count = children.len();
    for (index, child) in children.iter_mut().enumerate() {
        job.stage("disk", format!("forking the disks of {} ({} of {count})", parent.name, index + 1));
        let id = child.vm.id;
        let make = async {
            disks.create_directory(id).await?;
            disks.create_child(id, parent.id, state, job.progress("disk")).await
        };
        let made = child.lease.hold(Resource::Disks, make).await;
        if job.is_canceled() {
            return Err(Error::Canceled);
        }
        made?;
    }
    Ok(())
}

/// Removes a child, its row first: one without a row is cleaned up after a crash, and a row must not be without disks.
async fn undo(shared: &Shared, mut child: Child) {
    match shared.ports.store.delete_vm(child.vm.id).await {
        Ok(()) => drop(child.lease.release_all().await),
        Err(error) => {
            tracing::error!(vm = %child.vm.id, error = %one_line(&error), "cannot delete the row of a sandbox");
        }
    }
    shared.inventory.remove_vm(child.vm.id);
}

/// Returns the acceptable names of each child: the requested one, else the parent's with a number. The owner has this many
/// sandboxes.
fn candidates(parent: &Name, request: ForkVm, owned: u32) -> Result<Vec<Arc<[Name]>>> {
    let ForkVm { count, names, .. } = request;
    check_fork(count)?;
    if names.is_empty() {
        let numbered = |number| format!("{parent}-{number}").parse::<Name>();
        let first = numbered(1)?;
        // The first that are free: so many that not all can be taken. Names end where they would be too long.
        let others = (2..=owned.saturating_add(count)).map_while(|number| numbered(number).ok());
        let all: Arc<[Name]> = [first].into_iter().chain(others).collect();
        return Ok(vec![all; count as usize]);
    }
    let distinct: BTreeSet<&Name> = names.iter().collect();
    if names.len() != count as usize || distinct.len() != names.len() {
        let why = format!("{count} sandboxes need {count} different names");
        return Err(Error::InvalidOption { why });
    }
    Ok(names.into_iter().map(|name| [name].into()).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn children_are_numbered_or_have_the_names_of_the_request() {
        let first = |count, names: &[&str]| {
            let names = names.iter().map(|name| name.parse().unwrap()).collect();
            let request = ForkVm { count, names, snapshot: None, lifetime: Lifetime::Persistent };
            let children = candidates(&"web".parse().unwrap(), request, 3)?;
            Ok::<_, Error>(children.iter().map(|names| names[0].to_string()).collect::<Vec<_>>())
        };
        assert_eq!(first(2, &[]).unwrap(), ["web-1", "web-1"]);
        assert_eq!(first(2, &["a", "b"]).unwrap(), ["a", "b"]);
        for (count, names) in [(0, &[][..]), (101, &[]), (2, &["a"]), (1, &["a", "b"]), (2, &["a", "a"])] {
            assert!(first(count, names).is_err(), "{count} {names:?}");
        }
        let many = |parent: String, count| {
            let request = ForkVm { count, names: Vec::new(), snapshot: None, lifetime: Lifetime::Persistent };
            candidates(&parent.parse().unwrap(), request, 9).map(|children| children[0].len())
        };
        assert_eq!(many("web".to_owned(), 2).unwrap(), 11);
        assert_eq!(many("x".repeat(61), 2).unwrap(), 9, "a name with two digits is too long");
        let long: Name = "x".repeat(62).parse().unwrap();
        let request = ForkVm { count: 1, names: Vec::new(), snapshot: None, lifetime: Lifetime::Persistent };
        assert!(matches!(candidates(&long, request, 3), Err(Error::Name(_))));
    }
}
