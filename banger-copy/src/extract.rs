//! Writing what is in an archive below a directory.

use std::{
    ffi::{OsStr, OsString},
    io::{self, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    rc::Rc,
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fchmod, futimens, linkat, mkdirat,
        openat2, renameat, statat, unlinkat,
    },
    io::Errno,
    rand::{GetRandomFlags, getrandom},
};
use tar::{Entry, Header};

use crate::{
    Error, Notes, Result, UNFINISHED,
    entries::{Kind, below, each, kind, relative},
    rules::{Facts, Owner, Rules},
    tap::Failure,
    write::{Guard, duplicate, in_the_way, write_one},
};

/// Of directories that the archive does not have and its files need.
const IMPLIED: u32 = 0o755;
/// Of directories until all in them is there.
const UNDER_WORK: u32 = 0o700;

/// Unpacks an archive into a directory, which is made where it is missing. `fresh` says that nobody else knows of it.
pub fn unpack(from: impl Read, directory: &Path, fresh: bool, rules: Rules) -> Result<Notes> {
    let failed = |source| Error::write(directory, source);
    std::fs::create_dir_all(directory).map_err(failed)?;
    let root = open_directory(directory).map_err(failed)?;
    let mut fill = Fill::new(root, directory, fresh, rules);
    each(from, |path, entry, failure| fill.take(&path, entry, failure))?;
    fill.finish()
}

/// Opens a directory, through whatever links.
pub fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// A name that nothing has.
pub fn unfinished() -> OsString {
    let mut bytes = [0; 8];
    // Only a kernel before its first entropy gives none, and then the process has a number of its own.
    if getrandom(&mut bytes, GetRandomFlags::NONBLOCK).is_err() {
        bytes = (std::process::id() as u64).to_ne_bytes();
    }
    format!("{UNFINISHED}{:016x}", u64::from_ne_bytes(bytes)).into()
}

/// Writes entries below a directory.
pub struct Fill {
    root: OwnedFd,
    shown: PathBuf,
    fresh: bool,
    rules: Rules,
    /// The first part of the names in the archive, which is the root itself.
    top: Option<OsString>,
    /// The directory that was used last.
    last: Option<(PathBuf, Rc<OwnedFd>)>,
    /// Directories that were made, and what becomes of them when all in them is there.
    made: Vec<(PathBuf, Facts)>,
    /// What was left out.
    pub notes: Notes,
}

impl Fill {
    /// Writes below this directory.
    pub fn new(root: OwnedFd, shown: &Path, fresh: bool, rules: Rules) -> Self {
        let (top, last, made, notes) = (None, None, Vec::new(), Notes::default());
        Self { root, shown: shown.to_owned(), fresh, rules, top, last, made, notes }
    }

    /// Writes an archive whose names all begin with this one, which is the directory.
    pub fn topped(mut self, top: &OsStr) -> Self {
        self.top = Some(top.to_owned());
        self
    }

    /// The directory itself was made for this entry.
    pub fn made_for(&mut self, header: &Header) -> Result<()> {
        let facts = Facts::of(header, self.rules)?;
        self.made.push((PathBuf::new(), facts));
        let root = self.open(Path::new(""), OFlags::RDONLY | OFlags::DIRECTORY);
        root.and_then(|root| facts.own(&root)).map_err(|errno| Error::write(&self.shown, errno))
    }

    /// Writes an entry under this path.
    pub fn take<R: Read>(&mut self, path: &Path, entry: &mut Entry<'_, R>, failure: &Failure) -> Result<()> {
        let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else {
            // The directory itself: it is there.
            return Ok(());
        };
        let shown = self.shown.join(path);
        let failed = |source: io::Error| Error::write(&shown, source);
        let holder = self.holder(parent)?;
        let target = match kind(entry) {
            Kind::Directory => {
                let facts = Facts::of(entry.header(), self.rules)?;
                return self.directory(&holder, path, name, facts).map_err(|errno| in_the_way(errno, &shown));
            }
            Kind::Hardlink => {
                let target = relative(&entry.link_name_bytes().unwrap_or_default())?;
                Some(match &self.top {
                    Some(top) => below(&target, top)?,
                    None => target,
                })
            }
            Kind::Left(what) => {
                self.notes.add(&shown, &format!("is a {what}, and was not copied"));
                return Ok(());
            }
            Kind::Nothing => return Ok(()),
            Kind::File | Kind::Symlink => None,
        };
        let unfinished = match self.fresh {
            true => name.to_owned(),
            false => unfinished(),
        };
        let guard = Guard { holder: &holder, name: Some(&unfinished) };
        let is_link = target.is_some();
        match target {
            Some(target) => self.link(&holder, &unfinished, &target).map_err(failed)?,
            None => write_one(entry, failure, &holder, &unfinished, self.rules, &shown)?,
        }
        if !self.fresh {
            renameat(&*holder, &unfinished, &*holder, name).map_err(|errno| in_the_way(errno, &shown))?;
            // Two names of one file do not replace each other: then both are left.
            if is_link {
                return Ok(());
            }
        }
        guard.keep();
        Ok(())
    }

