//! What the engine needs of a host, as traits. `host` implements them on Linux, `sim` in memory.
//!
//! Whatever makes something says so in its documentation, and each has a counterpart that removes it, for
//! which a thing that is gone already is success.

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
use images::{Content, Exported, Layout, Part, Progress};

pub use banger_domain::guest_end::Ended;

/// Why a port could not do what it was asked, grouped by what the caller can do next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host lacks a program, a device or a feature.
    #[error("{message}")]
    HostNotReady {
        /// What is missing, and what to do about it.
        message: String,
    },
    /// Somebody else has what is needed: a name on the host, or a port.
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
    /// The content of a file is not what it has to be.
    #[error("{message}")]
    Unsupported {
        /// What is wrong with it.
        message: String,
    },
    /// Content does not have the digest or the size by which it was asked for.
    #[error("{message}")]
    Mismatch {
        /// What was compared.
        message: String,
    },
    /// A server of somebody else's cannot be reached, or does not answer in time.
    #[error("{message}")]
    Unreachable {
        /// Which one, and why.
        message: String,
    },
    /// A registry wants to know who asks, or does not let them.
    #[error("{message}")]
    AuthRequired {
        /// Which one, for what.
        message: String,
    },
    /// A registry refuses, or says what it must not say.
    #[error("{message}")]
    Registry {
        /// Which one, and what it said.
        message: String,
    },
    /// A catalog is not what its keys vouch for, too old, or not understood.
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
    /// The monitor did not start, or ended at once.
    #[error("{message}")]
    Vmm {
        /// What it said.
        message: String,
    },
    /// The guest's agent cannot be reached, or speaks nonsense.
    #[error("{message}")]
    Agent {
        /// What went wrong.
        message: String,
    },
    /// All streams to the guest's agent are in use.
    #[error("all streams to the guest are in use")]
    NoFreeStream,
    /// It took too long.
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
    /// Something that should not be.
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
    /// The error of a system call that was made for `doing`; a full file system gets its own kind.
    pub fn os(doing: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        let (doing, source) = (doing.into(), source.into());
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::NoSpace { doing },
            _ => Self::Os { doing, source },
        }
    }

    /// The error of a library that was called for `doing`.
    pub fn other(
        doing: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Other { doing: doing.into(), source: source.into() }
    }
}

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub status: Status,
    /// What was found.
    pub message: String,
    /// What to do about it; empty when there is nothing to do.
    pub hint: String,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// As it should be.
    Pass,
    /// It will do.
    Warn,
    /// Machines will not work.
    Fail,
}

/// The result of a port.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The host, as the engine knows it.
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

/// The disks of machines.
#[async_trait]
pub trait Disks: Send + Sync {
    /// Makes the directory of a machine's disks and logs.
    async fn create_directory(&self, vm: VmId) -> Result<()>;
    /// Makes the private clone of an image, or what becomes one when the disks are attached, in a form that the
    /// machine's monitor can read. The image's file is not changed, then or later. The clone has this size, with
    /// nothing behind the image's content; one that is smaller than the image counts as the image's.
    async fn clone_image(&self, vm: VmId, image: ImageId, layers: Layers, size: Bytes) -> Result<()>;
    /// Makes an empty ext4 file system of this size.
    async fn create_work_disk(&self, vm: VmId, size: Bytes) -> Result<()>;
    /// Makes a machine's work disk larger while it is stopped. The file system in it is the guest's to grow:
    /// no kernel but the guest's reads it. A disk that is as large already is left alone.
    async fn grow_work_disk(&self, vm: VmId, size: Bytes) -> Result<()>;
    /// Makes a machine's system disk larger while it is stopped, as [`Disks::grow_work_disk`] does for the other.
    async fn grow_system_disk(&self, vm: VmId, image: ImageId, size: Bytes) -> Result<()>;
    /// Makes ready what a monitor opens, and returns the drives, the system disk first. What is left of an
    /// earlier time is made anew.
    async fn attach(&self, vm: VmId, image: ImageId) -> Result<Vec<Drive>>;
    /// Undoes [`Disks::attach`]. No monitor may have the drives open any more.
    async fn detach(&self, vm: VmId) -> Result<()>;
    /// The machines for which there is something to detach.
    async fn attached(&self) -> Result<Vec<VmId>>;
    /// Removes the directory with all that is in it.
    async fn remove_directory(&self, vm: VmId) -> Result<()>;
    /// The machines that have a directory.
    async fn found(&self) -> Result<Vec<VmId>>;
    /// What it needs of the host, and whether that is there.
    async fn checks(&self) -> Vec<Check>;
}

