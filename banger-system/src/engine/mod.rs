//! The engine: one task per machine, provisioning under a lease, jobs, recovery. It knows the host only
//! through the ports.

pub mod agent;
mod capability;
mod catalog;
mod configure;
mod create;
mod diagnose;
pub mod error;
mod guest_archive;
mod job;
mod lease;
mod library;
mod machine;
mod names;
mod network;
mod pull;
mod pull_file;
mod pull_kernel;
mod queue;
mod recover;
mod registry;
pub mod request;
pub mod stream;
mod time;
pub mod view;

use std::{
    collections::BTreeSet,
    os::fd::OwnedFd,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, UNIX_EPOCH},
};

use banger_domain::{
    dns::table::Table,
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
use banger_image::record::DefaultImage;
use banger_proto::size::Bytes;
use tokio::sync::{OnceCell, mpsc, oneshot};

pub use self::catalog::{Offer, Offers};
use self::{
    agent::Lines,
    catalog::Shelf,
    error::{Error, Result},
    job::Board,
    machine::{Command, Reply},
    pull::Pulls,
    registry::Registry,
    request::{Manner, Start, Stop},
    view::{Event, ImageView, JobView, KernelView, Object, VmView},
};
use crate::ports::{Authority, Clock, Hold, Log, Ports, Reading, Users};

/// What the configuration decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The image of a machine for which none is named.
    pub default_image: DefaultImage,
    /// The kernel of an image for which none is named.
    pub default_kernel: Name,
    /// Virtual processors of a machine for which no number is named.
    pub vcpus: u32,
    /// Memory of a machine for which no size is named.
    pub memory: Bytes,
    /// Work disk of a machine for which no size is named.
    pub disk_size: Bytes,
    /// The least system disk of a machine for which no size is named; one is never smaller than its image.
    pub root_size: Bytes,
    /// How long a guest may take to become ready.
    pub ready_timeout: Duration,
    /// How long a guest may take to power off.
    pub stop_timeout: Duration,
    /// What happens to a sandbox whose guest reboots.
    pub on_reboot: request::OnReboot,
    /// Where guests are to be; chosen where the host has nothing, when absent. Only the first start asks.
    pub subnet: Option<Prefix4>,
    /// Whether guests of one owner reach each other.
    pub siblings: SameOwner,
    /// What one user may have.
    pub limits: Limits,
}

/// The engine. Clones are the same engine.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    ports: Ports,
    settings: Settings,
    registry: Registry,
    jobs: Board,
    pulls: Pulls,
    shelf: Shelf,
    lines: Lines,
    /// Who holds it changes or removes an image, in what is published and in what is kept.
    library: tokio::sync::Mutex<()>,
    /// Where the guests are, once that is set up.
    subnet: OnceCell<Subnet>,
    /// The names of machines as they were last published.
    names: RwLock<Option<Arc<Table>>>,
}

impl Engine {
    /// An engine on this host. Everything that it publishes comes out of the receiver, in order. To be called in a
    /// runtime.
    pub fn new(ports: Ports, settings: Settings) -> (Self, mpsc::UnboundedReceiver<Event>) {
        let (events, receiver) = mpsc::unbounded_channel();
        let registry = Registry::new(events.clone());
        let jobs = Board::new(events, Arc::clone(&ports.clock), &settings.limits);
        let shared = Arc::new(Shared {
            ports,
            settings,
            registry,
            jobs,
            pulls: Pulls::default(),
            shelf: Shelf::default(),
            lines: Lines::default(),
            library: tokio::sync::Mutex::default(),
            subnet: OnceCell::new(),
            names: RwLock::default(),
        });
        tokio::spawn(names::keep(Arc::downgrade(&shared), shared.registry.changes()));
        tokio::spawn(time::keep(Arc::downgrade(&shared)));
        (Self { shared }, receiver)
    }

    /// What the configuration decides.
    pub fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// The names that lead to a machine; none while it is down.
    pub fn dns_names(&self, vm: VmId) -> Vec<String> {
        let names = self.shared.names.read().unwrap_or_else(PoisonError::into_inner);
        names.as_ref().map(|names| names.names_of(vm)).unwrap_or_default()
    }

    /// The accounts of the host.
    pub fn users(&self) -> &dyn Users {
        &*self.shared.ports.users
    }

