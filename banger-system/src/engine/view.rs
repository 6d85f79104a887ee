//! What the engine publishes: immutable snapshots, and events when one replaces another. Reading a
//! snapshot never asks the host.

use core::net::Ipv4Addr;
use std::{collections::BTreeSet, sync::Arc};

use banger_domain::{
    id::{ImageId, JobId, KernelId, Timestamp, Uid, VmId},
    net::{nic::Mac, port::Port},
    vm::Vm,
};
use banger_image::record::{Image, Kernel};
use banger_proto::size::Bytes;

use super::error::Error;

/// A machine as it was last published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmView {
    /// What is kept of it.
    pub vm: Vm,
    /// The name of its image.
    pub image_name: String,
    /// The name of its kernel.
    pub kernel_name: String,
    /// Its address among the guests; none while the network is not set up.
    pub address: Option<Ipv4Addr>,
    /// The hardware address of the guest's interface.
    pub mac: Mac,
    /// Its published ports that something else on the host has taken: they do not lead to the guest.
    pub blocked_ports: BTreeSet<Port>,
    /// Whether its guest has stopped answering.
    pub silent: bool,
    /// The unit of its monitor; empty while it is down.
    pub unit: String,
    /// The process id of its monitor; 0 while it is down or unknown.
    pub pid: u32,
}

impl VmView {
    /// Whether its guest has answered, and still does.
    pub fn is_ready(&self) -> bool {
        self.vm.is_ready() && !self.silent
    }

    /// The address in words; empty while there is none.
    pub fn address_text(&self) -> String {
        self.address.map_or_else(String::new, |address| address.to_string())
    }
}

/// An image as it was last published.
pub type ImageView = Image;
/// A kernel as it was last published.
pub type KernelView = Kernel;

/// A job as it was last published.
#[derive(Debug, Clone)]
pub struct JobView {
    /// Its id.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// Who asked for it.
    pub owner: Uid,
    /// What it is about.
    pub objects: Vec<Object>,
    /// The stage that is under way.
    pub stage: &'static str,
    /// Its number, from 1; 0 before the first.
    pub stage_index: u32,
    /// How many there are.
    pub stage_count: u32,
    /// One line for people.
    pub message: String,
    /// Bytes that the stage has done.
    pub bytes_done: Bytes,
    /// Bytes that the stage is to do; 0 where nobody counts or knows.
    pub bytes_total: Bytes,
    /// What else there is to tell of the result.
    pub facts: Vec<(&'static str, Fact)>,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
    /// How it ended; nothing while it goes on.
    pub outcome: Option<Outcome>,
}

/// Something about the result of a job.
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
    /// As it should.
    Done,
    /// It failed, and what it made is undone.
    Failed(Arc<Error>),
    /// It was canceled, and what it made is undone.
    Canceled,
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobKind {
    /// Makes a machine, and starts it unless told otherwise.
    VmCreate,
    /// Boots a machine.
    VmStart,
    /// Shuts a machine down.
    VmStop,
    /// Shuts a machine down and boots it.
    VmRestart,
    /// Removes a machine.
    VmDelete,
    /// Makes an image of a file.
    ImageImport,
    /// Makes an image of a registry's.
    ImagePull,
    /// Writes an image into a file.
    ImageExport,
    /// Makes a kernel of files.
    KernelImport,
    /// Makes a kernel of a catalog's.
    KernelPull,
    /// Fetches catalogs.
    CatalogRefresh,
    /// Removes what is in the cache.
    CachePrune,
}

impl JobKind {
    /// The word on the bus.
    pub const fn as_str(self) -> &'static str {
        match self {
            JobKind::VmCreate => "vm-create",
            JobKind::VmStart => "vm-start",
            JobKind::VmStop => "vm-stop",
            JobKind::VmRestart => "vm-restart",
            JobKind::VmDelete => "vm-delete",
            JobKind::ImageImport => "image-import",
            JobKind::ImagePull => "image-pull",
            JobKind::CachePrune => "cache-prune",
            JobKind::ImageExport => "image-export",
            JobKind::KernelImport => "kernel-import",
            JobKind::KernelPull => "kernel-pull",
            JobKind::CatalogRefresh => "catalog-refresh",
        }
    }
}

/// An object that a job is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// A machine.
    Vm(VmId),
    /// An image.
    Image(ImageId),
    /// A kernel.
    Kernel(KernelId),
}

/// Something was published.
#[derive(Debug, Clone)]
pub enum Event {
    /// A machine has come.
    VmAdded(Arc<VmView>),
    /// A machine has changed.
    VmChanged {
        /// As it was.
        old: Arc<VmView>,
        /// As it is.
        new: Arc<VmView>,
    },
    /// A machine has gone.
    VmRemoved(Arc<VmView>),
    /// An image has come.
    ImageAdded(Arc<ImageView>),
    /// An image has changed.
    ImageChanged {
        /// As it was.
        old: Arc<ImageView>,
        /// As it is.
        new: Arc<ImageView>,
    },
    /// An image has gone.
    ImageRemoved(Arc<ImageView>),
    /// A kernel has come.
    KernelAdded(Arc<KernelView>),
    /// A kernel has gone.
    KernelRemoved(Arc<KernelView>),
    /// A job has begun.
    JobAdded(Arc<JobView>),
    /// A job has changed; it has ended when it has an outcome.
    JobChanged {
        /// As it was.
        old: Arc<JobView>,
        /// As it is.
        new: Arc<JobView>,
    },
    /// A job was forgotten.
    JobRemoved(Arc<JobView>),
}
