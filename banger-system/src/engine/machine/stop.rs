//! Stops a sandbox.

use std::{sync::Arc, time::Duration};

use banger_domain::{
    id::JobId,
    lifecycle::{Event, Reason, Transition, step},
};
use tokio::time::Instant;

use super::{Goal, Happening, Task};
use crate::engine::{
    error::{Error, Result},
    job::Stages,
    request::{Manner, Start, Stop},
    view::JobKind,
};

/// HUP, INT, QUIT, ABRT, KILL and TERM. A monitor that was only stopped, or ignores the signal, would stay
/// in a state that says that it is going.
const ENDING_SIGNALS: [i32; 6] = [1, 2, 3, 6, 9, 15];
const STOP: Stages = &["shutdown", "power-off"];
const RESTART: Stages = &["shutdown", "power-off", "start", "boot"];
/// A stop that asks nobody.
pub(super) const FORCED: Stop = Stop { timeout: None, manner: Manner::Forced };

impl Task {
    pub(super) async fn stop(&mut self, stop: Stop) -> Result<JobId> {
        let transition = step(self.vm.state, Event::Stop)?;
        let job = self.begin_job(JobKind::VmStop, STOP)?;
        let id = job.id();
        if !self.vm.state.is_up() {
            job.finish(Ok(()));
            return Ok(id);
        }
        self.begin_stop(transition, stop, Reason::UserRequest).await?;
        job.stage("shutdown", "asking the guest to power off");
        self.wait_for(job, Goal::Down);
        Ok(id)
    }

    pub(super) async fn restart(&mut self, stop: Stop, start: Start) -> Result<JobId> {
        if !self.vm.state.is_up() {
            return self.start(start).await;
        }
        let transition = step(self.vm.state, Event::Stop)?;
        let job = self.begin_job(JobKind::VmRestart, RESTART)?;
        let id = job.id();
        self.begin_stop(transition, stop, Reason::UserRequest).await?;
        job.stage("shutdown", "asking the guest to power off");
        self.wait_for(job, Goal::Again(start));
        Ok(id)
    }

    /// Begins to end the monitor. A forced stop hurries one that is under way.
    pub(super) async fn begin_stop(
        &mut self,
        transition: Transition,
        stop: Stop,
        reason: Reason,
    ) -> Result<()> {
        let never_answered = self.vm.reason == Reason::BootTimeout;
        if let Transition::To(state) = transition {
            self.vm.state = state;
            self.vm.reason = reason;
            self.save().await?;
        }
        match stop.manner {
            Manner::Forced => self.kill_now(),
            Manner::Clean if transition == Transition::Unchanged => {}
            Manner::Clean if never_answered => self.kill_now(),
            Manner::Clean => self.ask_to_shut_down(stop.timeout.unwrap_or(self.shared.settings.stop_timeout)),
        }
        Ok(())
    }

    pub(super) fn ask_to_shut_down(&mut self, timeout: Duration) {
        let (shared, vm, token) = (Arc::clone(&self.shared), self.vm.id, self.vm.token.clone());
        let deadline = Instant::now() + timeout;
        self.beside
            .spawn(async move { Happening::Asked(shared.ports.guest.shutdown(vm, &token, timeout).await) });
        self.beside.spawn(async move {
            tokio::time::sleep_until(deadline).await;
            Happening::Overdue
        });
    }

    pub(super) fn kill_now(&mut self) {
        let (shared, vm) = (Arc::clone(&self.shared), self.vm.id);
        self.beside.spawn(async move { Happening::Killed(shared.ports.supervisor.remove(vm).await) });
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
        if let Ok(Transition::To(state)) = step(self.vm.state, Event::Stop) {
            self.vm.state = state;
            self.vm.reason = Reason::UserRequest;
            self.save().await?;
        }
        Ok(self.shared.ports.supervisor.kill(self.vm.id, signal).await?)
    }
}
