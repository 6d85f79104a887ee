//! Stops a VM, with or without the guest's cooperation.

use std::{sync::Arc, time::Duration};

use banger_domain::{
    id::JobId,
    lifecycle::{Event, Reason, State, Transition, step},
};
use tokio::time::Instant;

use super::{Goal, TaskEvent, VmTask};
use crate::engine::{
    error::{Error, Result},
    job::Stages,
    request::{Start, Stop, StopMode},
    view::JobKind,
};

/// HUP, INT, QUIT, ABRT, KILL and TERM. With any other signal the VMM might keep running, and the VM would stay
/// `stopping`.
const ENDING_SIGNALS: [i32; 6] = [1, 2, 3, 6, 9, 15];
pub(super) const STOP: Stages = &["shutdown", "power-off"];
const RESTART: Stages = &["shutdown", "power-off", "start", "boot"];
/// A stop without the guest's cooperation.
pub(super) const FORCED: Stop = Stop { timeout: None, mode: StopMode::Forced };

impl VmTask {
    pub(super) async fn stop(&mut self, stop: Stop) -> Result<JobId> {
        step(self.vm.state, Event::Stop)?;
        if self.has_memory_on_disk() && stop.mode == StopMode::Graceful {
            return Err(Error::Suspended { name: self.vm.name.to_string() });
        }
        if stop.mode == StopMode::Graceful {
            self.require_not_forked()?;
        }
        let job = self.begin_job(JobKind::VmStop, STOP)?;
        let id = job.id();
        if !self.vm.state.is_up() {
            self.forget_restart().await;
            job.finish(self.become_stopped().await);
            return Ok(id);
        }
        self.stop_vmm(stop, Reason::UserRequest).await?;
        job.stage("shutdown", "asking the guest to power off");
        self.wait_for(job, Goal::Down);
        Ok(id)
    }

    /// Returns whether a stop would lose memory that is nowhere else.
    fn has_memory_on_disk(&self) -> bool {
        matches!(self.vm.state, State::Suspending | State::Suspended | State::Resuming)
    }

    /// Makes a VM a stopped one of which nothing is up: one that failed, whose user has seen the failure, or a suspended
    /// one, whose memory is discarded.
    async fn become_stopped(&mut self) -> Result<()> {
        if self.enter(Event::Stop)? != Transition::Unchanged {
            self.vm.reason = Reason::UserRequest;
            self.discard_capture().await;
            // Its published ports, if they could have woken it. Failures are logged, and tried again.
            drop(self.rest().await);
            self.save().await?;
        }
        Ok(())
    }

    pub(super) async fn restart(&mut self, stop: Stop, start: Start) -> Result<JobId> {
        if self.has_memory_on_disk() {
            return Err(Error::Suspended { name: self.vm.name.to_string() });
        }
        if !self.vm.state.is_up() {
            return self.start(start).await;
        }
        step(self.vm.state, Event::Stop)?;
        if stop.mode == StopMode::Graceful {
            self.require_not_forked()?;
        }
        let job = self.begin_job(JobKind::VmRestart, RESTART)?;
        let id = job.id();
        self.stop_vmm(stop, Reason::UserRequest).await?;
        job.stage("shutdown", "asking the guest to power off");
        self.wait_for(job, Goal::Again(start));
        Ok(id)
    }

    /// Starts to end the VMM. A forced stop overrides a clean one that is under way.
    pub(super) async fn stop_vmm(&mut self, stop: Stop, reason: Reason) -> Result<()> {
        let never_answered = self.vm.reason == Reason::BootTimeout;
        self.expect_end().await;
        let transition = self.enter(Event::Stop)?;
        // What a user asks for counts, also if the guest has halted on its own a moment before.
        if transition != Transition::Unchanged || reason == Reason::UserRequest {
            self.vm.reason = reason;
            self.save().await?;
        }
        match stop.mode {
            StopMode::Forced => self.kill_vmm(),
            StopMode::Graceful if transition == Transition::Unchanged => {}
            StopMode::Graceful if never_answered => self.kill_vmm(),
            StopMode::Graceful => {
                self.request_shutdown(stop.timeout.unwrap_or(self.shared.settings.stop_timeout))
            }
        }
        Ok(())
    }

    pub(super) fn request_shutdown(&mut self, timeout: Duration) {
        let (shared, vm, token) = (Arc::clone(&self.shared), self.vm.id, self.vm.token.clone());
        let deadline = Instant::now() + timeout;
        self.background.spawn(async move {
            TaskEvent::ShutdownAnswered(shared.ports.guest.shutdown(vm, &token, timeout).await)
        });
        self.background.spawn(async move {
            tokio::time::sleep_until(deadline).await;
            TaskEvent::StopTimedOut
        });
    }

    pub(super) fn kill_vmm(&mut self) {
        let (shared, vm) = (Arc::clone(&self.shared), self.vm.id);
        self.background.spawn(async move { TaskEvent::Killed(shared.ports.supervisor.remove(vm).await) });
    }

    pub(super) async fn kill(&mut self, signal: i32) -> Result<()> {
        if !ENDING_SIGNALS.contains(&signal) {
            let why =
                format!("signal {signal} does not end a sandbox; use HUP, INT, QUIT, ABRT, KILL or TERM");
            return Err(Error::InvalidOption { why });
        }
        if !self.vm.state.is_up() {
            return Err(Error::NotRunning { name: self.vm.name.to_string() });
        }
        self.expect_end().await;
        self.enter(Event::Stop)?;
        self.vm.reason = Reason::UserRequest;
        self.save().await?;
        Ok(self.shared.ports.supervisor.kill(self.vm.id, signal).await?)
    }
}
