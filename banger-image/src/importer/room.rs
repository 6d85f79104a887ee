//! Computes where in an ext4 file system the content of files will be, before the files are known.
//!
//! `mkext4` gives out the blocks of a file system in their order, leaving out those whose place is fixed: first to
//! the journal, then to directories, then to the data of files in the order in which they are declared. So the
//! place of a file's data depends on how many blocks come before it, and on nothing else; and how many those are
//! can be made up with the size of the journal. Content can then be written to its place while it is read.

use banger_proto::size::Bytes;
use mkext4::{FsBuilder, Meta, Options};

use crate::rootfs::sparse::BLOCK;

/// The journal of a file system of 16 GiB, as `mke2fs` has it, and the smallest that Linux takes.
const MAX_JOURNAL: u64 = 32_768;
const MIN_JOURNAL: u64 = 1024;
/// Blocks that are kept for directories, long symbolic links and attributes. What is left of them becomes
/// journal.
const MAX_RESERVE: u64 = 16_384;
/// Blocks of one extent, and extents in an inode and in a block (`struct ext4_extent`).
const MAX_EXTENT: u64 = 32_768;
const IN_INODE: u64 = 4;
const IN_BLOCK: u64 = 340;

/// The places for data in a file system, in their order. A place is a number of bytes from the first one, as if
/// there were nothing between them.
#[derive(Debug)]
pub(super) struct Room {
    runs: Vec<Run>,
    /// Blocks of the journal when nothing is kept for directories, and those that are kept.
    journal: u64,
    reserve: u64,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    at: u64,
    start: u64,
    length: u64,
}

impl Room {
    /// That of a file system of this size which is made with these options.
    pub(super) fn new(size: Bytes, options: impl Fn() -> Options) -> Result<Self, mkext4::Error> {
        let blocks = size.0 / BLOCK;
        let journal = (blocks / 128).clamp(MIN_JOURNAL, MAX_JOURNAL);
        let reserve = (blocks / 64).min(MAX_RESERVE);
        // One file that takes everything tells the places. What inodes (256 bytes for every 16 KiB) and bitmaps
        // leave is the writer's affair: the largest file is found by trying.
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

    /// Blocks of a journal beside which all is kept that can be.
    pub(super) fn journal(&self) -> u64 {
        self.journal + self.reserve
    }

    /// Blocks of a journal with which what a journal of [`Room::journal`] puts at the place `found` comes to the
    /// place `wanted`. That is not always possible.
    pub(super) fn journal_for(&self, found: u64, wanted: u64) -> u64 {
        let journal = (self.journal() + wanted / BLOCK).saturating_sub(found / BLOCK);
        if (self.journal..=2 * self.journal()).contains(&journal) { journal } else { self.journal }
    }

    /// Where so many bytes from this place on are in the file system: offsets and lengths. Shorter than wished
    /// when there is no more room.
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

    /// The place of an offset in the file system, if it is one for data.
    pub(super) fn place(&self, offset: u64) -> Option<u64> {
        let index = self.runs.partition_point(|run| run.start + run.length <= offset);
        let run = self.runs.get(index).filter(|run| run.start <= offset)?;
        Some(run.at + (offset - run.start))
    }

    /// How much room there is.
    pub(super) fn size(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.at + run.length)
    }

    /// Bytes of blocks that say where these stretches of a file are, and come behind its data.
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
