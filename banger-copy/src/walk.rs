//! Walks a tree for packing.

use std::{
    ffi::OsStr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    rc::Rc,
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2},
    io::Errno,
};

use crate::{Error, Result};

/// A file to pack.
pub struct Found {
    /// Path relative to the root of the walk.
    pub path: PathBuf,
    /// Name in the archive; empty for a directory of which only the content is packed.
    pub name: PathBuf,
    /// The directories above it, to detect links that point back to one of them.
    pub above: Option<Rc<Ancestor>>,
}

pub struct Ancestor {
    pub id: (u64, u64),
    pub above: Option<Rc<Ancestor>>,
}

/// A walk through a tree.
pub struct Walk<'a> {
    root: OwnedFd,
    /// The root as the user has written it.
    shown: &'a Path,
    /// Permissions for every file, if given.
    pub permissions: Option<u32>,
    /// Whether to follow symbolic links.
    pub follow: bool,
}

impl<'a> Walk<'a> {
    /// Starts a walk. Returns it and the first file to pack.
    pub fn of(path: &'a Path, name: &Path, follow: bool, permissions: Option<u32>) -> Result<(Self, Found)> {
        let failed = |errno: Errno| Error::read(path, errno);
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let content = name.as_os_str().is_empty();
        let nofollow = if follow || content { OFlags::empty() } else { OFlags::NOFOLLOW };
        let found =
            openat2(CWD, path, flags | nofollow, Mode::empty(), ResolveFlags::empty()).map_err(failed)?;
        let kind = FileType::from_raw_mode(fstat(&found).map_err(failed)?.st_mode);
        let first = |path: &OsStr| Found { path: path.into(), name: name.to_owned(), above: None };
        if kind == FileType::Directory {
            let walk = Self { root: found, shown: path, permissions, follow };
            return Ok((walk, first(OsStr::new(""))));
        }
        if let Some(kind) = special(kind) {
            return Err(Error::Special { path: path.to_owned(), kind });
        }
        let (Some(last), false) = (path.file_name(), content) else {
            return Err(Error::InTheWay { path: path.to_owned(), kind: "not a directory" });
        };
        let shown = path.parent().unwrap_or(Path::new(""));
        let parent = if shown.as_os_str().is_empty() { Path::new(".") } else { shown };
        let flags = flags | OFlags::DIRECTORY;
        let root = openat2(CWD, parent, flags, Mode::empty(), ResolveFlags::empty()).map_err(failed)?;
        Ok((Self { root, shown, permissions, follow }, first(last)))
    }

    /// Returns a path of the walk as the user would write it.
    pub fn shown(&self, path: &Path) -> PathBuf {
        if path.as_os_str().is_empty() { self.shown.to_owned() } else { self.shown.join(path) }
    }

    /// Opens a path of the walk.
    pub fn open(&self, path: &Path, flags: OFlags, follow: bool) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let (flags, resolve) = match follow {
            true => (flags, ResolveFlags::empty()),
            // A directory that became a link meanwhile must not lead elsewhere.
            false => (
                flags | OFlags::NOFOLLOW,
                ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
            ),
        };
        openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// Returns whether the path is a symbolic link.
    pub fn is_link(&self, path: &Path) -> bool {
        let Ok(found) = self.open(path, OFlags::PATH, false) else { return false };
        fstat(&found).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
    }
}

/// Returns what to call a file that cannot be copied; `None` for the others.
pub fn special(kind: FileType) -> Option<&'static str> {
    match kind {
        FileType::Fifo => Some("fifo"),
        FileType::Socket => Some("socket"),
        FileType::CharacterDevice | FileType::BlockDevice => Some("device"),
        _ => None,
    }
}
