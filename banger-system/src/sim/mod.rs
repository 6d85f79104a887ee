//! A host in memory: the same ports without privileges or side effects. It serves `banger-system --sim` and the
//! engine's tests. It lists everything that exists, and fails at a chosen step.

mod captures;
mod catalogs;
pub mod faults;
pub mod guests;
mod library;
mod machines;
mod names;
pub mod network;
mod people;
mod registry;
mod store;
mod templates;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex, MutexGuard},
};

use banger_domain::{
    clock::Occasion,
    digest::Digest,
    dns::table::Table,
    egress::log::EgressLogs,
    guest_end::GuestEnd,
    id::{ImageId, KernelId, Timestamp, Uid, VmId},
    idle::Use,
    lifecycle,
    net::{nic::Nic, subnet::Subnet},
    resource::Resource,
    vm::Vm,
};
use banger_image::{
    catalog::index::Index,
    installed::InstalledKernel,
    record::{Image, Kernel},
};
use banger_proto::{
    guest::{GuestConfig, rejuvenation::Identity},
    size::Bytes,
};
use tokio::sync::{Notify, watch};

use crate::ports::{
    FromHost as _, HostError, Ports, authority::Verdict, catalogs::FetchedIndex, disks::FrozenLayer,
    kernel_files::HostKernel, supervisor::Ended, wake::Wakes,
};

/// A host in memory. Clones share one host.
#[derive(Clone, Default)]
pub struct Sim {
    state: Arc<Mutex<State>>,
    /// How often the service had died when this one began.
    deaths: u64,
}

