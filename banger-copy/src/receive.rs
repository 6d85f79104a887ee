//! Where a copy goes, and putting it there under its name when all of it has arrived.

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
    fill::{Fill, open_directory, unfinished, unpack},
    rules::Rules,
    write::{in_the_way, write_one},
};

/// Where a copy goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The directory that it goes into.
    pub directory: PathBuf,
    /// Its name there; none for the content of a directory, which has names of its own.
    pub name: Option<OsString>,
}

impl Target {
    /// As `cp -r` decides it: below a directory that exists, or whose path ends in a slash; else under this very path.
    /// The content of a directory, which has no name, goes into the directory of this path.
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

    /// The path that the copy will have.
    pub fn path(&self) -> PathBuf {
        match &self.name {
            Some(name) => self.directory.join(name),
            None => self.directory.clone(),
        }
    }
}

/// Unpacks an archive of one file or directory, which is called `top` in it, or, without one, of the content of a
/// directory. The stream is read to its end before anything new has its name.
pub fn receive(from: impl Read, top: Option<&OsStr>, target: &Target, rules: Rules) -> Result<Notes> {
    let (Some(top), Some(name)) = (top, &target.name) else {
        return unpack(from, &target.directory, false, rules);
    };
    let failed = |source| Error::write(&target.directory, source);
    fs::create_dir_all(&target.directory).map_err(failed)?;
    let holder = open_directory(&target.directory).map_err(failed)?;
    let (shown, mut notes) = (target.path(), Notes::default());
    let mut landing = Landing { holder, name, unfinished: unfinished(), state: State::Nothing };
    each(from, |path, entry, failure| {
        let path = below(&path, top)?;
        match &mut landing.state {
            State::Directory(fill, _) => return fill.take(&path, entry, failure),
            State::Nothing if path.as_os_str().is_empty() => {}
            _ => return Err(Error::Damaged("it has entries that were not asked for".to_owned())),
        }
        match kind(entry) {
            Kind::Directory => landing.directory(entry.header(), top, &shown, rules),
            Kind::File | Kind::Symlink => {
                if landing.present()? == Some(FileType::Directory) {
                    return Err(in_the_way(Errno::ISDIR, &shown));
                }
                landing.state = State::File;
                write_one(entry, failure, &landing.holder, &landing.unfinished, rules, &shown)
            }
            Kind::Left(what) => {
                notes.add(&shown, &format!("is a {what}, and was not copied"));
                Ok(())
            }
            Kind::Hardlink => Err(Error::Damaged("it begins with a hard link".to_owned())),
            Kind::Nothing => Ok(()),
        }
    })?;
    landing.finish(&shown, notes)
}

/// A copy that is arriving. Dropping it removes what has arrived of something new.
struct Landing<'a> {
    holder: OwnedFd,
    name: &'a OsStr,
    unfinished: OsString,
    state: State,
}

enum State {
    Nothing,
    File,
    /// Whether it is a new one.
    Directory(Box<Fill>, bool),
    Done,
}

impl Landing<'_> {
    /// What has the name now.
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
            None => (self.unfinished.as_os_str(), true),
            Some(FileType::Directory) => (self.name, false),
            Some(_) => return Err(in_the_way(Errno::NOTDIR, shown)),
        };
        if new {
            mkdirat(&self.holder, name, Mode::from_raw_mode(0o700)).map_err(failed)?;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = openat(&self.holder, name, flags, Mode::empty()).map_err(failed)?;
        let fill = Fill::new(root, shown, new, rules).topped(top);
        self.state = State::Directory(Box::new(fill), new);
        if let (State::Directory(fill, true), true) = (&mut self.state, new) {
            fill.made_for(header)?;
        }
        Ok(())
    }

    fn finish(mut self, shown: &Path, notes: Notes) -> Result<Notes> {
        let failed = |errno| in_the_way(errno, shown);
        let (holder, unfinished) = (&self.holder, &self.unfinished);
        match &self.state {
            State::Nothing | State::Done if notes == Notes::default() => {
                return Err(Error::Damaged("it is empty".to_owned()));
            }
            State::Nothing | State::Done | State::Directory(_, false) => {}
            State::File => renameat(holder, unfinished, holder, self.name).map_err(failed)?,
            State::Directory(_, true) => {
                match renameat_with(holder, unfinished, holder, self.name, RenameFlags::NOREPLACE) {
                    // A file system that cannot say so.
                    Err(Errno::INVAL) => renameat(holder, unfinished, holder, self.name),
                    renamed => renamed,
                }
                .map_err(failed)?;
            }
        }
        match std::mem::replace(&mut self.state, State::Done) {
            // Only now: a user who may not write to a directory may not move it either.
            State::Directory(fill, _) => fill.finish(),
            _ => Ok(notes),
        }
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        // The directory is held open, and removing follows no link. What cannot be removed has a name that says so.
        let path =
            Path::new("/proc/self/fd").join(self.holder.as_raw_fd().to_string()).join(&self.unfinished);
        let _ = match self.state {
            State::File => fs::remove_file(path),
            State::Directory(_, true) => fs::remove_dir_all(path),
            State::Nothing | State::Done | State::Directory(_, false) => Ok(()),
        };
    }
}
