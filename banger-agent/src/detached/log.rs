//! The output of a detached command: its last bytes, in files of bounded size that are named by their offset in the
//! whole output. Two files are kept, so at least the size of one can be read. Output that could not be written
//! because the disk was full is a gap between two files.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// Suffix of the files.
const SUFFIX: &str = ".log";
/// Bytes read at once.
const CHUNK: usize = 16 << 10;

/// Records the output of a command.
pub struct Writer {
    directory: PathBuf,
    /// The maximum size of a file.
    max_size: u64,
    file: Option<(File, u64)>,
    /// Bytes that the command has written so far.
    at: u64,
}

impl Writer {
    pub fn new(directory: &Path, max_size: u64) -> Self {
        Self { directory: directory.to_owned(), max_size, file: None, at: 0 }
    }

    /// Records bytes, and drops what cannot be written: the command must not block.
    pub fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.write_some(bytes) {
                Ok(count) => {
                    self.at += count as u64;
                    bytes = &bytes[count..];
                }
                Err(_) => {
                    self.at += bytes.len() as u64;
                    self.file = None;
                    return;
                }
            }
        }
    }

    fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.file.as_ref().is_none_or(|(_, begin)| self.at - begin >= self.max_size) {
            self.file = None;
            let mut segments = segments(&self.directory)?;
            segments.pop();
            for segment in segments {
                fs::remove_file(segment.path)?;
            }
            let path = self.directory.join(format!("{:020}{SUFFIX}", self.at));
            self.file = Some((File::create(path)?, self.at));
        }
        let Some((file, begin)) = &mut self.file else { return Ok(0) };
        let room = usize::try_from(self.max_size - (self.at - *begin)).unwrap_or(usize::MAX);
        match file.write(&bytes[..bytes.len().min(room)]) {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            written => written,
        }
    }
}

/// A file, and its range of the whole output.
struct Segment {
    begin: u64,
    length: u64,
    path: PathBuf,
}

/// Returns the files in order.
fn segments(directory: &Path) -> io::Result<Vec<Segment>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(SUFFIX));
        if let Some(begin) = name.and_then(|name| name.parse().ok())
            && let Ok(found) = fs::metadata(&path)
        {
            segments.push(Segment { begin, length: found.len(), path });
        }
    }
    segments.sort_by_key(|segment| segment.begin);
    Ok(segments)
}

/// Returns how many bytes a command has written, and how many of them are kept.
pub fn size(directory: &Path) -> (u64, u64) {
    let segments = segments(directory).unwrap_or_default();
    let written = segments.last().map_or(0, |last| last.begin + last.length);
    (written, segments.iter().map(|segment| segment.length).sum())
}

/// Reads the output of a command, even while it runs.
pub struct Reader {
    directory: PathBuf,
    file: Option<(File, u64)>,
    at: u64,
}

/// The result of reading.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    Bytes(Vec<u8>),
    /// This many bytes were dropped.
    Cut(u64),
    /// No more output for now.
    End,
}

impl Reader {
    /// Starts at the oldest kept byte, or at the last `lines` lines.
    pub fn new(directory: &Path, lines: Option<u32>) -> io::Result<Self> {
        let at = lines.map_or(Ok(0), |lines| offset_of_last_lines(directory, lines))?;
        Ok(Self { directory: directory.to_owned(), file: None, at })
    }

    /// Starts at the last `bytes` bytes.
    pub fn of_last_bytes(directory: &Path, bytes: u64) -> Self {
        let at = size(directory).0.saturating_sub(bytes);
        Self { directory: directory.to_owned(), file: None, at }
    }

