//! Makes an image of the system disk of a sandbox that is down.
//!
//! A job of the library reads the disk in the background, and nothing else may use it meanwhile: the sandbox does not
//! start, and its disks are neither changed nor removed. The disk is attached by way of the lease, as for a boot, and
//! released by the next command after the job or by [`TaskEvent::CommitEnded`], whichever comes first.

use banger_domain::{
    id::JobId,
    lifecycle::State,
    resource::{Resource, Scope},
};
use tokio::sync::watch;

use super::{Next, TaskEvent, VmTask};
use crate::engine::{
    error::{Error, Result},
    lease::not_released,
    library,
    request::CommitVm,
};

/// A job that reads the system disk.
pub(super) struct Commit {
    job: JobId,
    /// Closed once the job no longer reads the disk.
    reading: watch::Receiver<()>,
}

impl Commit {
    fn is_over(&self) -> bool {
        self.reading.has_changed().is_err()
    }
}

impl VmTask {
    /// Starts to make an image of the system disk.
    pub(super) async fn commit(&mut self, request: CommitVm) -> Result<JobId> {
        self.require_unread_disks().await?;
        self.require_down()?;
        // A VMM that could not be removed may still write to the disk.
        self.release_boot().await?;
        let commit = library::reserve_commit(&self.shared, self.vm.clone(), request)?;
        let attach = self.shared.ports.disks.attach(self.vm.id, self.vm.image);
        let attached = self.lease.hold(Resource::Mapper, attach).await;
        let Some(disk) = attached.as_ref().ok().and_then(|drives| drives.first()).cloned() else {
            self.lease.release(Scope::Boot).await;
            return Err(attached.err().unwrap_or(Error::Deleted { name: self.vm.name.to_string() }));
        };
        let (read, reading) = watch::channel(());
        let job = commit.run(disk, read);
        self.commit = Some(Commit { job, reading: reading.clone() });
        self.background.spawn(async move {
            let mut reading = reading;
            while reading.changed().await.is_ok() {}
            TaskEvent::CommitEnded
        });
        Ok(job)
    }

    /// Refuses a VM whose disks may not be complete, because its guest runs or will continue.
    pub(super) fn require_down(&self) -> Result<()> {
        let name = || self.vm.name.to_string();
        match self.vm.state {
            State::Created | State::Stopped | State::Failed => Ok(()),
            State::Deleting => Err(Error::Deleted { name: name() }),
            State::Suspended => Err(Error::Suspended { name: name() }),
            _ => Err(Error::StillWriting { name: name() }),
        }
    }

    /// Refuses what would use the disks while a job reads them. Releases them if that job is over.
    pub(in crate::engine) async fn require_unread_disks(&mut self) -> Result<()> {
        self.require_not_forked()?;
        match &self.commit {
            None => return Ok(()),
            Some(commit) if !commit.is_over() => {
                return Err(Error::BeingCommitted { name: self.vm.name.to_string() });
            }
            Some(_) => self.commit = None,
        }
        let left = self.lease.release(Scope::Boot).await;
        not_released(self.vm.name.as_str(), left).map_or(Ok(()), Err)
    }

    /// Cancels the job that reads the disks, if one does. Returns whether its end must be awaited.
    pub(super) fn cancel_reading(&self) -> bool {
        let commit = self.commit.as_ref().filter(|commit| !commit.is_over()).map(|commit| commit.job);
        let Some(job) = commit.or(self.forking) else { return false };
        if let Err(error) = self.shared.jobs.cancel(job) {
            tracing::warn!(vm = %self.vm.id, %error, "cannot cancel a job that reads the disks");
        }
        true
    }

    pub(super) async fn commit_ended(&mut self) -> Next {
        if let Err(error) = self.require_unread_disks().await {
            // Another commit has begun, or the lease has logged it and it is tried again.
            tracing::debug!(vm = %self.vm.id, %error, "the disks stay attached after a commit");
        }
        self.disks_are_free().await
    }

    /// Does what had to wait until no job reads the disks.
    pub(super) async fn disks_are_free(&mut self) -> Next {
        match std::mem::take(&mut self.caller_is_gone) {
            true => self.client_disconnected().await,
            false => Next::Continue,
        }
    }
}
