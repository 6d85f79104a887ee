//! Loop devices: files of ours as block devices, which the kernel frees with their last user.

#![expect(unsafe_code, reason = "the ioctls of loop devices take structures of C")]

use std::{
    fs::{self, File},
    io,
    mem::size_of,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use banger_domain::launch_spec::Access;
use loopdev::{LoopControl, LoopDevice};
use rustix::{
    fs::SeekFrom,
    io::Errno,
    ioctl::{Getter, Opcode, Setter, ioctl},
};

use crate::ports::{
    FromHost as _,
    disks::{Error, Result},
};

/// How often another program may grab the free device that the kernel named.
const TRIES: usize = 64;

// linux/loop.h
const LOOP_GET_STATUS64: Opcode = 0x4c05;
const LOOP_CONFIGURE: Opcode = 0x4c0a;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_NAME_SIZE: usize = 64;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; LO_NAME_SIZE],
    crypt_name: [u8; LO_NAME_SIZE],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Configuration {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Info>() == 232 && size_of::<Configuration>() == 304);

/// A loop device with a file. It lives as long as this, or as long as somebody else has it open.
#[derive(Debug)]
pub(super) struct Loop {
    device: LoopDevice,
    /// Its node in `/dev`.
    pub path: PathBuf,
}

impl Loop {
    /// Returns the read-only device of this file, shared by all callers. The caller serialises calls, or there could
    /// be two devices.
    pub(super) fn shared(file: &File, path: &Path) -> Result<Self> {
        match Self::find(file, path)? {
            Some(found) => Ok(found),
            None => Self::attach(file, path, Access::ReadOnly),
        }
    }

    /// Makes a separate device for this file.
    pub(super) fn attach(file: &File, path: &Path, access: Access) -> Result<Self> {
        let doing = || format!("attach a loop device to {}", path.display());
        let control = LoopControl::open().map_err(|source| unavailable(&source, doing()))?;
        for _ in 0..TRIES {
            let device = control.next_free().map_err(|source| unavailable(&source, doing()))?;
            match configure(&device, file, access) {
                Ok(()) => {
                    let node = device
                        .path()
                        .ok_or_else(|| Error::os(doing(), io::Error::other("the loop device has no name")))?;
                    return Ok(Self { device, path: node });
                }
                // Another program was faster.
                Err(Errno::BUSY) => {}
                Err(error) => return Err(Error::os(doing(), error)),
            }
        }
        Err(Error::os(doing(), Errno::BUSY))
    }

    /// Finds the device that already has this file.
    fn find(file: &File, path: &Path) -> Result<Option<Self>> {
        let doing = || format!("look for the loop device of {}", path.display());
        let wanted = file.metadata().map_err(|source| Error::os(doing(), source))?;
        let entries = match fs::read_dir("/sys/block") {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::os(doing(), error)),
        };
        for entry in entries.flatten() {
            let backing = entry.path().join("loop/backing_file");
            if !fs::read_to_string(backing).is_ok_and(|text| Path::new(text.trim_end()) == path) {
                continue;
            }
            let node = Path::new("/dev").join(entry.file_name());
            // Open it first: from then on it cannot become the device of another file.
            let Ok(device) = LoopDevice::open(&node) else { continue };
            let Ok(info) = status(&device) else { continue };
            if info.inode == wanted.ino()
                && info.device == wanted.dev()
                && info.flags & LO_FLAGS_READ_ONLY != 0
                && info.offset == 0
                && info.size_limit == 0
            {
                return Ok(Some(Self { device, path: node }));
            }
        }
        Ok(None)
    }

    /// Returns its length in sectors of 512 bytes.
    pub(super) fn sectors(&self) -> Result<u64> {
        let size = rustix::fs::seek(descriptor(&self.device), SeekFrom::End(0))
            .map_err(|error| Error::os(format!("ask for the size of {}", self.path.display()), error))?;
        Ok(size / super::SECTOR)
    }
}

/// Returns the error of a kernel that offers no loop device.
fn unavailable(source: &io::Error, doing: String) -> Error {
    let message = match source.kind() {
        // Its minor numbers, and not the blocks of a file system.
        io::ErrorKind::StorageFull => {
            "all loop devices are in use: see losetup --list, and detach what is no longer needed".to_owned()
        }
        io::ErrorKind::NotFound => "the kernel has no loop devices: load them with modprobe loop".to_owned(),
        _ => return Error::os(doing, io::Error::from(source.kind())),
    };
    Error::not_ready(message)
}

/// Configures the device in one step: in several, others would see it half done, and a crash in between would leave
/// it.
fn configure(device: &LoopDevice, file: &File, access: Access) -> Result<(), Errno> {
    let read_only = if access == Access::ReadOnly { LO_FLAGS_READ_ONLY } else { 0 };
    let configuration = Configuration {
        fd: u32::try_from(file.as_raw_fd()).map_err(|_| Errno::BADF)?,
        block_size: 0,
        info: Info { flags: LO_FLAGS_AUTOCLEAR | read_only, ..EMPTY },
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads a `struct loop_config`, of which `Configuration` is the exact layout.
    let setter = unsafe { Setter::<LOOP_CONFIGURE, Configuration>::new(configuration) };
    // SAFETY: the descriptor is that of a loop device, for which this number has this meaning.
    unsafe { ioctl(descriptor(device), setter) }
}

fn status(device: &LoopDevice) -> Result<Info, Errno> {
    // SAFETY: LOOP_GET_STATUS64 writes a whole `struct loop_info64`, of which `Info` is the exact layout.
    let getter = unsafe { Getter::<LOOP_GET_STATUS64, Info>::new() };
    // SAFETY: the descriptor is that of a loop device, for which this number has this meaning.
    unsafe { ioctl(descriptor(device), getter) }
}

fn descriptor(device: &LoopDevice) -> BorrowedFd<'_> {
    // SAFETY: the device keeps its descriptor open for as long as it is borrowed here.
    unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) }
}

const EMPTY: Info = Info {
    device: 0,
    inode: 0,
    rdevice: 0,
    offset: 0,
    size_limit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    file_name: [0; LO_NAME_SIZE],
    crypt_name: [0; LO_NAME_SIZE],
    encrypt_key: [0; 32],
    init: [0; 2],
};

/// Checks that the kernel offers loop devices.
pub(super) fn check() -> Result<()> {
    LoopControl::open().map(drop).map_err(|source| unavailable(&source, "open loop devices".to_owned()))
}
