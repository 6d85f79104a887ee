//! Moves content that is not at its final place: a layer above has hidden earlier content, or there are more
//! directories than expected.

use std::{fs::File, io, os::unix::fs::FileExt};

use mkext4::{InodeHandle, Layout};
use rustix::{
    fs::{FallocateFlags, fallocate},
    io::Errno,
};

use super::{Files, Meter, layout::DataLayout};
use crate::rootfs::{sparse::BLOCK, tree::Content};

/// How much is copied at a time.
const CHUNK: u64 = 1 << 20;

/// A range of whole blocks to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Move {
    from: u64,
    to: u64,
    length: u64,
}

/// The moves of all contents, in order.
#[derive(Debug)]
pub(super) struct Relocation {
    moves: Vec<Move>,
    /// Whether all can be moved directly: no move overwrites content that a later one still has to move.
    is_in_place: bool,
}

impl Relocation {
    /// Computes the moves from where contents are to where the layout has them.
    pub(super) fn new(layout: &Layout, contents: &[(InodeHandle, Content)], places: &DataLayout) -> Self {
        let mut moves: Vec<Move> = Vec::new();
        for (handle, content) in contents {
            let mut at = content.at;
            for (mut to, length) in layout.extents(*handle) {
                // Beyond the end of a file, both sides are zeros.
                let length = length.next_multiple_of(BLOCK);
                for (from, length) in places.offsets(at, length) {
                    match moves.last_mut() {
                        Some(last) if last.from + last.length == from && last.to + last.length == to => {
                            last.length += length;
                        }
                        _ => moves.push(Move { from, to, length }),
                    }
                    to += length;
                }
                at += length;
            }
        }
        let is_in_place = moves.iter().all(|one| one.to <= one.from);
        Self { moves, is_in_place }
    }

    /// Moves directly if possible, or copies everything to the spool file.
    pub(super) fn move_out(&self, files: &Files, meter: &Meter) -> io::Result<()> {
        let mut aside = 0;
        for one in self.moves.iter().filter(|one| one.from != one.to) {
            if self.is_in_place {
                copy(&files.image, one.from, &files.image, one.to, one.length, meter)?;
            } else {
                copy(&files.image, one.from, &files.spool, aside, one.length, meter)?;
                aside += one.length;
            }
        }
        Ok(())
    }

    /// Punches holes up to `end`, except where content is at its final place.
    pub(super) fn clear(&mut self, image: &File, places: &DataLayout, end: u64) -> io::Result<()> {
        let mut kept: Vec<(u64, u64)> = self
            .moves
            .iter()
            .filter(|one| self.is_in_place || one.from == one.to)
            .map(|one| (one.to, one.length))
            .collect();
        kept.sort_unstable();
        let mut kept = kept.into_iter().peekable();
        for (offset, length) in places.offsets(0, end) {
            let (mut at, end) = (offset, offset + length);
            while at < end {
                while kept.next_if(|(offset, length)| offset + length <= at).is_some() {}
                let (next, after) = match kept.peek() {
                    Some((offset, length)) if *offset < end => (*offset, offset + length),
                    _ => (end, end),
                };
                if next > at {
                    clear(image, at, next - at)?;
                }
                at = after.max(at);
            }
        }
        Ok(())
    }

    /// Copies what is in the spool file to its final place.
    pub(super) fn move_in(&self, files: &Files, meter: &Meter) -> io::Result<()> {
        let mut aside = 0;
        for one in self.moves.iter().filter(|one| !self.is_in_place && one.from != one.to) {
            copy(&files.spool, aside, &files.image, one.to, one.length, meter)?;
            aside += one.length;
        }
        Ok(())
    }
}

/// Copies forwards, so that a file's content may move towards its beginning.
fn copy(from: &File, at: u64, to: &File, place: u64, length: u64, meter: &Meter) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK.min(length) as usize];
    for done in (0..length).step_by(CHUNK as usize) {
        let bytes = &mut buffer[..CHUNK.min(length - done) as usize];
        from.read_exact_at(bytes, at + done)?;
        to.write_all_at(bytes, place + done)?;
        meter.add_written(bytes.len());
    }
    Ok(())
}

/// Fills a range with zeros.
fn clear(image: &File, offset: u64, length: u64) -> io::Result<()> {
    match fallocate(image, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length) {
        // The file system does not support holes.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            let zeros = vec![0; CHUNK.min(length) as usize];
            (0..length).step_by(CHUNK as usize).try_for_each(|done| {
                image.write_all_at(&zeros[..CHUNK.min(length - done) as usize], offset + done)
            })
        }
        cleared => Ok(cleared?),
    }
}
