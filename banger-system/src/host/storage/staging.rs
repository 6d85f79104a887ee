//! Directories that appear whole or not at all: each is filled under a temporary name, and renamed once everything in
//! it is on the disk.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    str::FromStr,
};

/// The prefix of unfinished directories.
const PREFIX: &str = ".staging-";

/// A directory that is being filled. Dropping it unfinished removes it.
#[derive(Debug)]
pub(super) struct Staging {
    parent: PathBuf,
    staged: PathBuf,
    place: PathBuf,
}

impl Staging {
    /// Starts the directory `name` in `parent`. Leftovers of an earlier try are removed.
    pub(super) fn begin(parent: &Path, name: &str) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        let staged = parent.join(format!("{PREFIX}{name}"));
        remove_tree(&staged)?;
        DirBuilder::new().mode(0o700).create(&staged)?;
        Ok(Self { parent: parent.to_owned(), staged, place: parent.join(name) })
    }

    /// Makes a file in the directory that this handle may write to whatever its mode.
    pub(super) fn file(&self, name: &str, mode: u32) -> io::Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(self.staged.join(name))?;
        // The process may have a umask.
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        Ok(file)
    }

    /// Makes a file on the same file system without a name, which goes away when it is closed.
    pub(super) fn nameless(&self) -> io::Result<File> {
        let path = self.staged.join("nameless");
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        fs::remove_file(path)?;
        Ok(file)
    }

    /// Adds a hard link to a file that never changes.
    pub(super) fn link(&self, file: &Path, name: &str) -> io::Result<()> {
        fs::hard_link(file, self.staged.join(name))
    }

    /// Renames the directory. An image is shared by sandboxes for months and was named by its digest, so it is on the
    /// disk before anybody learns of it.
    pub(super) fn finish(self) -> io::Result<()> {
        for entry in fs::read_dir(&self.staged)? {
            File::open(entry?.path())?.sync_all()?;
        }
        File::open(&self.staged)?.sync_all()?;
        fs::rename(&self.staged, &self.place)?;
        let durable = File::open(&self.parent).and_then(|parent| parent.sync_all());
        if durable.is_err() {
            remove_tree(&self.place)?;
        }
        durable
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.staged) {
            tracing::error!(directory = %self.staged.display(), %error, "cannot remove an unfinished directory");
        }
    }
}

/// Removes a directory, finished or not.
pub(super) fn remove(parent: &Path, name: &str) -> io::Result<()> {
    remove_tree(&parent.join(format!("{PREFIX}{name}")))?;
    remove_tree(&parent.join(name))
}

/// Returns the names of all directories, finished or not, that are ids.
pub(super) fn found<Id: FromStr + Ord>(parent: &Path) -> io::Result<Vec<Id>> {
    let entries = match fs::read_dir(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let name = name.to_str().map(|name| name.strip_prefix(PREFIX).unwrap_or(name));
        ids.extend(name.and_then(|name| name.parse().ok()));
    }
    ids.sort();
    ids.dedup();
    Ok(ids)
}

/// Removes a directory with its content. A missing one is fine.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{io::Write, os::unix::fs::PermissionsExt};

    use banger_domain::id::ImageId;

    use super::*;

    const NAME: &str = "0000000000000000000000000000000a";

    fn names(parent: &Path) -> Vec<String> {
        fs::read_dir(parent).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_directory_has_its_name_when_it_is_finished() {
        let home = tempfile::tempdir().unwrap();
        let parent = home.path().join("images");
        let staging = Staging::begin(&parent, NAME).unwrap();
        staging.file("file", 0o400).unwrap().write_all(b"content").unwrap();
        assert!(!parent.join(NAME).exists());
        staging.finish().unwrap();
        assert_eq!(names(&parent), [NAME]);
        assert_eq!(fs::read(parent.join(NAME).join("file")).unwrap(), b"content");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&parent.join(NAME).join("file")), 0o400);
        assert_eq!(mode(&parent.join(NAME)), 0o700);
        assert_eq!(mode(&parent), 0o700);
    }

    #[test]
    fn an_unfinished_directory_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let staging = Staging::begin(home.path(), NAME).unwrap();
        staging.file("file", 0o400).unwrap();
        drop(staging);
        assert!(names(home.path()).is_empty());
    }

    #[test]
    fn leftovers_of_a_crash_are_found_and_do_no_harm() {
        let home = tempfile::tempdir().unwrap();
        let id: ImageId = NAME.parse().unwrap();
        std::mem::forget(Staging::begin(home.path(), NAME).unwrap());
        assert_eq!(found::<ImageId>(home.path()).unwrap(), [id]);
        remove(home.path(), NAME).unwrap();
        assert_eq!(found::<ImageId>(home.path()).unwrap(), []);

        std::mem::forget(Staging::begin(home.path(), NAME).unwrap());
        Staging::begin(home.path(), NAME).unwrap().finish().unwrap();
        assert_eq!(names(home.path()), [NAME]);
        remove(home.path(), NAME).unwrap();
        remove(home.path(), NAME).unwrap();
        assert!(names(home.path()).is_empty());
    }

    #[test]
    fn a_finished_directory_is_never_replaced() {
        let home = tempfile::tempdir().unwrap();
        for (content, works) in [("first", true), ("second", false)] {
            let staging = Staging::begin(home.path(), NAME).unwrap();
            staging.file("file", 0o400).unwrap().write_all(content.as_bytes()).unwrap();
            assert_eq!(staging.finish().is_ok(), works);
        }
        assert_eq!(fs::read_to_string(home.path().join(NAME).join("file")).unwrap(), "first");
        assert_eq!(names(home.path()), [NAME]);
    }

    #[test]
    fn names_that_are_not_ids_are_not_found() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("lost+found")).unwrap();
        assert_eq!(found::<ImageId>(home.path()).unwrap(), []);
        assert_eq!(found::<ImageId>(&home.path().join("none")).unwrap(), []);
    }
}
