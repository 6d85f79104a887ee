//! Reads directories.

use std::{ffi::CStr, os::fd::OwnedFd};

use rustix::{
    fs::{FileType, RawDir, SeekFrom},
    io::Errno,
};

use crate::{message::Out, names::ENTRY};

/// The part of an entry before its name (`struct fuse_dirent`), and the length of which entries are multiples.
const FIXED: usize = 24;
const ALIGNMENT: usize = 8;
/// Room for at least one entry of the host's kernel.
const SMALLEST: usize = 1 << 10;

/// What is told of each entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    Names,
    /// With numbers and attributes.
    Attributes,
}

/// Reads entries that come after this position, as many as there is room for. `describe` writes what comes before a name.
pub fn read(
    directory: &OwnedFd,
    offset: u64,
    room: usize,
    detail: Detail,
    describe: impl Fn(&mut Out, &CStr),
) -> Result<Out, Errno> {
    rustix::fs::seek(directory, SeekFrom::Start(offset))?;
    let fixed = match detail {
        Detail::Names => FIXED,
        Detail::Attributes => FIXED + ENTRY,
    };
    // What does not fit is read again from its position.
    let mut buffer = Vec::with_capacity((room * FIXED / fixed).max(SMALLEST));
    let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
    let mut out = Out::default();
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(_) if !out.0.is_empty() => break,
            Err(errno) => return Err(errno),
        };
        let name = entry.file_name();
        let length = (fixed + name.count_bytes()).next_multiple_of(ALIGNMENT);
        if out.0.len() + length > room {
            break;
        }
        let start = out.0.len();
        match (detail, name.to_bytes()) {
            (Detail::Names, _) => {}
            // The guest's kernel knows them.
            (Detail::Attributes, b"." | b"..") => drop(out.zeros(ENTRY)),
            (Detail::Attributes, _) => describe(&mut out, name),
        }
        out.u64(entry.ino()).u64(entry.next_entry_cookie()).u32(name.count_bytes() as u32);
        out.u32(directory_type(entry.file_type())).bytes(name.to_bytes());
        out.zeros(start + length - out.0.len());
    }
    Ok(out)
}

/// Returns the type as in `d_type` of readdir(3): the upper bits of a mode, or 0 if it is unknown.
fn directory_type(kind: FileType) -> u32 {
    match kind {
        FileType::Unknown => 0,
        kind => kind.as_raw_mode() >> 12,
    }
}
