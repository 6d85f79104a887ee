//! Memory as a file without a name. A page belongs to the control group that touches it first.
//!
//! QEMU maps the memory of a template shared, so that it can be copied while the guest is stopped. The copy is sealed: any
//! number of VMMs may map it privately, and none can change what the others see.

use std::{
    fs::{File, Permissions},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
};

use banger_proto::size::Bytes;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::storage::sparse;
use crate::ports::{
    FromHost as _,
    vmm::{Error, Result},
};

/// Returns an empty file in memory. VMMs open it again by its number in `/proc`, as users that do not own it.
pub fn file(name: &str, mode: u32) -> io::Result<File> {
    let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.set_permissions(Permissions::from_mode(mode))?;
    Ok(file)
}

/// Makes a file in memory unchangeable for everybody. Fails if it is mapped for writing.
pub fn seal(file: &File) -> io::Result<()> {
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    Ok(fcntl_add_seals(file, seals)?)
}

/// Returns the memory of a guest that will be captured, which is all zeros and takes no room yet. Its size is fixed.
pub fn of_guest(size: Bytes) -> Result<OwnedFd> {
    let make = || {
        let memory = file("banger-memory", 0o666)?;
        memory.set_len(size.0)?;
        fcntl_add_seals(&memory, SealFlags::GROW | SealFlags::SHRINK)?;
        Ok(memory)
    };
    make().map(OwnedFd::from).map_err(|error: io::Error| Error::os("create the memory of a guest", error))
}

/// Returns how much memory or disk a file takes.
pub fn size_of(file: &File) -> io::Result<Bytes> {
    Ok(Bytes(file.metadata()?.blocks() * 512))
}

/// Returns a sealed copy of a file, with the same holes.
pub fn sealed_copy(of: &File) -> io::Result<File> {
    let copy = file("banger-copy", 0o666)?;
    sparse::copy(of, &copy)?;
    seal(&copy)?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn the_memory_of_a_guest_keeps_its_size() {
        let memory = File::from(of_guest(Bytes::mib(1)).unwrap());
        memory.write_all_at(b"x", 0).unwrap();
        assert!(memory.set_len(1).is_err());
        assert!(memory.set_len(2 << 20).is_err());
    }

    #[test]
    fn a_sealed_copy_is_equal_and_cannot_be_changed() {
        let memory = File::from(of_guest(Bytes::mib(8)).unwrap());
        memory.write_all_at(b"counter", 4 << 20).unwrap();
        let copy = sealed_copy(&memory).unwrap();
        memory.write_all_at(b"changed", 4 << 20).unwrap();
        let mut found = [0; 7];
        copy.read_exact_at(&mut found, 4 << 20).unwrap();
        assert_eq!(&found, b"counter");
        assert_eq!(copy.metadata().unwrap().len(), 8 << 20);
        assert!(copy.write_all_at(b"x", 0).is_err());
        assert!(copy.set_len(0).is_err());
    }
}
