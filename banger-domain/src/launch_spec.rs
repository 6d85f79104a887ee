//! The description of a sandbox that the engine hands to a VMM. It is the same for every VMM.

use std::path::PathBuf;

use banger_proto::size::Bytes;

use super::{
    id::{Uid, VmId},
    vmm::VmmChoice,
};

/// Everything that a VMM needs to boot a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchSpec {
    /// The sandbox.
    pub vm: VmId,
    /// Its owner, for the slice and the limits of the unit.
    pub owner: Uid,
    /// Its name, for the description of the unit.
    pub name: String,
    /// Which VMM to use.
    pub vmm: VmmChoice,
    /// Virtual processors, 1 or more.
    pub vcpus: u32,
    /// Memory of the guest.
    pub memory: Bytes,
    /// The kernel, in the format of the architecture.
    pub kernel: PathBuf,
    /// Archives of the initramfs in their order.
    pub initramfs: Vec<PathBuf>,
    /// Disks in the order in which the guest counts them, `/dev/vda` first.
    pub drives: Vec<Drive>,
    /// Network interfaces in the order in which the guest counts them.
    pub nics: Vec<Nic>,
}

/// A network interface of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// The name of the TAP on the host.
    pub tap: String,
    /// The hardware address in the guest, such as `02:00:00:00:00:01`.
    pub mac: String,
}

/// A disk of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    /// Where it is on the host.
    pub path: PathBuf,
    /// Whether the guest may write.
    pub access: Access,
    /// What is there.
    pub medium: Medium,
}

/// Returns the guest's name of the drive at this index.
pub fn device(index: usize) -> String {
    let letter = u8::try_from(index).ok().and_then(|index| b'a'.checked_add(index)).unwrap_or(b'z');
    format!("/dev/vd{}", char::from(letter))
}

/// What a disk is on the host. VMMs treat each kind differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Medium {
    /// A raw file.
    File,
    /// A block device.
    BlockDevice,
    /// A qcow2 file with what was changed of another disk.
    Layer {
        /// That disk: a raw file, which is only read.
        base: PathBuf,
        /// Frozen layers between the two, the lowest first. They are qcow2 files that are only read.
        frozen: Vec<PathBuf>,
    },
}

/// What a guest may do with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read only.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}
