//! Grants the VMM's user access to the disks that the VMM opens itself.
//!
//! Firecracker opens a disk by path, so the kernel checks the permissions of its user, which is known only once the
//! unit runs. The user gets an entry in the disk's access control list, and owner and mode stay as they are. The list
//! is replaced as a whole, which drops the users of earlier boots. Nothing has to be undone: no other user can reach
//! the file's directory, and a disk that is a device is removed after the boot.

use std::{fs::File, path::Path};

use banger_domain::launch_spec::{Access, LaunchSpec};
use rustix::{
    fs::{XattrFlags, fsetxattr},
    io::Errno,
};

use crate::ports::{
    FromHost as _,
    vmm::{Error, Result},
};

const ACL: &std::ffi::CStr = c"system.posix_acl_access";
const READ_AND_WRITE: u16 = 6;
const NOTHING: u16 = 0;

/// Grants a user access to the writable disks of a sandbox. Read-only disks are shared and readable by all.
pub fn to(user: u32, spec: &LaunchSpec) -> Result<()> {
    for drive in spec.drives.iter().filter(|drive| drive.access == Access::ReadWrite) {
        disk(&drive.path, user)?;
    }
    Ok(())
}

fn disk(path: &Path, user: u32) -> Result<()> {
    let doing = || format!("give the VMM's user access to the disk {}", path.display());
    let file = File::open(path).map_err(|error| Error::os(doing(), error))?;
    match fsetxattr(&file, ACL, &list(user), XattrFlags::empty()) {
        Err(Errno::OPNOTSUPP) => Err(Error::not_ready(format!(
            "the file system of {} has no access control lists: mount it with them, or use --vmm qemu",
            path.display()
        ))),
        done => done.map_err(|error| Error::os(doing(), error)),
    }
}

/// Returns an access control list in the kernel's format (`include/uapi/linux/posix_acl_xattr.h`): the owner and this
/// user may read and write, nobody else.
fn list(user: u32) -> Vec<u8> {
    const VERSION: u32 = 2;
    const NO_ID: u32 = u32::MAX;
    // The tags of acl(5), in the required order: the owner, a user, the group, the mask for user and group, others.
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
