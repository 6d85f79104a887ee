//! The reverse of an import: writes a file system as an image, a tar archive in OCI layout. A confined worker reads
//! the file system too, since its bytes may come from a user.
//!
//! The same file system gives the same bytes: names are sorted, and no time or host is recorded.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    os::unix::fs::FileExt,
};

use banger_domain::digest::Digest;
use banger_proto::size::Bytes;
use mkext4::{
    reader::Fs,
    spec::{Inode, ROOT_INO, inode::FileType},
};
use sha2::{Digest as _, Sha256};

use super::{
    Meter,
    message::{Export, Exported, Failure},
};
use crate::{
    oci::{Descriptor, layout},
    rootfs::{
        acl,
        entry::{Entry, Meta, Shape, Special, What},
        limits, write,
    },
};

/// The largest layer that an import accepts.
const MAX_LAYER: u64 = 64 << 30;
const MAX_ENTRIES: usize = 1_000_000;
/// The most nested directories.
const MAX_DEPTH: usize = 1024;
/// How much is copied at a time.
const BUFFER: usize = 1 << 20;
const ACCESS_LIST: &[u8] = b"system.posix_acl_access";
const DEFAULT_LIST: &[u8] = b"system.posix_acl_default";
const LOST_AND_FOUND: &[u8] = b"lost+found";

/// Writes the image of a file system to a new file.
pub(super) fn export(
    order: &Export,
    image: File,
    archive: &File,
    meter: &Meter,
) -> Result<Exported, Failure> {
    let fs = Fs::open(image).map_err(unreadable)?;
    // The layer's header is written once its digest is known. It is always one block.
    let mut out = Out { file: archive, at: write::BLOCK, sha256: Sha256::new(), buffer: Vec::new(), meter };
    let mut walk = Walk { fs: &fs, seen: HashMap::new(), directories: HashSet::new(), entries: 0 };
    let root = fs.inode(ROOT_INO).map_err(unreadable)?;
    walk.directories.insert(ROOT_INO);
    let head = Entry { path: b"./".to_vec(), ..walk.entry(b"./", ROOT_INO, &root, What::Directory)? };
    out.write(&write::head(&head))?;
    walk.directory(&mut out, ROOT_INO, b"", 0)?;
    out.write(&write::END)?;
    out.flush()?;
    let size = out.at - write::BLOCK;
    let layer =
        Descriptor { digest: Digest::from_bytes(out.sha256.clone().finalize().into()), size: Bytes(size) };
    let failed = |error| Failure::os("write the archive", error);
    archive.write_all_at(&write::file_header(&layout::path(&layer.digest), size), 0).map_err(failed)?;

    let documents = layout::documents(&order.config, &order.architecture, layer, &order.name);
    for (name, content) in &documents.files {
        out.write(&write::file_header(name, content.len() as u64))?;
        out.write(content)?;
        out.fill()?;
    }
    out.write(&write::END)?;
    out.flush()?;
    archive.set_len(out.at).map_err(failed)?;
    Ok(Exported { manifest: documents.manifest.to_string(), bytes: Bytes(out.at) })
}

/// Refuses an unreadable file system, unless the host failed to read.
fn unreadable(error: mkext4::Error) -> Failure {
    match error {
        mkext4::Error::Io(error) => Failure::os("read the image", error),
        other => Failure::refused(format!("cannot export the image: {other}")),
    }
}

fn refused(path: &[u8], why: &str) -> Failure {
    let path: String = String::from_utf8_lossy(path).chars().take(200).collect();
    Failure::refused(format!("cannot export the image: {} {why}", path.escape_debug()))
}

/// The archive, written from its beginning to its end.
struct Out<'a> {
    file: &'a File,
    at: u64,
    sha256: Sha256,
    buffer: Vec<u8>,
    meter: &'a Meter,
}

impl Out<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// Pads the last block.
    fn fill(&mut self) -> Result<(), Failure> {
        let end = self.at + self.buffer.len() as u64;
        let missing = end.next_multiple_of(write::BLOCK) - end;
        self.write(&write::END[..usize::try_from(missing).unwrap_or_default()])
    }

    fn flush(&mut self) -> Result<(), Failure> {
        if self.at + self.buffer.len() as u64 > MAX_LAYER {
            return Err(Failure::refused(format!(
                "cannot export the image: its files are larger than {}, including their holes",
                Bytes(MAX_LAYER)
            )));
        }
        let written = self.file.write_all_at(&self.buffer, self.at);
        written.map_err(|error| Failure::os("write the archive", error))?;
        self.sha256.update(&self.buffer);
        self.at += self.buffer.len() as u64;
        self.meter.add_written(self.buffer.len());
        self.buffer.clear();
        Ok(())
    }
}

struct Walk<'a> {
    fs: &'a Fs<File>,
    /// The first name of each file with several names.
    seen: HashMap<u32, Vec<u8>>,
    directories: HashSet<u32>,
    entries: usize,
}

