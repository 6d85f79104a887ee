//! Receives a copy: chooses its path, and gives it its name when it has arrived completely.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::Read,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, mkdirat, openat, renameat, renameat_with, statat},
    io::Errno,
};

use crate::{
    Error, Notes, Result,
    entries::{Kind, below, each, kind},
    extract::{Extractor, open_directory, temporary_name, unpack_in},
    rules::Rules,
    write::{blocked, write_one},
};

/// The destination of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The directory to put it into.
    pub directory: PathBuf,
    /// Its name there; `None` for the content of a directory, which brings its own names.
    pub name: Option<OsString>,
}

impl Target {
    /// Chooses the path as `cp -r` does: inside a directory that exists or whose path ends in a slash, and else the
    /// path itself. The content of a directory has no name, and goes into the directory with this path.
    pub fn of(to: &Path, name: Option<&OsStr>) -> Self {
        let text = to.as_os_str().as_bytes();
        let last = to.file_name().filter(|_| !text.ends_with(b"/") && !text.ends_with(b"/.") && !to.is_dir());
        match (name, last) {
            (Some(_), Some(last)) => {
                let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty());
                let directory = parent.unwrap_or(Path::new(".")).to_owned();
                Self { directory, name: Some(last.to_owned()) }
            }
            (name, _) => Self { directory: to.to_owned(), name: name.map(OsStr::to_owned) },
        }
    }

    /// Returns the path that the copy will have.
    pub fn path(&self) -> PathBuf {
        match &self.name {
            Some(name) => self.directory.join(name),
            None => self.directory.clone(),
        }
    }
}

/// Receives an archive of one file or directory, which is called `top` in it, or, if `top` is `None`, of the content
/// of a directory. Reads the stream to its end before anything new gets its name.
pub fn receive(from: impl Read, top: Option<&OsStr>, target: &Target, rules: Rules) -> Result<Notes> {
    let failed = |source| Error::write(&target.directory, source);
    fs::create_dir_all(&target.directory).map_err(failed)?;
    let holder = open_directory(&target.directory).map_err(failed)?;
    receive_in(from, top, holder, target, rules)
}

/// Receives an archive into an open directory, as [`receive`] does. The directory of the target is its path in messages
/// only.
pub fn receive_in(
    from: impl Read,
    top: Option<&OsStr>,
    holder: OwnedFd,
    target: &Target,
    rules: Rules,
) -> Result<Notes> {
    let (Some(top), Some(name)) = (top, &target.name) else {
        return unpack_in(from, holder, &target.directory, false, rules);
    };
    if !rules.names.allow(name.as_ref()) {
        return Err(Error::Git { path: target.path() });
    }
    let (shown, mut notes) = (target.path(), Notes::default());
    let mut copy = PendingCopy { holder, name, temporary_name: temporary_name(), state: State::Nothing };
    each(from, |path, entry, failure| {
        let path = below(&path, top)?;
        match &mut copy.state {
            State::Directory(extractor, _) => return extractor.extract(&path, entry, failure),
            State::Nothing if path.as_os_str().is_empty() => {}
            _ => return Err(Error::Damaged("it has entries that were not asked for".to_owned())),
        }
        match kind(entry) {
            Kind::Directory => copy.directory(entry.header(), top, &shown, rules),
            Kind::File | Kind::Symlink => {
                if copy.present()? == Some(FileType::Directory) {
                    return Err(blocked(Errno::ISDIR, &shown));
                }
                copy.state = State::File;
                write_one(entry, failure, &copy.holder, &copy.temporary_name, rules, &shown)
            }
            Kind::Skipped(what) => {
                notes.add(&shown, &format!("is a {what}, and was not copied"));
                Ok(())
            }
            Kind::Hardlink => Err(Error::Damaged("it begins with a hard link".to_owned())),
            Kind::Nothing => Ok(()),
        }
    })?;
    copy.finish(&shown, notes)
}

/// A copy in progress. Dropping it removes anything new that is incomplete.
struct PendingCopy<'a> {
    holder: OwnedFd,
    name: &'a OsStr,
    temporary_name: OsString,
    state: State,
}

enum State {
    Nothing,
    File,
    /// The flag tells whether the directory is new.
    Directory(Box<Extractor>, bool),
    Done,
}

impl PendingCopy<'_> {
    /// Returns the type of what has the name now.
    fn present(&self) -> Result<Option<FileType>> {
        match statat(&self.holder, self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::write(Path::new(self.name), errno)),
        }
    }

    fn directory(&mut self, header: &tar::Header, top: &OsStr, shown: &Path, rules: Rules) -> Result<()> {
        let failed = |errno: Errno| Error::write(shown, errno);
        let (name, new) = match self.present()? {
            None => (self.temporary_name.as_os_str(), true),
            Some(FileType::Directory) => (self.name, false),
            Some(_) => return Err(blocked(Errno::NOTDIR, shown)),
        };
        if new {
            mkdirat(&self.holder, name, Mode::from_raw_mode(0o700)).map_err(failed)?;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = openat(&self.holder, name, flags, Mode::empty()).map_err(failed)?;
        let extractor = Extractor::new(root, shown, new, rules).with_top(top);
        self.state = State::Directory(Box::new(extractor), new);
        if let (State::Directory(extractor, true), true) = (&mut self.state, new) {
            extractor.set_root_attributes(header)?;
        }
        Ok(())
    }

    fn finish(mut self, shown: &Path, notes: Notes) -> Result<Notes> {
        let failed = |errno| blocked(errno, shown);
        let (holder, temporary_name) = (&self.holder, &self.temporary_name);
        match &self.state {
            State::Nothing | State::Done if notes == Notes::default() => {
                return Err(Error::Damaged("it is empty".to_owned()));
            }
            State::Nothing | State::Done | State::Directory(_, false) => {}
            State::File => renameat(holder, temporary_name, holder, self.name).map_err(failed)?,
            State::Directory(_, true) => {
                match renameat_with(holder, temporary_name, holder, self.name, RenameFlags::NOREPLACE) {
                    // The file system does not support exchanging names.
                    Err(Errno::INVAL) => renameat(holder, temporary_name, holder, self.name),
                    renamed => renamed,
                }
                .map_err(failed)?;
            }
        }
        match std::mem::replace(&mut self.state, State::Done) {
            // Not earlier: without write permission, a user may not even rename a directory.
            State::Directory(extractor, _) => extractor.finish(),
            _ => Ok(notes),
        }
    }
}

impl Drop for PendingCopy<'_> {
    fn drop(&mut self) {
        // The directory is held open, and removal follows no links. Anything that cannot be removed keeps a temporary
        // name.
        let path =
            Path::new("/proc/self/fd").join(self.holder.as_raw_fd().to_string()).join(&self.temporary_name);
        let _ = match self.state {
            State::File => fs::remove_file(path),
            State::Directory(_, true) => fs::remove_dir_all(path),
            State::Nothing | State::Done | State::Directory(_, false) => Ok(()),
        };
    }
}
