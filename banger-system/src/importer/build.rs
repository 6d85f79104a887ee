//! Writing the file system that a tree comes to.

use std::{collections::HashMap, fs::File, io, os::unix::fs::FileExt};

use banger_proto::size::Bytes;
use mkext4::{FsBuilder, InodeCount, InodeHandle, Layout, Options, RegionSink, SparseSeg, SpecialKind};
use sha2::{Digest as _, Sha256};

use super::{
    Files, Meter,
    message::{Failure, Made},
    moves::Moves,
    room::Room,
};
use crate::domain::{
    digest::Digest,
    rootfs::{
        entry::{Meta, Special},
        tree::{Archive, Content, Id, Kind, Node, ROOT, Tree},
    },
};

/// Grows whenever the same archives come to other bytes: with the version of the writer, and with what is done
/// here. It is part of an image's digest.
const FORMAT: u32 = 1;
const LABEL: &str = "banger-root";
/// 2026-01-01: when every file system was made, as far as its own times say.
const EPOCH: i64 = 1_767_225_600;
/// The directory that every ext4 has, for what its check finds. It is made with the file system.
const LOST_AND_FOUND: &[u8] = b"lost+found";
/// Bytes for each inode, as `mke2fs` has it, and how many there are even in a small file system.
const BYTES_PER_INODE: u64 = 16 << 10;
const MIN_INODES: u64 = 8192;
/// What Linux keeps of a time in an ext4: 34 bits from 1901 on.
const TIMES: std::ops::RangeInclusive<i64> = -(1 << 31)..=(1 << 34) - (1 << 31) - 1;

/// Writes the file system of this size that the tree comes to, around the content of its files, which is in the
/// image already and ends at the place `end`. What is random in others comes from what it is made of, so that the
/// same archives give the same bytes.
pub(super) fn build(
    tree: Tree,
    files: &Files,
    room: &Room,
    end: u64,
    size: Bytes,
    diff_ids: &[(Archive, Digest)],
    meter: &Meter,
) -> Result<Made, Failure> {
    let lost_and_found = tree.walk().find(|(parent, name, _)| (*parent, *name) == (ROOT, LOST_AND_FOUND));
    match lost_and_found.map(|(_, _, id)| &tree.node(id).kind) {
        None => {}
        Some(Kind::Directory(children)) if children.is_empty() => {}
        Some(_) => {
            let message = "the image cannot be taken: lost+found in its root is no empty directory";
            return Err(Failure::refused(message));
        }
    }
    let digest = digest(size, diff_ids);
    let image = &files.image;
    image.set_len(size.0).map_err(|error| Failure::os("make an image", error))?;
    let laid_out = |journal| lay_out(&tree, size, &digest, journal).map_err(|error| failure(error, size));
    // How much comes before the content is known when it is laid out; how much is to come before it, too.
    let journal = {
        let (layout, contents) = laid_out(room.journal())?;
        first_place(&layout, &contents, room)
            .map_or(room.journal(), |(found, wanted)| room.journal_for(found, wanted))
    };
    let (layout, contents) = laid_out(journal)?;
    drop(tree);
    let mut moves = Moves::new(&layout, &contents, room);
    drop(contents);
    let doing = |error| Failure::os("write an image", error);
    moves.close_up(files, meter).map_err(doing)?;
    moves.clear(image, room, end).map_err(doing)?;
    layout.writer(Holes { image, meter }).map_err(|error| failure(error, size))?;
    moves.put_back(files, meter).map_err(doing)?;
    Ok(Made { digest: digest.to_string() })
}

/// The place where the first content is laid out, and where it is.
fn first_place(layout: &Layout, contents: &[(InodeHandle, Content)], room: &Room) -> Option<(u64, u64)> {
    contents.iter().find_map(|(handle, content)| {
        let (offset, _) = *layout.extents(*handle).first()?;
        Some((room.place(offset)?, content.at))
    })
}

/// The digest of all that an image's bytes follow from.
fn digest(size: Bytes, diff_ids: &[(Archive, Digest)]) -> Digest {
    let mut sha256 = Sha256::new();
    sha256.update(format!("banger image {FORMAT}\n{}\n", size.0));
    for (archive, diff_id) in diff_ids {
        let kind = match archive {
            Archive::Layer => "layer",
            Archive::Whole => "whole",
        };
        sha256.update(format!("{kind} {diff_id}\n"));
    }
    Digest::from_bytes(sha256.finalize().into())
}

/// What is the same for all file systems of a size.
pub(super) fn options(size: Bytes, uuid: [u8; 16]) -> Options {
    let mut options = Options::new(size.0, uuid, EPOCH);
    options.label = Some(LABEL.to_owned());
    // In a guest the superuser is who uses the disk.
    options.reserved_percent = 0;
    let inodes = (size.0 / BYTES_PER_INODE).max(MIN_INODES);
    options.inodes = InodeCount::Exact(u32::try_from(inodes).unwrap_or(u32::MAX));
    options
}

