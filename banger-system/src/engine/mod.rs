//! The engine owns all sandboxes, images and kernels: one task per VM, resources under a lease, jobs, recovery.
//!
//! It uses the host through the traits in [`ports`](crate::ports) only. Requests come in through [`Engine`]'s
//! methods, and every change goes out on one queue ([`Events`]).

pub mod agent;
mod autostart;
mod capability;
mod configure;
pub mod counts;
mod create;
mod diagnose;
mod egress;
pub mod error;
mod events;
mod guest_clocks;
mod guest_config;
pub mod history;
mod idle;
mod inventory;
mod job;
mod lease;
mod library;
pub mod metrics;
mod names;
mod network;
mod port_error;
mod problems;
mod queue;
mod recover;
mod repair;
pub mod request;
pub mod stream;
mod templates;
pub mod view;
mod vm_task;
mod wake;

use std::{
    collections::BTreeSet,
    os::fd::OwnedFd,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use banger_domain::{
    dns::table::Table,
    egress::{Egress, preset::Presets},
    id::{ImageId, JobId, KernelId, Timestamp, Uid, VmId},
    limits::{Limits, Usage},
    name::{Name, Reference},
    net::{
        nic::{Mac, SameOwner},
        prefix::Prefix4,
        subnet::Subnet,
    },
    vm::{Lifetime, Vm},
};
use banger_image::record::{DefaultImage, Image, Kernel};
use banger_proto::size::Bytes;
use tokio::sync::{Mutex, OnceCell, mpsc::error::TrySendError, oneshot};

use self::{
    agent::StreamQueues,
    counts::Counts,
    error::{Error, Result},
    history::History,
    inventory::Inventory,
    job::Jobs,
    library::Library,
    problems::Problems,
    request::{CommitVm, ForkVm, Start, Stop, StopMode},
    templates::Making,
    view::{ImageView, JobKind, JobView, KernelView, Object, SnapshotView, VmView},
    vm_task::{Command, Reply},
    wake::Waking,
};
pub use self::{
    events::Events,
    library::{HOST_KERNEL, Offer, Offers},
};
use crate::{
    ports::{
        Ports,
        authority::Authority,
        clock::Clock,
        logs::{Log, LogRange, ReaderGuard},
    },
    tasks::{Task, Tasks},
};

/// Settings from the configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Image of a sandbox, unless the request names one.
    pub default_image: DefaultImage,
    /// Kernel of an image that names none; [`HOST_KERNEL`] means the host's own.
    pub default_kernel: Name,
    /// Virtual processors, unless the request has a number.
    pub vcpus: u32,
    /// Memory, unless the request has a size.
    pub memory: Bytes,
    /// Size of the work disk, unless the request has one.
    pub disk_size: Bytes,
    /// Minimum size of the system disk, unless the request has one. A system disk is never smaller than its image.
    pub root_size: Bytes,
    /// How long a guest may take to become ready.
    pub ready_timeout: Duration,
    /// How long a guest may take to power off.
    pub stop_timeout: Duration,
    /// What happens to a sandbox whose guest reboots.
    pub on_reboot: request::OnReboot,
    /// Network of the guests; the first start chooses one if absent, and stores it.
    pub subnet: Option<Prefix4>,
    /// Whether guests of one owner reach each other.
    pub same_owner: SameOwner,
    /// Whether sandboxes start from kernel templates.
    pub templates: bool,
    /// The egress presets.
    pub presets: Arc<Presets>,
    /// The most that a sandbox may reach beyond the host.
    pub egress_ceiling: Egress,
    /// Quotas of each user.
    pub limits: Limits,
}

/// The engine. Clones share one state.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    ports: Ports,
    settings: Settings,
    inventory: Inventory,
    jobs: Jobs,
    library: Library,
    stream_queues: StreamQueues,
    making: Making,
    waking: Waking,
    /// The network of the guests, once it is set up.
    subnet: OnceCell<Subnet>,
    /// Held from the look at the sandboxes until the host has the mark that makes it start the service, or not.
    autostart: Mutex<()>,
    /// Held while problems are tried again, which happens once at a time.
    repairing: Mutex<()>,
    /// The names of sandboxes, as last published.
    names: RwLock<Option<Arc<Table>>>,
    /// What went wrong on the host and is not mended yet.
    problems: Problems,
    /// What has happened since this run of the service began.
    counts: Arc<Counts>,
    started_at: SystemTime,
    /// Where changes are published.
    events: events::EventSender,
    /// The long-lived tasks of the service.
    tasks: Tasks,
}

