//! What comes to an end beside the task, and what follows of it.

use std::sync::Arc;

use banger_domain::{
    guest_end::GuestEnd,
    id::{JobId, Timestamp},
    lifecycle::{Event, Reason, State, step},
    resource::Scope,
    vm::Lifetime,
};
use tokio::task::JoinSet;
use tracing::Instrument;

use super::{FORCED, Goal, Next, Task, Waiter};
use crate::{
    engine::{error::Error, now},
    ports::{self, Ended, GuestFacts},
};

/// Something that went on beside the task has come to an end.
pub(super) enum Happening {
    /// The monitor's process has ended.
    Ended(Ended),
    /// The guest answers, or did not in time.
    Guest(ports::Result<GuestFacts>),
    /// The same of a guest that had answered before.
    Looked(ports::Result<GuestFacts>),
    /// The guest was asked again after it had not answered.
    Answered(ports::Result<GuestFacts>),
    /// Nothing runs in the guest any more.
    StoodStill(GuestEnd),
    /// The guest's data is on its disks and it is powering off; or it could not be asked.
    Asked(ports::Result<()>),
    /// A stop has taken too long.
    Overdue,
    /// The process was killed; the watch on its end will report.
    Killed(ports::Result<()>),
    /// Somebody gave a job up.
    Canceled(JobId),
}

impl Task {
    pub(super) async fn happened(&mut self, happening: Happening) -> Next {
        match happening {
            Happening::Ended(ended) => return self.ended(ended).await,
            Happening::Guest(Ok(facts)) => self.guest_ready(facts).await,
            Happening::Guest(Err(error)) => self.guest_not_ready(error).await,
            Happening::Looked(facts) => self.looked(facts),
            Happening::Answered(facts) => self.answered(facts),
            Happening::StoodStill(end) => self.stood_still(end).await,
            Happening::Asked(Ok(())) => {
                for waiter in &self.waiters {
                    waiter.job.stage("power-off", "the guest's data is on its disks");
                }
            }
            Happening::Asked(Err(error)) => {
                tracing::warn!(vm = %self.vm.id, %error, "the guest cannot be asked to power off");
                self.kill_now();
            }
            Happening::Overdue => {
                tracing::warn!(vm = %self.vm.id, "the guest takes too long to power off");
                self.kill_now();
            }
            Happening::Killed(Ok(())) => {}
            Happening::Killed(Err(error)) => {
                tracing::error!(vm = %self.vm.id, %error, "cannot end a machine");
                self.fail_waiters(&Arc::new(error.into()), |goal| {
                    matches!(goal, Goal::Down | Goal::Gone | Goal::Again(_))
                });
            }
            Happening::Canceled(job) => return self.canceled(job).await,
        }
        Next::Continue
    }

    pub(super) async fn guest_ready(&mut self, facts: GuestFacts) {
        self.vm.boot_id = facts.boot_id;
        if self.vm.ready_at == Timestamp::default() {
            self.vm.ready_at = now(&*self.shared.ports.clock);
        }
        self.is_new = false;
        self.log_failed_save().await;
        for job in self.take_waiters(|goal| matches!(goal, Goal::Running | Goal::Ready)) {
            job.finish(Ok(()));
        }
    }

    /// The guest stays up for its logs, and nothing removes it but its owner.
    pub(super) async fn guest_not_ready(&mut self, error: ports::Error) {
        self.is_new = false;
        if self.vm.state == State::Running {
            self.vm.reason = Reason::BootTimeout;
            self.vm.lifetime = Lifetime::Persistent;
        }
        self.log_failed_save().await;
        let error = self.not_ready(error);
        self.fail_waiters(&Arc::new(error), |goal| goal == Goal::Ready);
    }

