//! A host in memory: the same ports, no privilege, no side effect. It serves `banger-system --sim` and the
//! tests of the engine: it lists what is alive, and fails at the step that it is told to.

mod catalogs;
pub mod guests;
mod library;
mod names;
pub mod network;
mod people;
mod registry;
mod store;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use banger_domain::{
    clock::Occasion,
    digest::Digest,
    dns::table::Table,
    guest_end::GuestEnd,
    id::{ImageId, KernelId, Uid, VmId},
    net::{nic::Nic, subnet::Subnet},
    resource::Resource,
    vm::Vm,
};
use banger_image::{
    catalog::index::Index,
    record::{Image, Kernel},
};
use banger_proto::size::Bytes;
use tokio::sync::{Notify, watch};

use crate::ports::{self, Ended, Ports, Verdict, catalogs::Edition};

/// A host in memory. Clones are the same host.
#[derive(Clone, Default)]
pub struct Sim {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Steps that had an effect, or were to have one.
    steps: usize,
    fail_at: Option<usize>,
    deaf_guests: bool,
    /// Whether guests have streams, on which nobody answers.
    agents: bool,
    /// How many connections to guests will find nobody who listens.
    no_listeners: u32,
    disks: BTreeSet<VmId>,
    /// The sizes of system disks and work disks.
    disk_sizes: BTreeMap<VmId, (Bytes, Bytes)>,
    mappers: BTreeSet<VmId>,
    sockets: BTreeSet<VmId>,
    processes: BTreeMap<VmId, watch::Sender<Option<Ended>>>,
    /// The streams to each guest that were handed out, and the number of the last one.
    streams: BTreeMap<VmId, (BTreeMap<usize, UnixStream>, usize)>,
    subnet: Option<Subnet>,
    kept_subnet: Option<Subnet>,
    /// Where no registry may be.
    forbidden: Option<Subnet>,
    nics: BTreeMap<VmId, Nic>,
    /// The ports that programs of the host have.
    foreign_ports: BTreeSet<u16>,
    names: Option<Arc<Table>>,
    image_files: BTreeSet<ImageId>,
    kernel_files: BTreeSet<KernelId>,
    vms: BTreeMap<VmId, Vm>,
    images: BTreeMap<ImageId, Image>,
    kernels: BTreeMap<KernelId, Kernel>,
    ledger: BTreeSet<(VmId, Resource)>,
    verdict: Option<Verdict>,
    boots: u64,
    /// How guests ended, or stand still.
    guest_ends: BTreeMap<VmId, GuestEnd>,
    /// Guests that shut themselves down, and have not ended yet.
    stopping_guests: BTreeSet<VmId>,
    /// Told when a guest has ended.
    guest_ended: watch::Sender<()>,
    /// Told when the clock is set.
    clock_changed: Arc<Notify>,
    /// Told when the clocks of guests are to be compared again.
    minute_passed: Arc<Notify>,
    /// How often the clock of each guest was compared, and when.
    clocks_mended: BTreeMap<(VmId, Occasion), u32>,
    /// How often each reference came to mean something else.
    editions: BTreeMap<String, u32>,
    /// Processes that have ended cannot be removed.
    stuck: bool,
    /// Imports and exports go on for so long.
    workers_held: bool,
    /// How many of them go on, by user.
    working: BTreeMap<Uid, usize>,
    /// Layers stay on their way for so long.
    registry_held: bool,
    /// Layers that were fetched.
    cached: BTreeSet<Digest>,
    /// How many layers were asked of registries.
    fetched: u64,
    /// What a catalog has that is not the usual one.
    catalog: Option<Arc<Index>>,
    kept_catalog: Option<Edition>,
    /// Whether the catalog's server answers.
    catalog_lost: bool,
}

impl Sim {
    /// An empty host on which everything works.
    pub fn new() -> Self {
        Self::default()
    }

    /// The host as the engine knows it.
    pub fn ports(&self) -> Ports {
        let sim = Arc::new(self.clone());
        Ports {
            authority: sim.clone(),
            catalogs: sim.clone(),
            clock: sim.clone(),
            disks: sim.clone(),
            guest: sim.clone(),
            image_files: sim.clone(),
            kernel_files: sim.clone(),
            names: sim.clone(),
            network: sim.clone(),
            registry: sim.clone(),
            logs: sim.clone(),
            store: sim.clone(),
            streams: sim.clone(),
            supervisor: sim.clone(),
            users: sim.clone(),
            vmm: sim,
        }
    }

    /// From now on the `n`-th step with an effect fails, counted from 0; nothing fails with `None`.
    pub fn fail_at(&self, n: Option<usize>) {
        let mut state = self.lock();
        state.steps = 0;
        state.fail_at = n;
    }

    /// How many steps there were since [`Sim::fail_at`].
    pub fn steps(&self) -> usize {
        self.lock().steps
    }