impl Engine {
    /// Creates an engine on these ports. The receiver gets the changes in order. Must be called in a
    /// runtime.
    pub fn new(ports: Ports, settings: Settings, tasks: &Tasks) -> (Self, Events) {
        let (events, receiver) = events::queue();
        let counts = Arc::<Counts>::default();
        let started_at = ports.clock.now();
        let inventory = Inventory::new(events.clone(), Arc::clone(&ports.clock), Arc::clone(&counts));
        let jobs = Jobs::new(events.clone(), Arc::clone(&ports.clock), Arc::clone(&counts), &settings.limits);
        let shared = Arc::new(Shared {
            ports,
            settings,
            inventory,
            jobs,
            library: Library::default(),
            stream_queues: StreamQueues::default(),
            making: Making::default(),
            waking: Waking::default(),
            subnet: OnceCell::new(),
            autostart: Mutex::default(),
            repairing: Mutex::default(),
            names: RwLock::default(),
            problems: Problems::default(),
            counts,
            started_at,
            events,
            tasks: tasks.clone(),
        });
        tasks.spawn(Task::Names, names::run(Arc::downgrade(&shared), shared.inventory.name_changes()));
        tasks.spawn(Task::Egress, egress::announce(Arc::downgrade(&shared)));
        tasks.spawn(Task::GuestClocks, guest_clocks::run(Arc::downgrade(&shared)));
        tasks.spawn(Task::Idle, idle::run(Arc::downgrade(&shared), shared.inventory.changes()));
        tasks.spawn(Task::Wake, wake::run(Arc::downgrade(&shared)));
        tasks.spawn(Task::Recovery, recover::run(Arc::downgrade(&shared)));
        (Self { shared }, receiver)
    }

    /// Settings from the configuration file.
    pub fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// Returns the DNS names of a VM; none while it is down.
    pub fn dns_names(&self, vm: VmId) -> Vec<String> {
        let names = self.shared.names.read().unwrap_or_else(PoisonError::into_inner);
        names.as_ref().map(|names| names.names_of(vm)).unwrap_or_default()
    }

    /// Returns how many look-ups of names beyond this host were refused to a VM without NAT since it started.
    pub fn refused_lookups(&self, vm: VmId) -> u64 {
        self.shared.ports.names.refused(vm)
    }

    /// Returns the login name of a user, or the number if there is none or the name service does not answer.
    pub async fn login_of(&self, uid: Uid) -> String {
        let login = self.shared.ports.users.login_of(uid).await;
        let login = login.inspect_err(|error| tracing::warn!(%uid, %error, "cannot look up a user"));
        login.ok().flatten().unwrap_or_else(|| uid.to_string())
    }

    /// Returns the user whom a reference names; none if it names nobody, or nobody with an account.
    pub async fn user_of(&self, reference: &Reference) -> Result<Option<Uid>> {
        match reference {
            Reference::Owned { user, .. } => Ok(self.shared.ports.users.uid_of(user).await?),
            Reference::IdPrefix(_) | Reference::Name(_) => Ok(None),
        }
    }

    /// Returns the authority that decides beyond ownership.
    pub fn authority(&self) -> &dyn Authority {
        &*self.shared.ports.authority
    }

    /// Returns all VMs.
    pub fn vms(&self) -> Vec<Arc<VmView>> {
        self.shared.inventory.vms()
    }

    /// Returns a VM.
    pub fn vm(&self, id: VmId) -> Option<Arc<VmView>> {
        self.shared.inventory.vm(id)
    }

    /// Returns the recent history of a VM; none if there is no such VM.
    pub fn history(&self, id: VmId) -> Option<History> {
        self.shared.inventory.history(id)
    }

    /// Finds a VM by reference, maybe another user's. The D-Bus API decides whether the caller may know of it.
    pub async fn find_vm(&self, caller: Uid, reference: &Reference) -> Result<Arc<VmView>> {
        self.shared.inventory.find_vm(caller, reference, self.user_of(reference).await?)
    }

