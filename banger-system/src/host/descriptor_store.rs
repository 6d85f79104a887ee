//! Descriptors that systemd keeps for the service while it restarts: sd_notify(3), "FDSTORE=1", and
//! sd_listen_fds(3). What is kept here is not closed when the service crashes or is restarted.
//!
//! Outside of systemd nothing is kept, and nothing is found.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, FromRawFd, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    pipe::{PipeFlags, pipe_with},
};
use sd_notify::NotifyState;
use zbus::Connection;
use zbus_systemd::systemd1::{JobProxy, ManagerProxy, UnitProxy};

/// How long systemd may take to say why it ends the service.
const SYSTEMD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long systemd may take to handle what it was told.
const BARRIER_TIMEOUT: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// The descriptors that an earlier run left and nobody has taken yet, by their names.
#[derive(Debug, Default)]
pub struct DescriptorStore(Mutex<BTreeMap<String, Vec<OwnedFd>>>);

impl DescriptorStore {
    /// Returns what systemd hands over to this process. To be called once.
    pub fn inherited() -> io::Result<Self> {
        let mut found = BTreeMap::<String, Vec<OwnedFd>>::new();
        for (fd, name) in sd_notify::listen_fds_with_names()? {
            // SAFETY: systemd opened this number for us alone, and nothing else in this process uses it.
            #[expect(unsafe_code, reason = "systemd hands descriptors over by their numbers")]
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            found.entry(name).or_default().push(fd);
        }
        Ok(Self(Mutex::new(found)))
    }

    /// Returns a store in which these descriptors were found.
    pub fn of(found: impl IntoIterator<Item = (String, OwnedFd)>) -> Self {
        Self(Mutex::new(found.into_iter().map(|(name, fd)| (name, vec![fd])).collect()))
    }

    /// Takes a descriptor that an earlier run left. It stays in the store.
    pub fn take(&self, name: &str) -> Option<OwnedFd> {
        self.lock().get_mut(name)?.pop()
    }

    /// Has systemd keep a descriptor. Where that fails, the next run does not find it.
    pub fn keep(&self, name: &str, fd: impl AsFd) {
        // A bound socket on which nobody listens looks to poll(2) like one whose peer is gone: without the last
        // word, systemd would close it at once.
        let state = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
        if let Err(error) = sd_notify::notify_with_fds(&state, &[fd.as_fd()]) {
            tracing::warn!(name, %error, "cannot store a descriptor with systemd");
        }
    }

    /// Has systemd close what it keeps under these names, and returns when it has. Blocks.
    pub fn forget<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        let mut told = false;
        for name in names {
            self.lock().remove(name);
            match sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]) {
                Ok(()) => told = true,
                Err(error) => tracing::warn!(name, %error, "cannot remove a descriptor from systemd"),
            }
        }
        if told && let Err(error) = barrier() {
            tracing::warn!(%error, "systemd did not confirm that it closed a descriptor");
        }
    }

    /// The names of what an earlier run left and this one has not taken.
    pub fn left(&self) -> Vec<String> {
        self.lock().iter().filter(|(_, fds)| !fds.is_empty()).map(|(name, _)| name.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<OwnedFd>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether systemd hands what it keeps to a next run of the service, which is being ended: it does so when it restarts
/// a unit, and forgets it when the unit is stopped. `false` when that is unknown.
pub async fn survives(connection: &Connection) -> bool {
    let asked = async {
        let unit = ManagerProxy::new(connection).await?.get_unit_by_pid(std::process::id()).await?;
        let (id, job) = UnitProxy::builder(connection).path(unit).build().await?.job().await?;
        match id {
            0 => Ok(String::new()),
            _ => JobProxy::builder(connection).path(job).build().await?.job_type().await,
        }
    };
    let job = tokio::time::timeout(SYSTEMD_TIMEOUT, asked).await;
    matches!(job, Ok(zbus::Result::Ok(job)) if job.ends_with("restart"))
}

/// Waits until systemd has handled what it was told before: it then closes the pipe that it is sent.
fn barrier() -> io::Result<()> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    sd_notify::notify_with_fds(&[NotifyState::Custom("BARRIER=1")], &[theirs.as_fd()])?;
    drop(theirs);
    match poll(&mut [PollFd::new(&ours, PollFlags::empty())], Some(&BARRIER_TIMEOUT))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::File;

    use super::*;

    #[test]
    fn what_was_left_is_taken_once_or_forgotten() {
        let file = || OwnedFd::from(File::open("/dev/null").unwrap());
        let store = DescriptorStore::of([("one".to_owned(), file()), ("two".to_owned(), file())]);
        assert!(store.take("one").is_some());
        assert!(store.take("one").is_none() && store.take("three").is_none());
        assert_eq!(store.left(), ["two"]);
        store.forget(["two"]);
        assert!(store.take("two").is_none());
    }
}
