//! Extracts the entries of an archive into a directory.

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
    error_tap::Failure,
    rules::{Facts, Owner, Rules},
    write::{Guard, blocked, duplicate, write_one},
};

/// Mode of directories that files need and the archive does not contain.
const IMPLIED_DIRECTORY_MODE: u32 = 0o755;
/// Mode of directories until their content is complete.
const INCOMPLETE_DIRECTORY_MODE: u32 = 0o700;

/// Extracts an archive into a directory, which is created if missing. `fresh` means that no other process uses it.
pub fn unpack(from: impl Read, directory: &Path, fresh: bool, rules: Rules) -> Result<Notes> {
    let failed = |source| Error::write(directory, source);
    std::fs::create_dir_all(directory).map_err(failed)?;
    let root = open_directory(directory).map_err(failed)?;
    unpack_in(from, root, directory, fresh, rules)
}

/// Extracts an archive into an open directory. `shown` is its path in messages.
pub fn unpack_in(from: impl Read, root: OwnedFd, shown: &Path, fresh: bool, rules: Rules) -> Result<Notes> {
    let mut extractor = Extractor::new(root, shown, fresh, rules);
    each(from, |path, entry, failure| extractor.extract(&path, entry, failure))?;
    extractor.finish()
}

/// Opens a directory. Follows symbolic links.
pub fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Returns a random name for something unfinished.
pub fn temporary_name() -> OsString {
    let mut bytes = [0; 8];
    // Fails only before the kernel has entropy; the process id is unique then.
    if getrandom(&mut bytes, GetRandomFlags::NONBLOCK).is_err() {
        bytes = (std::process::id() as u64).to_ne_bytes();
    }
    format!("{UNFINISHED}{:016x}", u64::from_ne_bytes(bytes)).into()
}

/// Extracts entries into a directory.
pub struct Extractor {
    root: OwnedFd,
    shown: PathBuf,
    fresh: bool,
    rules: Rules,
    /// The first component of all names in the archive, which is the root itself.
    top: Option<OsString>,
    /// The directory used last.
    last: Option<(PathBuf, Rc<OwnedFd>)>,
    /// Created directories, and the attributes they get when their content is complete.
    made: Vec<(PathBuf, Facts)>,
    /// What was left out.
    pub notes: Notes,
}

impl Extractor {
    /// Creates an extractor for this directory.
    pub fn new(root: OwnedFd, shown: &Path, fresh: bool, rules: Rules) -> Self {
        let (top, last, made, notes) = (None, None, Vec::new(), Notes::default());
        Self { root, shown: shown.to_owned(), fresh, rules, top, last, made, notes }
    }

    /// Expects all names in the archive to begin with this component, which is the directory itself.
    pub fn with_top(mut self, top: &OsStr) -> Self {
        self.top = Some(top.to_owned());
        self
    }

    /// Records the attributes of the directory itself, which was created for this entry.
    pub fn set_root_attributes(&mut self, header: &Header) -> Result<()> {
        let facts = Facts::of(header, self.rules)?;
        self.made.push((PathBuf::new(), facts));
        let root = self.open(Path::new(""), OFlags::RDONLY | OFlags::DIRECTORY);
        root.and_then(|root| facts.set_owner(&root)).map_err(|errno| Error::write(&self.shown, errno))
    }

