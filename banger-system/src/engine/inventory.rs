//! The in-memory table of all VMs, images and kernels, as last published.
//!
//! Each VM's view is written by the VM's own task only. Decisions that concern several objects of a user (free names,
//! quotas, whether an image is in use) are made here, under one short lock that is never held across an `.await`.

mod admission;
mod snapshots;

use std::{
    collections::HashMap,
    fmt::Display,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use banger_domain::{
    dns::table::Presence,
    egress::Egress,
    id::{ImageId, KernelId, Timestamp, Uid, VmId},
    limits::{Limits, Usage},
    name::{Name, Reference},
    net::subnet::Slot,
    vm::{Vm, VmSpec},
};
use banger_image::record::ImageFacts;
use banger_proto::size::Bytes;
use tokio::sync::{mpsc, watch};

pub(super) use self::admission::Admission;
use super::{
    counts::Counts,
    error::{Error, Kind, Result},
    events::EventSender,
    history::{History, Phase},
    library::item::Stored,
    names::presence,
    now,
    view::{Event, ImageView, KernelView, SnapshotView, VmView},
    vm_task::Command,
};
use crate::ports::clock::Clock;

pub(super) struct Inventory {
    state: Mutex<State>,
    events: EventSender,
    clock: Arc<dyn Clock>,
    counts: Arc<Counts>,
    changes: watch::Sender<()>,
    /// Changes of what names depend on.
    naming: watch::Sender<()>,
}

/// The tables. Only [`Stored`] picks one of them.
#[derive(Default)]
pub(super) struct State {
    vms: HashMap<VmId, Entry>,
    /// The snapshots of VMs, also those that are being made.
    snapshots: HashMap<VmId, Arc<SnapshotView>>,
    /// The address slot that was assigned last.
    last_slot: Option<Slot>,
    pub(super) images: HashMap<ImageId, Arc<ImageView>>,
    pub(super) kernels: HashMap<KernelId, Arc<KernelView>>,
    /// Names of images and kernels that are being created, and the bytes they will take.
    reserved: HashMap<(Kind, Uid, Name), Bytes>,
}

struct Entry {
    view: Arc<VmView>,
    inbox: mpsc::Sender<Command>,
    history: History,
}

impl State {
    fn usage(&self, owner: Uid) -> Usage {
        let (mut usage, mut layers) = (Usage::default(), HashMap::new());
        for snapshot in self.snapshots.values().filter(|snapshot| snapshot.vm.owner == owner) {
            usage.vms += 1;
            let disk = self.disk_of(snapshot.vm.image, &snapshot.vm.spec);
            usage.disk = Bytes(usage.disk.0.saturating_add(disk.0));
            layers.extend(snapshot.frozen.iter().map(|layer| (layer.id, layer.size.0)));
        }
        for Entry { view, .. } in self.vms.values().filter(|entry| entry.view.vm.owner == owner) {
            usage.vms += 1;
            let disk = self.disk_of(view.vm.image, &view.vm.spec);
            usage.disk = Bytes(usage.disk.0.saturating_add(disk.0).saturating_add(view.freezing.0));
            if view.vm.state.is_up() {
                usage.running += 1;
                usage.memory = Bytes(usage.memory.0.saturating_add(view.vm.spec.memory.0));
            }
            layers.extend(view.frozen.iter().map(|layer| (layer.id, layer.size.0)));
        }
        // A layer that several of them share counts once.
        usage.disk = Bytes(layers.into_values().fold(usage.disk.0, u64::saturating_add));
        usage
    }

    /// Returns what a VM's disks count against the quota. The part of the system disk that is its image's counts for
    /// nobody.
    fn disk_of(&self, image: ImageId, spec: &VmSpec) -> Bytes {
        let beyond = spec.root_size.0.saturating_sub(self.image_size(image).0);
        Bytes(spec.disk_size.0.saturating_add(beyond))
    }

    /// Returns the size of an image's file system, or 0 if there is no such image.
    fn image_size(&self, id: ImageId) -> Bytes {
        self.images.get(&id).map_or(Bytes(0), |image| image.facts.virtual_size)
    }

    /// Returns the names of the VMs and snapshots that use an image.
    pub(super) fn image_users(&self, id: ImageId) -> Vec<String> {
        self.users(|vm| vm.image == id)
    }

    /// Returns the names of the VMs and snapshots that a condition holds for.
    fn users(&self, is_user: impl Fn(&Vm) -> bool) -> Vec<String> {
        let vms = self.vms.values().filter(|entry| is_user(&entry.view.vm));
        let snapshots = self.snapshots.values().filter(|snapshot| is_user(&snapshot.vm));
        let snapshots = snapshots.map(|snapshot| self.snapshot_user(snapshot));
        vms.map(|entry| entry.view.vm.name.to_string()).chain(snapshots).collect()
    }

    /// Returns the bytes of a user's private images, including pending imports except one, and `more`, and of the
    /// memory of suspended sandboxes and of snapshots. A file that several of them share counts once.
    fn private_bytes(
        &self,
        owner: Uid,
        except: Option<&(Kind, Uid, Name)>,
        more: Option<&ImageFacts>,
    ) -> Bytes {
        let private = self.images.values().filter(|image| image.owner == owner && !image.shared);
        let stored = private.map(|image| &image.facts).chain(more);
        let files: HashMap<ImageId, u64> = stored.map(|facts| (facts.file, facts.disk_usage.0)).collect();
        let pending = self.reserved.iter().filter(|(key, _)| key.1 == owner && Some(*key) != except);
        let views = self.vms.values().map(|entry| &entry.view).filter(|view| view.vm.owner == owner);
        let snapshots = self.snapshots.values().filter(|snapshot| snapshot.vm.owner == owner);
        let captured =
            views.filter_map(|view| view.captured).chain(snapshots.filter_map(|snapshot| snapshot.captured));
        let captured = captured.map(|captured| (captured.file, captured.size.0));
        let (shared, own): (Vec<_>, Vec<_>) = captured.partition(|(file, _)| file.is_some());
        let shared: HashMap<Option<u64>, u64> = shared.into_iter().collect();
        let captured = shared.into_values().chain(own.into_iter().map(|(_, size)| size));
        let sizes = files.into_values().chain(pending.map(|(_, bytes)| bytes.0)).chain(captured);
        Bytes(sizes.fold(0, u64::saturating_add))
    }

    /// Returns the names of the VMs, snapshots and images that use a kernel.
    pub(super) fn kernel_users(&self, id: KernelId) -> Vec<String> {
        let vms = self.users(|vm| vm.kernel == id);
        let images = self.images.values().filter(|image| image.kernel == Some(id));
        let names = images.map(|image| image.name.to_string());
        vms.into_iter().chain(names).collect()
    }

    /// Puts the current names of its image and its kernel into a VM's view.
    fn set_names(&self, view: &mut VmView) {
        if let Some(image) = self.images.get(&view.vm.image) {
            view.image_name = image.name.to_string();
        }
        if let Some(kernel) = self.kernels.get(&view.vm.kernel) {
            view.kernel_name = kernel.name.to_string();
        }
    }

    fn vm_name_taken(&self, owner: Uid, name: &Name) -> bool {
        self.vms.values().any(|entry| entry.view.vm.owner == owner && entry.view.vm.name == *name)
    }
}

impl Inventory {
    pub(super) fn new(events: EventSender, clock: Arc<dyn Clock>, counts: Arc<Counts>) -> Self {
        Self {
            state: Mutex::default(),
            events,
            clock,
            counts,
            changes: watch::Sender::default(),
            naming: watch::Sender::default(),
        }
    }

    /// Returns a receiver that wakes after any change. Several changes may wake it once.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Returns a receiver that wakes after a change of what the names of VMs depend on. Several changes may wake it once.
    pub(super) fn name_changes(&self) -> watch::Receiver<()> {
        self.naming.subscribe()
    }

    /// Wakes the receivers of [`Inventory::name_changes`].
    pub(super) fn notify_names(&self) {
        self.naming.send_replace(());
    }

    /// Returns whether a condition holds for any VM.
    pub(super) fn any_vm(&self, condition: impl Fn(&VmView) -> bool) -> bool {
        self.lock().vms.values().any(|entry| condition(&entry.view))
    }

    pub(super) fn vms(&self) -> Vec<Arc<VmView>> {
        self.lock().vms.values().map(|entry| Arc::clone(&entry.view)).collect()
    }

    pub(super) fn vm(&self, id: VmId) -> Option<Arc<VmView>> {
        self.lock().vms.get(&id).map(|entry| Arc::clone(&entry.view))
    }

    /// Returns the recent history of a VM.
    pub(super) fn history(&self, id: VmId) -> Option<History> {
        self.lock().vms.get(&id).map(|entry| entry.history.clone())
    }

    /// Notes that a VM begins to boot.
    pub(super) fn begin_boot(&self, id: VmId) {
        if let Some(entry) = self.lock().vms.get_mut(&id) {
            entry.history.begin_boot();
        }
    }

    /// Notes that a phase of a VM's boot has ended.
    pub(super) fn end_phase(&self, id: VmId, phase: Phase, took: Duration) {
        if let Some(entry) = self.lock().vms.get_mut(&id) {
            entry.history.end_phase(phase, took);
        }
    }

    /// Counts the phases of a VM's boot, which is over.
    pub(super) fn count_phases(&self, id: VmId) {
        if let Some(entry) = self.lock().vms.get(&id) {
            self.counts.phases(entry.view.vm.owner, entry.history.phases());
        }
    }

    /// Returns the channel to a VM's task.
    pub(super) fn inbox(&self, id: VmId) -> Result<mpsc::Sender<Command>> {
        let state = self.lock();
        let entry = state.vms.get(&id);
        entry.map(|entry| entry.inbox.clone()).ok_or_else(|| no_such(Kind::Vm, &id.to_string()))
    }

    pub(super) fn usage(&self, owner: Uid) -> Usage {
        self.lock().usage(owner)
    }

    /// Returns the bytes of a user's private images and of the memory of suspended sandboxes.
    pub(super) fn private_bytes(&self, owner: Uid) -> Bytes {
        self.lock().private_bytes(owner, None, None)
    }

    /// Checks that the owner's quota has room for the new disk sizes.
    pub(super) fn check_disks(&self, vm: &Vm, new: &VmSpec, limits: &Limits) -> Result<()> {
        let state = self.lock();
        let more = state.disk_of(vm.image, new).0.saturating_sub(state.disk_of(vm.image, &vm.spec).0);
        Ok(limits.check_disk(state.usage(vm.owner), Bytes(more))?)
    }

    /// Returns the size of an image's file system.
    pub(super) fn image_size(&self, id: ImageId) -> Bytes {
        self.lock().image_size(id)
    }

    /// Adds a VM that existed before the service started.
    pub(super) fn add_recovered(&self, view: VmView, inbox: mpsc::Sender<Command>) {
        let view = Arc::new(view);
        let mut state = self.lock();
        state.last_slot = state.last_slot.max(Some(view.vm.slot));
        let mut history = History::default();
        history.note(now(&*self.clock), &view);
        state.vms.insert(view.vm.id, Entry { view: Arc::clone(&view), inbox, history });
        self.notify_names();
        self.send(Event::VmAdded(view));
    }

    /// Publishes a VM. Only its own task calls this.
    pub(super) fn publish(&self, view: VmView) {
        self.replace(&mut self.lock(), view);
    }

    /// Publishes a VM that is starting, if the owner's quota allows it.
    pub(super) fn publish_start(&self, view: VmView, limits: &Limits) -> Result<()> {
        let mut state = self.lock();
        limits.check_start(state.usage(view.vm.owner), view.vm.spec.memory)?;
        self.replace(&mut state, view);
        Ok(())
    }

    /// Publishes a VM whose memory is going to be written to disk, if the owner's quota has room for that.
    pub(super) fn publish_suspend(&self, view: VmView, limits: &Limits) -> Result<()> {
        let mut state = self.lock();
        let more = view.captured.map_or(0, |captured| captured.size.0);
        let would_be = Bytes(state.private_bytes(view.vm.owner, None, None).0.saturating_add(more));
        banger_domain::limits::check_image_disk(would_be, limits.image_disk)?;
        self.replace(&mut state, view);
        Ok(())
    }

    /// Publishes a VM under a new name, if that is free.
    pub(super) fn publish_rename(&self, view: VmView) -> Result<()> {
        let mut state = self.lock();
        if state.vm_name_taken(view.vm.owner, &view.vm.name) {
            return Err(Error::NameTaken { kind: Kind::Vm, name: view.vm.name.to_string() });
        }
        self.replace(&mut state, view);
        Ok(())
    }

    fn replace(&self, state: &mut State, mut view: VmView) {
        // They may have been renamed since the task made this view.
        state.set_names(&mut view);
        let Some(entry) = state.vms.get_mut(&view.vm.id) else { return };
        if *entry.view == view {
            return;
        }
        entry.history.note(now(&*self.clock), &view);
        self.counts.changed(&entry.view, &view);
        let new = Arc::new(view);
        let old = std::mem::replace(&mut entry.view, Arc::clone(&new));
        if naming(&old) != naming(&new) {
            self.notify_names();
        }
        self.send(Event::VmChanged { old, new });
    }

    /// Removes a VM or a snapshot.
    pub(super) fn remove_vm(&self, id: VmId) {
        let mut state = self.lock();
        state.snapshots.remove(&id);
        if let Some(entry) = state.vms.remove(&id) {
            if naming(&entry.view).is_some() {
                self.notify_names();
            }
            self.send(Event::VmRemoved(entry.view));
        }
    }

    /// Finds a VM by an id of any owner, or by a name of the caller's. `named` is the user whom the reference names.
    pub(super) fn find_vm(
        &self,
        caller: Uid,
        reference: &Reference,
        named: Option<Uid>,
    ) -> Result<Arc<VmView>> {
        let state = self.lock();
        let candidates = state.vms.values().map(|Entry { view, .. }| Candidate {
            object: view,
            id: view.vm.id,
            owner: view.vm.owner,
            name: &view.vm.name,
            shared: false,
        });
        pick(Kind::Vm, caller, reference, named, candidates).cloned()
    }

    /// Returns all images or all kernels.
    pub(super) fn all<I: Stored>(&self) -> Vec<Arc<I>> {
        I::table(&self.lock()).values().cloned().collect()
    }

    /// Returns an image or a kernel.
    pub(super) fn item<I: Stored>(&self, id: I::Id) -> Option<Arc<I>> {
        I::table(&self.lock()).get(&id).cloned()
    }

    /// Returns a user's own image or kernel of this name.
    pub(super) fn own<I: Stored>(&self, owner: Uid, name: &Name) -> Option<Arc<I>> {
        I::table(&self.lock()).values().find(|item| item.owner() == owner && item.name() == name).cloned()
    }

    /// Finds an image or a kernel by reference. `named` is the user whom the reference names.
    pub(super) fn find<I: Stored>(
        &self,
        caller: Uid,
        reference: &Reference,
        named: Option<Uid>,
    ) -> Result<Arc<I>> {
        let items = self.all::<I>();
        let candidates = items.iter().map(|item| Candidate {
            object: item,
            id: item.id(),
            owner: item.owner(),
            name: item.name(),
            shared: item.is_shared(),
        });
        pick(I::KIND, caller, reference, named, candidates).cloned()
    }

    /// Reserves a name while an image or a kernel is created. `instead_of` is the object that it replaces.
    pub(super) fn reserve<I: Stored>(
        &self,
        owner: Uid,
        name: &Name,
        limit: u32,
        instead_of: Option<I::Id>,
    ) -> Result<()> {
        let mut state = self.lock();
        let stays = |item: &&Arc<I>| item.owner() == owner && Some(item.id()) != instead_of;
        let own = || I::table(&state).values().filter(stays);
        let key = (I::KIND, owner, name.clone());
        if own().any(|item| item.name() == name) || state.reserved.contains_key(&key) {
            return Err(Error::NameTaken { kind: I::KIND, name: name.to_string() });
        }
        let pending =
            state.reserved.keys().filter(|(kind, uid, _)| (*kind, *uid) == (I::KIND, owner)).count();
        banger_domain::limits::check_count(kind_plural(I::KIND), own().count() + pending + 1, limit)?;
        state.reserved.insert(key, Bytes(0));
        Ok(())
    }

    /// Counts the bytes of an image under a reserved name against its owner's quota.
    pub(super) fn claim(&self, owner: Uid, name: &Name, bytes: Bytes, limit: Bytes) -> Result<()> {
        let mut state = self.lock();
        let key = (Kind::Image, owner, name.clone());
        let would_be = Bytes(state.private_bytes(owner, Some(&key), None).0.saturating_add(bytes.0));
        banger_domain::limits::check_image_disk(would_be, limit)?;
        state.reserved.insert(key, bytes);
        Ok(())
    }

    /// Returns what is left of the owner's quota for an image under a reserved name.
    pub(super) fn room_for(&self, owner: Uid, name: &Name, limit: Bytes) -> Bytes {
        let key = (Kind::Image, owner, name.clone());
        Bytes(limit.0.saturating_sub(self.lock().private_bytes(owner, Some(&key), None).0))
    }

    /// Releases a reserved name.
    pub(super) fn cancel_reservation(&self, kind: Kind, owner: Uid, name: &Name) {
        self.lock().reserved.remove(&(kind, owner, name.clone()));
    }

    /// Publishes an image or a kernel.
    pub(super) fn add<I: Stored>(&self, item: I) {
        let item = Arc::new(item);
        let mut state = self.lock();
        I::table_mut(&mut state).insert(item.id(), Arc::clone(&item));
        self.send(item.added());
    }

    /// Renames an image or a kernel, unless its owner has another one of this name. Returns it before and after.
    pub(super) fn rename<I: Stored>(&self, id: I::Id, name: &Name) -> Result<(Arc<I>, Arc<I>)> {
        let mut state = self.lock();
        let old = I::table(&state).get(&id).cloned().ok_or_else(|| no_such(I::KIND, &id.to_string()))?;
        if old.name() == name {
            return Ok((Arc::clone(&old), old));
        }
        let is_taken =
            I::table(&state).values().any(|item| item.owner() == old.owner() && item.name() == name);
        if is_taken || state.reserved.contains_key(&(I::KIND, old.owner(), name.clone())) {
            return Err(Error::NameTaken { kind: I::KIND, name: name.to_string() });
        }
        let new = Arc::new(old.renamed(name.clone()));
        I::table_mut(&mut state).insert(id, Arc::clone(&new));
        self.send(I::changed(Arc::clone(&old), Arc::clone(&new)));
        // Sandboxes show the names of their image and their kernel.
        let views: Vec<VmView> = state.vms.values().map(|entry| VmView::clone(&entry.view)).collect();
        views.into_iter().for_each(|view| self.replace(&mut state, view));
        Ok((old, new))
    }

    /// Shares an image with all users, or makes it private. Fails to make it private while others use it, or if it
    /// does not fit into its owner's quota.
    pub(super) fn share_image(&self, id: ImageId, shared: bool, limit: Bytes) -> Result<Arc<ImageView>> {
        let mut state = self.lock();
        let old = state.images.get(&id).cloned().ok_or_else(|| no_such(Kind::Image, &id.to_string()))?;
        if old.shared == shared {
            return Ok(old);
        }
        if !shared {
            let others = state.users(|vm| vm.image == id && vm.owner != old.owner);
            check_not_used(Kind::Image, &old.name, others)?;
            let would_be = state.private_bytes(old.owner, None, Some(&old.facts));
            banger_domain::limits::check_image_disk(would_be, limit)?;
        }
        let new = Arc::new(ImageView { shared, ..ImageView::clone(&old) });
        state.images.insert(id, Arc::clone(&new));
        self.send(Event::ImageChanged { old, new: Arc::clone(&new) });
        Ok(new)
    }

    /// Checks that nothing uses an image or a kernel at the moment.
    pub(super) fn check_unused<I: Stored>(&self, item: &I) -> Result<()> {
        check_not_used(I::KIND, item.name(), I::users(&self.lock(), item.id()))
    }

    /// Removes an image or a kernel, if nothing uses it.
    pub(super) fn remove_unused<I: Stored>(&self, id: I::Id) -> Result<Arc<I>> {
        let mut state = self.lock();
        let item = I::table(&state).get(&id).cloned().ok_or_else(|| no_such(I::KIND, &id.to_string()))?;
        check_not_used(I::KIND, item.name(), I::users(&state, id))?;
        I::table_mut(&mut state).remove(&id);
        self.send(Arc::clone(&item).removed());
        Ok(item)
    }

    /// Sends a change. Must be called while the tables are locked, so that events come in the order of the changes.
    fn send(&self, event: Event) {
        self.events.send(event);
        self.changes.send_replace(());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns what the names of a VM depend on; none while it has none.
fn naming(view: &VmView) -> Option<(&Name, Slot, &Egress, Timestamp, Presence)> {
    let Vm { name, slot, spec, started_at, .. } = &view.vm;
    Some((name, *slot, &spec.egress, *started_at, presence(&view.vm)?))
}

fn kind_plural(kind: Kind) -> &'static str {
    match kind {
        Kind::Vm => "sandboxes",
        Kind::Image => "images",
        Kind::Kernel => "kernels",
        Kind::Job => "jobs",
    }
}

fn check_not_used(kind: Kind, name: &Name, mut users: Vec<String>) -> Result<()> {
    if users.is_empty() {
        return Ok(());
    }
    users.sort();
    Err(Error::InUse { kind, name: name.to_string(), users: users.join(", ") })
}

pub(super) fn no_such(kind: Kind, reference: &str) -> Error {
    Error::NoSuch { kind, reference: reference.to_owned() }
}

/// The fields of an object that references are matched against.
struct Candidate<'a, T, Id> {
    object: &'a T,
    id: Id,
    owner: Uid,
    name: &'a Name,
    shared: bool,
}

/// Finds the one object that a reference means: an id prefix of any object, a name of the caller's or else of a
/// shared object, or `user/name` of that user, who is `named`.
fn pick<'a, T, Id: Display>(
    kind: Kind,
    caller: Uid,
    reference: &Reference,
    named: Option<Uid>,
    candidates: impl Iterator<Item = Candidate<'a, T, Id>>,
) -> Result<&'a T> {
    let text = || match reference {
        Reference::IdPrefix(prefix) => prefix.clone(),
        Reference::Name(name) => name.to_string(),
        Reference::Owned { user, name } => format!("{user}/{name}"),
    };
    let matching: Vec<Candidate<'a, T, Id>> = match reference {
        Reference::IdPrefix(prefix) => {
            candidates.filter(|candidate| candidate.id.to_string().starts_with(prefix.as_str())).collect()
        }
        Reference::Owned { name, .. } => {
            let owner = named.ok_or_else(|| no_such(kind, &text()))?;
            candidates.filter(|candidate| candidate.owner == owner && candidate.name == name).collect()
        }
        Reference::Name(name) => candidates
            .filter(|candidate| candidate.name == name && (candidate.owner == caller || candidate.shared))
            .collect(),
    };
    let own = matching.iter().filter(|candidate| candidate.owner == caller).count();
    let mut best = matching.into_iter().filter(|candidate| own == 0 || candidate.owner == caller);
    match (best.next(), best.next()) {
        (Some(candidate), None) => Ok(candidate.object),
        (Some(_), Some(_)) => Err(Error::Ambiguous { kind, reference: text() }),
        (None, _) => Err(no_such(kind, &text())),
    }
}
