//! Reads one file for an archive: announces a length, finds the parts that are data, and sends exactly the announced
//! bytes, whatever happens to the file meanwhile.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt},
};

use rustix::fs::{SeekFrom, fstatfs, seek};
use tar::{EntryType, GnuExtSparseHeader, Header};

/// Limit on the bytes read from a file whose length is unknown.
const MAX_SPOOL: u64 = 16 << 20;
/// Limit on the data parts of a file, which our readers accept. The last holes of a file with more are sent as zeros.
const MAX_PARTS: usize = 40_000;
/// Block size of an archive.
const BLOCK: u64 = 512;
/// Files with fewer bytes of holes are sent with zeros instead.
const MIN_HOLES: u64 = 16 << 10;

/// File systems whose files have meaningless lengths, because the kernel generates the content on each read
/// (`linux/magic.h`).
const VIRTUAL_FILE_SYSTEMS: [u64; 17] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x6265_6570, // configfs
    0x7363_6673, // securityfs
    0xcafe_4a11, // bpf
    0xde5e_81e4, // efivarfs
    0x6165_676c, // pstore
    0x4249_4e4d, // binfmt_misc
    0xf97c_ff8c, // selinuxfs
    0x4341_5d53, // smackfs
    0x6e73_6673, // nsfs
    0x1cd1,      // devpts
    0x5846_5342, // xenfs
];
/// File systems whose files usually have the length they report: FUSE and virtiofs, and 9p.
const UNRELIABLE_LENGTHS: [u64; 2] = [0x6573_5546, 0x0102_1997];

/// A part of a file: its offset and its length.
type Part = (u64, u64);

/// The content of a file.
#[derive(Debug)]
pub struct Content {
    file: File,
    /// Bytes that were already read.
    spool: io::Cursor<Vec<u8>>,
    /// The announced length.
    pub size: u64,
    /// The parts that are data, if the file has holes.
    parts: Option<Vec<Part>>,
    /// How reading it ended.
    outcome: Outcome,
}

/// How reading a file ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Outcome {
    #[default]
    Whole,
    /// The file of unknown length was longer than the limit.
    Truncated,
    /// The file was shorter than announced.
    Shrank,
}

