//! Relocates content that is not where it has to be, because a layer above has hidden what was before it, or because there
//! are more directories than expected.

use std::{fs::File, io, os::unix::fs::FileExt};

use mkext4::{InodeHandle, Layout};
use rustix::{
    fs::{FallocateFlags, fallocate},
    io::Errno,
};

use super::{Files, Meter, room::Room};
use crate::rootfs::{sparse::BLOCK, tree::Content};

/// How much is copied at once.
const PIECE: u64 = 1 << 20;

/// Bytes that have a place and another one to go to, whole blocks all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Move {
    from: u64,
    to: u64,
    length: u64,
}

/// The way of all contents, in their order.
#[derive(Debug)]
pub(super) struct Moves {
    moves: Vec<Move>,
    /// Set when each can go at once: nothing goes to where something is that has not gone yet.
    is_closing_up: bool,
}

impl Moves {
    /// From where contents are to where they are laid out.
    pub(super) fn new(layout: &Layout, contents: &[(InodeHandle, Content)], room: &Room) -> Self {
        let mut moves: Vec<Move> = Vec::new();
        for (handle, content) in contents {
            let mut at = content.at;
            for (mut to, length) in layout.extents(*handle) {
                // What is behind the end of a file is zeros on both sides.
                let length = length.next_multiple_of(BLOCK);
                for (from, length) in room.offsets(at, length) {
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
        let is_closing_up = moves.iter().all(|one| one.to <= one.from);
        Self { moves, is_closing_up }
    }

    /// Moves what can go at once, and puts everything else aside.
    pub(super) fn close_up(&self, files: &Files, meter: &Meter) -> io::Result<()> {
        let mut aside = 0;
        for one in self.moves.iter().filter(|one| one.from != one.to) {
            if self.is_closing_up {
                copy(&files.image, one.from, &files.image, one.to, one.length, meter)?;
            } else {
                copy(&files.image, one.from, &files.spool, aside, one.length, meter)?;
                aside += one.length;
            }
        }
        Ok(())
    }

    /// Makes holes of all there is up to the place `end` but for what is where it has to be.
    pub(super) fn clear(&mut self, image: &File, room: &Room, end: u64) -> io::Result<()> {
        let mut kept: Vec<(u64, u64)> = self
            .moves
            .iter()
            .filter(|one| self.is_closing_up || one.from == one.to)
            .map(|one| (one.to, one.length))
            .collect();
        kept.sort_unstable();
        let mut kept = kept.into_iter().peekable();
        for (offset, length) in room.offsets(0, end) {
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

    /// Puts what was put aside to where it has to be.
    pub(super) fn put_back(&self, files: &Files, meter: &Meter) -> io::Result<()> {
        let mut aside = 0;
        for one in self.moves.iter().filter(|one| !self.is_closing_up && one.from != one.to) {
            copy(&files.spool, aside, &files.image, one.to, one.length, meter)?;
            aside += one.length;
        }
        Ok(())
    }
}

/// Copies from the beginning to the end, so that it may go backwards in one file.
fn copy(from: &File, at: u64, to: &File, place: u64, length: u64, meter: &Meter) -> io::Result<()> {
    let mut buffer = vec![0; PIECE.min(length) as usize];
    for done in (0..length).step_by(PIECE as usize) {
        let bytes = &mut buffer[..PIECE.min(length - done) as usize];
        from.read_exact_at(bytes, at + done)?;
        to.write_all_at(bytes, place + done)?;
        meter.add_written(bytes.len());
    }
    Ok(())
}

/// Makes a stretch zeros.
fn clear(image: &File, offset: u64, length: u64) -> io::Result<()> {
    match fallocate(image, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length) {
        // A file system that cannot.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            let zeros = vec![0; PIECE.min(length) as usize];
            (0..length).step_by(PIECE as usize).try_for_each(|done| {
                image.write_all_at(&zeros[..PIECE.min(length - done) as usize], offset + done)
            })
        }
        cleared => Ok(cleared?),
    }
}
