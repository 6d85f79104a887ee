//! Computes where an ext4 file system has the content of its files, before the files are known.
//!
//! `mkext4` allocates the blocks of a file system in order, except for blocks at fixed places: first for the journal,
//! then for directories, then for the data of files in the order of their declaration. So the place of a file's data
//! depends only on how many blocks come before it, and the size of the journal makes up for a different number.
//! Content can therefore be written to its place while it is read.

use banger_proto::size::Bytes;
use mkext4::{FsBuilder, Meta, Options};

use crate::rootfs::sparse::BLOCK;

/// The journal of a file system of 16 GiB made by `mke2fs`, and the smallest that Linux accepts.
const MAX_JOURNAL: u64 = 32_768;
const MIN_JOURNAL: u64 = 1024;
/// Blocks reserved for directories, long symbolic links and attributes. Unused ones become part of the journal.
const MAX_RESERVE: u64 = 16_384;
/// Blocks per extent, and extents per inode and per block (`struct ext4_extent`).
const MAX_EXTENT: u64 = 32_768;
const IN_INODE: u64 = 4;
const IN_BLOCK: u64 = 340;

/// The blocks for data in a file system, in order. A place counts bytes from the first one, as if the blocks were
/// contiguous.
#[derive(Debug)]
pub(super) struct DataLayout {
    runs: Vec<Run>,
    /// The journal's blocks if nothing is reserved, and the reserved blocks.
    journal: u64,
    reserve: u64,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    at: u64,
    start: u64,
    length: u64,
}

impl DataLayout {
    /// Computes the layout of a file system with this size and these options.
    pub(super) fn new(size: Bytes, options: impl Fn() -> Options) -> Result<Self, mkext4::Error> {
        let blocks = size.0 / BLOCK;
        let journal = (blocks / 128).clamp(MIN_JOURNAL, MAX_JOURNAL);
        let reserve = (blocks / 64).min(MAX_RESERVE);
        // One file that takes everything shows all places. The writer decides how much inodes (256 bytes for every 16
        // KiB) and bitmaps need, so the largest possible file is found by trying.
        let mut length = size.0.saturating_sub((journal + reserve) * BLOCK + size.0 / 64) / BLOCK * BLOCK;
        let step = (size.0 / 512).next_multiple_of(BLOCK);
        loop {
            length = length
                .checked_sub(step)
                .ok_or_else(|| mkext4::Error::Invalid("the file system is too small".to_owned()))?;
            let mut options = options();
            options.journal_blocks = u32::try_from(journal + reserve).ok();
            let mut builder = FsBuilder::new(options)?;
            let file = builder.file(mkext4::ROOT, "x", Meta::new(0, 0, 0, (0, 0)), length)?;
            let Ok(layout) = builder.seal() else { continue };
            let (mut runs, mut at) = (Vec::<Run>::new(), 0);
            for (start, length) in layout.extents(file) {
                match runs.last_mut() {
                    Some(last) if last.start + last.length == start => last.length += length,
                    _ => runs.push(Run { at, start, length }),
                }
                at += length;
            }
            return Ok(Self { runs, journal, reserve });
        }
    }

    /// Returns the journal's size that leaves all reserved blocks free.
    pub(super) fn journal(&self) -> u64 {
        self.journal + self.reserve
    }

    /// Returns the journal's size that moves the first content from the place `found`, where a journal of
    /// [`DataLayout::journal`] puts it, to the place `wanted`. That is not always possible.
    pub(super) fn journal_for(&self, found: u64, wanted: u64) -> u64 {
        let journal = (self.journal() + wanted / BLOCK).saturating_sub(found / BLOCK);
        if (self.journal..=2 * self.journal()).contains(&journal) { journal } else { self.journal }
    }

    /// Returns the offsets and lengths of `length` bytes from this place. Shorter at the end of the file system.
    pub(super) fn offsets(&self, at: u64, length: u64) -> Vec<(u64, u64)> {
        let (mut offsets, end) = (Vec::new(), at + length);
        let first = self.runs.partition_point(|run| run.at + run.length <= at);
        for run in self.runs[first..].iter().take_while(|run| run.at < end) {
            let from = at.max(run.at);
            let to = end.min(run.at + run.length);
            offsets.push((run.start + (from - run.at), to - from));
        }
        offsets
    }

    /// Returns the place of an offset in the file system, if it is for data.
    pub(super) fn place(&self, offset: u64) -> Option<u64> {
        let index = self.runs.partition_point(|run| run.start + run.length <= offset);
        let run = self.runs.get(index).filter(|run| run.start <= offset)?;
        Some(run.at + (offset - run.start))
    }

    /// Returns how many bytes of data fit.
    pub(super) fn size(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.at + run.length)
    }

    /// Returns the size of the blocks that map these ranges of a file. They follow its data.
    pub(super) fn map_of(&self, stretches: impl Iterator<Item = (u64, u64)>) -> u64 {
        let extents: u64 = stretches
            .flat_map(|(at, length)| self.offsets(at, length))
            .map(|(_, length)| length.div_ceil(MAX_EXTENT * BLOCK))
            .sum();
        if extents <= IN_INODE {
            return 0;
        }
        let leaves = extents.div_ceil(IN_BLOCK);
        let above = if leaves > IN_INODE { leaves.div_ceil(IN_BLOCK) } else { 0 };
        (leaves + above) * BLOCK
    }
}
