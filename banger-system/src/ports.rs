//! The traits through which the engine uses a host. `host` implements them on Linux, `sim` in memory.
//!
//! Rules that hold for all of them:
//!
//! - A method that creates something has a counterpart that removes it. Removing what is already gone is success, so
//!   that every removal may be repeated.
//! - A method that failed half-way leaves nothing that its counterpart cannot remove. The caller always calls it then.
//! - `found` lists what exists on the host, from this or an earlier run of the service. Recovery compares it with the
//!   ledger.
//! - Sizes are [`Bytes`], times are [`Duration`]. A method without a `timeout` argument bounds its own waits, unless it
//!   says that it waits without limit.

pub mod catalogs;
pub mod images;
pub mod names;
pub mod network;
pub mod registry;

use std::{
    any::Any,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use banger_domain::{
    clock::Occasion,
    guest_end::GuestEnd,
    id::{ImageId, KernelId, Uid, VmId},
    launch_spec::{Drive, LaunchSpec},
    limits::Exceeded,
    net::subnet::Subnet,
    resource::Resource,
    stream::Purpose,
    vm::{Token, Vm},
    vmm::VmmChoice,
};
use banger_image::{
    oci::config::ImageConfig,
    record::{Image, ImageFacts, Kernel, KernelFacts},
};
use banger_proto::size::Bytes;
use images::{Content, Exported, FileRange, Layout, Progress};

pub use banger_domain::guest_end::Ended;

/// Why a port failed, grouped by what the caller can do next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host lacks a program, a device or a feature.
    #[error("{message}")]
    HostNotReady {
        /// What is missing, and what to do about it.
        message: String,
    },
    /// A name or a port on the host is taken by something else.
    #[error("{message}")]
    Taken {
        /// What it is, who has it, and what to do about it.
        message: String,
    },
    /// The file system is full.
    #[error("cannot {doing}: no space is left")]
    NoSpace {
        /// What was being done, and to what.
        doing: String,
    },
    /// The content of a file is not supported.
    #[error("{message}")]
    Unsupported {
        /// What is wrong with it.
        message: String,
    },
    /// Content does not have the expected digest or size.
    #[error("{message}")]
    Mismatch {
        /// What was compared.
        message: String,
    },
    /// A remote server cannot be reached, or does not answer in time.
    #[error("{message}")]
    Unreachable {
        /// Which one, and why.
        message: String,
    },
    /// A registry requires a login, or refuses this one.
    #[error("{message}")]
    AuthRequired {
        /// Which one, for what.
        message: String,
    },
    /// A registry refuses a request, or sends an invalid response.
    #[error("{message}")]
    Registry {
        /// Which one, and what it said.
        message: String,
    },
    /// A catalog has a bad signature, is too old, or cannot be parsed.
    #[error("{message}")]
    Catalog {
        /// Which one, and why.
        message: String,
    },
    /// A file descriptor is of the wrong kind, mode or size.
    #[error("{message}")]
    BadFile {
        /// What is wrong with it.
        message: String,
    },
    /// The VMM did not start, or exited at once.
    #[error("{message}")]
    Vmm {
        /// What it said.
        message: String,
    },
    /// The guest's agent cannot be reached, or sends an invalid reply.
    #[error("{message}")]
    Agent {
        /// What went wrong.
        message: String,
    },
    /// All streams to the guest's agent are in use.
    #[error("all streams to the guest are in use")]
    NoFreeStream,
    /// The timeout expired.
    #[error("{what} took longer than {} s", .after.as_secs())]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
    },
    /// The operating system refused.
    #[error("cannot {doing}")]
    Os {
        /// What was being done, and to what.
        doing: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// An unexpected failure.
    #[error("cannot {doing}")]
    Other {
        /// What was being done, and to what.
        doing: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// Returns the error of a system call that was made for `doing`. A full file system becomes [`Error::NoSpace`].
    pub fn os(doing: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        let (doing, source) = (doing.into(), source.into());
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::NoSpace { doing },
            _ => Self::Os { doing, source },
        }
    }

    /// Returns the error of a library call that was made for `doing`.
    pub fn other(
        doing: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Other { doing: doing.into(), source: source.into() }
    }
}

/// The result of a check that `doctor` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// The result.
    pub status: Status,
    /// What was found.
    pub message: String,
    /// What to do about it; empty if there is nothing to do.
    pub hint: String,
}

/// The status of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It works.
    Pass,
    /// It works with restrictions.
    Warn,
    /// Sandboxes do not work.
    Fail,
}