    /// Who decides beyond ownership.
    pub fn authority(&self) -> &dyn Authority {
        &*self.shared.ports.authority
    }

    /// Every machine.
    pub fn vms(&self) -> Vec<Arc<VmView>> {
        self.shared.registry.vms()
    }

    /// A machine.
    pub fn vm(&self, id: VmId) -> Option<Arc<VmView>> {
        self.shared.registry.vm(id)
    }

    /// The machine with this reference, which may be another user's: whether the caller may know of it is
    /// for the border to decide.
    pub fn find_vm(&self, caller: Uid, reference: &Reference) -> Result<Arc<VmView>> {
        self.shared.registry.find_vm(caller, reference, self.users())
    }

    /// Every image.
    pub fn images(&self) -> Vec<Arc<ImageView>> {
        self.shared.registry.images()
    }

    /// An image.
    pub fn image(&self, id: ImageId) -> Option<Arc<ImageView>> {
        self.shared.registry.image(id)
    }

    /// The image with this reference.
    pub fn find_image(&self, caller: Uid, reference: &Reference) -> Result<Arc<ImageView>> {
        self.shared.registry.find_image(caller, reference, self.users())
    }

    /// The image of a machine for which none is named.
    pub fn default_image(&self, owner: Uid) -> Result<Arc<ImageView>> {
        match &self.shared.settings.default_image {
            DefaultImage::Named(name) => self.find_image(owner, &Reference::Name(name.clone())),
            DefaultImage::Pulled(reference) => self
                .find_pulled(owner, reference)
                .ok_or_else(|| registry::no_such(error::Kind::Image, &reference.to_string())),
        }
    }

    /// Every kernel.
    pub fn kernels(&self) -> Vec<Arc<KernelView>> {
        self.shared.registry.kernels()
    }

    /// A kernel.
    pub fn kernel(&self, id: KernelId) -> Option<Arc<KernelView>> {
        self.shared.registry.kernel(id)
    }

    /// The kernel with this reference.
    pub fn find_kernel(&self, caller: Uid, reference: &Reference) -> Result<Arc<KernelView>> {
        self.shared.registry.find_kernel(caller, reference, self.users())
    }

    /// The machines that use an image.
    pub fn image_users(&self, id: ImageId) -> Vec<VmId> {
        self.vms().iter().filter(|view| view.vm.image == id).map(|view| view.vm.id).collect()
    }

    /// The machines and images that use a kernel.
    pub fn kernel_users(&self, id: KernelId) -> Vec<Object> {
        let vms =
            self.vms().into_iter().filter(|view| view.vm.kernel == id).map(|view| Object::Vm(view.vm.id));
        let images = self.images().into_iter().filter(|image| image.kernel == Some(id));
        vms.chain(images.map(|image| Object::Image(image.id))).collect()
    }

    /// What a user has.
    pub fn usage(&self, owner: Uid) -> Usage {
        self.shared.registry.usage(owner)
    }

    /// Every job that is under way or has ended lately.
    pub fn jobs(&self) -> Vec<Arc<JobView>> {
        self.shared.jobs.all()
    }

    /// A job.
    pub fn job(&self, id: JobId) -> Option<Arc<JobView>> {
        self.shared.jobs.get(id)
    }

    /// The jobs about a machine that are under way.
    pub fn vm_jobs(&self, id: VmId) -> Vec<JobId> {
        let about = |job: &JobView| job.outcome.is_none() && job.objects.contains(&Object::Vm(id));
        self.jobs().iter().filter(|job| about(job)).map(|job| job.id).collect()
    }

    /// Asks a job to give up and to undo what it did.
    pub fn cancel_job(&self, id: JobId) -> Result<()> {
        self.shared.jobs.cancel(id)
    }

    /// Waits until a job has ended, at most so long; a job that goes on has no outcome.
    pub async fn wait_job(&self, id: JobId, timeout: Option<Duration>) -> Result<Arc<JobView>> {
        self.shared.jobs.wait(id, timeout).await
    }

    /// Boots a machine.
    pub async fn start_vm(&self, id: VmId, start: Start) -> Result<JobId> {
        self.ask(id, |reply| Command::Start { start, reply }).await
    }