    /// Guests that start from now on do not answer, or do.
    pub fn deafen_guests(&self, deaf: bool) {
        self.lock().deaf_guests = deaf;
    }

    /// From now on guests have as many streams to their agents as under QEMU. Nobody answers on them.
    pub fn give_agents(&self) {
        self.lock().agents = true;
    }

    /// The clock of the host is set.
    pub fn set_clock(&self) {
        self.lock().clock_changed.notify_one();
    }

    /// A minute passes.
    pub fn pass_minute(&self) {
        self.lock().minute_passed.notify_one();
    }

    /// How often the clock of a guest was compared with ours on such an occasion.
    pub fn clock_mended(&self, vm: VmId, occasion: Occasion) -> u32 {
        self.lock().clocks_mended.get(&(vm, occasion)).copied().unwrap_or_default()
    }

    /// From now on a reference stands for another image.
    pub fn move_tag(&self, reference: &str) {
        *self.lock().editions.entry(reference.to_owned()).or_default() += 1;
    }

    /// From now on layers stay on their way, or come.
    pub fn hold_registry(&self, held: bool) {
        self.lock().registry_held = held;
    }

    /// From now on imports and exports of images go on, or come to an end.
    pub fn hold_workers(&self, held: bool) {
        self.lock().workers_held = held;
    }

    /// How many imports and exports of images of a user go on.
    pub fn working(&self, user: Uid) -> usize {
        self.lock().working.get(&user).copied().unwrap_or_default()
    }

    /// From now on processes that have ended cannot be removed, or can: the host is too busy.
    pub fn keep_processes(&self, kept: bool) {
        self.lock().stuck = kept;
    }

    /// How many layers registries were asked for.
    pub fn fetched(&self) -> u64 {
        self.lock().fetched
    }

    /// From now on this is what the catalog has.
    pub fn publish(&self, index: Index) {
        self.lock().catalog = Some(Arc::new(index));
    }

    /// What was fetched of the catalog last.
    pub fn kept_catalog(&self) -> Option<Edition> {
        self.lock().kept_catalog.clone()
    }

    /// The kernels that have files.
    pub fn kernel_files(&self) -> Vec<KernelId> {
        self.lock().kernel_files.iter().copied().collect()
    }

    /// From now on the catalog cannot be fetched, or can.
    pub fn lose_catalog(&self, lost: bool) {
        self.lock().catalog_lost = lost;
    }

    /// The sizes of a machine's system disk and of its work disk, as they were made.
    pub fn disk_sizes(&self, vm: VmId) -> (Bytes, Bytes) {
        self.lock().disk_sizes.get(&vm).copied().unwrap_or_default()
    }

    /// The images that have files.
    pub fn image_files(&self) -> Vec<ImageId> {
        self.lock().image_files.iter().copied().collect()
    }

    /// What the authority answers from now on; yes when it was never told.
    pub fn decide(&self, verdict: Verdict) {
        self.lock().verdict = Some(verdict);
    }

    /// A guest powers itself off, or its monitor dies.
    pub fn end_process(&self, vm: VmId, ended: Ended) {
        let mut state = self.lock();
        state.streams.remove(&vm);
        if let Some(process) = state.processes.get(&vm) {
            process.send_replace(Some(ended));
        }
    }

    /// A guest powers itself off, reboots, halts or panics. Its VMM ends, unless the guest only stands still.
    pub fn end_guest(&self, vm: VmId, end: GuestEnd) {
        self.lock().guest_ends.insert(vm, end);
        if end.is_halted() {
            self.lock().guest_ended.send_replace(());
        } else {
            self.end_process(vm, Ended::Clean);
        }
    }

    /// A guest begins to shut itself down; it still answers.
    pub fn begin_shutdown(&self, vm: VmId) {
        self.lock().stopping_guests.insert(vm);
    }

    /// Everything on this host that belongs to machines: in a word each, sorted.
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
        let nics = state.nics.keys().map(|vm| format!("nic {vm}"));
        let ledger = state.ledger.iter().map(|(vm, resource)| format!("ledger {} {vm}", resource.as_str()));
        let rows = state.vms.keys().map(|vm| format!("row {vm}"));
        let mut all: Vec<String> = disks
            .chain(mappers)
            .chain(sockets)
            .chain(processes)
            .chain(nics)
            .chain(ledger)
            .chain(rows)
            .collect();
        all.sort();
        all
    }

    /// A step with an effect. Called before the effect: a step that fails had none.
    fn step(&self, doing: &str) -> ports::Result<MutexGuard<'_, State>> {
        let mut state = self.lock();
        let n = state.steps;
        state.steps += 1;
        if state.fail_at == Some(n) {
            return Err(ports::Error::HostNotReady { message: format!("told to fail: {doing}") });
        }
        Ok(state)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
