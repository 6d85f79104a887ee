//! The entries of an archive, whose names may be anything.

use std::{
    ffi::OsStr,
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use tar::{Archive, Entry, EntryType};

use crate::{
    Error, Result, pax_sparse,
    tap::{Failure, Tap},
};

/// Gives each entry of an archive, with its name as a relative path without steps up, and reads the stream to its end.
pub fn each<R: Read>(
    from: R,
    mut take: impl FnMut(PathBuf, &mut Entry<'_, Tap<R>>, &Failure) -> Result<()>,
) -> Result<()> {
    let (from, failure) = Tap::new(from);
    let mut archive = Archive::new(from);
    archive.set_preserve_mtime(false);
    archive.set_mask(0o077);
    let damaged = |error: io::Error| match failure.take() {
        Some(error) => Error::Stream(error),
        // The library puts bytes of the archive into its words.
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
    // What the sender added behind the end of the archive is of no interest, but must be taken.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(damaged)?;
    Ok(())
}

/// A name in an archive as a path below the destination.
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

/// A path without its first part, which must be this.
pub fn below(path: &Path, top: &OsStr) -> Result<PathBuf> {
    let stripped = path.strip_prefix(top).map(Path::to_owned);
    stripped.map_err(|_| Error::Damaged("it has entries that were not asked for".to_owned()))
}

/// What becomes of an entry.
pub enum Kind {
    File,
    Directory,
    Symlink,
    Hardlink,
    /// It is left out, being this.
    Left(&'static str),
    /// It is nothing but a remark of the archive's.
    Nothing,
}

/// What an entry is.
pub fn kind<R: Read>(entry: &Entry<'_, R>) -> Kind {
    match entry.header().entry_type() {
        // In archives from before POSIX only the name tells.
        EntryType::Regular if entry.path_bytes().ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::Hardlink,
        EntryType::Fifo => Kind::Left("fifo"),
        EntryType::Char | EntryType::Block => Kind::Left("device"),
        EntryType::XGlobalHeader | EntryType::XHeader => Kind::Nothing,
        _ => Kind::Left("file of an unknown kind"),
    }
}
