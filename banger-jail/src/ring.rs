//! A log of fixed size: a file with the most recent bytes that were written to it.
//!
//! The file begins with a header: magic (8 bytes), capacity (8, little endian), the number of bytes ever written (8),
//! and that number once the current write is done (8). Byte `n` of the log is at `n` modulo the capacity after the
//! header. The only writer raises the last number before a write and the other one after it; readers look at both,
//! and drop what was overwritten in between. A guest may have taken over the process that writes the file, so readers
//! trust none of its numbers.

use std::{fs::File, io, os::unix::fs::FileExt};

const MAGIC: [u8; 8] = *b"bgrring1";
const HEADER: u64 = 64;
const CAPACITY_AT: u64 = 8;
const WRITTEN_AT: u64 = 16;
const CLAIMED_AT: u64 = 24;
/// How much is claimed and written at a time.
const CHUNK: u64 = 64 << 10;
/// Larger than any log that the service makes.
const MAX_CAPACITY: u64 = 1 << 30;

/// The writing end.
#[derive(Debug)]
pub struct Writer {
    file: File,
    capacity: u64,
    written: u64,
}

impl Writer {
    /// Makes this file an empty log, whatever it held before.
    pub fn create(file: File, capacity: u64) -> io::Result<Self> {
        file.set_len(0)?;
        file.write_all_at(&MAGIC, 0)?;
        file.write_all_at(&capacity.to_le_bytes(), CAPACITY_AT)?;
        file.write_all_at(&0u64.to_le_bytes(), WRITTEN_AT)?;
        file.write_all_at(&0u64.to_le_bytes(), CLAIMED_AT)?;
        Ok(Self { file, capacity, written: 0 })
    }

