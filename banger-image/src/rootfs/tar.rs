//! Reads tar archives: POSIX `ustar` and `pax`, and GNU tar's variants.

use std::io::{self, BufRead, Seek, SeekFrom};

use super::{
    Error,
    entry::{Entry, Meta, Shape, Special, What},
    header::{BLOCK, Header},
    limits,
    pax::Records,
    sparse::{self, Segment},
};

/// More than `limits::PATH`, so that an error can show a name that is too long.
const MAX_NAME: u64 = 2 * limits::PATH as u64;
/// The digits of the largest 64-bit number, and a line feed.
const MAX_LINE: usize = 21;

impl<R: BufRead + Seek> Tar<R> {
    /// Skips the entry's content without reading it, and returns where it is in the input and its length. The content
    /// of an archive that is cut short is beyond the end of the input.
    pub fn seek_over(&mut self) -> Result<(u64, u64), Error> {
        let (at, length) = (self.input.stream_position().map_err(Error::Read)?, self.left);
        let step = i64::try_from(length).map_err(|_| Error::Truncated)?;
        if step > 0 {
            self.input.seek(SeekFrom::Current(step)).map_err(|_| Error::Truncated)?;
        }
        self.left = 0;
        Ok((at, length))
    }
}

/// Returns whether a tar archive can begin with these bytes.
pub fn is_beginning(bytes: &[u8]) -> bool {
    let block = bytes.first_chunk::<BLOCK>().map(|block| Header(*block));
    block.is_some_and(|header| !header.is_zero() && header.is_whole())
}

/// An archive that is read from beginning to end.
#[derive(Debug)]
pub struct Tar<R> {
    input: R,
    /// Bytes left of the entry's content.
    left: u64,
    /// Bytes up to the next whole block.
    padding: u64,
    /// Defaults for all entries.
    globals: Records,
    begun: bool,
    ended: bool,
}