    /// Returns all images.
    pub fn images(&self) -> Vec<Arc<ImageView>> {
        self.shared.inventory.all::<Image>()
    }

    /// Returns an image.
    pub fn image(&self, id: ImageId) -> Option<Arc<ImageView>> {
        self.shared.inventory.item::<Image>(id)
    }

    /// Finds an image by reference.
    pub async fn find_image(&self, caller: Uid, reference: &Reference) -> Result<Arc<ImageView>> {
        self.shared.inventory.find::<Image>(caller, reference, self.user_of(reference).await?)
    }

    /// Finds an image by a reference that names no user.
    fn image_by(&self, caller: Uid, reference: &Reference) -> Result<Arc<ImageView>> {
        self.shared.inventory.find::<Image>(caller, reference, None)
    }

    /// Image of a sandbox, unless the request names one.
    pub fn default_image(&self, owner: Uid) -> Result<Arc<ImageView>> {
        match &self.shared.settings.default_image {
            DefaultImage::Named(name) => self.image_by(owner, &Reference::Name(name.clone())),
            DefaultImage::Pulled(reference) => self
                .find_pulled(owner, reference)
                .ok_or_else(|| inventory::no_such(error::Kind::Image, &reference.to_string())),
        }
    }

    /// Returns all kernels.
    pub fn kernels(&self) -> Vec<Arc<KernelView>> {
        self.shared.inventory.all::<Kernel>()
    }

    /// Returns a kernel.
    pub fn kernel(&self, id: KernelId) -> Option<Arc<KernelView>> {
        self.shared.inventory.item::<Kernel>(id)
    }

    /// Finds a kernel by reference.
    pub async fn find_kernel(&self, caller: Uid, reference: &Reference) -> Result<Arc<KernelView>> {
        self.shared.inventory.find::<Kernel>(caller, reference, self.user_of(reference).await?)
    }

    /// Finds a kernel by a reference that names no user. The references in requests are such: the D-Bus API has
    /// resolved them.
    fn kernel_by(&self, caller: Uid, reference: &Reference) -> Result<Arc<KernelView>> {
        self.shared.inventory.find::<Kernel>(caller, reference, None)
    }

    /// Returns whether a user's own image of this name is shared.
    pub fn shares_image(&self, owner: Uid, name: &Name) -> bool {
        self.shared.inventory.own::<Image>(owner, name).is_some_and(|image| image.shared)
    }

    /// Returns whether a user's own kernel of this name is shared.
    pub fn shares_kernel(&self, owner: Uid, name: &Name) -> bool {
        self.shared.inventory.own::<Kernel>(owner, name).is_some_and(|kernel| kernel.shared)
    }

    /// Returns the VMs that use an image.
    pub fn image_users(&self, id: ImageId) -> Vec<VmId> {
        self.vms().iter().filter(|view| view.vm.image == id).map(|view| view.vm.id).collect()
    }

    /// Returns the VMs and images that use a kernel.
    pub fn kernel_users(&self, id: KernelId) -> Vec<Object> {
        let vms =
            self.vms().into_iter().filter(|view| view.vm.kernel == id).map(|view| Object::Vm(view.vm.id));
        let images = self.images().into_iter().filter(|image| image.kernel == Some(id));
        vms.chain(images.map(|image| Object::Image(image.id))).collect()
    }

    /// Returns what a user has of each quota.
    pub fn usage(&self, owner: Uid) -> Usage {
        self.shared.inventory.usage(owner)
    }

    /// Returns all jobs that run or have ended recently.
    pub fn jobs(&self) -> Vec<Arc<JobView>> {
        self.shared.jobs.all()
    }

    /// Returns a job.
    pub fn job(&self, id: JobId) -> Option<Arc<JobView>> {
        self.shared.jobs.get(id)
    }

    /// Returns the running jobs of a VM.
    pub fn vm_jobs(&self, id: VmId) -> Vec<JobId> {
        let about = |job: &JobView| job.outcome.is_none() && job.objects.contains(&Object::Vm(id));
        self.jobs().iter().filter(|job| about(job)).map(|job| job.id).collect()
    }

    /// Cancels a job. It undoes what it did, then ends.
    pub fn cancel_job(&self, id: JobId) -> Result<()> {
        self.shared.jobs.cancel(id)
    }