    /// Continues a log made by [`Writer::create`].
    pub fn open(file: File) -> io::Result<Self> {
        let reader = Reader::new(file)?;
        // Beyond this, a position in the log could overflow. No writer gets that far.
        let written = reader.written()?;
        if written > u64::MAX / 2 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the log is damaged"));
        }
        Ok(Self { capacity: reader.capacity, file: reader.file, written })
    }

    /// Appends bytes, overwriting the oldest.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        for chunk in bytes.chunks(self.capacity.min(CHUNK) as usize) {
            let written = self.written + chunk.len() as u64;
            self.file.write_all_at(&written.to_le_bytes(), CLAIMED_AT)?;
            let at = self.written % self.capacity;
            let (first, second) = chunk.split_at(chunk.len().min((self.capacity - at) as usize));
            self.file.write_all_at(first, HEADER + at)?;
            self.file.write_all_at(second, HEADER)?;
            self.file.write_all_at(&written.to_le_bytes(), WRITTEN_AT)?;
            self.written = written;
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
    /// Opens a log at the oldest byte that is kept.
    pub fn new(file: File) -> io::Result<Self> {
        let mut header = [0; 16];
        file.read_exact_at(&mut header, 0)?;
        let mut reader = Self { file, capacity: 0, position: 0 };
        reader.capacity = reader.number(CAPACITY_AT)?;
        if header[..8] != MAGIC || !(1..=MAX_CAPACITY).contains(&reader.capacity) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is not a log of banger"));
        }
        reader.position = reader.oldest()?;
        Ok(reader)
    }

    /// Returns the number of bytes ever written, where a reader that does not follow stops.
    pub fn written(&self) -> io::Result<u64> {
        self.number(WRITTEN_AT)
    }

    /// Skips all but the last `bytes` bytes.
    pub fn keep_last(&mut self, bytes: u64) -> io::Result<()> {
        self.position = self.position.max(self.written()?.saturating_sub(bytes));
        Ok(())
    }

    /// Skips all but the last `lines` lines.
    pub fn keep_last_lines(&mut self, lines: u32) -> io::Result<()> {
        let (mut kept, mut begins) = (Vec::new(), Vec::new());
        // The writer may be faster than this reader: bytes from now on belong to the last line.
        let end = self.written()?;
        while self.read_until(end, &mut kept)? {}
        if !kept.is_empty() {
            begins.push(0);
        }
        let ends = kept.iter().enumerate().filter(|(at, byte)| **byte == b'\n' && at + 1 < kept.len());
        begins.extend(ends.map(|(at, _)| at + 1));
        let skipped = begins.len().checked_sub(lines as usize).map_or(Some(0), |n| begins.get(n).copied());
        let left = kept.len() - skipped.unwrap_or(kept.len());
        self.position -= (left as u64).min(self.position);
        Ok(())
    }

    /// Appends new bytes to the buffer, at most 64 KiB. Returns `false` if there are none.
    pub fn read(&mut self, into: &mut Vec<u8>) -> io::Result<bool> {
        self.read_until(u64::MAX, into)
    }

    /// Appends new bytes before position `end`, like [`Reader::read`].
    pub fn read_until(&mut self, end: u64, into: &mut Vec<u8>) -> io::Result<bool> {
        loop {
            let written = self.written()?;
            if written < self.position {
                // The sandbox was started again, with a new log.
                self.position = 0;
            }
            self.position = self.position.max(self.oldest()?);
            let at = self.position % self.capacity;
            let ready = written.min(end).saturating_sub(self.position);
            let count = ready.min(CHUNK).min(self.capacity - at);
            if count == 0 {
                return Ok(false);
            }
            let mut bytes = vec![0; count as usize];
            self.file.read_exact_at(&mut bytes, HEADER + at)?;
            if self.oldest()? > self.position {
                continue;
            }
            self.position += count;
            into.extend(bytes);
            return Ok(true);
        }
    }

    /// Returns the position of the oldest byte that is not overwritten or about to be.
    fn oldest(&self) -> io::Result<u64> {
        Ok(self.number(CLAIMED_AT)?.saturating_sub(self.capacity))
    }

    fn number(&self, at: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, at)?;
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
    fn a_reader_that_follows_sees_new_bytes_and_a_new_log() {
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

    #[test]
    fn a_reader_beside_a_fast_writer_sees_nothing_that_is_torn() {
        let file = tempfile::tempfile().unwrap();
        let mut writer = Writer::create(file.try_clone().unwrap(), 4096).unwrap();
        let words = |from: u64| (from..from + 128).flat_map(u64::to_le_bytes).collect::<Vec<u8>>();
        writer.write(&words(1)).unwrap();
        let mut reader = Reader::new(file).unwrap();
        std::thread::scope(|threads| {
            let writing = threads.spawn(move || {
                for round in 1..20_000 {
                    writer.write(&words(1 + round * 128)).unwrap();
                }
            });
            let (mut last, mut bytes) = (0, Vec::new());
            while !writing.is_finished() {
                bytes.clear();
                reader.read(&mut bytes).unwrap();
                for word in bytes.as_chunks().0 {
                    let word = u64::from_le_bytes(*word);
                    assert!(word > last, "{word} behind {last}");
                    last = word;
                }
            }
        });
    }

    #[test]
    fn a_reader_stops_at_its_end() {
        let file = tempfile::tempfile().unwrap();
        let mut writer = Writer::create(file.try_clone().unwrap(), 100).unwrap();
        writer.write(b"before").unwrap();
        let mut reader = Reader::new(file).unwrap();
        let (end, mut bytes) = (reader.written().unwrap(), Vec::new());
        writer.write(b"behind").unwrap();
        while reader.read_until(end, &mut bytes).unwrap() {}
        assert_eq!(bytes, b"before");
        writer.write(&[b'x'; 200]).unwrap();
        assert!(!reader.read_until(end, &mut bytes).unwrap());
    }

    #[test]
    fn a_header_with_impossible_numbers_is_refused() {
        for capacity in [0, u64::MAX, MAX_CAPACITY + 1] {
            let file = tempfile::tempfile().unwrap();
            Writer::create(file.try_clone().unwrap(), 100).unwrap();
            file.write_all_at(&capacity.to_le_bytes(), CAPACITY_AT).unwrap();
            assert!(Reader::new(file).is_err(), "{capacity}");
        }
        for at in [WRITTEN_AT, CLAIMED_AT] {
            let file = tempfile::tempfile().unwrap();
            Writer::create(file.try_clone().unwrap(), 100).unwrap().write(b"some").unwrap();
            file.write_all_at(&u64::MAX.to_le_bytes(), at).unwrap();
            let mut bytes = Vec::new();
            // Any result is fine, as long as there is one.
            let _ = Reader::new(file).map(|mut reader| reader.read(&mut bytes));
            assert!(bytes.len() <= 100, "{at}");
        }
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