/// Who can put what a guest writes over what its image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layers {
    /// The monitor, of a file in QEMU's format.
    Vmm,
    /// The host alone: the monitor wants one raw file or device.
    Host,
}

/// The files of images.
#[async_trait]
pub trait ImageFiles: Send + Sync {
    /// Makes an image's file of what it consists of. What is left of a failed import is removed. The progress
    /// counts the bytes of the content that were read.
    async fn import(
        &self,
        image: ImageId,
        owner: Uid,
        content: Content,
        progress: Arc<dyn Progress>,
    ) -> Result<ImageFacts>;
    /// What an OCI image consists of whose parts are in a file of a user's: the manifest, the configuration, and
    /// each layer. Of the layers nothing is read yet.
    async fn layout(&self, owner: Uid, file: OwnedFd, parts: &[Part]) -> Result<Layout>;
    /// Writes an image into an empty file of a user's, as a tar archive of an OCI image layout. The same image gives
    /// the same bytes. What an export that failed has written stays in the file.
    async fn export(
        &self,
        image: ImageId,
        for_whom: Uid,
        config: ImageConfig,
        archive: OwnedFd,
        progress: Arc<dyn Progress>,
    ) -> Result<Exported>;
    /// Gives an image the files of another one, which takes no room: both have them until both are removed.
    async fn share(&self, image: ImageId, of: ImageId) -> Result<()>;
    /// Removes an image's files.
    async fn remove(&self, image: ImageId) -> Result<()>;
    /// The images that have files.
    async fn found(&self) -> Result<Vec<ImageId>>;
}

/// The files of kernels.
#[async_trait]
pub trait KernelFiles: Send + Sync {
    /// Extracts the kernel from a user's file, picks the modules that a guest needs from a tar of the
    /// modules directory, and writes both, and a file system of all modules. What is left of a failed import is removed.
    async fn import(
        &self,
        kernel: KernelId,
        owner: Uid,
        vmlinuz: OwnedFd,
        modules: Option<OwnedFd>,
    ) -> Result<KernelFacts>;
    /// Where the ELF kernel and the archives of the initramfs stand: the kernel's modules, then the agent.
    async fn boot_files(&self, kernel: KernelId) -> Result<BootFiles>;
    /// Removes a kernel's files.
    async fn remove(&self, kernel: KernelId) -> Result<()>;
    /// The kernels that have files.
    async fn found(&self) -> Result<Vec<KernelId>>;
}

/// What a machine boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFiles {
    /// The ELF kernel.
    pub kernel: std::path::PathBuf,
    /// The archives of the initramfs, in their order, but for the guest's configuration.
    pub initramfs: Vec<std::path::PathBuf>,
    /// The file system of all modules of the kernel, where it came with modules.
    pub module_tree: Option<std::path::PathBuf>,
}

/// A machine monitor: how a machine is put into its words, and how its channels are reached.
#[async_trait]
pub trait Vmm: Send + Sync {
    /// Who is to put what a guest writes over its image, for a machine with this wish and so many processors.
    fn layers(&self, wish: VmmChoice, vcpus: u32) -> Layers;
    /// Decides on the monitor of a machine, makes the directory of its sockets anew, and says what the process
    /// needs of the host.
    async fn confine(&self, spec: &LaunchSpec) -> Result<Confinement>;
    /// Makes the sockets of a machine, opens its files, and says what is to run with them. To be called once,
    /// after [`Vmm::confine`].
    async fn prepare(&self, spec: &LaunchSpec) -> Result<Launch>;
    /// Tells the process what is not said by its arguments, and lets the guest boot. To be called once, when
    /// what [`Vmm::prepare`] returned runs. It makes nothing that does not go with the process.
    async fn configure(&self, _spec: &LaunchSpec, _started: &Started) -> Result<()> {
        Ok(())
    }
    /// A connection to the guest's agent on which nothing has been said. The control channel is the
    /// service's own; a stream is one that is free for its purpose, else [`Error::NoFreeStream`].
    async fn connect(&self, vm: VmId, channel: Channel) -> Result<tokio::net::UnixStream>;
    /// Removes the sockets of a machine.
    async fn remove_sockets(&self, vm: VmId) -> Result<()>;
    /// What it needs of the host, and whether that is there.
    async fn checks(&self) -> Vec<Check>;
    /// The machines that have sockets.
    async fn found(&self) -> Result<Vec<VmId>>;
}