#[derive(Default)]
struct State {
    faults: faults::Faults,
    silent_guests: bool,
    /// Whether guests have streams. Nobody answers on them.
    agents: bool,
    /// How many of the next connections to guests fail.
    no_listeners: u32,
    disks: BTreeSet<VmId>,
    /// The sizes of system disks and work disks.
    disk_sizes: BTreeMap<VmId, (Bytes, Bytes)>,
    /// The VMs that have written to their disks since these were frozen.
    written: BTreeSet<VmId>,
    frozen_layers: BTreeMap<VmId, Vec<FrozenLayer>>,
    last_layer: u64,
    mappers: BTreeSet<VmId>,
    sockets: BTreeSet<VmId>,
    processes: BTreeMap<VmId, watch::Sender<Option<Ended>>>,
    /// The processes that stand still.
    frozen: BTreeSet<VmId>,
    /// The VMMs whose guests have not begun to run.
    interrupted: BTreeSet<VmId>,
    /// The streams to each guest that were handed out, and the number of the last one.
    streams: BTreeMap<VmId, (BTreeMap<usize, UnixStream>, usize)>,
    subnet: Option<Subnet>,
    stored_subnet: Option<Subnet>,
    /// Where registries must not be.
    forbidden: Option<Subnet>,
    nics: BTreeMap<VmId, Nic>,
    /// The guests whose ports are held while they sleep.
    dozing: BTreeMap<VmId, Nic>,
    connections_to_wake: Arc<Wakes>,
    lookups_to_wake: Arc<Wakes>,
    /// Whether no guest of an earlier run can be taken over.
    lost_nics: bool,
    /// Whether somebody has removed the rules of the packet filter.
    lost_rules: bool,
    /// What restricted guests were allowed and denied.
    egress_logs: EgressLogs,
    /// Notified when a guest was denied something.
    denied: Arc<Notify>,
    /// Ports that programs of the host use.
    occupied_ports: BTreeSet<u16>,
    /// The process of each sandbox in the list of machines.
    machines: BTreeMap<VmId, u32>,
    /// Whether there is no such list.
    lost_machines: bool,
    names: Option<Arc<Table>>,
    refused_lookups: BTreeMap<VmId, u64>,
    /// What the service added to the logs of VMMs.
    vmm_logs: BTreeMap<VmId, String>,
    image_files: BTreeSet<ImageId>,
    kernel_files: BTreeSet<KernelId>,
    /// The installed kernel, if the host has one.
    host_kernel: Option<HostKernel>,
    /// Whether guests cannot boot it.
    host_kernel_unusable: bool,
    /// How often it was imported, or tried.
    host_imports: u32,
    vms: BTreeMap<VmId, Vm>,
    images: BTreeMap<ImageId, Image>,
    kernels: BTreeMap<KernelId, Kernel>,
    ledger: BTreeSet<(VmId, Resource)>,
    verdict: Option<Verdict>,
    /// The name service does not answer.
    accounts_lost: bool,
    boots: u64,
    /// How guests ended or halted.
    guest_ends: BTreeMap<VmId, GuestEnd>,
    /// What each guest was configured with since its VMM started.
    configured: BTreeMap<VmId, GuestConfig>,
    /// Guests whose processes stand still, but not their agents.
    frozen_guests: BTreeSet<VmId>,
    /// How many guests were not thawed; none if they are.
    refused_thaws: Option<u32>,
    /// VMs with new layers whose names are not on the storage.
    unsynced_layers: BTreeSet<VmId>,
    /// A guest has run on such layers.
    ran_unsynced: bool,
    /// VMMs do not say whether their guests run.
    silent_vmms: bool,
    /// Guests that do not freeze.
    unfreezable: BTreeSet<VmId>,
    /// The identity that each guest continued with, `None` for its own.
    rejuvenated: BTreeMap<VmId, Vec<Option<Identity>>>,
    /// Guests that are shutting down.
    stopping_guests: BTreeSet<VmId>,
    /// Notified when a guest has ended.
    guest_ended: watch::Sender<()>,
    /// Notified when the clock is set.
    clock_changed: Arc<Notify>,
    /// Notified when guest clocks have to be compared.
    minute_passed: Arc<Notify>,
    /// How often each guest's clock was compared, and when.
    clock_syncs: BTreeMap<(VmId, Occasion), u32>,
    /// How often each tag was moved to another image.
    tag_moves: BTreeMap<String, u32>,
    /// Resources of these kinds cannot be removed.
    removal_blocked: BTreeSet<Resource>,
    /// Resources of these kinds cannot be listed.
    scans_broken: BTreeSet<Resource>,
    /// Rows of sandboxes cannot be deleted.
    rows_kept: bool,
    /// Rows of sandboxes cannot be read.
    rows_unreadable: bool,
    /// What is left of this VM goes when rows are read.
    leaving: Option<VmId>,
    /// Files of images and kernels can be neither listed nor removed.
    files_broken: bool,
    /// Imports and exports block.
    workers_blocked: bool,
    /// How many of them run, by user.
    working: BTreeMap<Uid, usize>,
    /// Fetches of layers block.
    registry_blocked: bool,
    /// Fetched layers.
    cached: BTreeSet<Digest>,
    /// How many layers were fetched from registries.
    fetched: u64,
    /// The catalog's content, if it is not the default.
    catalog: Option<Arc<Index>>,
    stored_catalog: Option<FetchedIndex>,
    /// Whether the catalog's server answers.
    catalog_unreachable: bool,
    /// How guests are used; a guest that is not here is not used.
    uses: BTreeMap<VmId, Use>,
    /// Whether the host has booted since the last run of the service.
    has_booted: bool,
    /// Whether the host starts the service when it boots.
    wanted_at_boot: bool,
    templates: templates::State,
    captures: captures::State,
}

impl State {
    /// Returns whether the guest of a VM does not answer.
    fn is_silent(&self, vm: VmId) -> bool {
        self.silent_guests || self.frozen.contains(&vm) || self.captures.standing.contains(&vm)
    }
}

impl Sim {
    /// Creates an empty host on which everything works.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the host's ports.
    pub fn ports(&self) -> Ports {
        let sim = Arc::new(self.clone());
        Ports {
            authority: sim.clone(),
            captures: sim.clone(),
            catalogs: sim.clone(),
            clock: sim.clone(),
            disks: sim.clone(),
            guest: sim.clone(),
            host_boot: sim.clone(),
            image_files: sim.clone(),
            kernel_files: sim.clone(),
            names: sim.clone(),
            network: sim.clone(),
            registry: sim.clone(),
            logs: sim.clone(),
            machines: sim.clone(),
            store: sim.clone(),
            streams: sim.clone(),
            supervisor: sim.clone(),
            templates: sim.clone(),
            users: sim.clone(),
            vmm: sim,
        }
    }