    fn link(&mut self, holder: &OwnedFd, unfinished: &OsStr, target: &Path) -> io::Result<()> {
        let (Some(name), Some(parent)) = (target.file_name(), target.parent()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let from = self.open(parent, OFlags::PATH | OFlags::DIRECTORY)?;
        let stat = statat(&from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "only a file can have hard links"));
        }
        let link = || linkat(&from, name, holder, unfinished, AtFlags::empty());
        let linked = match link() {
            Err(Errno::EXIST) if self.fresh => {
                unlinkat(holder, unfinished, AtFlags::empty()).and_then(|()| link())
            }
            linked => linked,
        };
        match linked {
            // A file system without hard links, another one, or one name too many.
            Err(Errno::PERM | Errno::NOTSUP | Errno::NOSYS | Errno::MLINK | Errno::XDEV) => {
                duplicate(&from, name, holder, unfinished)
            }
            linked => Ok(linked?),
        }
    }

    fn directory(&mut self, holder: &OwnedFd, path: &Path, name: &OsStr, facts: Facts) -> Result<(), Errno> {
        match mkdirat(holder, name, Mode::from_raw_mode(UNDER_WORK)) {
            Ok(()) => {
                let made = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
                facts.own(&made)?;
                self.last = Some((path.to_owned(), Rc::new(made)));
                self.made.push((path.to_owned(), facts));
                Ok(())
            }
            // It keeps what it has; but it must be a directory.
            Err(Errno::EXIST) => {
                let found = self.open(path, OFlags::PATH | OFlags::DIRECTORY)?;
                self.last = Some((path.to_owned(), Rc::new(found)));
                Ok(())
            }
            Err(errno) => Err(errno),
        }
    }

    /// The directory with this path, which is made where it is missing.
    fn holder(&mut self, path: &Path) -> Result<Rc<OwnedFd>> {
        match &self.last {
            Some((last, fd)) if last == path => return Ok(Rc::clone(fd)),
            _ => {}
        }
        let fd = match self.open(path, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => self.make_way(path),
            opened => opened,
        };
        let fd = Rc::new(fd.map_err(|errno| in_the_way(errno, &self.shown.join(path)))?);
        self.last = Some((path.to_owned(), Rc::clone(&fd)));
        Ok(fd)
    }

    fn make_way(&mut self, path: &Path) -> Result<OwnedFd, Errno> {
        let mut way = PathBuf::new();
        for part in path.components() {
            let holder = self.open(&way, OFlags::PATH | OFlags::DIRECTORY)?;
            way.push(part);
            match mkdirat(&holder, part.as_os_str(), Mode::from_raw_mode(IMPLIED)) {
                Ok(()) => {
                    if let Owner::Given(uid, gid) = self.rules.owner {
                        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                        chownat(&holder, part.as_os_str(), owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
                    }
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        self.open(path, OFlags::PATH | OFlags::DIRECTORY)
    }

    fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let resolve = match (self.rules.through_links && !self.fresh, self.shown == Path::new("/")) {
            (false, _) => ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
            // An absolute link stays in it as well.
            (true, true) => ResolveFlags::IN_ROOT,
            (true, false) => ResolveFlags::BENEATH,
        };
        let resolve = resolve | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// Gives directories their permissions and times: nothing is made in them any more.
    pub fn finish(mut self) -> Result<Notes> {
        for (path, facts) in std::mem::take(&mut self.made).into_iter().rev() {
            let failed = |source: io::Error| Error::write(&self.shown.join(&path), source);
            let directory = self.open(&path, OFlags::RDONLY | OFlags::DIRECTORY);
            let directory = directory.map_err(|errno| failed(errno.into()))?;
            let mode = Mode::from_raw_mode(facts.permissions & self.rules.access.directories);
            fchmod(&directory, mode).map_err(|errno| failed(errno.into()))?;
            futimens(&directory, &facts.times()).map_err(|errno| failed(errno.into()))?;
        }
        Ok(self.notes)
    }
}
