//! The encoding of a directory tree as a stream of entries: a letter for the kind, the permission bits in octal, a
//! space, the size, a space, the name relative to the directory, and a zero byte.

/// The longest entry: the longest path of Linux and the fields before it.
const MAX_ENTRY: usize = 4096 + 64;

/// The kind of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, a socket or a pipe.
    Other,
}

impl Kind {
    const ALL: [(Kind, u8); 4] =
        [(Kind::File, b'f'), (Kind::Directory, b'd'), (Kind::Symlink, b'l'), (Kind::Other, b'o')];

    fn letter(self) -> u8 {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or(b'o', |(_, letter)| *letter)
    }
}

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Its size in bytes.
    pub size: u64,
    /// Its name, relative to the directory.
    pub name: Vec<u8>,
}

impl Entry {
    /// Appends the entry to a stream.
    pub fn write(&self, to: &mut Vec<u8>) {
        to.push(self.kind.letter());
        to.extend(format!("{:o} {} ", self.mode, self.size).bytes());
        to.extend(&self.name);
        to.push(0);
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (letter, rest) = bytes.split_first()?;
        let mut fields = rest.splitn(3, |byte| *byte == b' ');
        let mut number = |radix| u64::from_str_radix(std::str::from_utf8(fields.next()?).ok()?, radix).ok();
        let (mode, size) = (number(8)?, number(10)?);
        let kind = Kind::ALL.iter().find(|(_, known)| known == letter)?.0;
        let name = fields.next().filter(|name| !name.is_empty())?.to_vec();
        Some(Self { kind, mode: u32::try_from(mode).ok()?, size, name })
    }
}

/// The error for bytes that are not an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot read the listing of a directory")]
pub struct Malformed;

/// Decodes entries from a byte stream.
#[derive(Debug, Default)]
pub struct Reader {
    rest: Vec<u8>,
}

impl Reader {
    /// Adds received bytes and returns the entries that are now complete.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Entry>, Malformed> {
        self.rest.extend_from_slice(bytes);
        let end = self.rest.iter().rposition(|byte| *byte == 0).map_or(0, |last| last + 1);
        let complete: Vec<u8> = self.rest.drain(..end).collect();
        if self.rest.len() > MAX_ENTRY {
            return Err(Malformed);
        }
        let entries = complete.split_inclusive(|byte| *byte == 0);
        entries
            .map(|entry| Entry::parse(entry.strip_suffix(&[0]).ok_or(Malformed)?).ok_or(Malformed))
            .collect()
    }

    /// Ends the stream. Fails if the last entry is incomplete.
    pub fn end(self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn entries_are_decoded_from_any_chunks() {
        let entry = |kind, name: &[u8]| Entry { kind, mode: 0o4755, size: 5 << 30, name: name.to_vec() };
        let entries = [
            entry(Kind::File, b"a b\nc"),
            entry(Kind::Symlink, b"\xff/x"),
            entry(Kind::Directory, b"d"),
            entry(Kind::Other, b"fifo"),
        ];
        let mut bytes = Vec::new();
        entries.iter().for_each(|entry| entry.write(&mut bytes));
        for piece in [1, 5, bytes.len()] {
            let mut reader = Reader::default();
            let read: Vec<_> = bytes.chunks(piece).flat_map(|bytes| reader.push(bytes).unwrap()).collect();
            assert_eq!(read, entries);
            assert_eq!(reader.end(), Ok(()));
        }
    }

    #[test]
    fn invalid_entries_are_refused() {
        for bytes in
            [&b"f644 5 \0"[..], b"f644 x name\0", b"x644 5 name\0", b"f9 5 name\0", b"\0", &[b'f'; 5000]]
        {
            assert_eq!(Reader::default().push(bytes), Err(Malformed), "{}", bytes.escape_ascii());
        }
        let mut reader = Reader::default();
        reader.push(b"f644 5 na").unwrap();
        assert_eq!(reader.end(), Err(Malformed));
    }

    proptest! {
        #[test]
        fn any_bytes_are_entries_or_an_error(bytes: Vec<u8>) {
            let _ = Reader::default().push(&bytes);
        }
    }
}