    /// Boots the host: no process of a VM is left.
    pub fn reboot_host(&self) {
        let mut state = self.lock();
        state.has_booted = true;
        state.processes.clear();
    }

    /// Returns whether the host starts the service when it boots.
    pub fn wants_service_at_boot(&self) -> bool {
        self.lock().wanted_at_boot
    }

    /// Makes guests stop answering, or answer again.
    pub fn silence_guests(&self, silent: bool) {
        self.lock().silent_guests = silent;
    }

    /// Makes agents not thaw their guests, or thaw them again.
    pub fn refuse_thaws(&self, refuse: bool) {
        self.lock().refused_thaws = refuse.then_some(0);
    }

    /// Returns how often a guest was not thawed since [`Sim::refuse_thaws`].
    pub fn refused_thaws(&self) -> u32 {
        self.lock().refused_thaws.unwrap_or_default()
    }

    /// Makes VMMs not say whether their guests run, or say it again.
    pub fn silence_vmms(&self, silent: bool) {
        self.lock().silent_vmms = silent;
    }

    /// Returns whether the process of a VM is frozen.
    pub fn is_frozen(&self, vm: VmId) -> bool {
        self.lock().frozen.contains(&vm)
    }

    /// Freezes the process of a VM, without its service.
    pub fn freeze_process(&self, vm: VmId) {
        self.lock().frozen.insert(vm);
    }

    /// Returns the configuration that a guest has got.
    pub fn configured(&self, vm: VmId) -> Option<GuestConfig> {
        self.lock().configured.get(&vm).cloned()
    }

    /// Returns whether the processes of a guest are frozen by its agent.
    pub fn is_guest_frozen(&self, vm: VmId) -> bool {
        self.lock().frozen_guests.contains(&vm)
    }

    /// Makes a guest refuse to freeze.
    pub fn refuse_freeze(&self, vm: VmId) {
        self.lock().unfreezable.insert(vm);
    }

    /// Returns the identities that a guest has continued with, in order; `None` stands for its own.
    pub fn rejuvenated(&self, vm: VmId) -> Vec<Option<Identity>> {
        self.lock().rejuvenated.get(&vm).cloned().unwrap_or_default()
    }

    /// Leaves the VMM of a VM as a service does that ends in the middle of a start.
    pub fn interrupt_start(&self, vm: VmId) {
        let mut state = self.lock();
        state.interrupted.insert(vm);
        if let Some(vm) = state.vms.get_mut(&vm) {
            vm.state = lifecycle::State::Starting;
            vm.ready_at = Timestamp::default();
        }
    }

    /// Gives guests as many streams as under QEMU. Nobody answers on them.
    pub fn enable_agents(&self) {
        self.lock().agents = true;
    }

    /// Sets the host's clock.
    pub fn set_clock(&self) {
        self.lock().clock_changed.notify_one();
    }

    /// Lets a minute pass.
    pub fn pass_minute(&self) {
        self.lock().minute_passed.notify_one();
    }

    /// Sets how a guest is used.
    pub fn use_guest(&self, vm: VmId, used: Use) {
        self.lock().uses.insert(vm, used);
    }

    /// Returns how often a guest's clock was compared on an occasion.
    pub fn clock_syncs(&self, vm: VmId, occasion: Occasion) -> u32 {
        self.lock().clock_syncs.get(&(vm, occasion)).copied().unwrap_or_default()
    }

    /// Moves a tag to another image.
    pub fn move_tag(&self, reference: &str) {
        *self.lock().tag_moves.entry(reference.to_owned()).or_default() += 1;
    }

    /// Blocks fetches of layers, or lets them continue.
    pub fn block_registry(&self, held: bool) {
        self.lock().registry_blocked = held;
    }

