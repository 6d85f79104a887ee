//! Deletes a sandbox, on request or because its lifetime is over.

use std::sync::Arc;

use banger_domain::{
    id::JobId,
    lifecycle::{Event, Reason, Refused, Transition},
    vm::Lifetime,
};

use super::{FORCED, Goal, Next, Reply, VmTask, answer};
use crate::engine::{
    error::Error,
    job::{JobHandle, Stages},
    lease::not_released,
    request::StopMode,
    view::{JobKind, Object},
};

const DELETE: Stages = &["power-off", "remove"];

impl VmTask {
    pub(super) async fn delete(&mut self, mode: StopMode, reply: Reply<JobId>) -> Next {
        if self.vm.state.is_up() && mode == StopMode::Graceful {
            answer(reply, Err(Refused { state: self.vm.state, event: Event::Delete }.into()));
            return Next::Continue;
        }
        let allowed = match mode {
            StopMode::Graceful => self.require_no_snapshots(),
            StopMode::Forced => Ok(()),
        };
        let allowed = match allowed {
            Ok(()) => self.require_unread_disks().await,
            refused => refused,
        };
        if let Err(error) = allowed {
            answer(reply, Err(error));
            return Next::Continue;
        }
        let job = match self.begin_job(JobKind::VmDelete, DELETE) {
            Ok(job) => job,
            Err(error) => {
                answer(reply, Err(error));
                return Next::Continue;
            }
        };
        answer(reply, Ok(job.id()));
        if self.vm.state.is_up() {
            match self.stop_vmm(FORCED, Reason::UserRequest).await {
                Ok(()) => {
                    job.stage("power-off", "ending the sandbox");
                    self.wait_for(job, Goal::Gone);
                }
                Err(error) => job.finish(Err(error)),
            }
            return Next::Continue;
        }
        job.stage("remove", "removing the disks");
        let (error, next) = self.remove().await;
        job.finish(error.map_or(Ok(()), Err));
        next
    }

    /// Deletes the VM with its snapshots and everything that it holds. On failure the ledger keeps what is left and the VM stays
    /// `deleting`, so that the deletion can be repeated.
    pub(super) async fn remove(&mut self) -> (Option<Error>, Next) {
        let entered = match self.enter(Event::Delete) {
            Ok(Transition::To(_)) => self.save().await,
            Ok(Transition::Unchanged) => Ok(()),
            Err(refused) => Err(refused.into()),
        };
        if let Err(error) = entered {
            return (Some(error), Next::Continue);
        }
        if let Err(error) = self.remove_snapshots().await {
            return (Some(error), Next::Continue);
        }
        if let Some(error) = not_released(self.vm.name.as_str(), self.lease.release_all().await) {
            return (Some(error), Next::Continue);
        }
        if let Err(error) = self.shared.ports.store.delete_vm(self.vm.id).await {
            return (Some(error.into()), Next::Continue);
        }
        self.shared.inventory.remove_vm(self.vm.id);
        if self.vm.spec.starts_with_host() {
            self.shared.follow_autostart().await;
        }
        self.shared.remove_old_host_kernels().await;
        (None, Next::Leave)
    }

    pub(super) async fn client_disconnected(&mut self) -> Next {
        if !matches!(self.vm.lifetime, Lifetime::Caller { .. }) {
            return Next::Continue;
        }
        if self.cancel_reading() {
            self.caller_is_gone = true;
            return Next::Continue;
        }
        tracing::info!(vm = %self.vm.id, "the client that this sandbox was bound to has disconnected");
        self.delete_automatically(Reason::CallerVanished).await
    }

    /// Deletes the VM without a user's request: its lifetime is over, or its creation was cancelled.
    pub(super) async fn delete_automatically(&mut self, reason: Reason) -> Next {
        let objects = vec![Object::Vm(self.vm.id)];
        let job = self.shared.jobs.begin_internal(JobKind::VmDelete, self.vm.owner, objects, DELETE);
        if self.vm.state.is_up() {
            match self.stop_vmm(FORCED, reason).await {
                Ok(()) => self.wait_for(job, Goal::Gone),
                Err(error) => job.finish(Err(error)),
            }
            return Next::Continue;
        }
        let (error, next) = self.remove().await;
        job.finish(error.map_or(Ok(()), Err));
        next
    }

    pub(super) async fn remove_and_finish_waiters(&mut self) -> Next {
        let (error, next) = self.remove().await;
        let gone: Vec<JobHandle> = std::mem::take(&mut self.waiters).into_iter().map(|w| w.job).collect();
        match error {
            None => gone.into_iter().for_each(|job| job.finish(Ok(()))),
            Some(error) => {
                let error = Arc::new(error);
                gone.into_iter().for_each(|job| job.fail_shared(&error));
            }
        }
        next
    }
}
