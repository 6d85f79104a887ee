//! Writes the file system of a merged tree.

use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt};

use banger_domain::digest::Digest;
use banger_proto::size::Bytes;
use mkext4::{FsBuilder, InodeCount, InodeHandle, Options, RegionSink, SparseSeg, SpecialKind};
use sha2::{Digest as _, Sha256};

use super::{
    Files, Meter,
    layout::DataLayout,
    message::{Failure, Made},
    relocate::Relocation,
};
use crate::rootfs::{
    entry::{Meta, Special},
    limits,
    tree::{Archive, Content, Id, Kind, Node, ROOT, Tree},
};

/// Increases whenever the same archives would give other bytes: with the version of the writer, and with changes
/// here. It is part of an image's digest.
const FORMAT: u32 = 2;
const LABEL: &str = "banger-root";
/// 2026-01-01, the creation time of every file system.
pub(super) const EPOCH: i64 = 1_767_225_600;
/// The directory that e2fsck uses, which is made with the file system.
const LOST_AND_FOUND: &[u8] = b"lost+found";
/// Bytes per inode, as in `mke2fs`, and the minimum number of inodes.
const BYTES_PER_INODE: u64 = 16 << 10;
const MIN_INODES: u64 = 8192;
/// The times that ext4 can store: 34 bits from 1901.
const TIMES: std::ops::RangeInclusive<i64> = -(1 << 31)..=(1 << 34) - (1 << 31) - 1;

/// Writes the tree's file system, of this size, around the content of its files, which is already in the image and
/// ends at `end`. Values that are usually random are derived from the input, so that the same archives give the same
/// bytes.
pub(super) fn build(
    tree: Tree,
    files: &Files,
    places: &DataLayout,
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
            let message = "cannot use the image: lost+found in its root is not an empty directory";
            return Err(Failure::refused(message));
        }
    }
    let digest = digest(size, diff_ids);
    let image = &files.image;
    image.set_len(size.0).map_err(|error| Failure::os("make an image", error))?;
    let unwritten = |error| failure(error, size);
    // How many blocks come before the content is known once it is laid out, and so is the wanted number.
    let journal = first_place(&tree, places, options_of(&digest, size, places.journal()))
        .map_err(unwritten)?
        .map_or(places.journal(), |(found, wanted)| places.journal_for(found, wanted));
    let content = content_of(&tree);
    // Tree, declarations and layout are large: at most two are in memory at a time.
    let (builder, contents) = declare(tree, options_of(&digest, size, journal)).map_err(unwritten)?;
    let layout = builder.seal().map_err(unwritten)?;
    let mut moves = Relocation::new(&layout, &contents, places);
    drop(contents);
    let doing = |error| Failure::os("write an image", error);
    moves.move_out(files, meter).map_err(doing)?;
    moves.clear(image, places, end).map_err(doing)?;
    layout.writer(Holes { image, meter }).map_err(unwritten)?;
    moves.move_in(files, meter).map_err(doing)?;
    Ok(Made { digest: digest.to_string(), content })
}

/// Returns the bytes of all files, without their holes. A file with several names counts once.
fn content_of(tree: &Tree) -> Bytes {
    let files: BTreeMap<Id, u64> = tree
        .walk()
        .filter_map(|(_, _, id)| match &tree.node(id).kind {
            Kind::File(content) => Some((id, content.data())),
            _ => None,
        })
        .collect();
    Bytes(files.values().sum())
}

/// Returns the digest of everything that determines the image's bytes.
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

/// Returns the options that all file systems of a size share.
pub(super) fn options(size: Bytes, uuid: [u8; 16]) -> Options {
    let mut options = Options::new(size.0, uuid, EPOCH);
    options.label = Some(LABEL.to_owned());
    // Reserved blocks are for root, which is the user of the disk in a guest.
    options.reserved_percent = 0;
    let inodes = (size.0 / BYTES_PER_INODE).max(MIN_INODES);
    options.inodes = InodeCount::Exact(u32::try_from(inodes).unwrap_or(u32::MAX));
    options
}

/// Returns the options of the file system with this digest and a journal of this many blocks.
fn options_of(digest: &Digest, size: Bytes, journal: u64) -> Options {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest.as_bytes()[..16]);
    // RFC 9562, version 8: the other bits are free to choose.
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    let mut options = options(size, uuid);
    options.journal_blocks = u32::try_from(journal).ok();
    options
}

/// Returns where the first content would be with these options, and where it is.
///
/// Before it come all blocks of directories, attributes and symbolic links. A file counts only by its name, so here
/// all files are names of one file, which takes a fraction of the memory.
fn first_place(
    tree: &Tree,
    places: &DataLayout,
    options: Options,
) -> Result<Option<(u64, u64)>, mkext4::Error> {
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
    let found = layout.extents(handle).first().and_then(|(offset, _)| places.place(*offset));
    Ok(found.map(|found| (found, wanted)))
}

/// Declares the tree to the writer. Files are declared in the order in which they were read, which is the order of
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
    // The sort is stable, so the names of a file keep their order.
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

/// Declares a name. Returns the handle of its node if that is new.
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

/// The writer's handles of a tree's nodes.
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

    /// Returns the handle of a directory. A directory is visited before its content.
    fn of_directory(&self, id: Id) -> InodeHandle {
        self.get(id).unwrap_or(mkext4::ROOT)
    }

    fn put(&mut self, id: Id, handle: InodeHandle) {
        self.0[id.index()] = Some(handle);
    }
}

fn meta(meta: &Meta) -> mkext4::Meta {
    let (seconds, nanoseconds) = meta.modified;
    // As Linux does.
    let time = match seconds.clamp(*TIMES.start(), *TIMES.end()) {
        kept if kept == seconds => (kept, nanoseconds),
        kept => (kept, 0),
    };
    mkext4::Meta::new(meta.mode, meta.user, meta.group, time)
}

fn attributes(builder: &mut FsBuilder, handle: InodeHandle, node: &Node) -> Result<(), mkext4::Error> {
    node.attributes.iter().flatten().try_for_each(|(name, value)| builder.set_xattr(handle, name, value))
}

/// Returns the data and the holes of a file.
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

/// A new file, whose zeros need not be written.
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
        // Names, links and attributes were checked before, so what is left is a lack of space.
        other => Failure::refused(format!(
            "cannot use the image: it does not fit into a file system of {size}: {other}"
        )),
    }
}
