//! What the engine publishes: immutable snapshots, and an event when one replaces another. Reading a snapshot never
//! asks the host.

use core::{fmt::Display, hash::Hash, net::Ipv4Addr};
use std::{collections::BTreeSet, sync::Arc};

use banger_domain::{
    egress::log::Destination,
    id::{ImageId, JobId, KernelId, Timestamp, Uid, VmId},
    idle::Busy,
    lifecycle::State,
    name::Name,
    net::{nic::Mac, port::Port},
    vm::Vm,
};
use banger_image::record::{Image, Kernel};
use banger_proto::size::Bytes;

use super::error::{Error, Kind};
use crate::ports::{captures::Stored, disks::FrozenLayer};

/// A VM, as last published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmView {
    /// Its row.
    pub vm: Vm,
    /// The name of its image.
    pub image_name: String,
    /// The name of its kernel.
    pub kernel_name: String,
    /// Its address; none while the network is not set up.
    pub address: Option<Ipv4Addr>,
    /// The hardware address of the guest's interface.
    pub mac: Mac,
    /// Published ports that another program on the host has taken. They do not reach the guest.
    pub blocked_ports: BTreeSet<Port>,
    /// Whether its guest has stopped answering.
    pub silent: bool,
    /// The systemd unit of its VMM; empty while it is down.
    pub unit: String,
    /// The process id of its VMM; 0 while it is down or unknown.
    pub pid: u32,
    /// Its memory on disk: what it takes, and since when. While it is written, this is the most that it can take.
    pub captured: Option<Stored>,
    /// When its idle policy applies, while it idles.
    pub idle_at: Option<Timestamp>,
    /// Why it does not idle, if it has such a policy.
    pub busy: Option<Busy>,
    /// The frozen layers of its disks.
    pub frozen: Vec<FrozenLayer>,
    /// What a fork that is under way may add to them.
    pub freezing: Bytes,
}

impl VmView {
    /// Returns whether its guest has answered, and still does.
    pub fn is_ready(&self) -> bool {
        self.vm.is_ready() && !self.silent
    }

    /// Returns the address as text; empty if there is none.
    pub fn address_text(&self) -> String {
        self.address.map_or_else(String::new, |address| address.to_string())
    }
}

/// A snapshot of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotView {
    /// Its row.
    pub vm: Vm,
    /// Its memory on disk, if its sandbox ran. While it is written, this is the most that it can take.
    pub captured: Option<Stored>,
    /// The frozen layers of its disks.
    pub frozen: Vec<FrozenLayer>,
    /// Whether it is complete, and has a row.
    pub is_made: bool,
}

impl SnapshotView {
    /// Returns whether it is a snapshot of this sandbox.
    pub fn is_of(&self, vm: VmId) -> bool {
        self.vm.snapshot_of == Some(vm)
    }

    /// Returns whether it has the memory of a guest, too.
    pub fn has_memory(&self) -> bool {
        self.vm.state == State::Suspended
    }
}

/// An image, as last published.
pub type ImageView = Image;
/// A kernel, as last published.
pub type KernelView = Kernel;

/// What images and kernels have in common.
pub trait Item: Clone + Send + Sync + 'static {
    /// Its id.
    type Id: Copy + Ord + Hash + Display + Send + Sync + 'static;
    /// Image or kernel.
    const KIND: Kind;

    /// Returns its id.
    fn id(&self) -> Self::Id;
    /// Returns its name, which is unique among its owner's objects of this kind.
    fn name(&self) -> &Name;
    /// Returns its owner.
    fn owner(&self) -> Uid;
    /// Returns whether every user sees it.
    fn is_shared(&self) -> bool;
    /// Returns its source, for people.
    fn source(&self) -> &str;
    /// Returns the digest of its content: `sha256:` and 64 hexadecimal digits.
    fn digest(&self) -> &str;
    /// Returns when it was created.
    fn created_at(&self) -> Timestamp;
}

macro_rules! item {
    ($record:ident, $id:ident) => {
        impl Item for $record {
            type Id = $id;
            const KIND: Kind = Kind::$record;

            fn id(&self) -> $id {
                self.id
            }

            fn name(&self) -> &Name {
                &self.name
            }

            fn owner(&self) -> Uid {
                self.owner
            }

            fn is_shared(&self) -> bool {
                self.shared
            }

            fn source(&self) -> &str {
                &self.source
            }

            fn digest(&self) -> &str {
                &self.facts.digest
            }

            fn created_at(&self) -> Timestamp {
                self.created_at
            }
        }
    };
}

item!(Image, ImageId);
item!(Kernel, KernelId);

