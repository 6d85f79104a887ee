//! A log of fixed size: a file with the most recent bytes that were written to it.
//!
//! The file begins with a header: magic (8 bytes), capacity (8, little endian), the number of bytes ever written (8),
//! and that number once the current write is done (8). Byte `n` of the log is at `n` modulo the capacity after the
//! header. The only writer raises the last number before a write and the other one after it; readers look at both,
//! and drop what was overwritten in between. A guest may have taken over the process that writes the file, so readers
//! trust none of its numbers.
//!
//! Behind the bytes is a table of marks, which say when something was written: a position (8 bytes) and the time of the
//! write at it (8, microseconds since the Unix epoch), at most one for each second. The header has the number of marks
//! ever made (8), and mark `n` is at `n` modulo the size of the table. A log of an earlier version has no marks.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    time::{SystemTime, UNIX_EPOCH},
};

const MAGIC: [u8; 8] = *b"bgrring1";
const HEADER: u64 = 64;
const CAPACITY_AT: u64 = 8;
const WRITTEN_AT: u64 = 16;
const CLAIMED_AT: u64 = 24;
const MARKED_AT: u64 = 32;
/// How many marks are kept, and the size of each.
const MARKS: u64 = 16 << 10;
const MARK: u64 = 16;
/// The least time between two marks, in microseconds. What follows a mark was written within this time.
const MARK_INTERVAL: u64 = 1_000_000;
/// How much is claimed and written at a time.
const CHUNK: u64 = 64 << 10;
/// Larger than any log that the service makes.
const MAX_CAPACITY: u64 = 64 << 20;

/// The writing end.
#[derive(Debug)]
pub struct Writer {
    file: File,
    capacity: u64,
    written: u64,
    marked: u64,
    /// When the last mark was made.
    marked_usec: u64,
}

impl Writer {
    /// Makes this file an empty log, whatever it held before.
    pub fn create(file: File, capacity: u64) -> io::Result<Self> {
        file.set_len(0)?;
        file.write_all_at(&MAGIC, 0)?;
        file.write_all_at(&capacity.to_le_bytes(), CAPACITY_AT)?;
        file.write_all_at(&0u64.to_le_bytes(), WRITTEN_AT)?;
        file.write_all_at(&0u64.to_le_bytes(), CLAIMED_AT)?;
        file.write_all_at(&0u64.to_le_bytes(), MARKED_AT)?;
        Ok(Self { file, capacity, written: 0, marked: 0, marked_usec: 0 })
    }

