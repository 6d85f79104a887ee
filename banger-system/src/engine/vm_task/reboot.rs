//! Handles guests that end or reboot on their own, and starts during a shutdown.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use banger_domain::{
    guest_end::{GuestEnd, event_of_exit},
    lifecycle::{Event, Reason, State, Transition, step},
};
use tracing::Instrument;

use super::{FORCED, Goal, Next, TaskEvent, VmTask, Waiter};
use crate::{
    engine::{
        error::{Error, one_line},
        job::{JobHandle, Stages},
        request::{OnReboot, Start},
        view::JobKind,
    },
    ports::{
        guest_link::{self, GuestFacts},
        supervisor::Ended,
    },
};

const REBOOT: Stages = &["start", "boot"];

impl VmTask {
    /// Returns what the end of the VMM means for the lifecycle, and the reason to show.
    pub(super) async fn classify_end(&mut self, ended: &Ended) -> (Event, Reason) {
        let guest = match self.shared.ports.logs.guest_end(self.vm.id).await {
            Ok(guest) => guest,
            Err(error) => {
                tracing::warn!(vm = %self.vm.id, error = %one_line(&error), "cannot read a console log");
                None
            }
        };
        match event_of_exit(self.vm.state, &self.vm.reason, ended, guest) {
            (Event::Rebooted, reason) => match self.shared.settings.on_reboot {
                OnReboot::Stop => (Event::Exited, reason),
                OnReboot::Boot if self.reboots.admit(Instant::now()) => (Event::Rebooted, reason),
                OnReboot::Boot => (Event::Crashed, Reason::RebootLoop),
            },
            judged => judged,
        }
    }

    /// Boots a guest again that has rebooted. Its VMM has ended, and the resources of that boot are released. Jobs
    /// that wait for the guest keep waiting.
    pub(super) async fn reboot(&mut self) -> Next {
        // Exempt from the job limit: a guest must not stay down because its owner has many jobs.
        let job = self.begin_internal_job(JobKind::VmRestart, REBOOT);
        let start = Start::default();
        let booted = self.boot(&job, start).instrument(job.span()).await;
        let waiters = std::mem::take(&mut self.waiters);
        match booted {
            Ok(()) => {
                // The background work that they waited for ended with the old boot.
                for Waiter { job, goal } in waiters {
                    let goal = if matches!(goal, Goal::Up(_)) { Goal::Ready } else { goal };
                    self.wait_for(job, goal);
                }
                self.wait_for(job, Goal::Ready);
            }
            Err(error) => {
                let error = Arc::new(error);
                job.fail_shared(&error);
                waiters.into_iter().for_each(|waiter| waiter.job.fail_shared(&error));
                self.plan_restart(Duration::ZERO);
            }
        }
        Next::Continue
    }

    /// Checks that the guest is not shutting down. If it is, the job waits, and the VM is started once it is off.
    pub(super) fn confirm_up(&mut self, job: JobHandle, start: Start) {
        let timeout = start.ready_timeout.unwrap_or(self.shared.settings.ready_timeout);
        self.wait_for(job, Goal::Up(start));
        let (shared, vm, token) = (Arc::clone(&self.shared), self.vm.id, self.vm.token.clone());
        self.background.spawn(async move {
            TaskEvent::UpChecked(shared.ports.guest.wait_ready(vm, &token, timeout).await)
        });
    }

    pub(super) fn up_checked(&mut self, facts: guest_link::Result<GuestFacts>) {
        let is_up = |goal| matches!(goal, Goal::Up(_));
        match facts {
            Ok(facts) if facts.stopping => {
                for waiter in self.waiters.iter().filter(|waiter| is_up(waiter.goal)) {
                    waiter.job.stage("start", "waiting for the guest to power off");
                }
            }
            Ok(_) => self.take_waiters(is_up).into_iter().for_each(|job| job.finish(Ok(()))),
            Err(error) => {
                let error = self.not_ready_error(error);
                self.fail_waiters(&Arc::new(error), is_up);
            }
        }
    }

    /// Returns the error of a guest that did not answer.
    pub(super) fn not_ready_error(&self, error: guest_link::Error) -> Error {
        match error {
            guest_link::Error::Timeout { after, .. } => {
                Error::GuestTimeout { name: self.vm.name.to_string(), seconds: after.as_secs() }
            }
            other => other.into(),
        }
    }

    /// Waits in the background until the guest halts while its VMM keeps running.
    pub(super) fn watch_for_halt(&mut self) {
        let (shared, vm) = (Arc::clone(&self.shared), self.vm.id);
        let watch = async move {
            loop {
                match shared.ports.logs.wait_for_halt(vm).await {
                    Ok(end) => return TaskEvent::GuestHalted(end),
                    Err(error) => {
                        tracing::warn!(%vm, error = %one_line(&error), "cannot watch a console log");
                        tokio::time::sleep(CONSOLE_RETRY).await;
                    }
                }
            }
        };
        self.background.spawn(watch.instrument(self.span()));
    }

    pub(super) async fn guest_halted(&mut self, end: GuestEnd) {
        match step(self.vm.state, Event::Stop) {
            Ok(Transition::To(_)) => {
                tracing::info!(vm = %self.vm.id, ?end, "the guest has halted");
                if let Err(error) = self.stop_vmm(FORCED, end.reason()).await {
                    tracing::error!(vm = %self.vm.id, %error, "cannot end a sandbox whose guest has halted");
                }
            }
            // A stop is waiting for the end.
            _ if self.vm.state == State::Stopping => self.kill_vmm(),
            _ => {}
        }
    }
}

/// Pause before retrying to watch a console log that could not be read.
const CONSOLE_RETRY: Duration = Duration::from_secs(60);
