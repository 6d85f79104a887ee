//! Limits an archive from a hostile guest: the reader keeps long names in memory before an entry, so their size is
//! limited to what valid archives need.

use std::io::{self, Read};

/// Block size of an archive.
const BLOCK: usize = 512;
/// Limit on a long name; a path has at most 4096 bytes.
const MAX_NAME: u64 = 64 << 10;
/// Limit on the blocks of a sparse map, with 21 parts each.
const MAX_MAP_BLOCKS: u32 = 2048;
/// Types of entries with the name or the link target of the next one (GNU).
const LONG_NAMES: [u8; 2] = [b'L', b'K'];
/// Types of pax headers, which the agent does not write: they could change the size of the next entry.
const PAX_HEADERS: [u8; 2] = [b'x', b'g'];
/// Type of a sparse file.
const SPARSE: u8 = b'S';
/// Offsets of the flags that say whether the map continues in the next block: in the header, and in a block of the
/// map.
const HEADER_CONTINUES_AT: usize = 482;
const MAP_CONTINUES_AT: usize = 504;

/// Passes a valid archive through, and fails on any other.
#[derive(Debug)]
pub struct BoundedArchive<R> {
    from: R,
    block: Vec<u8>,
    /// Bytes of content and padding before the next header.
    content: u64,
    /// The kind of the next block.
    next: Block,
}

#[derive(Debug, Clone, Copy)]
enum Block {
    Head,
    /// Part of a map: the number of its blocks so far, and the size of the content.
    Map(u32, u64),
}

impl<R: Read> BoundedArchive<R> {
    /// Wraps a reader of an archive.
    pub fn new(from: R) -> Self {
        Self { from, block: Vec::with_capacity(BLOCK), content: 0, next: Block::Head }
    }

    /// Checks bytes that pass.
    fn look(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.content > 0 {
                let now = usize::try_from(self.content).unwrap_or(usize::MAX).min(bytes.len());
                self.content -= now as u64;
                bytes = &bytes[now..];
                continue;
            }
            let now = (BLOCK - self.block.len()).min(bytes.len());
            self.block.extend_from_slice(&bytes[..now]);
            bytes = &bytes[now..];
            if self.block.len() == BLOCK {
                (self.next, self.content) = after_block(self.next, &self.block)?;
                self.block.clear();
            }
        }
        Ok(())
    }
}

/// Returns the kind of the next block, and the bytes of content before it.
fn after_block(what: Block, block: &[u8]) -> io::Result<(Block, u64)> {
    let (size, goes_on, maps) = match what {
        Block::Head if block.iter().all(|byte| *byte == 0) => return Ok((Block::Head, 0)),
        Block::Head => {
            let header = tar::Header::from_byte_slice(block);
            let (kind, size) = (header.entry_type().as_byte(), header.entry_size()?);
            if PAX_HEADERS.contains(&kind) || (LONG_NAMES.contains(&kind) && size > MAX_NAME) {
                return Err(too_long());
            }
            (size, kind == SPARSE && block[HEADER_CONTINUES_AT] == 1, 0)
        }
        Block::Map(maps, size) => (size, block[MAP_CONTINUES_AT] == 1, maps + 1),
    };
    match goes_on {
        true if maps >= MAX_MAP_BLOCKS => Err(too_long()),
        true => Ok((Block::Map(maps, size), 0)),
        false => Ok((Block::Head, size.checked_next_multiple_of(BLOCK as u64).unwrap_or(u64::MAX))),
    }
}

fn too_long() -> io::Error {
    let message = "the archive from the sandbox has names that are too long, or an unknown format";
    io::Error::new(io::ErrorKind::InvalidData, message)
}

impl<R: Read> Read for BoundedArchive<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(into)?;
        self.look(&into[..count])?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn head(kind: u8, size: u64) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(size);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    /// A reader that returns few bytes at a time.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let most = into.len().min(7);
            self.0.read(&mut into[..most])
        }
    }

    #[test]
    fn valid_archives_pass_in_any_chunks() {
        let mut builder = tar::Builder::new(Vec::new());
        let long = "x/".repeat(200) + "y";
        for (name, content) in [("a", vec![1; 1000]), (long.as_str(), vec![2; 512]), ("empty", Vec::new())] {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, content.as_slice()).unwrap();
        }
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        builder.append_link(&mut link, "link", "t".repeat(4000)).unwrap();
        let bytes = builder.into_inner().unwrap();
        for pieces in [true, false] {
            let mut through = Vec::new();
            match pieces {
                true => BoundedArchive::new(Slow(&bytes)).read_to_end(&mut through).unwrap(),
                false => BoundedArchive::new(bytes.as_slice()).read_to_end(&mut through).unwrap(),
            };
            assert!(through == bytes);
        }
    }

    #[test]
    fn an_endless_name_is_not_read() {
        for kind in PAX_HEADERS {
            assert!(BoundedArchive::new(head(kind, 1).as_slice()).read_to_end(&mut Vec::new()).is_err());
        }
        for kind in LONG_NAMES {
            // After a valid entry.
            let bytes = [head(b'0', 5), vec![0; 512], head(kind, MAX_NAME + 1), vec![b'x'; 1 << 20]].concat();
            let mut through = Vec::new();
            let error = BoundedArchive::new(Slow(&bytes)).read_to_end(&mut through).unwrap_err();
            assert!(
                error.to_string().contains("too long") && through.len() <= 3 * BLOCK,
                "{}",
                through.len()
            );
        }
    }

    #[test]
    fn a_sparse_map_passes_and_an_endless_one_does_not() {
        let mut file = head(SPARSE, 5);
        file[HEADER_CONTINUES_AT] = 1;
        let mut map = vec![0; BLOCK];
        let last = map.clone();
        map[MAP_CONTINUES_AT] = 1;
        let good = [file.clone(), map.clone(), last, vec![b'x'; 512], head(b'0', 0)].concat();
        let mut through = Vec::new();
        BoundedArchive::new(Slow(&good)).read_to_end(&mut through).unwrap();
        assert!(through == good);
        let endless = [file, map.repeat(MAX_MAP_BLOCKS as usize + 1)].concat();
        assert!(BoundedArchive::new(endless.as_slice()).read_to_end(&mut Vec::new()).is_err());
    }
}