    /// Extracts an entry to this path.
    pub fn extract<R: Read>(
        &mut self,
        path: &Path,
        entry: &mut Entry<'_, R>,
        failure: &Failure,
    ) -> Result<()> {
        let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else {
            // The root exists already.
            return Ok(());
        };
        let shown = self.shown.join(path);
        if !self.rules.names.allow(path) {
            return Err(Error::Git { path: shown });
        }
        let failed = |source: io::Error| Error::write(&shown, source);
        let holder = self.holder(parent)?;
        let target = match kind(entry) {
            Kind::Directory => {
                let facts = Facts::of(entry.header(), self.rules)?;
                return self.directory(&holder, path, name, facts).map_err(|errno| blocked(errno, &shown));
            }
            Kind::Hardlink => {
                let target = relative(&entry.link_name_bytes().unwrap_or_default())?;
                Some(match &self.top {
                    Some(top) => below(&target, top)?,
                    None => target,
                })
            }
            Kind::Skipped(what) => {
                self.notes.add(&shown, &format!("is a {what}, and was not copied"));
                return Ok(());
            }
            Kind::Nothing => return Ok(()),
            Kind::File | Kind::Symlink => None,
        };
        let temporary_name = match self.fresh {
            true => name.to_owned(),
            false => temporary_name(),
        };
        let guard = Guard { holder: &holder, name: Some(&temporary_name) };
        let is_link = target.is_some();
        match target {
            Some(target) => self.link(&holder, &temporary_name, &target).map_err(failed)?,
            None => write_one(entry, failure, &holder, &temporary_name, self.rules, &shown)?,
        }
        if !self.fresh {
            renameat(&*holder, &temporary_name, &*holder, name).map_err(|errno| blocked(errno, &shown))?;
            // Renaming one name of a file over another does nothing, so the temporary name is still there.
            if is_link {
                return Ok(());
            }
        }
        guard.keep();
        Ok(())
    }

    fn link(&mut self, holder: &OwnedFd, temporary_name: &OsStr, target: &Path) -> io::Result<()> {
        let (Some(name), Some(parent)) = (target.file_name(), target.parent()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let from = self.open(parent, OFlags::PATH | OFlags::DIRECTORY)?;
        let stat = statat(&from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "only a file can have hard links"));
        }
        let link = || linkat(&from, name, holder, temporary_name, AtFlags::empty());
        let linked = match link() {
            Err(Errno::EXIST) if self.fresh => {
                unlinkat(holder, temporary_name, AtFlags::empty()).and_then(|()| link())
            }
            linked => linked,
        };
        match linked {
            // No hard links, another file system, or too many links.
            Err(Errno::PERM | Errno::NOTSUP | Errno::NOSYS | Errno::MLINK | Errno::XDEV) => {
                duplicate(&from, name, holder, temporary_name)
            }
            linked => Ok(linked?),
        }
    }

    fn directory(&mut self, holder: &OwnedFd, path: &Path, name: &OsStr, facts: Facts) -> Result<(), Errno> {
        match mkdirat(holder, name, Mode::from_raw_mode(INCOMPLETE_DIRECTORY_MODE)) {
            Ok(()) => {
                let made = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
                facts.set_owner(&made)?;
                self.last = Some((path.to_owned(), Rc::new(made)));
                self.made.push((path.to_owned(), facts));
                Ok(())
            }
            // It keeps its content, but must be a directory.
            Err(Errno::EXIST) => {
                let found = self.open(path, OFlags::PATH | OFlags::DIRECTORY)?;
                self.last = Some((path.to_owned(), Rc::new(found)));
                Ok(())
            }
            Err(errno) => Err(errno),
        }
    }

    /// Opens the directory with this path, and creates it if missing.
    fn holder(&mut self, path: &Path) -> Result<Rc<OwnedFd>> {
        match &self.last {
            Some((last, fd)) if last == path => return Ok(Rc::clone(fd)),
            _ => {}
        }
        let fd = match self.open(path, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => self.create_parents(path),
            opened => opened,
        };
        let fd = Rc::new(fd.map_err(|errno| blocked(errno, &self.shown.join(path)))?);
        self.last = Some((path.to_owned(), Rc::clone(&fd)));
        Ok(fd)
    }

    fn create_parents(&mut self, path: &Path) -> Result<OwnedFd, Errno> {
        let mut way = PathBuf::new();
        for part in path.components() {
            let holder = self.open(&way, OFlags::PATH | OFlags::DIRECTORY)?;
            way.push(part);
            match mkdirat(&holder, part.as_os_str(), Mode::from_raw_mode(IMPLIED_DIRECTORY_MODE)) {
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
            // Absolute links are resolved inside the root as well.
            (true, true) => ResolveFlags::IN_ROOT,
            (true, false) => ResolveFlags::BENEATH,
        };
        let resolve = resolve | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// Sets the permissions and times of directories, when nothing more is created in them.
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
