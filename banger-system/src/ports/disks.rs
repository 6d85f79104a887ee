//! The disks of VMs.

use std::{os::fd::OwnedFd, sync::Arc};

use async_trait::async_trait;
use banger_domain::{
    id::{ImageId, VmId},
    launch_spec::Drive,
};
use banger_proto::size::Bytes;

use super::{Check, HostError, Progress, captures::HostFacts};

/// The disks of VMs.
#[async_trait]
pub trait Disks: Send + Sync {
    /// Creates the directory of a VM's disks and logs. An existing one is kept.
    async fn create_directory(&self, vm: VmId) -> Result<()>;
    /// Creates a VM's private clone of an image, in a form that its VMM can read, or prepares what becomes one when
    /// the disks are attached. Never changes the image's file. The clone has at least the image's size; what is
    /// beyond the image's content is empty. Fails with [`HostError::NoSpace`] if the disk is full.
    async fn clone_image(&self, vm: VmId, image: ImageId, overlay_by: OverlayBy, size: Bytes) -> Result<()>;
    /// Creates an empty ext4 file system of this size. Fails with [`HostError::NoSpace`] if the disk is full.
    async fn create_work_disk(&self, vm: VmId, size: Bytes) -> Result<()>;
    /// Grows the work disk of a stopped VM. A disk that is large enough is left alone, so a repeat is safe. The guest
    /// grows the file system: the host's kernel must not read it.
    async fn grow_work_disk(&self, vm: VmId, size: Bytes) -> Result<()>;
    /// Grows the system disk of a stopped VM, as [`Disks::grow_work_disk`] does.
    async fn grow_system_disk(&self, vm: VmId, image: ImageId, size: Bytes) -> Result<()>;
    /// Prepares the drives for a VMM, and returns them, the system disk first. Replaces what an earlier boot left, so
    /// a repeat is safe while no VMM runs.
    async fn attach(&self, vm: VmId, image: ImageId) -> Result<Vec<Drive>>;
    /// Checks that the disks of a VM can be frozen, and returns the bytes that this would add to its frozen layers. Fails
    /// with [`Error::TooDeep`] if they have too many already, and with [`Error::NotLayered`] if the VM is up and its disks
    /// can only be copied.
    async fn freezable(&self, vm: VmId, parent: Parent) -> Result<Bytes>;
    /// Freezes what a VM that is down has written: from now on it is only read, and the VM writes to new layers. Disks
    /// that can only be copied, and disks that nothing was written to since, are left alone, so a repeat is safe.
    async fn freeze(&self, vm: VmId) -> Result<()>;
    /// Makes empty layers for the disks of a VM whose guest runs. Nothing else changes, so a repeat is safe. Fails as
    /// [`Disks::freezable`] does.
    async fn prepare_layers(&self, vm: VmId) -> Result<Box<dyn NewLayers>>;
    /// Waits until the frozen layers of a VM are on the storage, with the names of the new ones. A repeat is safe.
    async fn sync_layers(&self, vm: VmId) -> Result<()>;
    /// Gives a VM that has only its directory the disks of another VM that was frozen. Frozen layers are shared. What one
    /// that is down has beside them is copied, and what one that is up has written since is left out. Fails with
    /// [`HostError::NoSpace`] if the disk is full.
    async fn create_child(
        &self,
        vm: VmId,
        of: VmId,
        parent: Parent,
        progress: Arc<dyn Progress>,
    ) -> Result<()>;
    /// Discards what a child has written since it was made. No VMM may have the drives open. A repeat is safe, also after a
    /// crash.
    async fn empty(&self, vm: VmId) -> Result<()>;
    /// Swaps the disks of two VMs that have no VMM, in one step. Their logs stay.
    async fn exchange(&self, vm: VmId, with: VmId) -> Result<()>;
    /// Returns the frozen layers of the disks of a VM. The image is not one of them. A layer exists as long as a VM
    /// has it.
    async fn frozen(&self, vm: VmId) -> Result<Vec<FrozenLayer>>;
    /// Undoes [`Disks::attach`]. No VMM may have the drives open.
    async fn detach(&self, vm: VmId) -> Result<()>;
    /// Returns the VMs that have something to detach.
    async fn attached(&self) -> Result<Vec<VmId>>;
    /// Returns what tells the disks of a VM from others, for [`HostFacts`]: a new or restored disk has something else.
    async fn identity(&self, vm: VmId) -> Result<HostFacts>;
    /// Removes a VM's directory with everything in it.
    async fn remove_directory(&self, vm: VmId) -> Result<()>;
    /// Returns the VMs that have a directory.
    async fn found(&self) -> Result<Vec<VmId>>;
    /// Checks what this needs from the host.
    async fn checks(&self) -> Vec<Check>;
}

/// Empty layers that have no names yet. Dropping them removes them.
#[async_trait]
pub trait NewLayers: Send {
    /// Freezes what the VM has written, whose guest stands still. Returns the new layers, the system disk's first. Before
    /// the guest continues, its VMM must write to them, and [`Disks::sync_layers`] must have ended. If the VMM does not,
    /// the VM keeps writing to what is frozen, until the next freeze; no child may have that.
    async fn freeze(self: Box<Self>) -> Result<Vec<OwnedFd>>;
}

/// The most frozen layers that a disk may have: each makes reads of what is below it slower.
pub const MAX_DEPTH: usize = 8;

/// Whether the VM that is forked may write to its disks meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parent {
    /// It has no VMM.
    Down,
    /// Its VMM has the disks open.
    Up,
}

/// A layer that is only read, and that several VMs may share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrozenLayer {
    /// Differs from that of every other layer that exists.
    pub id: u64,
    /// The space that it takes.
    pub size: Bytes,
}

/// Who combines an image and the writes of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverlayBy {
    /// The VMM, from a file in QEMU's format.
    Vmm,
    /// The host: the VMM gets one raw file or device.
    Host,
}

/// Why an operation on disks failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A disk or an image is not in a form that this host can use.
    #[error("{message}")]
    Unsupported {
        /// What is wrong with it.
        message: String,
    },
    /// The disks of a VM that is up can only be copied while it is down.
    #[error("its disks have no layers, so they can only be copied while it is stopped")]
    NotLayered,
    /// A disk has [`MAX_DEPTH`] frozen layers.
    #[error("its disks have {MAX_DEPTH} frozen layers, the limit")]
    TooDeep,
    /// The call to the host failed.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// The result of this port.
pub type Result<T, E = Error> = std::result::Result<T, E>;
