//! The files of an image: a directory, or a tar archive of one.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Read, Seek, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt},
    },
};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::{Error, Temporary};
use crate::{
    oci::manifest::{MAX_DOCUMENT, MAX_IMAGE},
    packing::{self, Gzip, Packing},
    rootfs::{
        self,
        error::Shown,
        path,
        tar::Tar,
        tree::{Archive, Content, Kind, Tree},
    },
};

/// Images and their layers may have 128 GiB; nothing larger is unpacked.
const MAX_UNPACKED: u64 = 160 << 30;
/// The headers of a tar archive are apart from each other, so that more would be read in vain.
const READ: usize = 8 << 10;
/// How much is unpacked or copied at a time.
const BUFFER: usize = 128 << 10;

/// The files of an image.
#[derive(Debug)]
pub struct Source(Kinds);

#[derive(Debug)]
enum Kinds {
    Directory(OwnedFd),
    Archive {
        file: File,
        /// Whether it is a copy, which may be written to.
        is_ours: bool,
        /// All names in it. The content of a file is at its offset in the archive.
        tree: Box<Tree>,
    },
}

/// A file of an image: a range of an open file.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) file: File,
    pub(super) at: u64,
    pub(super) length: u64,
}

impl Source {
    /// Returns the files below a directory.
    pub fn directory(directory: OwnedFd) -> Self {
        Self(Kinds::Directory(directory))
    }

    /// Reads the names in a tar archive. A packed one is unpacked into a temporary file.
    pub fn archive(file: File, temporary: Temporary<'_>) -> Result<Self, Error> {
        let (file, is_ours) = match unpacked(&file, temporary)? {
            Some(unpacked) => (unpacked, true),
            None => (file, false),
        };
        let length = file.metadata().map_err(|error| Error::io("look at the archive", error))?.len();
        let mut tree = Tree::default();
        tree.begin(Archive::Whole);
        (&file).rewind().map_err(|error| Error::io("read the archive", error))?;
        let mut tar = Tar::new(BufReader::with_capacity(READ, &file));
        while let Some(entry) = tar.next_entry()? {
            let (at, size) = tar.seek_over()?;
            if at.checked_add(size).is_none_or(|end| end > length) {
                return Err(rootfs::Error::Truncated.into());
            }
            let segments = match &entry.what {
                rootfs::entry::What::File(shape) => shape.segments.clone().map(Into::into),
                _ => None,
            };
            tree.put(entry, Content { at, size, segments })?;
        }
        tree.end();
        Ok(Self(Kinds::Archive { file, is_ours, tree: Box::new(tree) }))
    }

    /// Returns a file by its name, following links within the files of the image. `None` if it does not exist.
    pub(super) fn part(&mut self, name: &str) -> Result<Option<Part>, Error> {
        let opening = |error| Error::io(format!("open {}", Shown::of(name.as_bytes())), error);
        match &mut self.0 {
            Kinds::Directory(directory) => {
                let file = match open_below(directory, name) {
                    Ok(file) => file,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(opening(error)),
                };
                let metadata = file.metadata().map_err(opening)?;
                match metadata.is_file() {
                    true => Ok(Some(Part { file, at: 0, length: metadata.len() })),
                    false => {
                        Err(Error::unusable(format!("{} is not a regular file", Shown::of(name.as_bytes()))))
                    }
                }
            }
            Kinds::Archive { file, tree, .. } => match tree.find(name.as_bytes())?.map(|node| &node.kind) {
                None => Ok(None),
                Some(Kind::File(Content { at, size, segments: None })) => {
                    Ok(Some(Part { file: file.try_clone().map_err(opening)?, at: *at, length: *size }))
                }
                Some(_) => {
                    Err(Error::unusable(format!("{} is not an ordinary file", Shown::of(name.as_bytes()))))
                }
            },
        }
    }

    /// Returns whether a file exists.
    pub(super) fn has(&mut self, name: &str) -> Result<bool, Error> {
        Ok(self.part(name)?.is_some())
    }

