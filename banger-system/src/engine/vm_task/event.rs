//! Events that background work reports to a VM's task, and how the task handles them.

use std::sync::Arc;

use super::{Background, FORCED, Goal, Next, VmTask, fork::Forked, restore::Restored, start::GuestWait};
use crate::{
    engine::{
        error::{Error, Result},
        history::Phase,
        job::JobHandle,
        lease::not_released,
        now,
        problems::Subject,
    },
    ports::{
        captures::Stored,
        guest_link::{self, GuestFacts},
        logs::Log,
        supervisor::{self, Ended},
    },
};
use banger_domain::{
    guest_end::GuestEnd,
    id::{JobId, KernelId, Timestamp},
    lifecycle::{Event, Reason, State},
    resource::{Resource, Scope},
    vm::{BootedFrom, Lifetime},
};

/// The result of one piece of background work.
pub(super) enum TaskEvent {
    /// The VMM's process has ended.
    VmmEnded(Ended),
    /// The guest's agent has its configuration, or did not take it in time.
    GuestConfigured(guest_link::Result<()>, GuestWait),
    /// The guest's agent answered after a boot, or did not in time.
    GuestReady(guest_link::Result<GuestFacts>),
    /// The result of [`VmTask::confirm_up`].
    UpChecked(guest_link::Result<GuestFacts>),
    /// The pause before a restart is over.
    RestartDue,
    /// The result of a liveness probe.
    Probed(guest_link::Result<GuestFacts>),
    /// The guest has halted, while its VMM still runs.
    GuestHalted(GuestEnd),
    /// The guest has synced its disks and is powering off, or the request failed.
    ShutdownAnswered(guest_link::Result<()>),
    /// The time for a clean stop is over.
    StopTimedOut,
    /// The memory is on disk, or the suspension failed; then also why the guest does not run on, if it does not.
    Captured(Box<Result<Stored, (Error, Option<Error>)>>),
    /// The memory of a suspended guest is loaded, or cannot be.
    Loaded(Result<()>),
    /// Whether a copy has taken its new identity.
    Renewed(Result<()>),
    /// A guest whose memory was loaded runs; then also why its processes do not, if they do not. Or it does not run; then
    /// also whether it may have begun to.
    Continued(Result<(GuestWait, Option<Error>), (Error, bool)>),
    /// The VMM was killed; its end is reported separately.
    Killed(supervisor::Result<()>),
    /// The kernel of the host was imported, or could not be.
    KernelImported(Result<KernelId>),
    /// A user cancelled a job that waits for this VM.
    JobCanceled(JobId),
    /// A job no longer reads the system disk.
    CommitEnded,
    /// The children of a fork exist, or none does.
    ForkEnded(JobHandle, Box<Forked>),
    /// The disks for a VM that is put back to a snapshot exist, or do not.
    RestoreEnded(JobHandle, Box<Restored>),
    /// A guest that may have stood still, or been frozen, continues.
    Thawed,
}