/// Tells the writer what there is to be, and lets it decide where. Files are told in the order in which they were
/// read, which is that of their content in the image.
fn lay_out(
    tree: &Tree,
    size: Bytes,
    digest: &Digest,
    journal: u64,
) -> Result<(Layout, Vec<(InodeHandle, Content)>), mkext4::Error> {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest.as_bytes()[..16]);
    // RFC 9562, version 8: the rest is the maker's to choose.
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    let mut options = options(size, uuid);
    options.journal_blocks = u32::try_from(journal).ok();
    let mut builder = FsBuilder::new(options)?;

    let mut handles: HashMap<Id, InodeHandle> = HashMap::from([(ROOT, mkext4::ROOT)]);
    let mut files: Vec<(Id, InodeHandle, &[u8])> = Vec::new();
    builder.set_meta(mkext4::ROOT, meta(&tree.node(ROOT).meta))?;
    attributes(&mut builder, mkext4::ROOT, tree.node(ROOT))?;
    for (parent, name, id) in tree.walk() {
        let node = tree.node(id);
        if parent == ROOT && name == LOST_AND_FOUND {
            continue;
        }
        // A directory is seen before what is in it.
        let parent = handles[&parent];
        if let Some(known) = handles.get(&id) {
            builder.hardlink(parent, name, *known)?;
            continue;
        }
        let meta = meta(&node.meta);
        let handle = match &node.kind {
            Kind::File(_) => {
                files.push((id, parent, name));
                continue;
            }
            Kind::Directory(_) => builder.mkdir(parent, name, meta)?,
            Kind::Symlink(target) => builder.symlink(parent, name, target, meta)?,
            Kind::Special(special) => builder.mknod(
                parent,
                name,
                meta,
                match *special {
                    Special::Character { major, minor } => SpecialKind::Char { major, minor },
                    Special::Block { major, minor } => SpecialKind::Block { major, minor },
                    Special::Fifo => SpecialKind::Fifo,
                },
            )?,
        };
        handles.insert(id, handle);
        attributes(&mut builder, handle, node)?;
    }
    // The sort is stable: the names of a file keep their order.
    files.sort_by_key(|(id, _, _)| match &tree.node(*id).kind {
        Kind::File(content) => (content.at, *id),
        _ => (0, *id),
    });
    let mut contents = Vec::new();
    for (id, parent, name) in files {
        let node = tree.node(id);
        let Kind::File(content) = &node.kind else { continue };
        if let Some(known) = handles.get(&id) {
            builder.hardlink(parent, name, *known)?;
            continue;
        }
        let handle = match &content.segments {
            None => builder.file(parent, name, meta(&node.meta), content.size)?,
            Some(_) => builder.file_sparse(parent, name, meta(&node.meta), &stretches(content))?,
        };
        handles.insert(id, handle);
        attributes(&mut builder, handle, node)?;
        contents.push((handle, content.clone()));
    }
    drop(handles);
    Ok((builder.seal()?, contents))
}

fn meta(meta: &Meta) -> mkext4::Meta {
    let (seconds, nanoseconds) = meta.modified;
    // As Linux does it.
    let time = match seconds.clamp(*TIMES.start(), *TIMES.end()) {
        kept if kept == seconds => (kept, nanoseconds),
        kept => (kept, 0),
    };
    mkext4::Meta::new(meta.mode, meta.user, meta.group, time)
}

fn attributes(builder: &mut FsBuilder, handle: InodeHandle, node: &Node) -> Result<(), mkext4::Error> {
    node.attributes.iter().flatten().try_for_each(|(name, value)| builder.set_xattr(handle, name, value))
}

/// The stretches of data and the holes of a file.
fn stretches(content: &Content) -> Vec<SparseSeg> {
    let (mut stretches, mut at) = (Vec::new(), 0);
    for segment in content.segments.iter().flatten() {
        if segment.at > at {
            stretches.push(SparseSeg::Hole(segment.at - at));
        }
        stretches.push(SparseSeg::Data(segment.length));
        at = segment.at + segment.length;
    }
    if content.size > at {
        stretches.push(SparseSeg::Hole(content.size - at));
    }
    stretches
}

/// A new file, which has its zeros already.
struct Holes<'a> {
    image: &'a File,
    meter: &'a Meter,
}

impl RegionSink for Holes<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.meter.add_written(bytes.len());
        self.image.write_all_at(bytes, offset)
    }

    fn zeros(&mut self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn failure(error: mkext4::Error, size: Bytes) -> Failure {
    match error {
        mkext4::Error::Io(error) => Failure::os("write an image", error),
        // Names, links and attributes were looked at before: what is left is that there is no room.
        other => Failure::refused(format!(
            "the image cannot be taken: it does not fit into a file system of {size}: {other}"
        )),
    }
}