/// The result of a port.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// All ports of a host.
#[derive(Clone)]
#[allow(missing_docs, reason = "each is named after its trait")]
pub struct Ports {
    pub authority: Arc<dyn Authority>,
    pub catalogs: Arc<dyn catalogs::Catalogs>,
    pub clock: Arc<dyn Clock>,
    pub disks: Arc<dyn Disks>,
    pub guest: Arc<dyn GuestLink>,
    pub image_files: Arc<dyn ImageFiles>,
    pub kernel_files: Arc<dyn KernelFiles>,
    pub logs: Arc<dyn Logs>,
    pub names: Arc<dyn names::Names>,
    pub network: Arc<dyn network::Network>,
    pub registry: Arc<dyn registry::Registry>,
    pub store: Arc<dyn Store>,
    pub streams: Arc<dyn Streams>,
    pub supervisor: Arc<dyn Supervisor>,
    pub users: Arc<dyn Users>,
    pub vmm: Arc<dyn Vmm>,
}

/// The disks of VMs.
#[async_trait]
pub trait Disks: Send + Sync {
    /// Creates the directory of a VM's disks and logs. An existing one is kept.
    async fn create_directory(&self, vm: VmId) -> Result<()>;
    /// Creates a VM's private clone of an image, in a form that its VMM can read, or prepares what becomes one when
    /// the disks are attached. Never changes the image's file. The clone has at least the image's size; what is
    /// beyond the image's content is empty. Fails with [`Error::NoSpace`] if the disk is full.
    async fn clone_image(&self, vm: VmId, image: ImageId, overlay_by: OverlayBy, size: Bytes) -> Result<()>;
    /// Creates an empty ext4 file system of this size. Fails with [`Error::NoSpace`] if the disk is full.
    async fn create_work_disk(&self, vm: VmId, size: Bytes) -> Result<()>;
    /// Grows the work disk of a stopped VM. A disk that is large enough is left alone, so a repeat is safe. The guest
    /// grows the file system: the host's kernel must not read it.
    async fn grow_work_disk(&self, vm: VmId, size: Bytes) -> Result<()>;
    /// Grows the system disk of a stopped VM, as [`Disks::grow_work_disk`] does.
    async fn grow_system_disk(&self, vm: VmId, image: ImageId, size: Bytes) -> Result<()>;
    /// Prepares the drives for a VMM, and returns them, the system disk first. Replaces what an earlier boot left, so
    /// a repeat is safe while no VMM runs.
    async fn attach(&self, vm: VmId, image: ImageId) -> Result<Vec<Drive>>;
    /// Undoes [`Disks::attach`]. No VMM may have the drives open.
    async fn detach(&self, vm: VmId) -> Result<()>;
    /// Returns the VMs that have something to detach.
    async fn attached(&self) -> Result<Vec<VmId>>;
    /// Removes a VM's directory with everything in it.
    async fn remove_directory(&self, vm: VmId) -> Result<()>;
    /// Returns the VMs that have a directory.
    async fn found(&self) -> Result<Vec<VmId>>;
    /// Checks what this needs from the host.
    async fn checks(&self) -> Vec<Check>;
}

/// Who combines an image and the writes of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverlayBy {
    /// The VMM, from a file in QEMU's format.
    Vmm,
    /// The host: the VMM gets one raw file or device.
    Host,
}

/// The files of images.
#[async_trait]
pub trait ImageFiles: Send + Sync {
    /// Creates an image's file from its content. A failed import leaves no files. Progress counts the bytes of the
    /// content that were read. Fails with [`Error::Unsupported`], [`Error::Mismatch`] or [`Error::NoSpace`].
    async fn import(
        &self,
        image: ImageId,
        owner: Uid,
        content: Content,
        progress: Arc<dyn Progress>,
    ) -> Result<ImageFacts>;
    /// Reads the manifest and the configuration of an OCI image in a user's file. `parts` are the manifest, the
    /// configuration, and each layer. Layers are not read yet.
    async fn layout(&self, owner: Uid, file: OwnedFd, parts: &[FileRange]) -> Result<Layout>;
    /// Writes an image into a user's empty file, as an OCI image layout in a tar archive. The same image gives the
    /// same bytes. A failed export leaves its bytes in the file.
    async fn export(
        &self,
        image: ImageId,
        for_whom: Uid,
        config: ImageConfig,
        archive: OwnedFd,
        progress: Arc<dyn Progress>,
    ) -> Result<Exported>;
    /// Makes an image share the files of another one. They exist until both images are removed.
    async fn share(&self, image: ImageId, of: ImageId) -> Result<()>;
    /// Removes an image's files. A repeat is safe.
    async fn remove(&self, image: ImageId) -> Result<()>;
    /// Returns the images that have files.
    async fn found(&self) -> Result<Vec<ImageId>>;
}