    /// Shuts a machine down.
    pub async fn stop_vm(&self, id: VmId, stop: Stop) -> Result<JobId> {
        self.ask(id, |reply| Command::Stop { stop, reply }).await
    }

    /// Shuts a machine down and boots it; one that is down is only booted.
    pub async fn restart_vm(&self, id: VmId, stop: Stop, start: Start) -> Result<JobId> {
        self.ask(id, |reply| Command::Restart { stop, start, reply }).await
    }

    /// Removes a machine with its disks. One that is up is refused, or killed when the removal is forced.
    pub async fn delete_vm(&self, id: VmId, manner: Manner) -> Result<JobId> {
        self.ask(id, |reply| Command::Delete { manner, reply }).await
    }

    /// Sends a signal to a machine's monitor. However it ends by that, the machine counts as stopped.
    pub async fn kill_vm(&self, id: VmId, signal: i32) -> Result<()> {
        self.ask(id, |reply| Command::Kill { signal, reply }).await
    }

    /// Gives a machine another name.
    pub async fn rename_vm(&self, id: VmId, name: Name) -> Result<()> {
        self.ask(id, |reply| Command::Rename { name, reply }).await
    }

    /// Changes how long a machine is kept.
    pub async fn set_lifetime(&self, id: VmId, lifetime: Lifetime) -> Result<()> {
        self.ask(id, |reply| Command::SetLifetime { lifetime, reply }).await
    }

    /// Counts a stream that a user gets. One too many is closed.
    fn hand_out(&self, user: Uid, stream: OwnedFd) -> Result<OwnedFd> {
        let limit = self.shared.settings.limits.streams as usize;
        self.shared.ports.streams.hand_out(user, &stream, limit)??;
        Ok(stream)
    }

    /// A pipe from which a log of a machine can be read. What is held is dropped when that has come to an end.
    pub async fn open_log(&self, id: VmId, log: Log, reading: Reading, hold: Hold) -> Result<OwnedFd> {
        Ok(self.shared.ports.logs.open(id, log, reading, hold).await?)
    }

    /// A client's connection has left this bus: its machines go too.
    pub async fn caller_vanished(&self, connection: &str, bus: &str) {
        let bound = |view: &VmView| match &view.vm.lifetime {
            Lifetime::Caller { connection: c, bus: b } => c == connection && b == bus,
            Lifetime::Persistent | Lifetime::UntilStopped => false,
        };
        for view in self.vms().iter().filter(|view| bound(view)) {
            if let Ok(inbox) = self.shared.registry.inbox(view.vm.id) {
                // A task that is gone has nothing left to remove.
                let _ = inbox.send(Command::CallerVanished).await;
            }
        }
    }

    async fn ask<T>(&self, id: VmId, command: impl FnOnce(Reply<T>) -> Command) -> Result<T> {
        let inbox = self.shared.registry.inbox(id)?;
        let vanished = || {
            let name = self.vm(id).map_or_else(|| id.to_string(), |view| view.vm.name.to_string());
            Error::Vanished { name }
        };
        let (reply, answer) = oneshot::channel();
        inbox.send(command(reply)).await.map_err(|_| vanished())?;
        answer.await.map_err(|_| vanished())?
    }
}

impl Shared {
    /// Has the task of a machine ask whether its guest is still there, because it did not answer.
    fn doubt(&self, vm: VmId) {
        // A task that is gone, or has much to do, knows better than this.
        let _ = self.registry.inbox(vm).map(|inbox| inbox.try_send(Command::Doubt));
    }

    fn view(&self, vm: Vm, unit: String, pid: u32) -> VmView {
        let image_name =
            self.registry.image(vm.image).map_or_else(String::new, |image| image.name.to_string());
        let kernel_name =
            self.registry.kernel(vm.kernel).map_or_else(String::new, |kernel| kernel.name.to_string());
        let address = self.subnet.get().and_then(|subnet| subnet.guest(vm.slot)).map(|(v4, _)| v4);
        let (mac, blocked_ports) = (Mac::of_guest(vm.id), BTreeSet::new());
        VmView { address, mac, vm, image_name, kernel_name, blocked_ports, silent: false, unit, pid }
    }
}

/// The present time.
fn now(clock: &dyn Clock) -> Timestamp {
    let since = clock.now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