/// Which connection to the agent is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// The one that the service keeps for itself.
    Control,
    /// One for a client, if one for this purpose is free.
    Stream(Purpose),
}

/// What a machine's process may have of the host: the result of [`Vmm::confine`]. To build its walls takes time
/// in which the rest of the machine is made.
#[derive(Debug)]
pub struct Confinement {
    /// The machine.
    pub vm: VmId,
    /// Its owner.
    pub owner: Uid,
    /// One line for people.
    pub description: String,
    /// The most memory that the process may use.
    pub memory_max: Bytes,
    /// Processors that the process may use, in hundredths.
    pub cpu_percent: u32,
    /// Devices that it may open, such as `/dev/kvm`.
    pub devices: Vec<std::path::PathBuf>,
    /// A directory that it sees as `/machine` ([`VM_DIRECTORY`](banger_jail::jail::VM_DIRECTORY))
    /// and may write to. What it makes there is open to whoever passes the directory's parent.
    pub directory: Option<std::path::PathBuf>,
    /// Whose network it is in.
    pub network: NetworkOf,
}

/// What is to run within the walls: the result of [`Vmm::prepare`].
#[derive(Debug)]
pub struct Launch {
    /// Absolute path and arguments. `{fd:NAME}` in an argument stands for the number that the file NAME
    /// has in the process.
    pub argv: Vec<String>,
    /// Files that the process gets, by name. They have the numbers from `banger_jail::message::FIRST_FILE` on.
    pub files: Vec<(String, OwnedFd)>,
    /// The ring file of the serial console, which the process writes to its standard output.
    pub console: OwnedFd,
    /// The ring file of what the process writes to its standard error.
    pub log: OwnedFd,
}

/// Whose network a process is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkOf {
    /// One of its own, with nothing in it.
    Nobody,
    /// The host's, where it may attach to a TAP that its user owns.
    Host,
}

/// Starts monitors so that they live on when the service does not, and tells how they end.
#[async_trait]
pub trait Supervisor: Send + Sync {
    /// Begins to build walls, and does not wait until they stand. What was begun is there until
    /// [`Supervisor::remove`], whatever comes of it.
    async fn confine(&self, confinement: Confinement) -> Result<Box<dyn Confined>>;
    /// Sends a signal to a machine's process.
    async fn kill(&self, vm: VmId, signal: i32) -> Result<()>;
    /// Ends a machine's process at once, and waits until nothing of it is left.
    async fn remove(&self, vm: VmId) -> Result<()>;
    /// Waits until a machine's process has ended, however long, and tells how. Works for a process that an
    /// earlier run of the service started.
    async fn ended(&self, vm: VmId) -> Result<Ended>;
    /// The machines that have a process.
    async fn found(&self) -> Result<Vec<(VmId, Started)>>;
}

/// Walls that stand or are being built, with nothing in them yet. Nothing will be once this is dropped.
#[async_trait]
pub trait Confined: Send {
    /// Starts a process within the walls. When this returns, it runs.
    async fn run(self: Box<Self>, launch: Launch) -> Result<Started>;
}

/// A process that was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// The name of its unit; empty where there is no systemd.
    pub unit: String,
    /// Its process id.
    pub pid: u32,
    /// The user that it runs as.
    pub user: u32,
}

/// The agent in a guest.
#[async_trait]
pub trait GuestLink: Send + Sync {
    /// Waits until the agent answers, at most so long.
    async fn wait_ready(&self, vm: VmId, token: &Token, timeout: Duration) -> Result<GuestFacts>;
    /// Asks the agent to write everything to the disks and to power off. Returns once it says that all
    /// data written before is on the disks.
    async fn shutdown(&self, vm: VmId, token: &Token, timeout: Duration) -> Result<()>;
    /// Compares the clock of the guest with that of the host, and corrects it.
    async fn mend_clock(&self, vm: VmId, token: &Token, occasion: Occasion) -> Result<()>;
    /// Greets the agent on a connection of [`Vmm::connect`]. A request is awaited on what this returns.
    async fn open(&self, stream: tokio::net::UnixStream, token: &Token) -> Result<OwnedFd>;
}

/// What the agent tells of its guest. Nothing of it is to be trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFacts {
    /// The kernel's boot id.
    pub boot_id: String,
    /// Whether it is shutting down.
    pub stopping: bool,
}