/// The files of kernels.
#[async_trait]
pub trait KernelFiles: Send + Sync {
    /// Extracts a kernel from a user's file, picks the modules that booting needs from a tar of the modules
    /// directory, and makes a file system of all modules. A failed import leaves no files. Fails with
    /// [`Error::Unsupported`] if the file is not a kernel that guests can boot.
    async fn import(
        &self,
        kernel: KernelId,
        owner: Uid,
        vmlinuz: OwnedFd,
        modules: Option<OwnedFd>,
    ) -> Result<KernelFacts>;
    /// Returns the paths of the ELF kernel and of the initramfs archives: the kernel's modules, then the agent.
    async fn boot_files(&self, kernel: KernelId) -> Result<BootFiles>;
    /// Removes a kernel's files. A repeat is safe.
    async fn remove(&self, kernel: KernelId) -> Result<()>;
    /// Returns the kernels that have files.
    async fn found(&self) -> Result<Vec<KernelId>>;
}

/// The files that a VM boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFiles {
    /// The ELF kernel.
    pub kernel: std::path::PathBuf,
    /// The archives of the initramfs in order, without the guest's configuration.
    pub initramfs: Vec<std::path::PathBuf>,
    /// The file system of all modules, if the kernel came with modules.
    pub module_tree: Option<std::path::PathBuf>,
}

/// A VMM: its command, its configuration and its channels.
///
/// A start calls, in this order: [`Vmm::jail_spec`], [`Supervisor::start_jail`], [`Vmm::prepare_launch`],
/// [`EmptyJail::run`], [`Vmm::configure`].
#[async_trait]
pub trait Vmm: Send + Sync {
    /// Returns who combines image and writes, for a VM with this choice of VMM and this many processors.
    fn overlay_by(&self, wish: VmmChoice, vcpus: u32) -> OverlayBy;
    /// Chooses the VMM, creates an empty directory for its sockets, and returns what its process needs from the host.
    /// Replaces an earlier directory, so a repeat is safe while no VMM runs. Fails with [`Error::HostNotReady`] if no
    /// VMM can run this VM.
    async fn jail_spec(&self, spec: &LaunchSpec) -> Result<JailSpec>;
    /// Creates the sockets, opens the files, and returns the command to run. Must be called once, after
    /// [`Vmm::jail_spec`].
    async fn prepare_launch(&self, spec: &LaunchSpec) -> Result<VmmCommand>;
    /// Configures the running VMM as far as its arguments do not, and boots the guest. Must be called once. Creates
    /// nothing that outlives the process. Fails with [`Error::Vmm`] if the VMM exits or refuses.
    async fn configure(&self, _spec: &LaunchSpec, _started: &Started) -> Result<()> {
        Ok(())
    }
    /// Connects to the guest's agent, without a greeting. A stream is a free one for its purpose, else the call fails
    /// with [`Error::NoFreeStream`]. Only the service uses the control channel.
    async fn connect(&self, vm: VmId, channel: Channel) -> Result<tokio::net::UnixStream>;
    /// Removes the sockets of a VM. A repeat is safe.
    async fn remove_sockets(&self, vm: VmId) -> Result<()>;
    /// Checks what this needs from the host.
    async fn checks(&self) -> Vec<Check>;
    /// Returns the VMs that have sockets.
    async fn found(&self) -> Result<Vec<VmId>>;
}

/// Which connection to the agent to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// The service's own connection.
    Control,
    /// A stream for a client, for this purpose.
    Stream(Purpose),
}

/// What the process of a VM may use on the host: the result of [`Vmm::jail_spec`].
///
/// The jail is started before the rest of the VM is created, because starting it takes longer.
#[derive(Debug)]
pub struct JailSpec {
    /// The sandbox.
    pub vm: VmId,
    /// Its owner.
    pub owner: Uid,
    /// One line for people.
    pub description: String,
    /// The most memory that the process may use.
    pub memory_max: Bytes,
    /// Processors that the process may use, in percent of one.
    pub cpu_percent: u32,
    /// Devices that it may open, such as `/dev/kvm`.
    pub devices: Vec<std::path::PathBuf>,
    /// A directory that the process sees as `/machine` ([`VM_DIRECTORY`](banger_jail::jail::VM_DIRECTORY))
    /// and may write to. Files that it creates there are open to everybody who may pass the parent directory.
    pub directory: Option<std::path::PathBuf>,
    /// The network namespace of the process.
    pub network: NetworkNamespace,
}