    /// Returns the content of a small file. `None` if it does not exist.
    pub(super) fn document(&mut self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let Some(part) = self.part(name)? else { return Ok(None) };
        let shown = || Shown::of(name.as_bytes());
        if part.length > MAX_DOCUMENT.0 {
            return Err(Error::unusable(format!("{} is larger than {MAX_DOCUMENT}", shown())));
        }
        let mut bytes = vec![0; usize::try_from(part.length).unwrap_or_default()];
        part.file
            .read_exact_at(&mut bytes, part.at)
            .map_err(|error| Error::io(format!("read {}", shown()), error))?;
        Ok(Some(bytes))
    }

    /// Returns one file with all parts, and where they are in it: the archive itself, or else a copy.
    pub(super) fn gather(self, parts: Vec<Part>, temporary: Temporary<'_>) -> Result<Gathered, Error> {
        if let Kinds::Archive { file, .. } = self.0 {
            return Ok((file, parts.iter().map(|part| (part.at, part.length)).collect()));
        }
        let (once, numbers) = distinct(parts)?;
        let mut copy = temporary().map_err(copying)?;
        let mut ranges = Vec::new();
        for part in &once {
            ranges.push(append(part, &mut copy, |_| {})?);
        }
        Ok((copy, numbers.into_iter().map(|number| ranges[number]).collect()))
    }

    /// Returns a file that may be written to and has all parts, and where they are in it. `see` gets the number of each
    /// part with its bytes.
    pub(super) fn gather_own(
        self,
        parts: &[Part],
        temporary: Temporary<'_>,
        mut see: impl FnMut(usize, &[u8]),
    ) -> Result<Gathered, Error> {
        let mut ranges = Vec::new();
        if let Kinds::Archive { file, is_ours: true, .. } = self.0 {
            for (number, part) in parts.iter().enumerate() {
                append(part, &mut io::sink(), |bytes| see(number, bytes))?;
                ranges.push((part.at, part.length));
            }
            (&file).seek(io::SeekFrom::End(0)).map_err(copying)?;
            return Ok((file, ranges));
        }
        let mut copy = temporary().map_err(copying)?;
        let mut end = 0;
        for (number, part) in parts.iter().enumerate() {
            append(part, &mut copy, |bytes| see(number, bytes))?;
            ranges.push((end, part.length));
            end += part.length;
        }
        Ok((copy, ranges))
    }
}

/// Returns each part once, and for each of the given ones its number there. Fails before anything is copied if all of
/// them together are larger than an image may be.
pub(super) fn distinct(parts: Vec<Part>) -> Result<(Vec<Part>, Vec<usize>), Error> {
    let size = parts.iter().fold(0, |sum: u64, part| sum.saturating_add(part.length));
    if size > MAX_IMAGE.0 {
        return Err(Error::unusable(format!("its layers are larger than {MAX_IMAGE}")));
    }
    let (mut known, mut once, mut numbers) = (HashMap::new(), Vec::new(), Vec::new());
    for part in parts {
        let file = part.file.metadata().map_err(copying)?;
        let number = *known.entry((file.dev(), file.ino(), part.at, part.length)).or_insert(once.len());
        if number == once.len() {
            once.push(part);
        }
        numbers.push(number);
    }
    Ok((once, numbers))
}

/// A file, and ranges of it.
type Gathered = (File, Vec<(u64, u64)>);

pub(super) fn copying(error: io::Error) -> Error {
    Error::io("copy the image into a temporary file", error)
}

/// Copies a part, and returns where it went if `to` is a file.
fn append(
    part: &Part,
    to: &mut (impl Write + Position),
    mut see: impl FnMut(&[u8]),
) -> Result<(u64, u64), Error> {
    let begin = to.position().map_err(copying)?;
    let (mut at, end, mut buffer) = (part.at, part.at + part.length, vec![0; BUFFER]);
    while at < end {
        let most = BUFFER.min(usize::try_from(end - at).unwrap_or(BUFFER));
        part.file
            .read_exact_at(&mut buffer[..most], at)
            .and_then(|()| to.write_all(&buffer[..most]))
            .map_err(copying)?;
        see(&buffer[..most]);
        at += most as u64;
    }
    Ok((begin, part.length))
}

