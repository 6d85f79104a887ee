//! Writing the file system that a tree comes to.

use std::{fs::File, io, os::unix::fs::FileExt};

use banger_domain::digest::Digest;
use banger_proto::size::Bytes;
use mkext4::{FsBuilder, InodeCount, InodeHandle, Options, RegionSink, SparseSeg, SpecialKind};
use sha2::{Digest as _, Sha256};

use super::{
    Files, Meter,
    message::{Failure, Made},
    moves::Moves,
    room::Room,
};
use crate::rootfs::{
    entry::{Meta, Special},
    limits,
    tree::{Archive, Content, Id, Kind, Node, ROOT, Tree},
};

/// Grows whenever the same archives come to other bytes: with the version of the writer, and with what is done
/// here. It is part of an image's digest.
const FORMAT: u32 = 1;
const LABEL: &str = "banger-root";
/// 2026-01-01: when every file system was made, as far as its own times say.
pub(super) const EPOCH: i64 = 1_767_225_600;
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
    let unwritten = |error| failure(error, size);
    // How much comes before the content is known when it is laid out; how much is to come before it, too.
    let journal = first_place(&tree, room, options_of(&digest, size, room.journal()))
        .map_err(unwritten)?
        .map_or(room.journal(), |(found, wanted)| room.journal_for(found, wanted));
    // Of tree, declarations and layout, two at most are in memory at once.
    let (builder, contents) = declare(tree, options_of(&digest, size, journal)).map_err(unwritten)?;
    let layout = builder.seal().map_err(unwritten)?;
    let mut moves = Moves::new(&layout, &contents, room);
    drop(contents);
    let doing = |error| Failure::os("write an image", error);
    moves.close_up(files, meter).map_err(doing)?;
    moves.clear(image, room, end).map_err(doing)?;
    layout.writer(Holes { image, meter }).map_err(unwritten)?;
    moves.put_back(files, meter).map_err(doing)?;
    Ok(Made { digest: digest.to_string() })
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

/// Those of the file system with this digest, which has a journal of so many blocks.
fn options_of(digest: &Digest, size: Bytes, journal: u64) -> Options {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest.as_bytes()[..16]);
    // RFC 9562, version 8: the rest is the maker's to choose.
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    let mut options = options(size, uuid);
    options.journal_blocks = u32::try_from(journal).ok();
    options
}

/// The place where the first content comes to be with these options, and where it is.
///
/// What comes before it are blocks of directories, attributes and symbolic links, all of them. A file counts by its
/// name alone, so all files are names of one file here, which takes a fraction of the memory that they do.
fn first_place(tree: &Tree, room: &Room, options: Options) -> Result<Option<(u64, u64)>, mkext4::Error> {
    let mut builder = FsBuilder::new(options)?;
    let mut handles = Handles::of(tree);
    let first = tree
        .walk()
        .filter_map(|(_, _, id)| match &tree.node(id).kind {
            Kind::File(content) if content.has_data() => Some((content.at, id)),
            _ => None,
        })
        .min();
    let mut any_file: Option<(InodeHandle, u32)> = None;
    attributes(&mut builder, mkext4::ROOT, tree.node(ROOT))?;
    for (parent, name, id) in tree.walk() {
        let node = tree.node(id);
        if parent == ROOT && name == LOST_AND_FOUND {
            continue;
        }
        let parent = handles.of_directory(parent);
        let is_first = first.is_some_and(|(_, first)| first == id);
        let is_a_name = matches!(node.kind, Kind::File(_)) && !is_first && node.attributes.is_none();
        match any_file.as_mut().filter(|_| is_a_name) {
            Some((file, names)) if *names < limits::LINKS => {
                builder.hardlink(parent, name, *file)?;
                *names += 1;
            }
            _ if is_a_name => any_file = Some((builder.file(parent, name, meta(&node.meta), 0)?, 1)),
            _ => {
                add(&mut builder, &mut handles, (parent, name, id), node)?;
            }
        }
    }
    let Some((wanted, first)) = first else { return Ok(None) };
    let Some(handle) = handles.get(first) else { return Ok(None) };
    let layout = builder.seal()?;
    let found = layout.extents(handle).first().and_then(|(offset, _)| room.place(*offset));
    Ok(found.map(|found| (found, wanted)))
}

/// Tells the writer what there is to be. Files are told in the order in which they were read, which is that of
/// their content in the image.
fn declare(tree: Tree, options: Options) -> Result<(FsBuilder, Vec<(InodeHandle, Content)>), mkext4::Error> {
    let mut builder = FsBuilder::new(options)?;
    let mut handles = Handles::of(&tree);
    let mut files: Vec<(Id, InodeHandle, &[u8])> = Vec::new();
    builder.set_meta(mkext4::ROOT, meta(&tree.node(ROOT).meta))?;
    attributes(&mut builder, mkext4::ROOT, tree.node(ROOT))?;
    for (parent, name, id) in tree.walk() {
        let node = tree.node(id);
        if parent == ROOT && name == LOST_AND_FOUND {
            continue;
        }
        let parent = handles.of_directory(parent);
        match node.kind {
            Kind::File(_) => files.push((id, parent, name)),
            _ => {
                add(&mut builder, &mut handles, (parent, name, id), node)?;
            }
        }
    }
    // The sort is stable: the names of a file keep their order.
    files.sort_by_key(|(id, _, _)| match &tree.node(*id).kind {
        Kind::File(content) => (content.at, *id),
        _ => (0, *id),
    });
    let mut contents = Vec::with_capacity(files.len());
    for (id, parent, name) in files {
        let node = tree.node(id);
        let Kind::File(content) = &node.kind else { continue };
        if let Some(handle) = add(&mut builder, &mut handles, (parent, name, id), node)? {
            contents.push((handle, content.clone()));
        }
    }
    Ok((builder, contents))
}

/// Tells the writer of a name. Returns what it names, where that is new.
fn add(
    builder: &mut FsBuilder,
    handles: &mut Handles,
    (parent, name, id): (InodeHandle, &[u8], Id),
    node: &Node,
) -> Result<Option<InodeHandle>, mkext4::Error> {
    if let Some(known) = handles.get(id) {
        builder.hardlink(parent, name, known)?;
        return Ok(None);
    }
    let meta = meta(&node.meta);
    let handle = match &node.kind {
        Kind::Directory(_) => builder.mkdir(parent, name, meta)?,
        Kind::File(content) => match &content.segments {
            None => builder.file(parent, name, meta, content.size)?,
            Some(_) => builder.file_sparse(parent, name, meta, &stretches(content))?,
        },
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
    handles.put(id, handle);
    attributes(builder, handle, node)?;
    Ok(Some(handle))
}

/// What the writer calls the nodes of a tree that it was told of.
struct Handles(Vec<Option<InodeHandle>>);

impl Handles {
    fn of(tree: &Tree) -> Self {
        let mut handles = Self(vec![None; tree.capacity()]);
        handles.put(ROOT, mkext4::ROOT);
        handles
    }

    fn get(&self, id: Id) -> Option<InodeHandle> {
        self.0[id.index()]
    }

    /// A directory is seen before what is in it.
    fn of_directory(&self, id: Id) -> InodeHandle {
        self.get(id).unwrap_or(mkext4::ROOT)
    }

    fn put(&mut self, id: Id, handle: InodeHandle) {
        self.0[id.index()] = Some(handle);
    }
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
pub(super) struct Holes<'a> {
    pub(super) image: &'a File,
    pub(super) meter: &'a Meter,
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