    /// Continues a log made by [`Writer::create`].
    pub fn open(file: File) -> io::Result<Self> {
        let reader = Reader::new(file)?;
        let (written, marked) = (reader.written()?, reader.marked().unwrap_or_default());
        // Beyond this, a position in the log could overflow. No writer gets that far.
        if written.max(marked) > u64::MAX / 2 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the log is damaged"));
        }
        Ok(Self { capacity: reader.capacity, file: reader.file, written, marked, marked_usec: 0 })
    }

    /// Appends bytes, overwriting the oldest.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_at(bytes, now())
    }

    /// Does the same at this time, in microseconds since the Unix epoch.
    pub fn write_at(&mut self, bytes: &[u8], now: u64) -> io::Result<()> {
        // The clock may have been set back.
        if self.marked == 0 || now.abs_diff(self.marked_usec) >= MARK_INTERVAL {
            // On a full disk, a log without times is better than none.
            let _ = self.mark(now);
        }
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

    fn mark(&mut self, now: u64) -> io::Result<()> {
        let mut mark = [0; MARK as usize];
        mark[..8].copy_from_slice(&self.written.to_le_bytes());
        mark[8..].copy_from_slice(&now.to_le_bytes());
        self.file.write_all_at(&mark, HEADER + self.capacity + self.marked % MARKS * MARK)?;
        self.marked += 1;
        self.marked_usec = now;
        self.file.write_all_at(&self.marked.to_le_bytes(), MARKED_AT)
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
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

    /// Skips what was written more than a second before this time, in microseconds since the Unix epoch. Skips nothing
    /// if the log does not say when.
    pub fn skip_before(&mut self, usec: u64) -> io::Result<()> {
        if let Some(position) = self.position_at(usec.saturating_sub(MARK_INTERVAL - 1))? {
            self.position = self.position.max(position);
        }
        Ok(())
    }

    /// Returns the position of the first bytes that were written at this time or later. `None` if the log does not
    /// say, because it has no marks, or no longer those of that time.
    pub fn position_at(&self, usec: u64) -> io::Result<Option<u64>> {
        Ok(self.position_near(usec)?.and_then(|(position, is_exact)| is_exact.then_some(position)))
    }

    /// Returns the end of the bytes that were written before this time. Bytes whose time is not known any more count as
    /// older, up to the oldest mark. `None` if the log has no marks.
    pub fn position_before(&self, usec: u64) -> io::Result<Option<u64>> {
        Ok(self.position_near(usec)?.map(|(position, _)| position))
    }

    /// Returns the position of the first mark of this time or later, and whether no earlier mark of that time was lost.
    fn position_near(&self, usec: u64) -> io::Result<Option<(u64, bool)>> {
        // A log of an earlier version may end here.
        let marked = self.marked().unwrap_or_default();
        let mut table = vec![0; (marked.min(MARKS) * MARK) as usize];
        if marked == 0 || self.file.read_exact_at(&mut table, HEADER + self.capacity).is_err() {
            return Ok(None);
        }
        let numbers: Vec<u64> = table.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
        let (marks, _) = numbers.as_chunks::<2>();
        // Once the table is full, the oldest mark is where the next one goes.
        let oldest = if marked > MARKS { (marked % MARKS) as usize } else { 0 };
        let mut marks = marks[oldest..].iter().chain(&marks[..oldest]).enumerate();
        match marks.find(|(_, [_, marked_usec])| *marked_usec >= usec) {
            Some((at, [position, _])) => {
                Ok(Some(((*position).min(self.written()?), at > 0 || marked <= MARKS)))
            }
            None => Ok(Some((self.written()?, true))),
        }
    }

    fn marked(&self) -> io::Result<u64> {
        self.number(MARKED_AT)
    }

    /// Skips all but the last `lines` lines before position `end`.
    pub fn keep_last_lines(&mut self, lines: u32, end: u64) -> io::Result<()> {
        let mut kept = Vec::new();
        let end = end.min(self.written()?);
        self.position = self.position.max(end.saturating_sub(self.capacity));
        // The header may be wrong, and the log may grow: no more than fits in it is looked at.
        while kept.len() as u64 <= self.capacity && self.read_until(end, &mut kept)? {}
        let body = kept.strip_suffix(b"\n").unwrap_or(&kept);
        let left = match (lines as usize).checked_sub(1) {
            None => 0,
            Some(n) => {
                let newlines = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
                newlines.skip(n).map(|(at, _)| kept.len() - at - 1).next().unwrap_or(kept.len())
            }
        };
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
            let end = reader.written().unwrap();
            reader.keep_last_lines(lines, end).unwrap();
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
    fn a_part_of_a_log_is_found_by_the_time_of_its_writing() {
        const SECOND: u64 = 1_000_000;
        let file = tempfile::tempfile().unwrap();
        let mut writer = Writer::create(file.try_clone().unwrap(), 1000).unwrap();
        for (usec, line) in [(10, "a\n"), (10, "b\n"), (20, "c\n"), (30, "d\n")] {
            writer.write_at(line.as_bytes(), usec * SECOND).unwrap();
        }
        let check = |since: Option<u64>, until: Option<u64>, lines: Option<u32>, expect: &str| {
            let mut reader = Reader::new(file.try_clone().unwrap()).unwrap();
            let end = until.map(|until| reader.position_before(until * SECOND).unwrap().unwrap());
            let end = end.unwrap_or(u64::MAX);
            since.into_iter().for_each(|since| reader.skip_before(since * SECOND).unwrap());
            lines.into_iter().for_each(|lines| reader.keep_last_lines(lines, end).unwrap());
            let mut bytes = Vec::new();
            while reader.read_until(end, &mut bytes).unwrap() {}
            assert_eq!(String::from_utf8(bytes).unwrap(), expect, "{since:?} {until:?} {lines:?}");
        };
        check(Some(0), None, None, "a\nb\nc\nd\n");
        check(Some(20), None, None, "c\nd\n");
        check(Some(12), None, None, "c\nd\n");
        check(Some(99), None, None, "");
        check(None, Some(20), None, "a\nb\n");
        check(None, Some(99), None, "a\nb\nc\nd\n");
        check(None, Some(10), None, "");
        check(Some(10), Some(30), Some(1), "c\n");
        check(Some(30), None, Some(9), "d\n");
        check(Some(30), Some(20), None, "");
        // After a restart of its writer, the marks continue.
        Writer::open(file.try_clone().unwrap()).unwrap().write_at(b"e\n", 40 * SECOND).unwrap();
        check(Some(40), None, None, "e\n");
    }

    #[test]
    fn times_that_are_not_known_skip_nothing() {
        let file = tempfile::tempfile().unwrap();
        let mut writer = Writer::create(file.try_clone().unwrap(), 100).unwrap();
        let reader = Reader::new(file.try_clone().unwrap()).unwrap();
        assert_eq!(reader.position_at(0).unwrap(), None);
        for second in 0..=MARKS {
            writer.write_at(b"x", second * MARK_INTERVAL).unwrap();
        }
        assert_eq!(reader.position_at(0).unwrap(), None, "its mark is overwritten");
        assert_eq!(reader.position_before(0).unwrap(), Some(1), "the oldest mark that is left");
        assert_eq!(reader.position_at(7 * MARK_INTERVAL).unwrap(), Some(7));
        assert_eq!(reader.position_at(u64::MAX).unwrap(), Some(MARKS + 1));
        // A writer that a guest has taken over may say anything.
        file.write_all_at(&u64::MAX.to_le_bytes(), MARKED_AT).unwrap();
        let _ = reader.position_at(7);
        file.write_all_at(&1u64.to_le_bytes(), MARKED_AT).unwrap();
        file.write_all_at(&[u8::MAX; MARK as usize], HEADER + 100).unwrap();
        let mut reader = Reader::new(file).unwrap();
        reader.skip_before(7).unwrap();
        assert!(!reader.read(&mut Vec::new()).unwrap_or_default());
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
            prop_assert!(file.metadata().unwrap().len() <= HEADER + capacity + MARKS * MARK);
        }
    }
}