/// A job, as last published.
#[derive(Debug, Clone)]
pub struct JobView {
    /// Its id.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// The user who started it.
    pub owner: Uid,
    /// The objects that it concerns.
    pub objects: Vec<Object>,
    /// The current stage.
    pub stage: &'static str,
    /// Its number, from 1; 0 before the first.
    pub stage_index: u32,
    /// How many stages there are.
    pub stage_count: u32,
    /// One line for people.
    pub message: String,
    /// Bytes that the stage has done.
    pub bytes_done: Bytes,
    /// Bytes that the stage has to do; 0 if unknown.
    pub bytes_total: Bytes,
    /// Details of the result.
    pub facts: Vec<(&'static str, Fact)>,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
    /// How it ended; none while it runs.
    pub outcome: Option<Outcome>,
}

/// A detail of a job's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// A number.
    Number(u64),
    /// A text.
    Text(String),
}

/// How a job ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// It succeeded.
    Done,
    /// It failed, and was undone.
    Failed(Arc<Error>),
    /// It was cancelled, and was undone.
    Canceled,
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobKind {
    /// Creates a sandbox and starts it, unless told otherwise.
    VmCreate,
    /// Starts a sandbox.
    VmStart,
    /// Suspends a sandbox.
    VmSuspend,
    /// Resumes a suspended sandbox.
    VmResume,
    /// Stops a sandbox.
    VmStop,
    /// Restarts a sandbox.
    VmRestart,
    /// Deletes a sandbox.
    VmDelete,
    /// Makes sandboxes with the disks of another one.
    VmFork,
    /// Makes a snapshot of a sandbox.
    VmSnapshot,
    /// Puts a sandbox back to a snapshot.
    VmRestore,
    /// Imports an image from a file.
    ImageImport,
    /// Pulls an image.
    ImagePull,
    /// Makes an image of a sandbox's system disk.
    ImageCommit,
    /// Writes an image into a file.
    ImageExport,
    /// Imports a kernel from files.
    KernelImport,
    /// Pulls a kernel from a catalog.
    KernelPull,
    /// Fetches catalogs.
    CatalogRefresh,
    /// Prunes the cache of registries.
    CachePrune,
}

impl JobKind {
    /// Returns the word on the bus.
    pub const fn as_str(self) -> &'static str {
        match self {
            JobKind::VmCreate => "vm-create",
            JobKind::VmStart => "vm-start",
            JobKind::VmSuspend => "vm-suspend",
            JobKind::VmResume => "vm-resume",
            JobKind::VmStop => "vm-stop",
            JobKind::VmRestart => "vm-restart",
            JobKind::VmDelete => "vm-delete",
            JobKind::VmFork => "vm-fork",
            JobKind::VmSnapshot => "vm-snapshot",
            JobKind::VmRestore => "vm-restore",
            JobKind::ImageImport => "image-import",
            JobKind::ImagePull => "image-pull",
            JobKind::ImageCommit => "image-commit",
            JobKind::CachePrune => "cache-prune",
            JobKind::ImageExport => "image-export",
            JobKind::KernelImport => "kernel-import",
            JobKind::KernelPull => "kernel-pull",
            JobKind::CatalogRefresh => "catalog-refresh",
        }
    }
}

/// An object that a job concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// A sandbox.
    Vm(VmId),
    /// An image.
    Image(ImageId),
    /// A kernel.
    Kernel(KernelId),
}

/// A change of what is published.
#[derive(Debug, Clone)]
pub enum Event {
    /// A sandbox was added.
    VmAdded(Arc<VmView>),
    /// A sandbox has changed.
    VmChanged {
        /// As it was.
        old: Arc<VmView>,
        /// As it is.
        new: Arc<VmView>,
    },
    /// A sandbox was removed.
    VmRemoved(Arc<VmView>),
    /// A restricted sandbox was denied something.
    EgressDenied {
        /// The sandbox.
        view: Arc<VmView>,
        /// What it wanted to reach.
        destination: Destination,
    },
    /// An image was added.
    ImageAdded(Arc<ImageView>),
    /// An image has changed.
    ImageChanged {
        /// As it was.
        old: Arc<ImageView>,
        /// As it is.
        new: Arc<ImageView>,
    },
    /// An image was removed.
    ImageRemoved(Arc<ImageView>),
    /// A kernel was added.
    KernelAdded(Arc<KernelView>),
    /// A kernel has changed.
    KernelChanged {
        /// As it was.
        old: Arc<KernelView>,
        /// As it is.
        new: Arc<KernelView>,
    },
    /// A kernel was removed.
    KernelRemoved(Arc<KernelView>),
    /// A job was added.
    JobAdded(Arc<JobView>),
    /// A job has changed. It has ended if it has an outcome.
    JobChanged {
        /// As it was.
        old: Arc<JobView>,
        /// As it is.
        new: Arc<JobView>,
    },
    /// An ended job was removed.
    JobRemoved(Arc<JobView>),
    /// Changes were dropped, because too many waited. The current objects are what they led to.
    Lost,
}
