//! Files that appear whole or not at all: each is written beside its destination and then renamed.

use std::{
    fs::{File, OpenOptions, Permissions, remove_file, rename},
    io::{self, ErrorKind},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};

/// An unfinished file. Dropping it removes it.
#[derive(Debug)]
pub(in crate::host) struct Partial {
    /// The file, open for reading and writing whatever its mode.
    pub file: File,
    path: PathBuf,
    place: PathBuf,
}

impl Partial {
    /// Starts the file for this path. Leftovers of an earlier try are overwritten.
    pub(in crate::host) fn begin(place: &Path, mode: u32) -> io::Result<Self> {
        let path = place.with_extension("partial");
        // A leftover that is read-only could not be opened for writing.
        forget(&path)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(&path)?;
        // The process may have a umask.
        file.set_permissions(Permissions::from_mode(mode))?;
        Ok(Self { file, path, place: place.to_owned() })
    }

    /// Moves it to its path, unless there is a file already, which is kept.
    pub(in crate::host) fn add(self) -> io::Result<()> {
        match renameat_with(CWD, &self.path, CWD, &self.place, RenameFlags::NOREPLACE) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Moves it to its path and replaces what is there.
    pub(in crate::host) fn replace(self) -> io::Result<()> {
        rename(&self.path, &self.place)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Err(error) = forget(&self.path) {
            tracing::error!(file = %self.path.display(), %error, "cannot remove an unfinished file");
        }
    }
}

fn forget(path: &Path) -> io::Result<()> {
    match remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs, io::Write};

    use super::*;

    fn put(place: &Path, content: &str, finish: fn(Partial) -> io::Result<()>) {
        let mut partial = Partial::begin(place, 0o444).unwrap();
        partial.file.write_all(content.as_bytes()).unwrap();
        finish(partial).unwrap();
    }

    #[test]
    fn a_file_is_added_once_or_replaced() {
        let home = tempfile::tempdir().unwrap();
        let place = home.path().join("agent.cpio");
        for (content, finish, expect) in [
            ("first", Partial::add as fn(_) -> _, "first"),
            ("second", Partial::add, "first"),
            ("third", Partial::replace, "third"),
        ] {
            put(&place, content, finish);
            assert_eq!(fs::read_to_string(&place).unwrap(), expect);
            assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o7777, 0o444);
            assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn an_unfinished_file_leaves_nothing_and_leftovers_of_a_crash_do_no_harm() {
        let home = tempfile::tempdir().unwrap();
        let place = home.path().join("agent.cpio");
        drop(Partial::begin(&place, 0o400).unwrap());
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
        std::mem::forget(Partial::begin(&place, 0o400).unwrap());
        put(&place, "whole", Partial::add);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }
}
