//! The content of files, written to where it will be in the file system if all of them count: each begins at a
//! block and is filled up with zeros to the next one.

use std::{fs::File, io::BufRead, os::unix::fs::FileExt};

use banger_proto::size::Bytes;

use super::{Meter, message::Failure, room::Room};
use crate::rootfs::{
    self,
    entry::Shape,
    sparse::{self, BLOCK},
    tar::Tar,
    tree::Content,
};

/// How much is gathered before it is written.
const BUFFER: usize = 1 << 20;
/// What is large enough to be written by itself.
const LARGE: usize = 128 << 10;
const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// A file in which contents follow each other.
pub(super) struct Spool<'a> {
    file: &'a File,
    room: &'a Room,
    /// What comes next and is not written yet.
    buffer: Vec<u8>,
    /// The place where that belongs.
    at: u64,
    /// The size of the file system, into which everything has to fit.
    size: Bytes,
    meter: &'a Meter,
}

impl<'a> Spool<'a> {
    pub(super) fn new(file: &'a File, room: &'a Room, size: Bytes, meter: &'a Meter) -> Self {
        Self { file, room, buffer: Vec::with_capacity(BUFFER + LARGE), at: 0, size, meter }
    }

    /// Puts aside what an archive has of a file of this shape.
    pub(super) fn store<R: BufRead>(&mut self, tar: &mut Tar<R>, shape: &Shape) -> Result<Content, Failure> {
        let at = self.place();
        let size = shape.size;
        let blocks = match &shape.segments {
            None => vec![sparse::Segment { at: 0, length: size }],
            Some(segments) => sparse::blocks(segments, size),
        };
        let room: u64 = blocks.iter().map(|block| block.length.next_multiple_of(BLOCK)).sum();
        if at.saturating_add(room) > self.room.size() {
            let message = format!("the image cannot be taken: its files do not fit into {}", self.size);
            return Err(Failure::refused(message));
        }
        match &shape.segments {
            None => self.copy(tar, size)?,
            Some(segments) => {
                let mut stretches = segments.iter().peekable();
                for block in &blocks {
                    let (mut done, end) = (block.at, block.at + block.length);
                    while let Some(stretch) = stretches.next_if(|stretch| stretch.at < end) {
                        self.zeros(stretch.at - done)?;
                        self.copy(tar, stretch.length)?;
                        done = stretch.at + stretch.length;
                    }
                    self.zeros(end - done)?;
                }
            }
        }
        self.zeros(self.place().next_multiple_of(BLOCK) - self.place())?;
        let mut next = at;
        let stretches = blocks.iter().map(|block| {
            let length = block.length.next_multiple_of(BLOCK);
            next += length;
            (next - length, length)
        });
        self.zeros(self.room.map_of(stretches))?;
        let segments = shape.segments.is_some().then(|| blocks.into_boxed_slice());
        Ok(Content { at, size, segments })
    }

    /// Writes what was gathered, and tells where the last of it ends.
    pub(super) fn finish(mut self) -> Result<u64, Failure> {
        self.flush()?;
        Ok(self.at)
    }

    /// Where the next byte belongs.
    fn place(&self) -> u64 {
        self.at + self.buffer.len() as u64
    }

    fn copy<R: BufRead>(&mut self, tar: &mut Tar<R>, mut count: u64) -> Result<(), Failure> {
        while count > 0 {
            let bytes = tar.data()?;
            if bytes.is_empty() {
                return Err(rootfs::Error::Truncated.into());
            }
            let taken = bytes.len().min(usize::try_from(count).unwrap_or(usize::MAX));
            if taken >= LARGE && self.buffer.is_empty() {
                write(self.file, self.room, &bytes[..taken], self.at)?;
                self.at += taken as u64;
                self.meter.add_written(taken);
            } else {
                self.buffer.extend_from_slice(&bytes[..taken]);
            }
            tar.consume(taken);
            count -= taken as u64;
            if self.buffer.len() >= BUFFER - LARGE {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn zeros(&mut self, mut count: u64) -> Result<(), Failure> {
        while count > 0 {
            let some = ZEROS.len().min(usize::try_from(count).unwrap_or(usize::MAX));
            self.buffer.extend_from_slice(&ZEROS[..some]);
            count -= some as u64;
            if self.buffer.len() >= BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        write(self.file, self.room, &self.buffer, self.at)?;
        self.at += self.buffer.len() as u64;
        self.meter.add_written(self.buffer.len());
        self.buffer.clear();
        Ok(())
    }
}

fn write(file: &File, room: &Room, mut bytes: &[u8], at: u64) -> Result<(), Failure> {
    for (offset, length) in room.offsets(at, bytes.len() as u64) {
        let (some, rest) = bytes.split_at(usize::try_from(length).unwrap_or(bytes.len()));
        file.write_all_at(some, offset).map_err(|error| Failure::os("write an image", error))?;
        bytes = rest;
    }
    Ok(())
}
