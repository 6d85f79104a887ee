//! Reads a tar of a modules tree by name: one pass over the headers, then only the wanted files.
//!
//! The archive must be seekable, because which modules are wanted is known only after the first ones
//! have been read. The tree may be packed as `lib/modules/<release>/…` (Debian, Fedora), as
//! `usr/lib/modules/<release>/…` (Arch, merged `/usr`), as `<release>/…`, or without any directory above it.

use std::{
    cell::Cell,
    collections::BTreeMap,
    io::{self, Read, Seek, SeekFrom},
    rc::Rc,
};

use banger_proto::size::Bytes;

use super::release::Release;

/// The kernel with the most modules that we know of (a distribution's generic one) has about 7,000.
const MAX_ENTRIES: usize = 50_000;

/// How much the headers of one file may take: a header, a long name, extended attributes.
const MAX_HEADERS: u64 = 64 << 10;

/// The longest paths in a distribution's kernel package have about 130 bytes.
const MAX_PATH: usize = 512;

/// Why a modules tree cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not a tar archive or is damaged.
    #[error("cannot read the tar archive of the modules")]
    Tar(#[source] io::Error),
    /// More files than any kernel has.
    #[error("the tar archive of the modules has more than {MAX_ENTRIES} entries")]
    TooManyEntries,
    /// The tree is for another kernel.
    #[error("the modules are for kernel {found}, but the kernel is {wanted}")]
    OtherRelease {
        /// The release of the kernel image.
        wanted: Release,
        /// The release whose modules are in the archive.
        found: Release,
    },
    /// There are no modules at all.
    #[error("the tar archive has no kernel modules")]
    NoModules,
    /// A file in the tree is too large.
    #[error("{path} is larger than {limit}")]
    TooLarge {
        /// The file, relative to the directory of the release.
        path: String,
        /// The largest accepted size.
        limit: Bytes,
    },
}

/// The regular files below one kernel's modules directory.
#[derive(Debug)]
pub struct Tree<R> {
    archive: Metered<R>,
    files: BTreeMap<String, Place>,
}

/// Where the archive has a file's content.
#[derive(Debug, Clone, Copy)]
struct Place {
    offset: u64,
    size: u64,
}

impl<R: Read + Seek> Tree<R> {
    /// Reads the archive's headers and finds the directory of `release`.
    pub fn open(archive: R, release: &Release) -> Result<Self, Error> {
        let left = Rc::new(Cell::new(MAX_HEADERS));
        let mut archive = tar::Archive::new(Metered { inner: archive, left: Rc::clone(&left) });
        let mut files = BTreeMap::new();
        for (count, entry) in archive.entries_with_seek().map_err(Error::Tar)?.enumerate() {
            if count == MAX_ENTRIES {
                return Err(Error::TooManyEntries);
            }
            let entry = entry.map_err(Error::Tar)?;
            left.set(MAX_HEADERS);
            if entry.header().entry_type().is_file()
                && let Some(path) = plain_path(&entry.path_bytes())
            {
                files.insert(path, Place { offset: entry.raw_file_position(), size: entry.size() });
            }
        }
        let files = below_release(files, release)?;
        Ok(Self { archive: archive.into_inner(), files })
    }

    /// Returns the paths of all files, relative to the directory of the release, in order.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Returns the content of a file, or `None` if there is no such file.
    pub fn read(&mut self, path: &str, limit: Bytes) -> Result<Option<Vec<u8>>, Error> {
        let Some(place) = self.files.get(path) else { return Ok(None) };
        if place.size > limit.0 {
            return Err(Error::TooLarge { path: path.to_owned(), limit });
        }
        let mut content = Vec::new();
        self.archive.left.set(place.size);
        self.archive.seek(SeekFrom::Start(place.offset)).map_err(Error::Tar)?;
        (&mut self.archive).take(place.size).read_to_end(&mut content).map_err(Error::Tar)?;
        if content.len() as u64 != place.size {
            return Err(Error::Tar(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(Some(content))
    }
}

/// Returns the path without leading `/` and `./`, if it consists of plain names only.
///
/// Other files are skipped: no kernel has them, and a module's path becomes a line of the guest's module list.
fn plain_path(path: &[u8]) -> Option<String> {
    let path = str::from_utf8(path).ok()?;
    if path.len() > MAX_PATH {
        return None;
    }
    let names: Vec<&str> = path.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+~-".contains(c);
    let all_plain = names.iter().all(|name| *name != ".." && name.chars().all(plain));
    (all_plain && !names.is_empty()).then(|| names.join("/"))
}

/// Returns the files below the directory of `release`, with paths relative to it.
fn below_release(
    files: BTreeMap<String, Place>,
    release: &Release,
) -> Result<BTreeMap<String, Place>, Error> {
    let mut other = None;
    let mut has_modules = false;
    let mut ours = BTreeMap::new();
    for (path, place) in files {
        let modules = ["lib/modules/", "usr/lib/modules/"].iter().find_map(|dir| path.strip_prefix(dir));
        let tree = modules.unwrap_or(&path);
        let (top, below) = tree.split_once('/').unwrap_or((tree, ""));
        let path = match top.parse::<Release>() {
            Ok(found) if found == *release => below,
            Ok(found) => {
                other.get_or_insert(found);
                continue;
            }
            Err(_) if modules.is_none() => tree,
            Err(_) => continue,
        };
        has_modules |= path.starts_with("modules.") || path.contains(".ko");
        ours.insert(path.to_owned(), place);
    }
    match (has_modules, other) {
        (true, _) => Ok(ours),
        (false, Some(found)) => Err(Error::OtherRelease { wanted: release.clone(), found }),
        (false, None) => Err(Error::NoModules),
    }
}

/// A reader that fails after `left` bytes, so that a header that announces a name of a gigabyte costs nothing.
#[derive(Debug)]
struct Metered<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 && !buffer.is_empty() {
            return Err(io::Error::other("a header of the archive is too long"));
        }
        let room = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.inner.read(buffer.get_mut(..room).unwrap_or_default())?;
        self.left.set(left.saturating_sub(count as u64));
        Ok(count)
    }
}

impl<R: Seek> Seek for Metered<R> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.inner.seek(position)
    }
}
