//! Waits until something changes in a work tree (inotify(7)).
//!
//! Which file has changed, and whether its content has, is found out by a comparison. So events are thrown away: one is
//! enough, and none can be misread. Only directories with files of the workspace are watched, not those of builds.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::Errno,
};
use tokio::net::unix::pipe::Receiver;

use super::{
    record::StoredWorkspace,
    source::{Repository, os},
};
use crate::error::{Error, Result};

/// How long further changes are waited for after one: a program that saves a file makes several, and `git switch` many.
const SETTLE_TIME: Duration = Duration::from_millis(50);
/// Bytes of events that are read at once.
const BUFFER: usize = 64 << 10;

/// Watches the directories of a workspace.
#[derive(Debug)]
pub struct Watcher {
    /// Not a pipe, but read like one.
    events: Receiver,
    watches: HashSet<i32>,
}

impl Watcher {
    /// Creates one that watches nothing yet.
    pub fn new() -> Result<Self> {
        let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(io::Error::from);
        let events = events.and_then(|events| Receiver::from_file_unchecked(events.into()));
        let events = events.map_err(|source| Error::io("watch files", source))?;
        Ok(Self { events, watches: HashSet::new() })
    }

    /// Watches every directory that has a file of the workspace, and git's own, where the index is. Returns whether some
    /// of them are new.
    pub fn cover(&mut self, kept: &StoredWorkspace) -> Result<bool> {
        let source = &kept.record.source;
        let git_dir = Repository::open(source)?.git_dir;
        let before = self.watches.len();
        for directory in directories(source, kept.sent()?.keys()).iter().chain([&git_dir]) {
            self.watch(directory)?;
        }
        Ok(self.watches.len() > before)
    }

    fn watch(&mut self, directory: &Path) -> Result<()> {
        let events = WatchFlags::CLOSE_WRITE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::ONLYDIR
            | WatchFlags::DONT_FOLLOW;
        match inotify::add_watch(&self.events, directory, events) {
            Ok(watch) => {
                self.watches.insert(watch);
                Ok(())
            }
            // It was removed meanwhile, which the comparison finds.
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            Err(Errno::NOSPC) => Err(Error::Refused(format!(
                "cannot watch {}: you already watch as many directories as the host allows",
                directory.display()
            ))
            .with_hint("`sudo sysctl fs.inotify.max_user_watches=524288` raises the limit.")),
            Err(error) => Err(Error::io(format!("watch {}", directory.display()), error.into())),
        }
    }

    /// Waits for a change, and until no other follows at once.
    pub async fn changed(&mut self) -> Result<()> {
        let failed = |source| Error::io("watch files", source);
        let mut buffer = vec![0; BUFFER];
        loop {
            self.events.readable().await.map_err(failed)?;
            match self.events.try_read(&mut buffer) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(source) => return Err(failed(source)),
            }
        }
        tokio::time::sleep(SETTLE_TIME).await;
        // What was written meanwhile is part of the same change.
        match self.events.try_read(&mut buffer) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(failed(error)),
            _ => Ok(()),
        }
    }
}

/// Returns the directories that contain these files, down from the work tree.
fn directories<'a>(root: &Path, files: impl Iterator<Item = &'a Vec<u8>>) -> HashSet<PathBuf> {
    let mut directories = HashSet::from([root.to_owned()]);
    for file in files {
        for directory in os(file).ancestors().skip(1) {
            if !directories.insert(root.join(directory)) {
                break;
            }
        }
    }
    directories
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    #[test]
    fn the_directories_of_all_files_are_watched() {
        let files = ["a", "src/x", "src/deep/er/y", "other/z"].map(|name| name.as_bytes().to_vec());
        let mut found: Vec<_> = directories("/r".as_ref(), files.iter()).into_iter().collect();
        found.sort();
        let expect = ["/r", "/r/other", "/r/src", "/r/src/deep", "/r/src/deep/er"].map(PathBuf::from);
        // `join` of an empty path ends with a slash, which is no difference to paths.
        assert_eq!(found, expect);
    }

    #[tokio::test]
    async fn a_change_is_noticed_once() {
        let directory = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new().unwrap();
        watcher.watch(directory.path()).unwrap();
        watcher.watch(&directory.path().join("missing")).unwrap();
        assert_eq!(watcher.watches.len(), 1);
        let second = Duration::from_secs(1);
        assert!(tokio::time::timeout(second, watcher.changed()).await.is_err());
        for name in ["a", "b"] {
            fs::write(directory.path().join(name), name).unwrap();
        }
        watcher.changed().await.unwrap();
        assert!(tokio::time::timeout(second, watcher.changed()).await.is_err());
        fs::remove_file(directory.path().join("a")).unwrap();
        watcher.changed().await.unwrap();
    }
}
