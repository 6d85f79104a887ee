//! Makes new sandboxes with the disks of one that is down.
//!
//! What the parent has written is frozen first, and the children share it ([`Disks`](crate::ports::disks::Disks)). Then
//! each child gets a directory of its own, by way of its own lease, while the parent's disks stay as they are. The rows
//! come last: after a crash before that, the directories are orphans. So there are all children or none, unless the
//! service crashes while it stores the rows; then those that have one are whole.

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

use super::{Command, INBOX, Next, TaskEvent, VmTask};
use crate::{
    engine::{
        Shared,
        error::{Error, Result, one_line},
        inventory::Admission,
        job::{JobHandle, Stages},
        lease::Lease,
        now,
        request::ForkVm,
        view::{JobKind, Object},
    },
    ports::{FromHost as _, HostError, disks::FrozenLayer},
    tasks::Task,
};

const FORK: Stages = &["disk"];

/// A sandbox that has a name and an address, and no task yet.
struct Child {
    vm: Vm,
    lease: Lease,
    inbox: mpsc::Receiver<Command>,
}

impl VmTask {
    /// Starts to make children. Everything that can be checked is checked before anything is created.
    pub(super) async fn fork(&mut self, request: ForkVm) -> Result<(Vec<VmId>, JobId)> {
        self.require_unread_disks().await?;
        self.require_down()?;
        // A VMM that could not be removed may still write to the disks.
        self.release_boot().await?;
        let frozen = self.shared.ports.disks.freezable(self.vm.id).await?;
        let children = self.admit_children(request, frozen)?;
        let ids: Vec<VmId> = children.iter().map(|child| child.vm.id).collect();
        let begun = match self.freeze_disks().await {
            Ok(()) => {
                let objects = [self.vm.id].iter().chain(&ids).copied().map(Object::Vm).collect();
                self.shared.jobs.begin(JobKind::VmFork, self.vm.owner, objects, FORK)
            }
            Err(error) => Err(error),
        };
        let job = begun.inspect_err(|_| ids.iter().for_each(|id| self.shared.inventory.remove_vm(*id)))?;
        let id = job.id();
        self.forking = Some(id);
        let (shared, parent, layers) = (Arc::clone(&self.shared), self.vm.clone(), self.frozen.clone());
        self.background.spawn(async move {
            let span = job.span();
            let made = make(&shared, &job, &parent, children, layers).instrument(span).await;
            TaskEvent::ForkEnded(job, made)
        });
        Ok((ids, id))
    }

    pub(super) async fn fork_ended(&mut self, job: JobHandle, made: Result<()>) -> Next {
        self.forking = None;
        job.finish(made);
        self.disks_are_free().await
    }

    async fn freeze_disks(&mut self) -> Result<()> {
        let disks = &self.shared.ports.disks;
        disks.freeze(self.vm.id).await?;
        self.frozen = disks.frozen(self.vm.id).await?;
        self.publish();
        Ok(())
    }

    /// Gives every child a name and an address, if the owner's quota allows all of them and what freezing adds.
    fn admit_children(&self, request: ForkVm, frozen: Bytes) -> Result<Vec<Child>> {
        let limits = &self.shared.settings.limits;
        let owned = self.shared.inventory.usage(self.vm.owner).vms;
        let names = candidates(&self.vm.name, request, owned)?;
        let (mut admissions, mut inboxes) = (Vec::new(), Vec::new());
        for names in names {
            let (sender, inbox) = mpsc::channel(INBOX);
            let view = self.shared.view(self.child(names[0].clone())?, String::new(), 0);
            admissions.push(Admission { view, names, inbox: sender });
            inboxes.push(inbox);
        }
        let subnet = self.shared.subnet.get();
        let admitted = self.shared.inventory.admit_all(admissions, frozen, subnet, limits)?;
        let child = |(view, inbox): (Arc<crate::engine::view::VmView>, _)| {
            let mut vm = view.vm.clone();
            vm.spec.hostname = vm.name.clone();
            let lease = Lease::new(vm.id, self.shared.ports.clone(), self.shared.problems.clone());
            Child { vm, lease, inbox }
        };
        Ok(admitted.into_iter().zip(inboxes).map(child).collect())
    }