/// The command to run in a jail: the result of [`Vmm::prepare_launch`].
#[derive(Debug)]
pub struct VmmCommand {
    /// Absolute path and arguments. `{fd:NAME}` stands for the number that the file NAME has in the process.
    pub argv: Vec<String>,
    /// Files that the process inherits, by name. They get the numbers from `banger_jail::message::FIRST_FILE` on.
    pub files: Vec<(String, OwnedFd)>,
    /// The ring file of the serial console, which is the process's standard output.
    pub console: OwnedFd,
    /// The ring file of the process's standard error.
    pub log: OwnedFd,
}

/// The network namespace of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkNamespace {
    /// An empty one of its own.
    Private,
    /// The host's, where it may attach to a TAP that its user owns.
    Host,
}

/// Starts VMMs in jails that outlive the service, and reports their ends.
#[async_trait]
pub trait Supervisor: Send + Sync {
    /// Starts a jail, and returns before it is ready. It exists until [`Supervisor::remove`], even if this or a later
    /// step fails. Must not be repeated before that.
    async fn start_jail(&self, spec: JailSpec) -> Result<Box<dyn EmptyJail>>;
    /// Sends a signal to a VM's process.
    async fn kill(&self, vm: VmId, signal: i32) -> Result<()>;
    /// Kills a VM's process, and waits until nothing of the jail is left. A repeat is safe.
    async fn remove(&self, vm: VmId) -> Result<()>;
    /// Waits without limit until a VM's process has ended, and returns how. Also works for a process that an earlier
    /// run of the service started. Safe to cancel and call again.
    async fn ended(&self, vm: VmId) -> Result<Ended>;
    /// Returns the VMs that have a process.
    async fn found(&self) -> Result<Vec<(VmId, Started)>>;
}

/// A started jail without a process in it. Dropping it ends the jail, and [`Supervisor::remove`] removes what is
/// left.
#[async_trait]
pub trait EmptyJail: Send {
    /// Starts a process in the jail. It runs when this returns. Fails with [`Error::Vmm`] if it exits at once.
    async fn run(self: Box<Self>, command: VmmCommand) -> Result<Started>;
}

/// A process that was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// The name of its unit; empty without systemd.
    pub unit: String,
    /// Its process id.
    pub pid: u32,
    /// The user that it runs as.
    pub user: u32,
}

/// The connection to the agents in guests.
#[async_trait]
pub trait GuestLink: Send + Sync {
    /// Waits until the agent answers. Fails with [`Error::Timeout`]. Safe to cancel and to repeat.
    async fn wait_ready(&self, vm: VmId, token: &Token, timeout: Duration) -> Result<GuestFacts>;
    /// Asks the agent to sync the disks and to power off. Returns once the agent confirms that all earlier writes are
    /// on the disks. A repeat is safe.
    async fn shutdown(&self, vm: VmId, token: &Token, timeout: Duration) -> Result<()>;
    /// Compares the clock of the guest with the host's, and corrects it. A repeat is safe.
    async fn sync_clock(&self, vm: VmId, token: &Token, occasion: Occasion) -> Result<()>;
    /// Greets the agent on a connection of [`Vmm::connect`]. The returned stream takes one request.
    async fn open(&self, stream: tokio::net::UnixStream, token: &Token) -> Result<OwnedFd>;
}

/// What the agent reports about its guest. Untrusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFacts {
    /// The kernel's boot id.
    pub boot_id: String,
    /// Whether it is shutting down.
    pub stopping: bool,
}

/// The logs of VMs.
#[async_trait]
pub trait Logs: Send + Sync {
    /// Returns the reading end of a pipe that gets the log. A VM that never ran has an empty log. The guard is
    /// dropped when the log is read or the reader has gone.
    async fn open(&self, vm: VmId, log: Log, reading: LogRange, hold: ReaderGuard) -> Result<OwnedFd>;
    /// Returns how the guest of the last boot ended, by the end of its console log; none if that does not say.
    async fn guest_end(&self, vm: VmId) -> Result<Option<GuestEnd>>;
    /// Waits without limit until the console of the current boot says that the guest has halted. Safe to cancel and
    /// call again.
    async fn wait_for_halt(&self, vm: VmId) -> Result<GuestEnd>;
}

/// A value that is held while a log is being read, such as a permit of its user.
pub type ReaderGuard = Box<dyn Any + Send>;

