//! An archive whose maker may be hostile: names that stand before an entry are kept in memory by whoever reads it,
//! so that they are only let through up to a size that honest ones never have.

use std::io::{self, Read};

/// The unit of which archives are made.
const BLOCK: usize = 512;
/// A path is 4096 bytes at most.
const MOST: u64 = 64 << 10;
/// The map of a file's holes: 21 parts in each block.
const MOST_BLOCKS_OF_MAP: u32 = 2048;
/// Kinds of entries that only say the name or the target of the next one, as GNU has them.
const BEFORE: [u8; 2] = [b'L', b'K'];
/// Those of POSIX, which our agent does not write: they could give the next entry another size than its head does.
const NEVER: [u8; 2] = [b'x', b'g'];
/// A file with a map of its holes.
const SPARSE: u8 = b'S';
/// Where the head of such a file, and a block of its map, say whether the map goes on in the next block.
const GOES_ON: usize = 482;
const MAP_GOES_ON: usize = 504;

/// Lets an archive through as long as it is as it should be.
#[derive(Debug)]
pub struct Bounded<R> {
    from: R,
    block: Vec<u8>,
    /// Bytes of content, with what fills the last block, until the next head.
    content: u64,
    /// What the next block is.
    next: Block,
}

#[derive(Debug, Clone, Copy)]
enum Block {
    Head,
    /// Part of a map, which so many blocks had so far, of a file with so much content.
    Map(u32, u64),
}

impl<R: Read> Bounded<R> {
    /// The archive that comes from here.
    pub fn new(from: R) -> Self {
        Self { from, block: Vec::with_capacity(BLOCK), content: 0, next: Block::Head }
    }

    /// Looks at bytes that go by.
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
                (self.next, self.content) = behind(self.next, &self.block)?;
                self.block.clear();
            }
        }
        Ok(())
    }
}

/// What comes behind a block: the next one, and how many bytes of content there are before it.
fn behind(what: Block, block: &[u8]) -> io::Result<(Block, u64)> {
    let (size, goes_on, maps) = match what {
        Block::Head if block.iter().all(|byte| *byte == 0) => return Ok((Block::Head, 0)),
        Block::Head => {
            let header = tar::Header::from_byte_slice(block);
            let (kind, size) = (header.entry_type().as_byte(), header.entry_size()?);
            if NEVER.contains(&kind) || (BEFORE.contains(&kind) && size > MOST) {
                return Err(too_long());
            }
            (size, kind == SPARSE && block[GOES_ON] == 1, 0)
        }
        Block::Map(maps, size) => (size, block[MAP_GOES_ON] == 1, maps + 1),
    };
    match goes_on {
        true if maps >= MOST_BLOCKS_OF_MAP => Err(too_long()),
        true => Ok((Block::Map(maps, size), 0)),
        false => Ok((Block::Head, size.checked_next_multiple_of(BLOCK as u64).unwrap_or(u64::MAX))),
    }
}

fn too_long() -> io::Error {
    let message = "the archive from the sandbox has names that are too long, or an unknown format";
    io::Error::new(io::ErrorKind::InvalidData, message)
}

impl<R: Read> Read for Bounded<R> {
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

    /// Gives few bytes at a time.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let most = into.len().min(7);
            self.0.read(&mut into[..most])
        }
    }

    #[test]
    fn honest_archives_go_through_in_whatever_pieces() {
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
                true => Bounded::new(Slow(&bytes)).read_to_end(&mut through).unwrap(),
                false => Bounded::new(bytes.as_slice()).read_to_end(&mut through).unwrap(),
            };
            assert!(through == bytes);
        }
    }

    #[test]
    fn a_name_without_end_is_not_read() {
        for kind in NEVER {
            assert!(Bounded::new(head(kind, 1).as_slice()).read_to_end(&mut Vec::new()).is_err());
        }
        for kind in BEFORE {
            // Behind an entry that is as it should be.
            let bytes = [head(b'0', 5), vec![0; 512], head(kind, MOST + 1), vec![b'x'; 1 << 20]].concat();
            let mut through = Vec::new();
            let error = Bounded::new(Slow(&bytes)).read_to_end(&mut through).unwrap_err();
            assert!(
                error.to_string().contains("too long") && through.len() <= 3 * BLOCK,
                "{}",
                through.len()
            );
        }
    }

    #[test]
    fn a_map_of_holes_goes_through_and_one_without_end_does_not() {
        let mut file = head(SPARSE, 5);
        file[GOES_ON] = 1;
        let mut map = vec![0; BLOCK];
        let last = map.clone();
        map[MAP_GOES_ON] = 1;
        let good = [file.clone(), map.clone(), last, vec![b'x'; 512], head(b'0', 0)].concat();
        let mut through = Vec::new();
        Bounded::new(Slow(&good)).read_to_end(&mut through).unwrap();
        assert!(through == good);
        let endless = [file, map.repeat(MOST_BLOCKS_OF_MAP as usize + 1)].concat();
        assert!(Bounded::new(endless.as_slice()).read_to_end(&mut Vec::new()).is_err());
    }
}
