//! Descriptors that systemd keeps for the service across restarts: sd_notify(3), "FDSTORE=1", and sd_listen_fds(3).
//! They stay open when the service crashes or is restarted.
//!
//! Without systemd nothing is kept and nothing is found.

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
/// How long systemd may take to handle a message.
const BARRIER_TIMEOUT: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// The descriptors of an earlier run that nobody has taken yet, by name.
#[derive(Debug, Default)]
pub struct DescriptorStore(Mutex<BTreeMap<String, Vec<OwnedFd>>>);

impl DescriptorStore {
    /// Returns the descriptors that systemd passes to this process. Call it once.
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

    /// Returns a store with these descriptors in it.
    pub fn of(found: impl IntoIterator<Item = (String, OwnedFd)>) -> Self {
        Self(Mutex::new(found.into_iter().map(|(name, fd)| (name, vec![fd])).collect()))
    }

    /// Takes a descriptor of an earlier run. It stays in the store.
    pub fn take(&self, name: &str) -> Option<OwnedFd> {
        self.lock().get_mut(name)?.pop()
    }

    /// Asks systemd to keep a descriptor. If that fails, the next run does not find it.
    pub fn keep(&self, name: &str, fd: impl AsFd) {
        // To poll(2), a bound socket that does not listen looks like one whose peer is gone. Without FDPOLL=0,
        // systemd would close it at once.
        let state = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
        if let Err(error) = sd_notify::notify_with_fds(&state, &[fd.as_fd()]) {
            tracing::warn!(name, %error, "cannot store a descriptor with systemd");
        }
    }

    /// Asks systemd to close the descriptors with these names, and waits until it has. Blocks.
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

    /// Returns the names of an earlier run's descriptors that were not taken.
    pub fn left(&self) -> Vec<String> {
        self.lock().iter().filter(|(_, fds)| !fds.is_empty()).map(|(name, _)| name.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<OwnedFd>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether systemd keeps descriptors for this process. It passes them on when the service fails and is started
/// again.
pub fn exists() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Returns whether systemd will pass the descriptors to a next run of the service, which is being ended: it does when
/// it restarts a unit, and closes them when the unit is stopped. `false` if that is unknown.
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

/// Waits until systemd has handled earlier messages: it then closes the pipe that it was sent.
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
    fn descriptors_of_an_earlier_run_are_taken_once_or_forgotten() {
        let file = || OwnedFd::from(File::open("/dev/null").unwrap());
        let store = DescriptorStore::of([("one".to_owned(), file()), ("two".to_owned(), file())]);
        assert!(store.take("one").is_some());
        assert!(store.take("one").is_none() && store.take("three").is_none());
        assert_eq!(store.left(), ["two"]);
        store.forget(["two"]);
        assert!(store.take("two").is_none());
    }
}
