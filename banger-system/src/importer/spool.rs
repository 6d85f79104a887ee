//! The content of files, put aside until it is known which of them count. Each begins at a block and is filled up
//! with zeros to the next one, as it will be in the file system.

use std::{fs::File, io::BufRead, os::unix::fs::FileExt};

use banger_proto::size::Bytes;

use super::{Meter, message::Failure};
use crate::domain::rootfs::{
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
    /// What comes next and is not written yet.
    buffer: Vec<u8>,
    /// Where that belongs.
    at: u64,
    /// The size of the file system, into which everything has to fit.
    size: Bytes,
    meter: &'a Meter,
}

impl<'a> Spool<'a> {
    pub(super) fn new(file: &'a File, size: Bytes, meter: &'a Meter) -> Self {
        Self { file, buffer: Vec::with_capacity(BUFFER + LARGE), at: 0, size, meter }
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
        if at.saturating_add(room) > self.size.0 {
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
        let segments = shape.segments.is_some().then(|| blocks.into_boxed_slice());
        Ok(Content { at, size, segments })
    }

    /// Writes what was gathered.
    pub(super) fn finish(mut self) -> Result<(), Failure> {
        self.flush()
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
                write(self.file, &bytes[..taken], self.at)?;
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
        write(self.file, &self.buffer, self.at)?;
        self.at += self.buffer.len() as u64;
        self.meter.add_written(self.buffer.len());
        self.buffer.clear();
        Ok(())
    }
}

fn write(file: &File, bytes: &[u8], at: u64) -> Result<(), Failure> {
    file.write_all_at(bytes, at).map_err(|error| Failure::os("put the files of an image aside", error))
}