impl Walk<'_> {
    /// Writes the content of a directory, sorted by name.
    fn directory(&mut self, out: &mut Out<'_>, inode: u32, path: &[u8], depth: usize) -> Result<(), Failure> {
        if depth > MAX_DEPTH {
            return Err(refused(path, "is too deep"));
        }
        let mut names = self.fs.read_dir(inode).map_err(unreadable)?;
        names.retain(|entry| entry.inode != 0 && !matches!(entry.name.as_slice(), b"." | b".."));
        names.sort_by(|one, other| one.name.cmp(&other.name));
        for name in names {
            if name.name.is_empty() || name.name.contains(&b'/') || name.name.contains(&0) {
                return Err(refused(path, "has an invalid name in it"));
            }
            let path = [path, name.name.as_slice()].concat();
            self.entries += 1;
            if path.len() > limits::PATH || self.entries > MAX_ENTRIES {
                return Err(refused(&path, "has a name that is too long, or is one entry too many"));
            }
            self.one(out, name.inode, path, depth)?;
        }
        Ok(())
    }

    fn one(&mut self, out: &mut Out<'_>, number: u32, path: Vec<u8>, depth: usize) -> Result<(), Failure> {
        let inode = self.fs.inode(number).map_err(unreadable)?;
        let kind = inode.file_type();
        if kind != FileType::Dir && inode.links_count > 1 {
            if let Some(first) = self.seen.get(&number) {
                let link = self.entry(&path, number, &inode, What::Link(first.clone()))?;
                // The content is stored under its first name.
                return out.write(&write::head(&Entry { attributes: Vec::new(), ..link }));
            }
            self.seen.insert(number, path.clone());
        }
        let what = match kind {
            FileType::Dir => {
                let is_own = depth == 0 && path == LOST_AND_FOUND;
                if is_own && self.fs.read_dir(number).map_err(unreadable)?.len() <= 2 {
                    // Every ext4 file system has it.
                    return Ok(());
                }
                if !self.directories.insert(number) {
                    return Err(refused(&path, "is a directory with two names"));
                }
                let below = [path.as_slice(), b"/"].concat();
                let entry = self.entry(&below, number, &inode, What::Directory)?;
                out.write(&write::head(&entry))?;
                return self.directory(out, number, &below, depth + 1);
            }
            FileType::Regular => {
                let shape = Shape { size: inode.size, segments: None };
                let entry = self.entry(&path, number, &inode, What::File(shape))?;
                out.write(&write::head(&entry))?;
                return self.content(out, number, &inode, &path);
            }
            FileType::Symlink => What::Symlink(self.fs.symlink_target(number).map_err(unreadable)?),
            FileType::CharDev => {
                let (major, minor) = device(&inode);
                What::Special(Special::Character { major, minor })
            }
            FileType::BlockDev => {
                let (major, minor) = device(&inode);
                What::Special(Special::Block { major, minor })
            }
            FileType::Fifo => What::Special(Special::Fifo),
            // A socket is useless without its process; tar omits it too.
            FileType::Socket => return Ok(()),
            _ => return Err(refused(&path, "is a file of an unknown type")),
        };
        out.write(&write::head(&self.entry(&path, number, &inode, what)?))
    }

    fn entry(&self, path: &[u8], number: u32, inode: &Inode, what: What) -> Result<Entry, Failure> {
        let mut attributes = Vec::new();
        for attribute in self.fs.xattrs(number).map_err(unreadable)? {
            let Some(name) = attribute.full_name() else {
                return Err(refused(path, "has an extended attribute of an unknown type"));
            };
            let value = match name.as_slice() {
                ACCESS_LIST | DEFAULT_LIST => acl::from_disk(&attribute.value)
                    .ok_or_else(|| refused(path, "has an invalid access control list"))?,
                _ => attribute.value,
            };
            attributes.push((name, value));
        }
        attributes.sort();
        // Two more bits of the seconds, and the nanoseconds (`EXT4_EPOCH_BITS` in fs/ext4/ext4.h of Linux).
        let seconds = i64::from(inode.mtime.cast_signed()) + (i64::from(inode.mtime_extra & 3) << 32);
        let nanoseconds = (inode.mtime_extra >> 2).min(999_999_999);
        let meta = Meta {
            mode: inode.mode & 0o7777,
            user: inode.uid,
            group: inode.gid,
            modified: (seconds, nanoseconds),
        };
        Ok(Entry { path: path.to_vec(), what, meta, attributes })
    }

    /// Writes the content of a file. Holes become zeros, since not every reader of images knows sparse files.
    fn content(&self, out: &mut Out<'_>, number: u32, inode: &Inode, path: &[u8]) -> Result<(), Failure> {
        if inode.size > MAX_LAYER {
            return Err(refused(path, "is larger than an image may be"));
        }
        if !inode.uses_extents() && inode.size > 0 {
            return Err(refused(path, "is stored in the format of ext3, which is not supported"));
        }
        let mut extents = self.fs.extents(number, inode).map_err(unreadable)?;
        extents.retain(|extent| !extent.unwritten);
        extents.sort_by_key(|extent| extent.logical);
        let (mut at, mut buffer) = (0, vec![0; BUFFER]);
        while at < inode.size {
            let length = usize::try_from(inode.size - at).unwrap_or(BUFFER).min(BUFFER);
            // Earlier ones are not needed any more.
            let done = extents
                .partition_point(|extent| (u64::from(extent.logical) + u64::from(extent.len)) * BLOCK <= at);
            extents.drain(..done);
            let end = at + length as u64;
            let near = extents.partition_point(|extent| u64::from(extent.logical) * BLOCK < end);
            let read = self.fs.read_file_at(inode, &extents[..near], at, &mut buffer[..length]);
            let read = read.map_err(unreadable)?;
            out.meter.add_read(read);
            out.write(&buffer[..read])?;
            at += read as u64;
        }
        out.fill()
    }
}

const BLOCK: u64 = crate::rootfs::sparse::BLOCK;

/// Returns the device numbers (`ext4_iget` and `include/linux/kdev_t.h` of Linux).
fn device(inode: &Inode) -> (u32, u32) {
    let word = |at: usize| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&inode.block[at..at + 4]);
        u32::from_le_bytes(bytes)
    };
    match word(0) {
        0 => {
            let number = word(4);
            ((number & 0xfff00) >> 8, (number & 0xff) | ((number >> 12) & 0xfff00))
        }
        number => ((number >> 8) & 0xff, number & 0xff),
    }
}