    /// Waits until a job has ended, or until the timeout; then the returned job has no outcome.
    pub async fn wait_job(&self, id: JobId, timeout: Option<Duration>) -> Result<Arc<JobView>> {
        self.shared.jobs.wait(id, timeout).await
    }

    /// Starts a VM.
    pub async fn start_vm(&self, id: VmId, start: Start) -> Result<JobId> {
        self.send(id, |reply| Command::Start { start, reply }).await
    }

    /// Stops a VM.
    pub async fn stop_vm(&self, id: VmId, stop: Stop) -> Result<JobId> {
        self.send(id, |reply| Command::Stop { stop, reply }).await
    }

    /// Restarts a VM; starts it if it is down.
    pub async fn restart_vm(&self, id: VmId, stop: Stop, start: Start) -> Result<JobId> {
        self.send(id, |reply| Command::Restart { stop, start, reply }).await
    }

    /// Deletes a VM with its disks. A running VM is refused, or killed first with [`StopMode::Forced`].
    pub async fn delete_vm(&self, id: VmId, mode: StopMode) -> Result<JobId> {
        self.send(id, |reply| Command::Delete { mode, reply }).await
    }

    /// Starts to make an image of the system disk of a VM that is down.
    pub async fn commit_vm(&self, id: VmId, request: CommitVm) -> Result<JobId> {
        self.send(id, |reply| Command::Commit { request: Box::new(request), reply }).await
    }

    /// Starts to make new VMs of a VM or one of its snapshots. Returns them, and the job.
    pub async fn fork_vm(&self, id: VmId, request: ForkVm) -> Result<(Vec<VmId>, JobId)> {
        self.send(id, |reply| Command::Fork { request, reply }).await
    }

    /// Starts to make a snapshot of a VM.
    pub async fn create_snapshot(&self, id: VmId, name: Name) -> Result<JobId> {
        self.send(id, |reply| Command::CreateSnapshot { name, reply }).await
    }

    /// Returns the snapshots of a VM, the oldest first.
    pub fn snapshots(&self, id: VmId) -> Vec<Arc<SnapshotView>> {
        self.shared.inventory.snapshots_of(id)
    }

    /// Starts to put a VM that is down back to a snapshot of it.
    pub async fn restore_snapshot(&self, id: VmId, name: Name) -> Result<JobId> {
        self.send(id, |reply| Command::RestoreSnapshot { name, reply }).await
    }

    /// Deletes a snapshot of a VM.
    pub async fn delete_snapshot(&self, id: VmId, name: Name) -> Result<()> {
        self.send(id, |reply| Command::DeleteSnapshot { name, reply }).await
    }

    /// Pauses a VM whose guest answers. Does nothing if it is paused.
    pub async fn pause_vm(&self, id: VmId) -> Result<()> {
        self.send(id, |reply| Command::Pause { reply }).await
    }

    /// Ends the pause of a VM. Does nothing if it runs.
    pub async fn unpause_vm(&self, id: VmId) -> Result<()> {
        self.send(id, |reply| Command::Unpause { reply }).await
    }

    /// Suspends a VM: its memory goes to disk, and its VMM ends.
    pub async fn suspend_vm(&self, id: VmId) -> Result<JobId> {
        self.send(id, |reply| Command::Suspend { reply }).await
    }

    /// Resumes a suspended VM. Does nothing if it runs.
    pub async fn resume_vm(&self, id: VmId, start: Start) -> Result<JobId> {
        self.send(id, |reply| Command::Resume { start, reply }).await
    }

    /// Sends a signal to a VM's VMM. The VM then counts as stopped, however the VMM ends.
    pub async fn kill_vm(&self, id: VmId, signal: i32) -> Result<()> {
        self.send(id, |reply| Command::Kill { signal, reply }).await
    }

    /// Renames a VM.
    pub async fn rename_vm(&self, id: VmId, name: Name) -> Result<()> {
        self.send(id, |reply| Command::Rename { name, reply }).await
    }

    /// Changes the lifetime of a VM.
    pub async fn set_lifetime(&self, id: VmId, lifetime: Lifetime) -> Result<()> {
        self.send(id, |reply| Command::SetLifetime { lifetime, reply }).await
    }