/// Counts the streams of each user.
pub trait Streams: Send + Sync {
    /// Counts a stream as its user's until its last descriptor is closed. Fails with [`Exceeded`] if the user has
    /// `limit` streams.
    fn hand_out(&self, user: Uid, stream: &OwnedFd, limit: usize) -> Result<Result<(), Exceeded>>;
}

/// A log of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// The serial console.
    Console,
    /// The VMM's standard error.
    Vmm,
}

/// The part of a log to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogRange {
    /// Start with this many lines from the end; with everything if absent.
    pub tail: Option<u32>,
    /// Continue with new lines until the reader closes the pipe.
    pub follow: bool,
}

/// The accounts of the host. Fails with [`Error::HostNotReady`] if the name service does not answer in time.
#[async_trait]
pub trait Users: Send + Sync {
    /// Returns the user with this login name or number; none if there is no such name.
    async fn uid_of(&self, login: &str) -> Result<Option<Uid>>;
    /// Returns the login name of a user; none if the user has no account.
    async fn login_of(&self, uid: Uid) -> Result<Option<String>>;
}

/// The database. A write survives a crash of the service once its method has returned, and may be repeated.
#[async_trait]
pub trait Store: Send + Sync {
    /// Returns all VMs.
    async fn vms(&self) -> Result<Vec<Vm>>;
    /// Stores a VM, new or changed.
    async fn put_vm(&self, vm: &Vm) -> Result<()>;
    /// Deletes a VM's row. The ledger keeps the resources that could not be released.
    async fn delete_vm(&self, vm: VmId) -> Result<()>;
    /// Returns all images.
    async fn images(&self) -> Result<Vec<Image>>;
    /// Stores an image, new or changed.
    async fn put_image(&self, image: &Image) -> Result<()>;
    /// Stores an image and deletes the one that it replaces, in one transaction.
    async fn replace_image(&self, image: &Image, old: ImageId) -> Result<()>;
    /// Deletes an image's row.
    async fn delete_image(&self, image: ImageId) -> Result<()>;
    /// Returns all kernels.
    async fn kernels(&self) -> Result<Vec<Kernel>>;
    /// Stores a kernel, new or changed.
    async fn put_kernel(&self, kernel: &Kernel) -> Result<()>;
    /// Stores a kernel and deletes the one that it replaces, in one transaction.
    async fn replace_kernel(&self, kernel: &Kernel, old: KernelId) -> Result<()>;
    /// Deletes a kernel's row.
    async fn delete_kernel(&self, kernel: KernelId) -> Result<()>;
    /// Returns the network of the guests, if it was chosen.
    async fn subnet(&self) -> Result<Option<Subnet>>;
    /// Stores the network of the guests.
    async fn put_subnet(&self, subnet: Subnet) -> Result<()>;
    /// Records in the ledger that a VM is about to get a resource, maybe before [`Store::put_vm`] has stored the VM.
    /// Only the lease calls this.
    async fn record(&self, vm: VmId, resource: Resource) -> Result<()>;
    /// Strikes a released resource from the ledger. Only the lease calls this.
    async fn strike(&self, vm: VmId, resource: Resource) -> Result<()>;
    /// Returns the ledger: all resources that may exist.
    async fn ledger(&self) -> Result<Vec<(VmId, Resource)>>;
}

/// Authorises what goes beyond one's own objects (polkit).
#[async_trait]
pub trait Authority: Send + Sync {
    /// Returns whether the connection may perform the action. Any doubt is a no. Waits without limit if the user is
    /// asked to authenticate; cancelling withdraws the question.
    async fn check(&self, question: Question) -> Verdict;
}

/// A question to the authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The unique name of the caller's connection.
    pub connection: String,
    /// The polkit action.
    pub action: &'static str,
    /// What the dialog shows; validated text only.
    pub details: Vec<(&'static str, String)>,
    /// Whether the user may be asked to authenticate.
    pub interaction: Interaction,
}

/// Whether the user may be asked to authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interaction {
    /// The caller allows it.
    Allowed,
    /// The caller does not.
    Forbidden,
}

/// An answer of the authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Yes,
    /// Yes after authentication, which the caller did not allow.
    NeedsInteraction,
    /// No, and the reason in one sentence.
    No(String),
    /// Unknown, which counts as no, and the reason in one sentence.
    Undecided(String),
}

/// The host's clock.
#[async_trait]
pub trait Clock: Send + Sync {
    /// Returns the current time.
    fn now(&self) -> SystemTime;
    /// Waits until guest clocks have to be compared with the host's, and returns why: the clock was set or the host
    /// slept (also before this call, since the last one), or a minute has passed.
    async fn due(&self) -> Result<Occasion>;
}
