//! Keeps the kernel of a VM that boots the host's own as new as the host's package.

use std::sync::Arc;

use banger_domain::{id::KernelId, lifecycle::State};
use tracing::Instrument;

use super::{Goal, TaskEvent, VmTask};
use crate::engine::{
    error::{Result, one_line},
    job::JobHandle,
    library::host_kernel::{self, Freshness},
    request::{Start, StartCause},
};

const IMPORTING: &str = "importing the kernel of this host";

impl VmTask {
    /// Gives a VM that is being created the newest kernel of the host, if it uses that. A kernel that cannot be
    /// imported leaves it the old one.
    pub(super) async fn refresh_kernel(&mut self, job: &JobHandle) -> Result<()> {
        match self.shared.freshness(self.vm.kernel).await {
            Freshness::Fresh => return Ok(()),
            Freshness::Switch(kernel) => self.vm.kernel = kernel,
            Freshness::Stale => {
                job.stage("disk", IMPORTING);
                match host_kernel::import_for(&self.shared, job).await {
                    Ok(kernel) => self.vm.kernel = kernel,
                    Err(error) if job.is_canceled() || !self.shared.has_kernel(self.vm.kernel) => {
                        return Err(error);
                    }
                    Err(error) => {
                        tracing::warn!(vm = %self.vm.id, error = %one_line(&error), "keeping the old kernel");
                    }
                }
            }
        }
        self.publish();
        self.shared.remove_old_host_kernels().await;
        Ok(())
    }

    /// Starts a VM that is down for a job. If its kernel is that of the host, which has changed, the start waits for
    /// the import in the background.
    pub(super) async fn start_for(&mut self, job: JobHandle, start: Start) {
        if self.vm.state == State::Suspended {
            // If this start is refused, the memory still needs the kernel that it was saved with.
            return self.boot_for(job, start).await;
        }
        match self.shared.freshness(self.vm.kernel).await {
            Freshness::Fresh => {}
            Freshness::Switch(kernel) => self.switch_kernel(kernel).await,
            Freshness::Stale => {
                job.stage("start", IMPORTING);
                let shared = Arc::clone(&self.shared);
                self.background
                    .spawn(async move { TaskEvent::KernelImported(host_kernel::import(&shared).await) });
                return self.wait_for(job, Goal::Imported(start));
            }
        }
        self.boot_for(job, start).await;
    }

    /// Starts the VM for the jobs that waited for an import. If it failed, the old kernel stays.
    pub(super) async fn kernel_imported(&mut self, imported: Result<KernelId>) {
        match imported {
            // It may have started meanwhile, with the kernel that it had.
            Ok(_) if self.vm.state.is_up() || self.vm.state == State::Suspended => {}
            Ok(kernel) => self.switch_kernel(kernel).await,
            Err(error) => {
                tracing::warn!(vm = %self.vm.id, error = %one_line(&error), "keeping the old kernel");
            }
        }
        let waiting = |goal| match goal {
            Goal::Imported(start) => Some(start),
            _ => None,
        };
        for (job, start) in self.take_starts(waiting) {
            self.boot_for(job, start).await;
        }
    }

    async fn boot_for(&mut self, job: JobHandle, start: Start) {
        let booted = match self.require_unread_disks().await {
            Ok(()) => self.admit_and_boot(&job, start).instrument(job.span()).await,
            Err(error) => Err(error),
        };
        match booted {
            Ok(()) => self.await_start(job, start),
            Err(error) => {
                if start.cause == StartCause::HostBoot {
                    self.start_failed(&error).await;
                }
                job.finish(Err(error));
            }
        }
    }

    /// Stores the new kernel before the old one may go.
    async fn switch_kernel(&mut self, kernel: KernelId) {
        let old = std::mem::replace(&mut self.vm.kernel, kernel);
        if let Err(error) = self.save().await {
            tracing::error!(vm = %self.vm.id, error = %one_line(&error), "cannot store another kernel of a sandbox");
            self.vm.kernel = old;
            return self.publish();
        }
        self.shared.remove_old_host_kernels().await;
    }
}
