//! Watches files for changes, with one inotify instance for all watchers (inotify(7)).

use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    io::Errno,
};
use tokio::{io::unix::AsyncFd, sync::watch};

use crate::tasks::{Task, Tasks};

/// How much is read from inotify at a time: some hundred events.
const BUFFER: usize = 8 << 10;

/// Watched files. Clones share them.
#[derive(Clone)]
pub(super) struct Changes {
    inner: Arc<Inner>,
}

struct Inner {
    inotify: Arc<AsyncFd<OwnedFd>>,
    /// By watch descriptor; watching a file twice returns the same one.
    watched: Mutex<HashMap<i32, watch::Sender<()>>>,
}

impl Changes {
    /// Starts without watching anything. Must be called in a runtime, in which a task dispatches events for as long
    /// as this exists.
    pub(super) fn new(tasks: &Tasks) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        // SAFETY: an `OwnedFd` keeps its descriptor open and the same for as long as it lives.
        #[expect(unsafe_code, reason = "tokio cannot see that a descriptor stays open")]
        let inotify = unsafe { AsyncFd::register(inotify) };
        let inotify = Arc::new(inotify.map_err(|error| error.into_parts().1)?);
        let inner = Arc::new(Inner { inotify: Arc::clone(&inotify), watched: Mutex::default() });
        let weak = Arc::downgrade(&inner);
        tasks.spawn(Task::LogChanges, async move {
            while let Ok(mut ready) = inotify.readable().await {
                let Some(inner) = weak.upgrade() else { return };
                match inner.dispatch() {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                    Err(error) => return tracing::error!(%error, "cannot watch logs any more"),
                    // A log that is written all the time must not keep this task from answering checks.
                    Ok(()) => tokio::task::yield_now().await,
                }
            }
        });
        Ok(Self { inner })
    }

    /// Watches a file for writes from now on.
    pub(super) fn of(&self, file: &Path) -> io::Result<Watched> {
        let mut watched = self.inner.lock();
        let number = inotify::add_watch(self.inner.inotify.get_ref(), file, WatchFlags::MODIFY)?;
        let changed = watched.entry(number).or_insert_with(|| watch::Sender::new(())).subscribe();
        Ok(Watched { changes: self.clone(), number, changed: Some(changed) })
    }
}

impl Inner {
    /// Notifies the watchers of the files that changed, from one read of events.
    fn dispatch(&self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut events = inotify::Reader::new(self.inotify.get_ref(), &mut buffer);
        loop {
            let event = events.next()?;
            let (number, what) = (event.wd(), event.events());
            let mut watched = self.lock();
            if what.contains(ReadFlags::QUEUE_OVERFLOW) {
                // Some events were lost, of unknown files.
                watched.values().for_each(|changed| changed.send_replace(()));
            } else if what.contains(ReadFlags::IGNORED) {
                // The file is gone, and so are its writers; its watchers see the end.
                watched.remove(&number);
            } else if let Some(changed) = watched.get(&number) {
                changed.send_replace(());
            }
            if events.is_buffer_empty() {
                return Ok(());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, watch::Sender<()>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file that is watched until this is dropped.
pub(super) struct Watched {
    changes: Changes,
    number: i32,
    changed: Option<watch::Receiver<()>>,
}

impl Watched {
    /// Waits until the file has changed since the last call. An error means that the file is gone.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        match &mut self.changed {
            Some(changed) => changed.changed().await.map_err(|_| io::ErrorKind::NotFound.into()),
            None => Ok(()),
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut watched = self.changes.inner.lock();
        self.changed = None;
        if watched.get(&self.number).is_some_and(|changed| changed.receiver_count() == 0) {
            watched.remove(&self.number);
            match inotify::remove_watch(self.changes.inner.inotify.get_ref(), self.number) {
                // It went away with its file.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(error) => tracing::warn!(%error, "cannot stop watching a log"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs, time::Duration};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    async fn soon(watched: &mut Watched) -> io::Result<()> {
        tokio::time::timeout(TIMEOUT, watched.changed()).await.unwrap()
    }

    #[tokio::test]
    async fn a_watcher_sees_changes_of_its_file_and_of_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| directory.path().join(name));
        for path in [&one, &other] {
            fs::write(path, "").unwrap();
        }
        let changes = Changes::new(&Tasks::default()).unwrap();
        let (mut first, mut second) = (changes.of(&one).unwrap(), changes.of(&one).unwrap());
        let mut third = changes.of(&other).unwrap();
        fs::write(&one, "x").unwrap();
        soon(&mut first).await.unwrap();
        soon(&mut second).await.unwrap();
        drop(first);
        // Events come in order, so a change of the other file would have been reported by now.
        fs::write(&one, "xx").unwrap();
        soon(&mut second).await.unwrap();
        assert!(!third.changed.as_mut().unwrap().has_changed().unwrap());
        fs::write(&other, "x").unwrap();
        soon(&mut third).await.unwrap();
        assert_eq!(changes.inner.lock().len(), 2);
        drop((second, third));
        assert!(changes.inner.lock().is_empty());
        assert!(changes.of(&directory.path().join("missing")).is_err());
    }

    #[tokio::test]
    async fn one_read_of_events_is_dispatched_at_a_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let changes = Changes::new(&Tasks::default()).unwrap();
        let mut watched = changes.of(file.path()).unwrap();
        // The task does not run before the first `.await`.
        fs::write(file.path(), "x").unwrap();
        changes.inner.dispatch().unwrap();
        assert!(watched.changed.as_mut().unwrap().has_changed().unwrap());
        assert_eq!(changes.inner.dispatch().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