    pub fn next(&mut self) -> io::Result<Read> {
        if let Some((file, begin)) = &self.file {
            let mut bytes = vec![0; CHUNK];
            let count = file.read_at(&mut bytes, self.at - begin)?;
            if count > 0 {
                bytes.truncate(count);
                self.at += count as u64;
                return Ok(Read::Bytes(bytes));
            }
        }
        // The file stays open: it may grow, and its content is still readable if it is removed meanwhile.
        let following = segments(&self.directory)?.into_iter().find(|s| s.begin + s.length > self.at);
        let Some(Segment { begin, path, .. }) = following else { return Ok(Read::End) };
        match File::open(path) {
            // It was the oldest.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.next(),
            opened => self.file = Some((opened?, begin)),
        }
        if begin > self.at {
            let cut = begin - self.at;
            self.at = begin;
            return Ok(Read::Cut(cut));
        }
        self.next()
    }
}

/// Returns the offset of the last lines.
fn offset_of_last_lines(directory: &Path, lines: u32) -> io::Result<u64> {
    let segments = segments(directory)?;
    let Some(first) = segments.first().map(|segment| segment.begin) else { return Ok(0) };
    let mut left = u64::from(lines);
    for (index, segment) in segments.iter().enumerate().rev() {
        let bytes = fs::read(&segment.path)?;
        // The end of the last line begins no other.
        let is_last = index + 1 == segments.len();
        let counted = if is_last && bytes.ends_with(b"\n") { bytes.len() - 1 } else { bytes.len() };
        if is_last && left == 0 {
            return Ok(segment.begin + bytes.len() as u64);
        }
        for (at, _) in bytes[..counted].iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            left -= 1;
            if left == 0 {
                return Ok(segment.begin + at as u64 + 1);
            }
        }
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(reader: &mut Reader) -> (String, u64) {
        let (mut text, mut cut) = (String::new(), 0);
        loop {
            match reader.next().unwrap() {
                Read::Bytes(bytes) => text.push_str(&String::from_utf8(bytes).unwrap()),
                Read::Cut(count) => cut += count,
                Read::End => return (text, cut),
            }
        }
    }

    #[test]
    fn the_last_bytes_are_kept_and_dropped_bytes_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(dir.path(), 10);
        let mut reader = Reader::new(dir.path(), None).unwrap();
        assert_eq!(read(&mut reader), (String::new(), 0));
        writer.write(b"0123456");
        assert_eq!(read(&mut reader), ("0123456".into(), 0));
        writer.write(b"789abcdefghijklmnopqrstuvwxyz");
        // A reader that has kept up misses nothing.
        assert_eq!(read(&mut reader), ("789klmnopqrstuvwxyz".into(), 10));
        assert_eq!(read(&mut Reader::new(dir.path(), None).unwrap()), ("klmnopqrstuvwxyz".into(), 20));
        assert_eq!(size(dir.path()), (36, 16));
    }

    #[test]
    fn the_last_lines_are_those_of_tail() {
        for (text, lines, expect) in [
            ("", 3, ""),
            ("a\nb\nc\n", 0, ""),
            ("a\nb\nc\n", 1, "c\n"),
            ("a\nb\nc", 1, "c"),
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc\n", 9, "a\nb\nc\n"),
            ("\n\n\n", 2, "\n\n"),
            // Across files.
            ("12345678\n12345678\nx\ny\n", 3, "12345678\nx\ny\n"),
            ("123456789\n12345678\ny", 2, "12345678\ny"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            Writer::new(dir.path(), 12).write(text.as_bytes());
            let found = read(&mut Reader::new(dir.path(), Some(lines)).unwrap()).0;
            assert_eq!(found, expect, "{lines} of {text:?}");
        }
    }

    #[test]
    fn failed_writes_leave_a_gap() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(dir.path(), 100);
        writer.write(b"before");
        let elsewhere = std::mem::replace(&mut writer.directory, "/nonexistent".into());
        writer.file = None;
        writer.write(b"lost");
        writer.directory = elsewhere;
        writer.write(b"after");
        assert_eq!(read(&mut Reader::new(dir.path(), None).unwrap()), ("beforeafter".into(), 4));
    }
}