impl VmTask {
    pub(super) async fn handle_event(&mut self, event: TaskEvent) -> Next {
        match event {
            TaskEvent::VmmEnded(ended) if self.forking.is_some() => self.ended_in_fork(ended),
            TaskEvent::VmmEnded(ended) => return self.vmm_ended(ended).await,
            TaskEvent::GuestConfigured(Ok(()), wait) => {
                self.end_phase(Phase::Agent);
                self.template_in_use = None;
                self.watch_configured(wait);
            }
            TaskEvent::GuestConfigured(Err(error), wait) => {
                if !wait.was_long(self.shared.settings.ready_timeout) {
                    self.template_in_use = None;
                }
                self.guest_not_ready(error).await;
            }
            TaskEvent::GuestReady(Ok(facts)) => self.guest_ready(facts).await,
            TaskEvent::GuestReady(Err(error)) => self.guest_not_ready(error).await,
            TaskEvent::UpChecked(facts) => self.up_checked(facts),
            TaskEvent::RestartDue => self.restart_due().await,
            TaskEvent::Probed(facts) => self.probed(facts),
            TaskEvent::GuestHalted(end) => self.guest_halted(end).await,
            TaskEvent::ShutdownAnswered(Ok(())) => {
                for waiter in &self.waiters {
                    waiter.job.stage("power-off", "the guest's data is on its disks");
                }
            }
            TaskEvent::ShutdownAnswered(Err(error)) => {
                tracing::warn!(vm = %self.vm.id, %error, "cannot ask the guest to power off");
                self.kill_vmm();
            }
            TaskEvent::StopTimedOut => {
                tracing::warn!(vm = %self.vm.id, "the guest takes too long to power off");
                self.kill_vmm();
            }
            TaskEvent::Captured(result) => self.captured(*result).await,
            TaskEvent::Loaded(result) => self.loaded(result).await,
            TaskEvent::Renewed(result) => self.renewed(result).await,
            TaskEvent::Continued(result) => self.continued(result).await,
            TaskEvent::Killed(Ok(())) => {}
            TaskEvent::Killed(Err(error)) => {
                tracing::error!(vm = %self.vm.id, %error, "cannot end a VMM");
                if self.vm.state == State::Suspending {
                    // Its memory is on disk, and it stands still: nothing else would try again.
                    self.shared.problems.set(Subject::Resource(self.vm.id, Resource::Unit), &error);
                }
                self.fail_waiters(&Arc::new(error.into()), |goal| {
                    matches!(goal, Goal::Down | Goal::Gone | Goal::Again(_) | Goal::Suspended)
                });
            }
            TaskEvent::KernelImported(kernel) => self.kernel_imported(kernel).await,
            TaskEvent::JobCanceled(job) => return self.job_canceled(job).await,
            TaskEvent::CommitEnded => return self.commit_ended().await,
            TaskEvent::ForkEnded(job, forked) => return self.fork_ended(job, *forked).await,
            TaskEvent::RestoreEnded(job, restored) => return self.restore_ended(job, *restored).await,
            TaskEvent::Thawed => {
                self.is_thawing = false;
                if self.vm.is_ready() {
                    self.correct_clock();
                }
            }
        }
        Next::Continue
    }

    pub(super) async fn guest_ready(&mut self, facts: GuestFacts) {
        self.end_phase(Phase::Guest);
        if self.phase_begun.take().is_some() {
            self.shared.inventory.count_phases(self.vm.id);
        }
        self.vm.boot_id = facts.boot_id;
        if self.vm.ready_at == Timestamp::default() {
            self.vm.ready_at = now(&*self.shared.ports.clock);
        }
        self.is_new = false;
        self.save_or_log().await;
        if let Some((key, spec)) = self.missing_template.take() {
            self.shared.make_template(key, spec);
        }
        for job in self.take_waiters(|goal| matches!(goal, Goal::Running | Goal::Ready)) {
            job.finish(Ok(()));
        }
    }

    /// Fails the waiting jobs. The guest stays up so that its logs can be read, and only its owner deletes it.
    pub(super) async fn guest_not_ready(&mut self, error: guest_link::Error) {
        self.phase_begun = None;
        self.is_new = false;
        if self.vm.state == State::Running {
            self.vm.reason = Reason::BootTimeout;
            self.vm.lifetime = Lifetime::Persistent;
        }
        self.save_or_log().await;
        let error = self.not_ready_error(error);
        self.distrust_template(&error).await;
        self.fail_waiters(&Arc::new(error), |goal| goal == Goal::Ready);
    }