    /// Counts a stream against its user's limit, and closes it if there are too many.
    fn hand_out(&self, user: Uid, stream: OwnedFd) -> Result<OwnedFd> {
        let limit = self.shared.settings.limits.streams as usize;
        self.shared.ports.streams.hand_out(user, &stream, limit)?;
        Ok(stream)
    }

    /// Returns a pipe from which a VM's log can be read. The guard is dropped when the log's reader is done.
    pub async fn open_log(
        &self,
        id: VmId,
        log: Log,
        reading: LogRange,
        hold: ReaderGuard,
    ) -> Result<OwnedFd> {
        Ok(self.shared.ports.logs.open(id, log, reading, hold).await?)
    }

    /// Deletes the VMs that are bound to a client which has disconnected from this bus.
    pub async fn client_disconnected(&self, connection: &str, bus: &str) {
        let bound = |view: &VmView| match &view.vm.lifetime {
            Lifetime::Caller { connection: c, bus: b } => c == connection && b == bus,
            Lifetime::Persistent | Lifetime::UntilStopped => false,
        };
        self.cancel_forks(bound);
        for view in self.vms().iter().filter(|view| bound(view)) {
            if let Ok(inbox) = self.shared.inventory.inbox(view.vm.id) {
                // If the task has ended, the VM is deleted already. One that is not there yet may have a full inbox, for
                // which other callers do not wait.
                match inbox.try_send(Command::CallerVanished) {
                    Err(TrySendError::Full(command)) => {
                        tokio::spawn(async move { drop(inbox.send(command).await) });
                    }
                    Ok(()) | Err(TrySendError::Closed(_)) => {}
                }
            }
        }
    }

    /// Cancels the forks of which nobody needs a child any more. A child that exists by now is deleted by its task.
    fn cancel_forks(&self, is_unneeded: impl Fn(&VmView) -> bool) {
        let is_unneeded = |object: &Object| match object {
            Object::Vm(child) => self.vm(*child).is_some_and(|view| is_unneeded(&view)),
            Object::Image(_) | Object::Kernel(_) => false,
        };
        for job in self.jobs().iter().filter(|job| job.kind == JobKind::VmFork && job.outcome.is_none()) {
            // The first object is the parent.
            let children = job.objects.get(1..).unwrap_or_default();
            if !children.is_empty() && children.iter().all(is_unneeded) {
                // If it has ended meanwhile, there is nothing to cancel.
                let _ = self.cancel_job(job.id);
            }
        }
    }

    async fn send<T>(&self, id: VmId, command: impl FnOnce(Reply<T>) -> Command) -> Result<T> {
        let inbox = self.shared.inventory.inbox(id)?;
        let deleted = || {
            let name = self.vm(id).map_or_else(|| id.to_string(), |view| view.vm.name.to_string());
            Error::Deleted { name }
        };
        let (reply, answer) = oneshot::channel();
        inbox.send(command(reply).traced()).await.map_err(|_| deleted())?;
        answer.await.map_err(|_| deleted())?
    }
}

impl Shared {
    /// Makes a VM's task probe the guest, because a request to it timed out.
    fn suspect_silent(&self, vm: VmId) {
        // Best effort: the task may have ended, or have a full queue.
        let _ = self.inventory.inbox(vm).map(|inbox| inbox.try_send(Command::Probe));
    }

    fn view(&self, vm: Vm, unit: String, pid: u32) -> VmView {
        let image_name =
            self.inventory.item::<Image>(vm.image).map_or_else(String::new, |image| image.name.to_string());
        let kernel_name = self
            .inventory
            .item::<Kernel>(vm.kernel)
            .map_or_else(String::new, |kernel| kernel.name.to_string());
        let address = self.subnet.get().and_then(|subnet| subnet.guest(vm.slot)).map(|(v4, _)| v4);
        let (mac, blocked_ports) = (Mac::of_guest(vm.id), BTreeSet::new());
        VmView {
            address,
            mac,
            vm,
            image_name,
            kernel_name,
            blocked_ports,
            silent: false,
            unit,
            pid,
            captured: None,
            idle_at: None,
            busy: None,
            frozen: Vec::new(),
            freezing: Bytes(0),
        }
    }
}

/// Returns the current time.
fn now(clock: &dyn Clock) -> Timestamp {
    let since = clock.now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