/// Where the next byte goes.
trait Position {
    fn position(&mut self) -> io::Result<u64>;
}

impl Position for File {
    fn position(&mut self) -> io::Result<u64> {
        self.stream_position()
    }
}

impl Position for io::Sink {
    fn position(&mut self) -> io::Result<u64> {
        Ok(0)
    }
}

/// Opens a file below a directory. No link leads out of it, and opening a FIFO does not wait.
fn open_below(directory: &OwnedFd, name: &str) -> io::Result<File> {
    let names = path::components(name.as_bytes()).map_err(|error| io::Error::other(error.to_string()))?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(directory.as_fd(), names.join(&b'/'), flags, Mode::empty(), resolve)?;
    Ok(File::from(file))
}

/// Reads a file from its beginning, wherever its offset is.
struct FromStart<'a> {
    file: &'a File,
    at: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// Returns how a file is packed, and its unpacked content.
fn content(file: &File) -> Result<(Packing, Box<dyn Read + '_>), Error> {
    let reading = |error| Error::io("read the archive", error);
    let start = || FromStart { file, at: 0 };
    let head = packing::head(start()).map_err(reading)?;
    let packing = packing::of(&head).map_err(|foreign| Error::unusable(foreign.to_string()))?;
    let packing = packing.unwrap_or(Packing::Plain);
    let content: Box<dyn Read + '_> = match packing {
        Packing::Plain => Box::new(start()),
        Packing::Gzip => Box::new(Gzip::new(BufReader::with_capacity(BUFFER, start()))),
        Packing::Zstd => Box::new(zstd::Decoder::new(start()).map_err(reading)?),
    };
    Ok((packing, content))
}

/// Returns whether a file is the archive of an image rather than that of a root file system. The first name in it tells;
/// what is no archive at all is not an image.
pub fn is_image(file: &File) -> Result<bool, Error> {
    let (_, content) = content(file)?;
    let mut tar = Tar::new(BufReader::new(content));
    // Some programs begin with the root itself.
    for _ in 0..2 {
        let Ok(Some(entry)) = tar.next_entry() else { return Ok(false) };
        if let Some(first) = path::components(&entry.path).ok().and_then(|names| names.first().copied()) {
            return Ok(is_name_in_an_image(first));
        }
    }
    Ok(false)
}

/// Returns whether an image has a file or directory of this name in its root.
fn is_name_in_an_image(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 5] = [b"blobs", b"oci-layout", b"index.json", b"manifest.json", b"repositories"];
    let name = name.strip_prefix(b"sha256:").unwrap_or(name);
    let is_hex = name.first_chunk::<64>().is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    let rest = name.get(64..).unwrap_or_default();
    NAMES.contains(&name) || (is_hex && matches!(rest, b"" | b".json" | b".tar" | b".tar.gz"))
}

/// Returns the unpacked content of a file. `None` if it is not packed.
fn unpacked(file: &File, temporary: Temporary<'_>) -> Result<Option<File>, Error> {
    let reading = |error| Error::io("read the archive", error);
    let (packing, mut content) = content(file)?;
    if packing == Packing::Plain {
        return Ok(None);
    }
    let mut unpacked = temporary().map_err(copying)?;
    let mut buffer = vec![0; BUFFER];
    let mut length = 0;
    loop {
        let count = match content.read(&mut buffer) {
            Ok(0) => return Ok(Some(unpacked)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            count => count.map_err(reading)?,
        };
        length += count as u64;
        if length > MAX_UNPACKED {
            return Err(Error::unusable("it unpacks to more than 160 GiB"));
        }
        unpacked.write_all(&buffer[..count]).map_err(|error| Error::io("unpack the archive", error))?;
    }
}