impl<R: BufRead> Tar<R> {
    /// Returns a reader of the archive that begins at the current position of the input.
    pub fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0, globals: Records::default(), begun: false, ended: false }
    }

    /// Returns the input, positioned after the last block that was read.
    pub fn into_input(self) -> R {
        self.input
    }

    /// Returns the next entry, or `None` at the end. Skips what is left of the previous entry's content.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Error> {
        let mut records = None;
        let (mut long_path, mut long_link) = (None, None);
        let mut extended = 0;
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                let dangling = records.is_some() || long_path.is_some() || long_link.is_some();
                return if dangling { Err(Error::Truncated) } else { Ok(None) };
            };
            let size = header.size()?;
            let kind = header.kind();
            if matches!(kind, b'x' | b'X' | b'g' | b'L' | b'K') {
                extended += size;
                if extended > limits::EXTENDED {
                    return Err(Error::entry(&header.path(), "has headers that are too large"));
                }
            }
            match kind {
                b'x' | b'X' => {
                    let text = self.whole(size, limits::EXTENDED)?;
                    // Of two extended headers for one entry the last one counts, as in GNU tar.
                    let mut read = self.globals.clone();
                    read.read(&text)?;
                    records = Some(read);
                }
                b'g' => {
                    let text = self.whole(size, limits::EXTENDED)?;
                    self.globals.read_global(&text)?;
                }
                b'L' => long_path = Some(self.long_name(size)?),
                b'K' => long_link = Some(self.long_name(size)?),
                // A volume label is not a file.
                b'V' => self.begin_data(size),
                _ => {
                    let mut records = records.unwrap_or_else(|| self.globals.clone());
                    records.path = records.path.or(long_path);
                    records.link = records.link.or(long_link);
                    return self.entry(&header, records).map(Some);
                }
            }
        }
    }

    /// Returns the next bytes of the entry's content, none at its end. Call [`Tar::consume`] next.
    pub fn data(&mut self) -> Result<&[u8], Error> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let bytes = self.input.fill_buf().map_err(Error::Read)?;
        if bytes.is_empty() {
            return Err(Error::Truncated);
        }
        let most = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        Ok(&bytes[..most])
    }

    /// Marks bytes of [`Tar::data`] as consumed.
    pub fn consume(&mut self, count: usize) {
        self.input.consume(count);
        self.left = self.left.saturating_sub(count as u64);
    }

    fn entry(&mut self, header: &Header, records: Records) -> Result<Entry, Error> {
        let path = records.sparse.name.clone().or(records.path).unwrap_or_else(|| header.path());
        let link = records.link.unwrap_or_else(|| header.link().to_vec());
        let size = records.size.map_or_else(|| header.size(), Ok)?;
        let id = |number: i64| match u32::try_from(number) {
            // In chown(2) this number means "no change". GNU tar extracts such a file as root's.
            Ok(u32::MAX) => Ok(0),
            Ok(id) => Ok(id),
            Err(_) => Err(Error::entry(&path, "has an owner that Linux does not allow")),
        };
        let meta = Meta {
            mode: header.mode()?,
            user: id(records.user.map_or_else(|| header.user(), Ok)?)?,
            group: id(records.group.map_or_else(|| header.group(), Ok)?)?,
            modified: records.modified.map_or_else(|| header.modified().map(|time| (time, 0)), Ok)?,
        };
        let what = match header.kind() {
            // In old archives, a file whose name ends like this is a directory.
            b'0' | b'7' | 0 if path.ends_with(b"/") => What::Directory,
            b'0' | b'7' | 0 => {
                self.begin_data(size);
                What::File(self.shape(&path, size, records.sparse)?)
            }
            b'S' if header.is_gnu() => {
                let real_size = header.gnu_real_size()?;
                let map = self.old_map(header)?;
                self.begin_data(size);
                let segments = Some(sparse::check(&path, map, real_size, size)?);
                What::File(Shape { size: real_size, segments })
            }
            b'1' => What::Link(link),
            b'2' => What::Symlink(link),
            b'3' | b'4' => {
                let (major, minor) = header.device()?;
                if major > limits::MAJOR || minor > limits::MINOR {
                    return Err(Error::entry(&path, "is a device with a number that Linux does not allow"));
                }
                let (major, minor) = (major as u32, minor as u32);
                What::Special(match header.kind() {
                    b'3' => Special::Character { major, minor },
                    _ => Special::Block { major, minor },
                })
            }
            b'5' => What::Directory,
            b'6' => What::Special(Special::Fifo),
            // A directory with a list of its content.
            b'D' => {
                self.begin_data(size);
                What::Directory
            }
            kind => {
                let kind = kind.escape_ascii();
                return Err(Error::entry(&path, format!("is of the unknown type `{kind}`")));
            }
        };
        Ok(Entry { path, what, meta, attributes: records.attributes.into_iter().collect() })
    }

    /// Returns the shape of a file that has this many bytes in the archive. Reads a map that comes before the data.
    fn shape(&mut self, path: &[u8], size: u64, sparse: super::pax::Sparse) -> Result<Shape, Error> {
        let map = if sparse.map_is_data { Some(self.new_map()?) } else { sparse.map };
        let Some(map) = map else {
            if size > limits::FILE {
                return Err(Error::entry(path, "is larger than a file can be"));
            }
            return Ok(Shape { size, segments: None });
        };
        let real_size = sparse.real_size.ok_or(Error::Damaged("a sparse file has no size"))?;
        Ok(Shape { size: real_size, segments: Some(sparse::check(path, map, real_size, self.left)?) })
    }

    /// Reads the map in a header of GNU tar and the blocks that follow it.
    fn old_map(&mut self, header: &Header) -> Result<Vec<Segment>, Error> {
        let (mut map, mut more) = header.gnu_map()?;
        while more {
            let (next, another) = Header(self.block()?.ok_or(Error::Truncated)?).next_map()?;
            map.extend(next);
            more = another;
            if map.len() > limits::SEGMENTS {
                return Err(Error::entry(&header.path(), "has too many pieces of data"));
            }
        }
        Ok(map)
    }

    /// Reads the map before the data of a file: lines of decimal numbers, padded to a whole block. The first one is
    /// the number of ranges.
    fn new_map(&mut self) -> Result<Vec<Segment>, Error> {
        const NO_MAP: Error = Error::Damaged("the map of a sparse file is invalid");
        let whole = self.left;
        let count = self.line()?.ok_or(NO_MAP)?;
        if count > limits::SEGMENTS as u64 {
            return Err(Error::Damaged("a sparse file has too many pieces of data"));
        }
        let mut numbers = Vec::new();
        for _ in 0..2 * count {
            numbers.push(self.line()?);
        }
        let map = sparse::pairs(numbers.into_iter()).ok_or(NO_MAP)?;
        let filler = (whole - self.left).next_multiple_of(BLOCK as u64) - (whole - self.left);
        self.discard(filler.min(self.left))?;
        Ok(map)
    }

    /// Reads a number on a line of its own.
    fn line(&mut self) -> Result<Option<u64>, Error> {
        let mut digits = Vec::new();
        loop {
            let Some(&byte) = self.data()?.first() else { return Ok(None) };
            self.consume(1);
            if byte == b'\n' {
                return Ok(sparse::decimal(&digits));
            }
            digits.push(byte);
            if digits.len() > MAX_LINE {
                return Ok(None);
            }
        }
    }

    fn long_name(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        let mut name = self.whole(size, MAX_NAME)?;
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        name.truncate(end);
        Ok(name)
    }

    /// Reads the whole content, which must not be larger than `most`.
    fn whole(&mut self, size: u64, most: u64) -> Result<Vec<u8>, Error> {
        if size > most {
            return Err(Error::Damaged("an extended header is too large"));
        }
        self.begin_data(size);
        let mut content = Vec::new();
        loop {
            let bytes = self.data()?;
            let count = bytes.len();
            if count == 0 {
                return Ok(content);
            }
            content.extend_from_slice(bytes);
            self.consume(count);
        }
    }

    fn begin_data(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    /// Skips to the next header.
    fn skip(&mut self) -> Result<(), Error> {
        self.discard(self.left)?;
        // All programs write whole blocks.
        self.left = std::mem::take(&mut self.padding);
        self.discard(self.left)
    }

    fn discard(&mut self, mut count: u64) -> Result<(), Error> {
        while count > 0 {
            let most = self.data()?.len().min(usize::try_from(count).unwrap_or(usize::MAX));
            if most == 0 {
                return Err(Error::Truncated);
            }
            self.consume(most);
            count -= most as u64;
        }
        Ok(())
    }

    /// Returns the next header with content. `None` at the end of the archive: two blocks of zeros, or one as in GNU
    /// tar and bsdtar, or the end of the input. An empty input is an archive without entries, as in bsdtar and Docker.
    fn header(&mut self) -> Result<Option<Header>, Error> {
        if self.ended {
            return Ok(None);
        }
        let first = !std::mem::replace(&mut self.begun, true);
        let Some(block) = self.block().map_err(|error| match error {
            Error::Truncated if first => Error::NotTar,
            other => other,
        })?
        else {
            self.ended = true;
            return Ok(None);
        };
        let header = Header(block);
        if header.is_zero() {
            self.ended = true;
            return Ok(None);
        }
        match header.is_whole() {
            true => Ok(Some(header)),
            false if first => Err(Error::NotTar),
            false => Err(Error::Damaged("the checksum of a header is wrong")),
        }
    }

    /// Returns the next block, or `None` at the end of the input.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let bytes = match self.input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                bytes => bytes.map_err(Error::Read)?,
            };
            let count = bytes.len().min(BLOCK - filled);
            match (count, filled) {
                (0, 0) => return Ok(None),
                (0, _) => return Err(Error::Truncated),
                _ => block[filled..filled + count].copy_from_slice(&bytes[..count]),
            }
            self.input.consume(count);
            filled += count;
        }
        Ok(Some(block))
    }
}