impl Content {
    /// Opens the content of a file whose position is at its start. `sparse` allows holes in the archive.
    pub fn of(mut file: File, sparse: bool) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let magic = fstatfs(&file).map(|found| found.f_type as u64 & 0xffff_ffff).unwrap_or_default();
        let (made_up, doubtful) =
            (VIRTUAL_FILE_SYSTEMS.contains(&magic), UNRELIABLE_LENGTHS.contains(&magic));
        let mut content = Self {
            size: metadata.len(),
            spool: io::Cursor::default(),
            parts: None,
            outcome: Outcome::Whole,
            file: file.try_clone()?,
        };
        if content.size > 0 && !made_up && !doubtful {
            if sparse && metadata.blocks().saturating_mul(512) < content.size {
                content.parts = parts(&file, content.size);
            }
            return Ok(content);
        }
        let mut bytes = Vec::new();
        let ended = spool(&mut file, &mut bytes)?;
        let read = bytes.len() as u64;
        content.spool = io::Cursor::new(bytes);
        match ended {
            true => content.size = read,
            // The reported length is most likely right.
            false if doubtful && content.size > read => {}
            false => {
                content.size = read;
                content.outcome = Outcome::Truncated;
            }
        }
        Ok(content)
    }

    /// Completes the header for this content. Returns the blocks that come between it and the data.
    pub fn announce(&self, header: &mut Header) -> Vec<u8> {
        let Some(parts) = &self.parts else {
            header.set_size(self.size);
            return Vec::new();
        };
        header.set_entry_type(EntryType::GNUSparse);
        header.set_size(parts.iter().map(|part| part.1).sum());
        let Some(gnu) = header.as_gnu_mut() else { return Vec::new() };
        gnu.set_real_size(self.size);
        let (first, rest) = parts.split_at(parts.len().min(gnu.sparse.len()));
        for (slot, part) in gnu.sparse.iter_mut().zip(first) {
            slot.set_offset(part.0);
            slot.set_length(part.1);
        }
        gnu.set_is_extended(!rest.is_empty());
        let mut blocks = Vec::new();
        let mut pieces = rest.chunks(GnuExtSparseHeader::new().sparse().len()).peekable();
        while let Some(piece) = pieces.next() {
            let mut block = GnuExtSparseHeader::new();
            for (slot, part) in block.sparse_mut().iter_mut().zip(piece) {
                slot.set_offset(part.0);
                slot.set_length(part.1);
            }
            block.set_is_extended(pieces.peek().is_some());
            blocks.extend_from_slice(block.as_bytes());
        }
        blocks
    }

    /// Returns a reader of the announced bytes.
    pub fn data(&mut self) -> Data<'_> {
        let whole = vec![(0, self.size)];
        let parts = self.parts.clone().unwrap_or(whole);
        Data { content: self, parts: parts.into_iter(), now: (0, 0), failed: None }
    }

    /// Returns a note about the content, once it was read.
    pub fn note(&self) -> Option<String> {
        match self.outcome {
            Outcome::Truncated => {
                Some(format!("has no known length: only its first {} MiB were copied", MAX_SPOOL >> 20))
            }
            Outcome::Shrank => {
                Some("shrank while it was copied: the missing end is zeros in the copy".to_owned())
            }
            Outcome::Whole => {
                let now = self.file.metadata().map(|metadata| metadata.len()).unwrap_or_default();
                let spooled = !self.spool.get_ref().is_empty();
                (now > self.size && !spooled)
                    .then(|| format!("grew while it was copied: the copy has its first {} bytes", self.size))
            }
        }
    }
}

/// Reads a file of unknown length. Returns whether this was the whole file.
fn spool(file: &mut File, bytes: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(true),
            Ok(count) if bytes.len() as u64 + count as u64 > MAX_SPOOL => {
                bytes.extend_from_slice(&buffer[..(MAX_SPOOL as usize) - bytes.len()]);
                return Ok(false);
            }
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A kernel log without new messages.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        }
    }
}

/// Returns the parts of a file that are data, in whole blocks; `None` if it has no large holes, or its file system
/// does not report them.
fn parts(file: &File, size: u64) -> Option<Vec<Part>> {
    let mut parts: Vec<Part> = Vec::new();
    let mut at = 0;
    while at < size {
        let Ok(begin) = seek(file, SeekFrom::Data(at)) else { break };
        let end = match seek(file, SeekFrom::Hole(begin)) {
            Ok(end) if end > begin && parts.len() < MAX_PARTS => end,
            Ok(end) if end > begin => size,
            _ => return rewound(file, None),
        };
        let begin = begin / BLOCK * BLOCK;
        let end = end.next_multiple_of(BLOCK).min(size);
        match parts.last_mut() {
            Some(last) if last.0 + last.1 >= begin => last.1 = end.max(last.0 + last.1) - last.0,
            _ if begin < size => parts.push((begin, end - begin)),
            _ => {}
        }
        at = end;
    }
    let data: u64 = parts.iter().map(|part| part.1).sum();
    if size - data < MIN_HOLES {
        return rewound(file, None);
    }
    // The end of the file; GNU tar writes it, too.
    parts.push((size, 0));
    rewound(file, Some(parts))
}

/// Seeks to the start: the search for holes has moved the position.
fn rewound(file: &File, parts: Option<Vec<Part>>) -> Option<Vec<Part>> {
    seek(file, SeekFrom::Start(0)).ok().and(parts)
}

/// A reader of the announced bytes.
pub struct Data<'a> {
    content: &'a mut Content,
    parts: std::vec::IntoIter<Part>,
    now: Part,
    /// The error that ended reading.
    pub failed: Option<io::Error>,
}