    /// Blocks imports and exports of images, or lets them continue.
    pub fn block_workers(&self, held: bool) {
        self.lock().workers_blocked = held;
    }

    /// Returns how many imports and exports of a user run.
    pub fn working(&self, user: Uid) -> usize {
        self.lock().working.get(&user).copied().unwrap_or_default()
    }

    /// Makes the removal of resources of a kind fail, as on a busy host, or work again.
    pub fn block_removal(&self, resource: Resource, blocked: bool) {
        set(&mut self.lock().removal_blocked, resource, blocked);
    }

    /// Makes the list of resources of a kind fail, or work again.
    pub fn break_scan(&self, resource: Resource, broken: bool) {
        set(&mut self.lock().scans_broken, resource, broken);
    }

    /// Makes the deletion of rows of sandboxes fail, as on a full disk, or work again.
    pub fn keep_rows(&self, kept: bool) {
        self.lock().rows_kept = kept;
    }

    /// Makes what [`Sim::leave_remains`] has left go away when rows are read the next time, as at the end of a deletion.
    pub fn remove_remains_at_the_next_read(&self, vm: VmId) {
        self.lock().leaving = Some(vm);
    }

    /// Makes it impossible to read the rows of sandboxes, or possible again.
    pub fn hide_rows(&self, hidden: bool) {
        self.lock().rows_unreadable = hidden;
    }

    /// Makes it impossible to list or remove files of images and kernels, or possible again.
    pub fn break_files(&self, broken: bool) {
        self.lock().files_broken = broken;
    }

    /// Loses the row and the ledger of a VM, so that nothing but the host knows of it.
    pub fn lose_rows_of(&self, vm: VmId) {
        let mut state = self.lock();
        state.vms.remove(&vm);
        state.ledger.retain(|(other, _)| *other != vm);
    }

    /// Leaves parts of a VM that nothing knows of, as a deletion does that was interrupted with its record lost.
    pub fn leave_remains(&self, vm: VmId) {
        let mut state = self.lock();
        state.disks.insert(vm);
        state.mappers.insert(vm);
        state.sockets.insert(vm);
    }

    /// Loses the rows of all images and kernels.
    pub fn lose_library(&self) {
        let mut state = self.lock();
        state.images.clear();
        state.kernels.clear();
    }

    /// Returns how many layers were fetched from registries.
    pub fn fetched(&self) -> u64 {
        self.lock().fetched
    }

    /// Replaces the catalog's content.
    pub fn publish(&self, index: Index) {
        self.lock().catalog = Some(Arc::new(index));
    }

    /// Returns the last fetched copy of the catalog.
    pub fn stored_catalog(&self) -> Option<FetchedIndex> {
        self.lock().stored_catalog.clone()
    }

    /// Installs a kernel on the host, as a package does, or removes it.
    pub fn install_kernel(&self, release: Option<&str>) {
        let mut state = self.lock();
        state.host_kernel = release.map(|release| HostKernel {
            installed: InstalledKernel {
                release: release.to_owned(),
                vmlinuz: format!("/boot/vmlinuz-{release}").into(),
                modules: None,
            },
            stamp: "0".to_owned(),
        });
    }

    /// Makes guests unable to boot the kernel of the host, or able again.
    pub fn break_host_kernel(&self, broken: bool) {
        self.lock().host_kernel_unusable = broken;
    }

    /// Returns how often the kernel of the host was imported, or tried.
    pub fn host_imports(&self) -> u32 {
        self.lock().host_imports
    }

    /// Returns the kernels that have files.
    pub fn kernel_files(&self) -> Vec<KernelId> {
        self.lock().kernel_files.iter().copied().collect()
    }

    /// Makes the catalog's server unreachable, or reachable again.
    pub fn set_catalog_unreachable(&self, lost: bool) {
        self.lock().catalog_unreachable = lost;
    }

    /// Returns the sizes of a VM's system disk and work disk.
    pub fn disk_sizes(&self, vm: VmId) -> (Bytes, Bytes) {
        self.lock().disk_sizes.get(&vm).copied().unwrap_or_default()
    }