    /// Returns the row of a child, which has nothing by which the parent is known. Ports of the host can only be
    /// published once.
    fn child(&self, name: Name) -> Result<Vm> {
        let host_key = HostKey::random().map_err(|error| HostError::other("make a host key", error))?;
        let spec = VmSpec {
            ports: BTreeSet::new(),
            hostname: name.clone(),
            restart: RestartPolicy::No,
            autostart: false,
            ..self.vm.spec.clone()
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
            ..self.vm.clone()
        })
    }

    /// Starts the task of a child whose disks and row exist.
    fn forked(shared: &Arc<Shared>, child: Child, layers: Vec<FrozenLayer>) {
        let Child { vm, lease, inbox } = child;
        let mut task = Self::new(Arc::clone(shared), vm, lease, inbox);
        task.frozen = layers;
        // Its layers count from now on, and its host name is final.
        task.publish();
        shared.tasks.clone().spawn_finite(Task::Vm(task.vm.id), task.run());
    }
}

/// Makes the children, or none of them.
async fn make(
    shared: &Arc<Shared>,
    job: &JobHandle,
    parent: &Vm,
    mut children: Vec<Child>,
    layers: Vec<FrozenLayer>,
) -> Result<()> {
    let made = match layers.is_empty() {
        false => make_disks(shared, job, parent, &mut children).await,
        // Whole disks are copied.
        true => match job.acquire_worker().await {
            Ok(_worker) => make_disks(shared, job, parent, &mut children).await,
            Err(error) => Err(error),
        },
    };
    for child in children {
        match made {
            Ok(()) => VmTask::forked(shared, child, layers.clone()),
            Err(_) => undo(shared, child).await,
        }
    }
    made
}

async fn make_disks(shared: &Shared, job: &JobHandle, parent: &Vm, children: &mut [Child]) -> Result<()> {
    let ports = &shared.ports;
    let count = children.len();
    for (index, child) in children.iter_mut().enumerate() {
        job.stage("disk", format!("forking the disks of {} ({} of {count})", parent.name, index + 1));
        let id = child.vm.id;
        let make = async {
            ports.disks.create_directory(id).await?;
            ports.disks.create_child(id, parent.id).await
        };
        child.lease.hold(Resource::Disks, make).await?;
        if job.is_canceled() {
            return Err(Error::Canceled);
        }
    }
    for child in children {
        ports.store.put_vm(&child.vm).await?;
    }
    Ok(())
}

async fn undo(shared: &Shared, mut child: Child) {
    child.lease.release_all().await;
    if let Err(error) = shared.ports.store.delete_vm(child.vm.id).await {
        tracing::error!(vm = %child.vm.id, error = %one_line(&error), "cannot delete the row of a sandbox");
    }
    shared.inventory.remove_vm(child.vm.id);
}

/// Returns the acceptable names of each child: the requested one, else the parent's with a number. The owner has this many
/// sandboxes.
fn candidates(parent: &Name, request: ForkVm, owned: u32) -> Result<Vec<Arc<[Name]>>> {
    let ForkVm { count, names } = request;
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
            let children = candidates(&"web".parse().unwrap(), ForkVm { count, names }, 3)?;
            Ok::<_, Error>(children.iter().map(|names| names[0].to_string()).collect::<Vec<_>>())
        };
        assert_eq!(first(2, &[]).unwrap(), ["web-1", "web-1"]);
        assert_eq!(first(2, &["a", "b"]).unwrap(), ["a", "b"]);
        for (count, names) in [(0, &[][..]), (101, &[]), (2, &["a"]), (1, &["a", "b"]), (2, &["a", "a"])] {
            assert!(first(count, names).is_err(), "{count} {names:?}");
        }
        let many = |parent: String, count| {
            let request = ForkVm { count, names: Vec::new() };
            candidates(&parent.parse().unwrap(), request, 9).map(|children| children[0].len())
        };
        assert_eq!(many("web".to_owned(), 2).unwrap(), 11);
        assert_eq!(many("x".repeat(61), 2).unwrap(), 9, "a name with two digits is too long");
        let long: Name = "x".repeat(62).parse().unwrap();
        assert!(matches!(candidates(&long, ForkVm { count: 1, names: Vec::new() }, 3), Err(Error::Name(_))));
    }
}
