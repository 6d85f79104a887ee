//! Giving the monitor's own user what it opens itself.
//!
//! Firecracker opens a disk by path, and the kernel asks whether its user may.
//! That user is known only once the unit runs. A disk gets an entry in its access control list, so that its
//! owner and its mode stay as they are; the list is replaced as a whole, so what an earlier boot's user had
//! goes. It needs no undo of its own: the file stands in a directory that no user passes, and a disk that is
//! a device goes with the boot.

use std::{fs::File, path::Path};

use banger_domain::machine::{Access, Machine};
use rustix::{
    fs::{XattrFlags, fsetxattr},
    io::Errno,
};

use crate::ports::{Error, Result};

const ACL: &std::ffi::CStr = c"system.posix_acl_access";
const READ_AND_WRITE: u16 = 6;
const NOTHING: u16 = 0;

/// Gives a user the disks that a machine writes to. What it only reads it shares with others, and may be read by all.
pub fn to(user: u32, machine: &Machine) -> Result<()> {
    for drive in machine.drives.iter().filter(|drive| drive.access == Access::ReadWrite) {
        disk(&drive.path, user)?;
    }
    Ok(())
}

fn disk(path: &Path, user: u32) -> Result<()> {
    let doing = || format!("give the machine's user the disk {}", path.display());
    let file = File::open(path).map_err(|error| Error::os(doing(), error))?;
    match fsetxattr(&file, ACL, &list(user), XattrFlags::empty()) {
        Err(Errno::OPNOTSUPP) => Err(Error::HostNotReady {
            message: format!(
                "the file system of {} has no access control lists: mount it with them, or use --vmm qemu",
                path.display()
            ),
        }),
        done => done.map_err(|error| Error::os(doing(), error)),
    }
}

/// An access control list as the kernel takes it (`include/uapi/linux/posix_acl_xattr.h`): the owner reads
/// and writes, this user does too, and nobody else.
fn list(user: u32) -> Vec<u8> {
    const VERSION: u32 = 2;
    const NO_ID: u32 = u32::MAX;
    // The tags are those of acl(5), in the order that it demands: the owner, a user, the group, the most
    // that a user and the group may have, others.
    let entries = [
        (0x01, READ_AND_WRITE, NO_ID),
        (0x02, READ_AND_WRITE, user),
        (0x04, NOTHING, NO_ID),
        (0x10, READ_AND_WRITE, NO_ID),
        (0x20, NOTHING, NO_ID),
    ];
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for (tag, permission, id) in entries {
        bytes.extend(u16::to_le_bytes(tag));
        bytes.extend(u16::to_le_bytes(permission));
        bytes.extend(u32::to_le_bytes(id));
    }
    bytes
}