/// The logs of machines.
#[async_trait]
pub trait Logs: Send + Sync {
    /// The reading end of a pipe into which the log is copied. A machine that never ran has an empty log. What is held
    /// is dropped when nothing is copied any more: all was read, or the reader is gone.
    async fn open(&self, vm: VmId, log: Log, reading: Reading, hold: Hold) -> Result<OwnedFd>;
    /// How the guest of the last boot ended, by the end of its console; nothing when it did not say.
    async fn guest_end(&self, vm: VmId) -> Result<Option<GuestEnd>>;
    /// Waits until the console of the present boot says that nothing runs in the guest any more, however long.
    async fn stood_still(&self, vm: VmId) -> Result<GuestEnd>;
}

/// A place that is taken for as long as something that was handed out is in use.
pub type Hold = Box<dyn Any + Send>;

/// The streams that were handed out.
pub trait Streams: Send + Sync {
    /// Counts a stream among those that a user has open, until the last descriptor of it is closed; or says that these
    /// are as many as they may be.
    fn hand_out(&self, user: Uid, stream: &OwnedFd, limit: usize) -> Result<Result<(), Exceeded>>;
}

/// Which log of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// The serial console.
    Console,
    /// What the monitor itself says.
    Vmm,
}

/// Which part of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reading {
    /// Begin with the last so many lines; all that is kept when absent.
    pub tail: Option<u32>,
    /// Go on with what comes, until the reader goes away.
    pub follow: bool,
}

/// The accounts of the host.
pub trait Users: Send + Sync {
    /// The user with this login name, or with this number.
    fn uid_of(&self, login: &str) -> Option<Uid>;
    /// The login name of a user; the number where there is none.
    fn name_of(&self, uid: Uid) -> String;
}

/// What is kept over restarts.
#[async_trait]
pub trait Store: Send + Sync {
    /// Every machine.
    async fn vms(&self) -> Result<Vec<Vm>>;
    /// Writes a machine, new or changed.
    async fn put_vm(&self, vm: &Vm) -> Result<()>;
    /// Forgets a machine. What it could not be rid of stays in the ledger.
    async fn delete_vm(&self, vm: VmId) -> Result<()>;
    /// Every image.
    async fn images(&self) -> Result<Vec<Image>>;
    /// Writes an image, new or changed.
    async fn put_image(&self, image: &Image) -> Result<()>;
    /// Writes a new image and forgets the one whose place it takes, both or neither.
    async fn replace_image(&self, image: &Image, old: ImageId) -> Result<()>;
    /// Forgets an image.
    async fn delete_image(&self, image: ImageId) -> Result<()>;
    /// Every kernel.
    async fn kernels(&self) -> Result<Vec<Kernel>>;
    /// Writes a kernel, new or changed.
    async fn put_kernel(&self, kernel: &Kernel) -> Result<()>;
    /// Writes a new kernel and forgets the one whose place it takes, both or neither.
    async fn replace_kernel(&self, kernel: &Kernel, old: KernelId) -> Result<()>;
    /// Forgets a kernel.
    async fn delete_kernel(&self, kernel: KernelId) -> Result<()>;
    /// Where the guests of this host are, once that was chosen.
    async fn subnet(&self) -> Result<Option<Subnet>>;
    /// Keeps where the guests are.
    async fn put_subnet(&self, subnet: Subnet) -> Result<()>;
    /// Writes into the ledger that a machine is about to have this, before [`Store::put_vm`] has ever seen
    /// the machine perhaps. Only the lease calls it.
    async fn record(&self, vm: VmId, resource: Resource) -> Result<()>;
    /// Strikes from the ledger what a machine has no longer. Only the lease calls it.
    async fn strike(&self, vm: VmId, resource: Resource) -> Result<()>;
    /// The ledger: all that may exist, of every machine.
    async fn ledger(&self) -> Result<Vec<(VmId, Resource)>>;
}

/// Decides who may do what beyond their own.
#[async_trait]
pub trait Authority: Send + Sync {
    /// Whether the connection may do the action. Any doubt is a no.
    async fn check(&self, question: Question) -> Verdict;
}

/// A question to the authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The unique name of the connection that asks.
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
    /// After authentication, which the caller did not allow.
    NeedsInteraction,
    /// No: one sentence of why.
    No(String),
    /// Nobody knows, which is as good as a no: one sentence of what went wrong.
    Undecided(String),
}

/// The time.
#[async_trait]
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> SystemTime;
    /// Waits until the clocks of guests have to be compared with this one, and says why: it was set or the host
    /// slept, which counts also when it was since the last call, or a minute has passed since this call.
    async fn due(&self) -> Result<Occasion>;
}