    /// Returns the VMs whose disks are attached.
    pub fn attached_disks(&self) -> Vec<VmId> {
        self.lock().mappers.iter().copied().collect()
    }

    /// Returns the images that have files.
    pub fn image_files(&self) -> Vec<ImageId> {
        self.lock().image_files.iter().copied().collect()
    }

    /// Sets the authority's answer. It is yes by default.
    pub fn decide(&self, verdict: Verdict) {
        self.lock().verdict = Some(verdict);
    }

    /// Makes the name service stop answering, or answer again.
    pub fn lose_accounts(&self, lost: bool) {
        self.lock().accounts_lost = lost;
    }

    /// Ends a VM's process.
    pub fn end_process(&self, vm: VmId, ended: Ended) {
        let mut state = self.lock();
        state.streams.remove(&vm);
        state.frozen.remove(&vm);
        state.captures.standing.remove(&vm);
        if let Some(process) = state.processes.get(&vm) {
            process.send_replace(Some(ended));
        }
    }

    /// Ends a guest. Its VMM ends too, unless the guest only halts.
    pub fn end_guest(&self, vm: VmId, end: GuestEnd) {
        self.lock().guest_ends.insert(vm, end);
        if end.is_halted() {
            self.lock().guest_ended.send_replace(());
        } else {
            self.end_process(vm, Ended::Clean);
        }
    }

    /// Makes a guest start to shut down; it still answers.
    pub fn begin_shutdown(&self, vm: VmId) {
        self.lock().stopping_guests.insert(vm);
    }

    /// Returns everything on this host that belongs to VMs, as sorted text.
    pub fn alive(&self) -> Vec<String> {
        let state = self.lock();
        let disks = state.disks.iter().map(|vm| format!("disks {vm}"));
        let mappers = state.mappers.iter().map(|vm| format!("mapper {vm}"));
        let sockets = state.sockets.iter().map(|vm| format!("sockets {vm}"));
        let processes = state
            .processes
            .iter()
            .filter(|(_, end)| end.borrow().is_none())
            .map(|(vm, _)| format!("process {vm}"));
        let captures = state.captures.all.keys().map(|vm| format!("capture {vm}"));
        let nics = state.nics.keys().map(|vm| format!("nic {vm}"));
        let dozing = state.dozing.keys().map(|vm| format!("dozing {vm}"));
        let ledger = state.ledger.iter().map(|(vm, resource)| format!("ledger {} {vm}", resource.as_str()));
        let rows = state.vms.keys().map(|vm| format!("row {vm}"));
        let mut all: Vec<String> = disks
            .chain(captures)
            .chain(mappers)
            .chain(sockets)
            .chain(processes)
            .chain(nics)
            .chain(dozing)
            .chain(ledger)
            .chain(rows)
            .collect();
        all.sort();
        all
    }

    /// Checks that resources of this kind can be listed.
    fn scan(&self, resource: Resource) -> Result<MutexGuard<'_, State>, HostError> {
        let state = self.lock();
        match state.scans_broken.contains(&resource) {
            true => Err(HostError::not_ready("the list is not available")),
            false => Ok(state),
        }
    }

    /// Checks that resources of this kind can be removed.
    fn removal(&self, resource: Resource) -> Result<MutexGuard<'_, State>, HostError> {
        let state = self.lock();
        match state.removal_blocked.contains(&resource) {
            true => Err(HostError::not_ready(format!("the {} does not go away", resource.as_str()))),
            false => Ok(state),
        }
    }

    /// Checks that files of images and kernels can be listed and removed.
    fn files(&self) -> Result<MutexGuard<'_, State>, HostError> {
        let state = self.lock();
        match state.files_broken {
            true => Err(HostError::not_ready("the directory is not available")),
            false => Ok(state),
        }
    }
}

fn set(all: &mut BTreeSet<Resource>, resource: Resource, is_in: bool) {
    match is_in {
        true => all.insert(resource),
        false => all.remove(&resource),
    };
}
