//! A log of fixed size: a file that holds the last so many bytes of what was written to it.
//!
//! The file begins with a header: magic (8 bytes), capacity (8, little endian), and how many bytes were ever
//! written (8). Byte `n` of the log stands at `n` modulo the capacity behind the header. There is one
//! writer; readers look at the count before and after, and drop what was overwritten in between.

use std::{fs::File, io, os::unix::fs::FileExt};

const MAGIC: [u8; 8] = *b"bgrring1";
const HEADER: u64 = 64;
const CAPACITY_AT: u64 = 8;
const WRITTEN_AT: u64 = 16;

/// The writing end.
#[derive(Debug)]
pub struct Writer {
    file: File,
    capacity: u64,
    written: u64,
}

impl Writer {
    /// Makes an empty log of this file, whatever it held before.
    pub fn create(file: File, capacity: u64) -> io::Result<Self> {
        file.set_len(0)?;
        file.write_all_at(&MAGIC, 0)?;
        file.write_all_at(&capacity.to_le_bytes(), CAPACITY_AT)?;
        file.write_all_at(&0u64.to_le_bytes(), WRITTEN_AT)?;
        Ok(Self { file, capacity, written: 0 })
    }

    /// Goes on with a log that [`Writer::create`] made.
    pub fn open(file: File) -> io::Result<Self> {
        let reader = Reader::new(file)?;
        let written = reader.written()?;
        Ok(Self { capacity: reader.capacity, file: reader.file, written })
    }

    /// Adds bytes; the oldest give way.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        for chunk in bytes.chunks(self.capacity as usize) {
            let at = self.written % self.capacity;
            let (first, second) = chunk.split_at(chunk.len().min((self.capacity - at) as usize));
            self.file.write_all_at(first, HEADER + at)?;
            self.file.write_all_at(second, HEADER)?;
            self.written += chunk.len() as u64;
            self.file.write_all_at(&self.written.to_le_bytes(), WRITTEN_AT)?;
        }
        Ok(())
    }
}

/// The reading end.
#[derive(Debug)]
pub struct Reader {
    file: File,
    capacity: u64,
    position: u64,
}

impl Reader {
    /// Reads from the oldest byte that is kept.
    pub fn new(file: File) -> io::Result<Self> {
        let mut header = [0; 24];
        file.read_exact_at(&mut header, 0)?;
        let number = |at: usize| header[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let capacity = number(CAPACITY_AT as usize);
        if header[..8] != MAGIC || capacity == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no log of ours"));
        }
        let position = number(WRITTEN_AT as usize).saturating_sub(capacity);
        Ok(Self { file, capacity, position })
    }

    /// Skips all but the last so many lines.
    pub fn keep_last_lines(&mut self, lines: u32) -> io::Result<()> {
        let (mut kept, mut begins) = (Vec::new(), Vec::new());
        let start = self.position;
        while self.read(&mut kept)? {}
        if !kept.is_empty() {
            begins.push(0);
        }
        let ends = kept.iter().enumerate().filter(|(at, byte)| **byte == b'\n' && at + 1 < kept.len());
        begins.extend(ends.map(|(at, _)| at + 1));
        let skipped = begins.len().checked_sub(lines as usize).map_or(Some(0), |n| begins.get(n).copied());
        self.position = start + skipped.unwrap_or(kept.len()) as u64;
        Ok(())
    }

    /// Adds what has come since to the buffer, at most 64 KiB of it. `false` when nothing has.
    pub fn read(&mut self, into: &mut Vec<u8>) -> io::Result<bool> {
        const CHUNK: u64 = 64 << 10;
        loop {
            let written = self.written()?;
            if written < self.position {
                // The machine was started anew, and its log begins anew with it.
                self.position = 0;
            }
            self.position = self.position.max(written.saturating_sub(self.capacity));
            let at = self.position % self.capacity;
            let count = (written - self.position).min(CHUNK).min(self.capacity - at);
            if count == 0 {
                return Ok(false);
            }
            let mut bytes = vec![0; count as usize];
            self.file.read_exact_at(&mut bytes, HEADER + at)?;
            if self.written()?.saturating_sub(self.capacity) > self.position {
                continue;
            }
            self.position += count;
            into.extend(bytes);
            return Ok(true);
        }
    }

    fn written(&self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, WRITTEN_AT)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn contents(file: &File) -> Vec<u8> {
        let mut reader = Reader::new(file.try_clone().unwrap()).unwrap();
        let mut bytes = Vec::new();
        while reader.read(&mut bytes).unwrap() {}
        bytes
    }

    #[test]
    fn the_last_lines_are_kept() {
        let check = |text: &str, lines, expect: &str| {
            let file = tempfile::tempfile().unwrap();
            Writer::create(file.try_clone().unwrap(), 1000).unwrap().write(text.as_bytes()).unwrap();
            let mut reader = Reader::new(file).unwrap();
            reader.keep_last_lines(lines).unwrap();
            let mut bytes = Vec::new();
            while reader.read(&mut bytes).unwrap() {}
            assert_eq!(String::from_utf8(bytes).unwrap(), expect, "{text:?} {lines}");
        };
        check("a\nb\nc\n", 2, "b\nc\n");
        check("a\nb\nc", 2, "b\nc");
        check("a\nb\n", 9, "a\nb\n");
        check("a\nb\n", 0, "");
        check("", 3, "");
    }

    #[test]
    fn a_reader_that_follows_sees_what_comes_and_a_new_beginning() {
        let file = tempfile::tempfile().unwrap();
        let mut writer = Writer::create(file.try_clone().unwrap(), 100).unwrap();
        writer.write(b"one").unwrap();
        let mut reader = Reader::new(file.try_clone().unwrap()).unwrap();
        let mut bytes = Vec::new();
        assert!(reader.read(&mut bytes).unwrap());
        assert!(!reader.read(&mut bytes).unwrap());
        Writer::open(file.try_clone().unwrap()).unwrap().write(b"two").unwrap();
        assert!(reader.read(&mut bytes).unwrap());
        Writer::create(file, 100).unwrap().write(b"3").unwrap();
        assert!(reader.read(&mut bytes).unwrap());
        assert_eq!(bytes, b"onetwo3");
    }

    proptest! {
        #[test]
        fn the_last_bytes_are_there_and_the_file_stays_small(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..12),
            capacity in 1u64..200,
        ) {
            let file = tempfile::tempfile().unwrap();
            let mut writer = Writer::create(file.try_clone().unwrap(), capacity).unwrap();
            for piece in &pieces {
                writer.write(piece).unwrap();
            }
            let all = pieces.concat();
            let expect = &all[all.len().saturating_sub(capacity as usize)..];
            prop_assert_eq!(contents(&file), expect);
            prop_assert!(file.metadata().unwrap().len() <= HEADER + capacity);
        }
    }
}
