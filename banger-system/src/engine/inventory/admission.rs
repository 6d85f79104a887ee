//! Gives new VMs a name and an address, if the quota of their owner allows it.

use std::{collections::HashSet, sync::Arc};

use banger_domain::{
    limits::{Limits, check_image_disk},
    name::Name,
    net::subnet::{Slot, Subnet},
    vm::Vm,
};
use banger_proto::size::Bytes;
use tokio::sync::mpsc;

use super::{Entry, Inventory, State};
use crate::engine::{
    error::{Error, Kind, Result},
    history::History,
    view::{Event, VmView},
    vm_task::Command,
};

/// A new VM that asks for a name and an address.
pub(in crate::engine) struct Admission {
    /// The VM, without either.
    pub(in crate::engine) view: VmView,
    /// The acceptable names, the best first.
    pub(in crate::engine) names: Arc<[Name]>,
    /// The channel to its task.
    pub(in crate::engine) inbox: mpsc::Sender<Command>,
}

/// What a fork is about to make.
pub(super) struct Fork<'a> {
    /// The new VMs, or the snapshot.
    pub(super) vms: &'a [&'a Vm],
    /// The most that the memory which they share can take on disk.
    pub(super) memory: Option<Bytes>,
    /// What they are made of, with what is going to be frozen.
    pub(super) parent: &'a VmView,
}

impl Inventory {
    /// Adds a new VM under the first free name, with a free address, if the owner's quota allows it.
    pub(in crate::engine) fn admit(
        &self,
        admission: Admission,
        subnet: Option<&Subnet>,
        limits: &Limits,
    ) -> Result<Arc<VmView>> {
        let mut state = self.lock();
        let vm = &admission.view.vm;
        limits.check_create(state.usage(vm.owner), state.disk_of(vm.image, &vm.spec))?;
        let view = state.place(admission, subnet)?;
        self.send(Event::VmAdded(Arc::clone(&view)));
        Ok(view)
    }

    /// Adds the children of a VM as [`Inventory::admit`] does, or none of them, and publishes their parent. What is going to
    /// be frozen of it counts at once, and so does their memory on disk.
    pub(in crate::engine) fn admit_all(
        &self,
        admissions: Vec<Admission>,
        parent: VmView,
        subnet: Option<&Subnet>,
        limits: &Limits,
    ) -> Result<Vec<Arc<VmView>>> {
        let mut state = self.lock();
        let vms: Vec<&Vm> = admissions.iter().map(|Admission { view, .. }| &view.vm).collect();
        let memory = admissions.iter().find_map(|Admission { view, .. }| view.captured).map(|all| all.size);
        state.check_fork(Fork { vms: &vms, memory, parent: &parent }, limits)?;
        let mut added: Vec<Arc<VmView>> = Vec::new();
        for admission in admissions {
            match state.place(admission, subnet) {
                Ok(view) => added.push(view),
                Err(error) => {
                    added.iter().for_each(|view| drop(state.vms.remove(&view.vm.id)));
                    return Err(error);
                }
            }
        }
        added.iter().for_each(|view| self.send(Event::VmAdded(Arc::clone(view))));
        self.replace(&mut state, parent);
        Ok(added)
    }
}

impl State {
    /// Checks that the owner's quota allows a fork.
    pub(super) fn check_fork(&self, fork: Fork<'_>, limits: &Limits) -> Result<()> {
        let Fork { vms, memory, parent } = fork;
        let owner = parent.vm.owner;
        let disks = vms.iter().map(|vm| self.disk_of(vm.image, &vm.spec));
        let disk = Bytes(disks.fold(parent.freezing.0, |sum, disk| sum.saturating_add(disk.0)));
        limits.check_create_many(self.usage(owner), vms.len() as u32, disk)?;
        if let Some(memory) = memory {
            let would_be = self.private_bytes(owner, None, None).0.saturating_add(memory.0);
            check_image_disk(Bytes(would_be), limits.image_disk)?;
        }
        Ok(())
    }

    /// Adds a VM under the first free name, with a free address.
    fn place(&mut self, admission: Admission, subnet: Option<&Subnet>) -> Result<Arc<VmView>> {
        let Admission { mut view, names, inbox } = admission;
        let vm = &mut view.vm;
        let Some(name) = names.iter().find(|name| !self.vm_name_taken(vm.owner, name)) else {
            let name = names.last().map(Name::to_string).unwrap_or_default();
            return Err(Error::NameTaken { kind: Kind::Vm, name });
        };
        vm.name = name.clone();
        let taken: HashSet<Slot> = self.vms.values().map(|entry| entry.view.vm.slot).collect();
        vm.slot = Slot::free(|slot| taken.contains(&slot), self.last_slot).ok_or(Error::NoAddress)?;
        self.last_slot = Some(vm.slot);
        view.address = subnet.and_then(|subnet| subnet.guest(vm.slot)).map(|(v4, _)| v4);
        let view = Arc::new(view);
        let mut history = History::default();
        history.note(view.vm.created_at, &view);
        self.vms.insert(view.vm.id, Entry { view: Arc::clone(&view), inbox, history });
        Ok(view)
    }
}
