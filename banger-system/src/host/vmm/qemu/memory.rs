//! Guest memory as a file without a name. QEMU maps it shared, so that the memory can be copied while the guest is
//! stopped. A page belongs to the control group that touches it first: the sandbox's own.

use std::{fs::File, fs::Permissions, io, os::fd::OwnedFd, os::unix::fs::PermissionsExt};

use banger_proto::size::Bytes;
use rustix::fs::MemfdFlags;

use crate::ports::{
    FromHost as _,
    vmm::{Error, Result},
};

/// Returns the memory of a guest, which is all zeroes and takes no room yet.
pub fn of_guest(size: Bytes) -> Result<OwnedFd> {
    let os = |error: io::Error| Error::os("create the memory of a guest", error);
    let memory = rustix::fs::memfd_create("banger-memory", MemfdFlags::CLOEXEC);
    let memory = File::from(memory.map_err(|error| os(error.into()))?);
    memory.set_len(size.0).map_err(os)?;
    // QEMU opens it again by its number in /proc, as a user that does not own it.
    memory.set_permissions(Permissions::from_mode(0o666)).map_err(os)?;
    Ok(memory.into())
}
