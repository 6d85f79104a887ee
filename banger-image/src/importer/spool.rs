//! Writes the content of files to where it will be in the file system if no layer hides any of it. Each file begins
//! at a block and is padded with zeros.

use std::{fs::File, io::BufRead, os::unix::fs::FileExt};

use banger_proto::size::Bytes;

use super::{Meter, layout::DataLayout, message::Failure};
use crate::rootfs::{
    self,
    entry::Shape,
    sparse::{self, BLOCK},
    tar::Tar,
    tree::Content,
};

/// How much is buffered before it is written.
const BUFFER: usize = 1 << 20;
/// The size from which data is written without buffering.
const LARGE: usize = 128 << 10;
const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// A file that takes contents one after the other.
pub(super) struct Spool<'a> {
    file: &'a File,
    places: &'a DataLayout,
    /// Data that is not written yet.
    buffer: Vec<u8>,
    /// The place of that data.
    at: u64,
    /// The size of the file system, into which everything has to fit.
    size: Bytes,
    meter: &'a Meter,
}

impl<'a> Spool<'a> {
    pub(super) fn new(file: &'a File, places: &'a DataLayout, size: Bytes, meter: &'a Meter) -> Self {
        Self { file, places, buffer: Vec::with_capacity(BUFFER + LARGE), at: 0, size, meter }
    }

    /// Writes the content of a file of this shape from an archive.
    pub(super) fn store<R: BufRead>(&mut self, tar: &mut Tar<R>, shape: &Shape) -> Result<Content, Failure> {
        let at = self.place();
        let size = shape.size;
        let blocks = match &shape.segments {
            None => vec![sparse::Segment { at: 0, length: size }],
            Some(segments) => sparse::blocks(segments, size),
        };
        let room: u64 = blocks.iter().map(|block| block.length.next_multiple_of(BLOCK)).sum();
        if at.saturating_add(room) > self.places.size() {
            let message = format!("cannot use the image: its files do not fit into {}", self.size);
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
        self.zeros(self.places.map_of(stretches))?;
        let segments = shape.segments.is_some().then(|| blocks.into_boxed_slice());
        Ok(Content { at, size, segments })
    }

    /// Writes the buffered data, and returns where the content ends.
    pub(super) fn finish(mut self) -> Result<u64, Failure> {
        self.flush()?;
        Ok(self.at)
    }

    /// Returns the place of the next byte.
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
                write(self.file, self.places, &bytes[..taken], self.at)?;
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
        write(self.file, self.places, &self.buffer, self.at)?;
        self.at += self.buffer.len() as u64;
        self.meter.add_written(self.buffer.len());
        self.buffer.clear();
        Ok(())
    }
}

fn write(file: &File, places: &DataLayout, mut bytes: &[u8], at: u64) -> Result<(), Failure> {
    for (offset, length) in places.offsets(at, bytes.len() as u64) {
        let (some, rest) = bytes.split_at(usize::try_from(length).unwrap_or(bytes.len()));
        file.write_all_at(some, offset).map_err(|error| Failure::os("write an image", error))?;
        bytes = rest;
    }
    Ok(())
}