    pub(super) async fn vmm_ended(&mut self, ended: Ended) -> Next {
        let (event, reason) = match self.vm.state == State::Suspending && self.is_captured {
            true => (Event::Suspended, self.vm.reason.clone()),
            false => self.classify_end(&ended).await,
        };
        if event != Event::Suspended {
            self.note_end(&ended).await;
        }
        tracing::info!(vm = %self.vm.id, ?ended, %reason, "the VMM has ended");
        // All background work belongs to the boot that has ended, and so do its unread results.
        self.background = Background::default();
        if event != Event::Suspended {
            self.discard_capture().await;
            let gone = Arc::new(Error::NotRunning { name: self.vm.name.to_string() });
            self.fail_waiters(&gone, |goal| goal == Goal::Suspended);
        }
        self.apply(event);
        self.vm.reason = reason;
        let answered_for = self.answered_for();
        self.clear_boot();
        if event == Event::Rebooted && self.vm.state == State::Starting {
            self.lease.release(Scope::Boot).await;
            return self.reboot().await;
        }
        let never_ready = std::mem::take(&mut self.is_new);
        if never_ready {
            // Its owner will want to read its logs.
            self.vm.lifetime = Lifetime::Persistent;
        }
        let name = self.vm.name.to_string();
        let left = not_released(&name, self.rest().await);
        let is_suspended = self.vm.state == State::Suspended;
        let is_over = self.vm.lifetime == Lifetime::UntilStopped && !is_suspended;
        // A sandbox that is about to be deleted stays up in the database, so that a restart of the service deletes it.
        if is_over {
            self.publish();
        } else {
            self.save_or_log().await;
        }

        let how = match (&self.vm.reason, ended) {
            (Reason::GuestPanic, _) => "its kernel panicked".to_owned(),
            (Reason::GuestReboot, _) => "it rebooted".to_owned(),
            (Reason::RebootLoop, _) => "it rebooted too often".to_owned(),
            (Reason::GuestHalt, _) => "it halted".to_owned(),
            (Reason::VmmOutOfMemory, _) => "memory ran out, and its VMM was killed".to_owned(),
            (_, Ended::Clean) => "it powered off".to_owned(),
            (_, ended) => ended.in_words(),
        };
        let early = Arc::new(Error::EndedEarly { name, how });
        if self.vm.state == State::Failed {
            self.distrust_template(&early).await;
        }
        self.template_in_use = None;
        self.fail_waiters(&early, |goal| matches!(goal, Goal::Running | Goal::Ready));
        let down = self.take_waiters(|goal| matches!(goal, Goal::Down | Goal::Suspended));
        match left.map(Arc::new) {
            None => down.into_iter().for_each(|job| job.finish(Ok(()))),
            // It is down, but its host is not as it was before the start.
            Some(left) => down.into_iter().for_each(|job| job.fail_shared(&left)),
        }
        if self.waiters.iter().any(|waiter| waiter.goal == Goal::Gone) {
            return self.remove_and_finish_waiters().await;
        }
        if is_over {
            self.fail_waiters(&early, |goal| matches!(goal, Goal::Up(_)));
            return self.delete_automatically(Reason::UserRequest).await;
        }
        self.start_after_stop().await;
        self.plan_restart(answered_for);
        Next::Continue
    }

    /// Notes in the VMM's log how it ended, unless it ended well: a killed VMM says nothing itself.
    async fn note_end(&self, ended: &Ended) {
        if *ended == Ended::Clean {
            return;
        }
        let asked = if self.vm.state == State::Stopping { ", as a user asked" } else { "" };
        let line = format!("banger: {}{asked}.\n", ended.in_words());
        if let Err(error) = self.shared.ports.logs.append(self.vm.id, Log::Vmm, line).await {
            tracing::warn!(vm = %self.vm.id, %error, "cannot note the end of a VMM in its log");
        }
    }

    /// Starts the VM for the jobs that wait for its next boot: restarts, and starts during a shutdown.
    pub(super) async fn start_after_stop(&mut self) {
        let next_boot = |goal| match goal {
            Goal::Again(start) | Goal::Up(start) => Some(start),
            _ => None,
        };
        for (job, start) in self.take_starts(next_boot) {
            self.start_for(job, start).await;
        }
    }

    pub(super) async fn job_canceled(&mut self, id: JobId) -> Next {
        let Some(index) = self.waiters.iter().position(|waiter| waiter.job.id() == id) else {
            return Next::Continue;
        };
        if matches!(self.waiters[index].goal, Goal::Up(_) | Goal::Imported(_)) {
            // It stays as it was before the job: up, or down.
            self.waiters.swap_remove(index).job.finish(Err(Error::Canceled));
            return Next::Continue;
        }
        if self.waiters[index].goal == Goal::Suspended {
            self.cancel_suspension(index);
            return Next::Continue;
        }
        let starts = |goal| matches!(goal, Goal::Running | Goal::Ready);
        if !starts(self.waiters[index].goal) {
            // A stop or a deletion cannot be undone: the guest may be half-way down.
            return Next::Continue;
        }
        let waiter = self.waiters.swap_remove(index);
        let others_wait = self.waiters.iter().any(|waiter| starts(waiter.goal));
        if self.vm.state == State::Resuming && !others_wait {
            self.stay_suspended(&Error::Canceled).await;
            waiter.job.finish(Err(Error::Canceled));
            return Next::Continue;
        }
        waiter.job.finish(Err(Error::Canceled));
        if others_wait {
            return Next::Continue;
        }
        if self.is_new {
            return self.delete_automatically(Reason::UserRequest).await;
        }
        if self.vm.booted_from == Some(BootedFrom::Suspension) {
            // Its memory is nowhere else.
            return Next::Continue;
        }
        if let Err(error) = self.stop_vmm(FORCED, Reason::UserRequest).await {
            tracing::error!(vm = %self.vm.id, %error, "cannot stop after a cancellation");
        }
        Next::Continue
    }
}
