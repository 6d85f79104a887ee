//! Writes one file or link into an open directory.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, Gid, Mode, OFlags, Uid, chownat, fchmod, fchown, futimens, openat, symlinkat, unlinkat,
        utimensat,
    },
    io::Errno,
};
use tar::{Entry, EntryType};

use crate::{
    Error, Result,
    error_tap::Failure,
    pax_sparse,
    rules::{Facts, Rules},
};

/// Creates a file or a symbolic link under a name that must not exist.
pub fn write_one<R: Read>(
    entry: &mut Entry<'_, R>,
    failure: &Failure,
    holder: &OwnedFd,
    name: &OsStr,
    rules: Rules,
    shown: &Path,
) -> Result<()> {
    let failed = |source: io::Error| Error::write(shown, source);
    let facts = Facts::of(entry.header(), rules)?;
    if entry.header().entry_type() == EntryType::Symlink {
        let target = entry.link_name_bytes().unwrap_or_default().into_owned();
        return symlink(holder, name, OsStr::from_bytes(&target), facts).map_err(failed);
    }
    if let Some(sparse) = pax_sparse::of(entry)? {
        let file = create(holder, name).map_err(|errno| failed(errno.into()))?;
        sparse.write(&mut *entry, &file).map_err(|error| classify(error, failure, shown))?;
        return complete(&file, facts, rules).map_err(failed);
    }
    // This follows no links: the directory is held open, and the file must be new.
    let path = Path::new("/proc/self/fd").join(holder.as_raw_fd().to_string()).join(name);
    let file = match entry.unpack(path) {
        Ok(tar::Unpacked::File(file)) => file,
        Ok(_) => return Err(Error::Damaged("an entry in it is not a file".to_owned())),
        Err(error) => return Err(classify(error, failure, shown)),
    };
    complete(&file, facts, rules).map_err(failed)
}

fn complete(file: &File, facts: Facts, rules: Rules) -> io::Result<()> {
    // A change of the owner clears permission bits, so it comes first.
    facts.set_owner(file)?;
    fchmod(file, Mode::from_raw_mode(facts.permissions & rules.access.files))?;
    Ok(futimens(file, &facts.times())?)
}

fn symlink(holder: &OwnedFd, name: &OsStr, target: &OsStr, facts: Facts) -> io::Result<()> {
    match symlinkat(target, holder, name) {
        Err(Errno::EXIST) => {
            unlinkat(holder, name, AtFlags::empty())?;
            symlinkat(target, holder, name)?;
        }
        made => made?,
    }
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    if let Some((uid, gid)) = facts.owner {
        chownat(holder, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), nofollow)?;
    }
    Ok(utimensat(holder, name, &facts.times(), nofollow)?)
}

/// Finds out why a file was not written: the stream failed, the system refused, or the archive is malformed.
fn classify(error: io::Error, failure: &Failure, shown: &Path) -> Error {
    match (failure.take(), os_error(&error)) {
        (Some(error), _) => Error::Stream(error),
        (None, Some(error)) => Error::write(shown, error),
        (None, None) => Error::Damaged("it ends too early, or the map of a sparse file is wrong".to_owned()),
    }
}

/// Copies a file that cannot have a second name.
pub fn duplicate(from: &OwnedFd, name: &OsStr, holder: &OwnedFd, second: &OsStr) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = File::from(openat(from, name, flags, Mode::empty())?);
    let (metadata, mut copy) = (file.metadata()?, create(holder, second)?);
    io::copy(&mut file, &mut copy)?;
    fchown(&copy, Some(Uid::from_raw(metadata.uid())), Some(Gid::from_raw(metadata.gid())))?;
    fchmod(&copy, Mode::from_raw_mode(metadata.mode() & 0o7777))?;
    copy.set_modified(metadata.modified()?)
}

/// Creates a file, and replaces an earlier entry with this name.
fn create(holder: &OwnedFd, name: &OsStr) -> Result<File, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let create = || openat(holder, name, flags, Mode::from_raw_mode(0o600)).map(File::from);
    match create() {
        Err(Errno::EXIST) => {
            unlinkat(holder, name, AtFlags::empty())?;
            create()
        }
        created => created,
    }
}

/// Reports a file that is in the way of a directory, or vice versa.
pub fn blocked(errno: Errno, shown: &Path) -> Error {
    match errno {
        Errno::ISDIR => Error::InTheWay { path: shown.to_owned(), kind: "a directory" },
        Errno::NOTDIR | Errno::LOOP => Error::InTheWay { path: shown.to_owned(), kind: "not a directory" },
        errno => Error::write(shown, errno),
    }
}

/// Removes a name when dropped, unless it is kept.
pub struct Guard<'a> {
    pub holder: &'a OwnedFd,
    pub name: Option<&'a OsStr>,
}

impl Guard<'_> {
    pub fn keep(mut self) {
        self.name = None;
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.name {
            // The file may not exist yet.
            let _ = unlinkat(self.holder, name, AtFlags::empty());
        }
    }
}

/// Returns the system error that caused this one.
fn os_error(error: &io::Error) -> Option<io::Error> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        let code = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        if let Some(code) = code {
            return Some(io::Error::from_raw_os_error(code));
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        fs,
        os::unix::fs::PermissionsExt,
        time::{Duration, UNIX_EPOCH},
    };

    use super::*;
    use crate::extract::open_directory;

    #[test]
    fn a_file_that_cannot_be_linked_is_copied() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("one"), "content").unwrap();
        fs::set_permissions(path("one"), fs::Permissions::from_mode(0o640)).unwrap();
        let past = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        File::open(path("one")).unwrap().set_modified(past).unwrap();
        let holder = open_directory(dir.path()).unwrap();
        let duplicate = |from: &str| duplicate(&holder, OsStr::new(from), &holder, OsStr::new("two"));
        // Also if the name exists.
        duplicate("one").unwrap();
        duplicate("one").unwrap();
        let (one, two) = (fs::metadata(path("one")).unwrap(), fs::metadata(path("two")).unwrap());
        assert_eq!(fs::read_to_string(path("two")).unwrap(), "content");
        assert_eq!((two.mode(), two.modified().unwrap()), (one.mode(), past));
        assert_ne!(one.ino(), two.ino());
        std::os::unix::fs::symlink("one", path("link")).unwrap();
        assert!(duplicate("link").is_err());
    }
}
