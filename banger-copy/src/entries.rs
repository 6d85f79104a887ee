//! Iterates over the entries of an untrusted archive.

use std::{
    ffi::OsStr,
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use tar::{Archive, Entry, EntryType};

use crate::{
    Error, Result,
    error_tap::{ErrorTap, Failure},
    pax_sparse,
};

/// Calls the function for each entry, with its name as a relative path without `..`, and reads the stream to its end.
pub fn each<R: Read>(
    from: R,
    mut take: impl FnMut(PathBuf, &mut Entry<'_, ErrorTap<R>>, &Failure) -> Result<()>,
) -> Result<()> {
    let (from, failure) = ErrorTap::new(from);
    let mut archive = Archive::new(from);
    archive.set_preserve_mtime(false);
    archive.set_mask(0o077);
    let damaged = |error: io::Error| match failure.take() {
        Some(error) => Error::Stream(error),
        // The library puts bytes of the archive into its error messages.
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            Error::Damaged("it ends too early".to_owned())
        }
        None => Error::Damaged("it is not a tar archive, or ends too early".to_owned()),
    };
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let path = match pax_sparse::of(&mut entry)? {
            Some(sparse) => relative(&sparse.name)?,
            None => relative(&entry.path_bytes())?,
        };
        take(path, &mut entry, &failure)?;
    }
    // Bytes after the end of the archive are ignored, but must be consumed.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(damaged)?;
    Ok(())
}

/// Converts a name in an archive to a path relative to the destination.
pub fn relative(name: &[u8]) -> Result<PathBuf> {
    let mut path = PathBuf::new();
    for part in Path::new(OsStr::from_bytes(name)).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::Damaged("a name in it points outside the destination".to_owned()));
            }
        }
    }
    Ok(path)
}

/// Returns the path without its first component, which must be `top`.
pub fn below(path: &Path, top: &OsStr) -> Result<PathBuf> {
    let stripped = path.strip_prefix(top).map(Path::to_owned);
    stripped.map_err(|_| Error::Damaged("it has entries that were not asked for".to_owned()))
}

/// How to handle an entry.
pub enum Kind {
    File,
    Directory,
    Symlink,
    Hardlink,
    /// Skipped; the text says what it is.
    Skipped(&'static str),
    /// Metadata of the archive.
    Nothing,
}

/// Classifies an entry.
pub fn kind<R: Read>(entry: &Entry<'_, R>) -> Kind {
    match entry.header().entry_type() {
        // In archives older than POSIX only the name tells.
        EntryType::Regular if entry.path_bytes().ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::Hardlink,
        EntryType::Fifo => Kind::Skipped("fifo"),
        EntryType::Char | EntryType::Block => Kind::Skipped("device"),
        EntryType::XGlobalHeader | EntryType::XHeader => Kind::Nothing,
        _ => Kind::Skipped("file of an unknown kind"),
    }
}
