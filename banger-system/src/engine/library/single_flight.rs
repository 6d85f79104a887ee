//! Makes concurrent pulls of the same thing do the work once: identical requests of a user are one job, and jobs for
//! identical content take turns, so that all but the first find it here.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use banger_domain::{
    digest::Digest,
    id::{JobId, Uid},
    name::Name,
};
use banger_image::oci::{platform::Platform, reference::ImageRef};

use super::{
    Shared,
    error::Kind,
    request::{PullKernel, PullSource},
};

/// The name that a pull has reserved.
type Key = (Kind, Uid, Name);

/// What makes two pulls for one name the same request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PullRequest {
    Image {
        reference: ImageRef,
        platform: Platform,
        from: PullSource,
    },
    Kernel(PullKernel),
    /// The import of the host's own kernel.
    HostKernel,
}

/// The running pulls.
#[derive(Default)]
pub(super) struct RunningPulls {
    pulls: Mutex<HashMap<Key, (PullRequest, JobId)>>,
}

impl RunningPulls {
    /// Locks the table. Requests are compared, and names reserved, under this lock.
    pub(super) fn lock(&self) -> LockedPulls<'_> {
        LockedPulls(self.pulls.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The table of running pulls, while it is locked.
pub(super) struct LockedPulls<'a>(MutexGuard<'a, HashMap<Key, (PullRequest, JobId)>>);

impl LockedPulls<'_> {
    /// Returns the running job of an identical request.
    pub(super) fn job_of(&self, kind: Kind, owner: Uid, name: &Name, request: &PullRequest) -> Option<JobId> {
        let (running, job) = self.0.get(&(kind, owner, name.clone()))?;
        (running == request).then_some(*job)
    }

    /// Adds a pull, and unlocks the table. The pull counts as running until the result is dropped.
    pub(super) fn add(
        mut self,
        shared: &Arc<Shared>,
        key: Key,
        request: PullRequest,
        job: JobId,
    ) -> RunningPull {
        self.0.insert(key.clone(), (request, job));
        RunningPull { shared: Arc::clone(shared), key, job }
    }
}

/// A running pull.
pub(super) struct RunningPull {
    shared: Arc<Shared>,
    key: Key,
    job: JobId,
}

impl Drop for RunningPull {
    fn drop(&mut self) {
        let mut pulls = self.shared.library.running_pulls.lock().0;
        // The name was free a moment before, so another pull may have it by now.
        if pulls.get(&self.key).is_some_and(|(_, job)| *job == self.job) {
            pulls.remove(&self.key);
        }
    }
}

/// Held while the image of one content is created. The next pull of the same content shares it.
pub(super) type ContentLock = tokio::sync::Mutex<()>;

/// The content locks that are in use.
#[derive(Default)]
pub(super) struct ContentLocks {
    locks: Mutex<HashMap<(String, Digest), Weak<ContentLock>>>,
}

impl ContentLocks {
    /// Returns the lock for this content of a registry or catalog.
    pub(super) fn lock_for(&self, origin: String, digest: Digest) -> Arc<ContentLock> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| lock.strong_count() > 0);
        let key = (origin, digest);
        if let Some(lock) = locks.get(&key).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(ContentLock::default());
        locks.insert(key, Arc::downgrade(&lock));
        lock
    }
}