    pub(super) async fn ended(&mut self, ended: Ended) -> Next {
        let (event, reason) = self.judge_end(&ended).await;
        tracing::info!(vm = %self.vm.id, ?ended, %reason, "the VMM has ended");
        // What is still under way belongs to this boot, and so does what has come and was not looked at.
        self.beside = JoinSet::new();
        self.happen(event);
        self.vm.reason = reason;
        self.forget_boot();
        if event == Event::Rebooted && self.vm.state == State::Starting {
            self.lease.release(Scope::Boot).await;
            return self.boot_again().await;
        }
        let never_ready = std::mem::take(&mut self.is_new);
        if never_ready && matches!(self.vm.lifetime, Lifetime::Caller { .. }) {
            // Somebody will want to see its logs.
            self.vm.lifetime = Lifetime::Persistent;
        }
        // Each failure is logged where it happens; what is left stays in the ledger.
        self.lease.release(Scope::Boot).await;
        self.log_failed_save().await;

        let name = self.vm.name.to_string();
        let how = match (&self.vm.reason, ended) {
            (Reason::GuestPanic, _) => "its kernel panicked".to_owned(),
            (Reason::GuestReboot, _) => "it rebooted".to_owned(),
            (Reason::RebootLoop, _) => "it rebooted again and again".to_owned(),
            (Reason::GuestHalt, _) => "it halted".to_owned(),
            (Reason::VmmOutOfMemory, _) => "memory ran out, and its VMM was killed".to_owned(),
            (_, Ended::Clean) => "it powered off".to_owned(),
            (_, Ended::Failed(how)) => how,
            (_, Ended::Unknown) => "nobody knows how".to_owned(),
        };
        let early = Arc::new(Error::EndedEarly { name, how });
        self.fail_waiters(&early, |goal| matches!(goal, Goal::Running | Goal::Ready));
        for job in self.take_waiters(|goal| goal == Goal::Down) {
            job.finish(Ok(()));
        }
        if self.waiters.iter().any(|waiter| waiter.goal == Goal::Gone) {
            return self.remove_for_waiters().await;
        }
        if self.vm.lifetime == Lifetime::UntilStopped && !never_ready {
            self.fail_waiters(&early, |goal| matches!(goal, Goal::Up(_)));
            return self.delete_unasked(Reason::UserRequest).await;
        }
        self.start_again().await;
        Next::Continue
    }

    /// The second half of a restart, or of a start of what was shutting down.
    pub(super) async fn start_again(&mut self) {
        let waiters = std::mem::take(&mut self.waiters);
        for Waiter { job, goal } in waiters {
            let (Goal::Again(start) | Goal::Up(start)) = goal else {
                self.waiters.push(Waiter { job, goal });
                continue;
            };
            match self.begin_start(&job, start).instrument(job.span()).await {
                Ok(()) => self.await_start(job, start),
                Err(error) => job.finish(Err(error)),
            }
        }
    }

    pub(super) async fn canceled(&mut self, id: JobId) -> Next {
        let Some(index) = self.waiters.iter().position(|waiter| waiter.job.id() == id) else {
            return Next::Continue;
        };
        if matches!(self.waiters[index].goal, Goal::Up(_)) {
            // It was up before, and stays so.
            self.waiters.swap_remove(index).job.finish(Err(Error::Canceled));
            return Next::Continue;
        }
        let starts = |goal| matches!(goal, Goal::Running | Goal::Ready);
        if !starts(self.waiters[index].goal) {
            // A stop or a removal goes on: the guest may be half-way down.
            return Next::Continue;
        }
        let waiter = self.waiters.swap_remove(index);
        waiter.job.finish(Err(Error::Canceled));
        if self.waiters.iter().any(|waiter| starts(waiter.goal)) {
            return Next::Continue;
        }
        if self.is_new {
            return self.delete_unasked(Reason::UserRequest).await;
        }
        if let Ok(transition) = step(self.vm.state, Event::Stop)
            && let Err(error) = self.begin_stop(transition, FORCED, Reason::UserRequest).await
        {
            tracing::error!(vm = %self.vm.id, %error, "cannot stop after a cancellation");
        }
        Next::Continue
    }
}