impl Read for Data<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.now.1 == 0 {
            match self.parts.next() {
                Some(part) => self.now = part,
                None => return Ok(0),
            }
        }
        let most = into.len().min(usize::try_from(self.now.1).unwrap_or(usize::MAX));
        let into = &mut into[..most];
        let holes = self.content.parts.is_some();
        let count = match self.content.spool.read(into)? {
            0 if self.content.outcome == Outcome::Shrank => 0,
            0 if holes => self.attempt(|content, at| content.file.read_at(into, at))?,
            0 => self.attempt(|content, _| content.file.read(into))?,
            count => count,
        };
        let count = match count {
            0 => {
                self.content.outcome = Outcome::Shrank;
                into.fill(0);
                into.len()
            }
            count => count,
        };
        self.now = (self.now.0 + count as u64, self.now.1 - count as u64);
        Ok(count)
    }
}

impl Data<'_> {
    fn attempt(&mut self, mut read: impl FnMut(&mut Content, u64) -> io::Result<usize>) -> io::Result<usize> {
        loop {
            match read(self.content, self.now.0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let kind = error.kind();
                    self.failed = Some(error);
                    return Err(kind.into());
                }
                Ok(count) => return Ok(count),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs, io::Write};

    use super::*;

    fn read(content: &mut Content) -> Vec<u8> {
        let mut bytes = Vec::new();
        content.data().read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn announced_bytes_are_sent_whatever_happens_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for (change, expect, remark) in [
            (None, &b"12345"[..], None),
            (
                Some(&b"123456789"[..]),
                b"12345",
                Some("grew while it was copied: the copy has its first 5 bytes"),
            ),
            (
                Some(b"12"),
                b"12\0\0\0",
                Some("shrank while it was copied: the missing end is zeros in the copy"),
            ),
        ] {
            fs::write(&path, "12345").unwrap();
            let mut content = Content::of(File::open(&path).unwrap(), true).unwrap();
            if let Some(change) = change {
                let mut file = File::options().write(true).truncate(true).open(&path).unwrap();
                file.write_all(change).unwrap();
            }
            assert_eq!((content.size, read(&mut content).as_slice()), (5, expect));
            assert_eq!(content.note().as_deref(), remark);
        }
    }

    #[test]
    fn a_file_with_a_meaningless_length_is_read_first() {
        for path in ["/proc/version", "/proc/cpuinfo", "/sys/kernel/mm/transparent_hugepage/enabled"] {
            let Ok(expect) = fs::read(path) else { continue };
            let mut content = Content::of(File::open(path).unwrap(), true).unwrap();
            assert_eq!(content.size, expect.len() as u64, "{path}");
            assert_eq!((read(&mut content), content.note()), (expect, None), "{path}");
        }
    }

    #[test]
    fn an_endless_file_is_truncated_and_noted() {
        // `/dev/zero` reports a length of 0, and never ends.
        let mut content = Content::of(File::open("/dev/zero").unwrap(), true).unwrap();
        assert_eq!((content.size, read(&mut content).len() as u64), (MAX_SPOOL, MAX_SPOOL));
        assert_eq!(content.note().as_deref(), Some("has no known length: only its first 16 MiB were copied"));
    }

    #[test]
    fn holes_are_left_out_in_whole_blocks() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(300 << 20).unwrap();
        file.write_all_at(b"a", 100).unwrap();
        file.write_all_at(b"b", 200 << 20).unwrap();
        let mut content = Content::of(file, true).unwrap();
        let parts = content.parts.clone().unwrap();
        assert!(parts.iter().all(|part| part.0 % BLOCK == 0), "{parts:?}");
        assert_eq!(parts.last(), Some(&(300 << 20, 0)));
        let mut header = Header::new_gnu();
        content.announce(&mut header);
        let size = header.entry_size().unwrap();
        assert!(size < 1 << 20 && header.entry_type() == EntryType::GNUSparse, "{size}");
        assert_eq!(read(&mut content).len() as u64, size);
    }
}
