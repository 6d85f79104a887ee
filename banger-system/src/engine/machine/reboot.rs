//! A guest that ends or boots on its own: it reboots, halts, or is started again while it shuts down.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use banger_domain::{
    guest_end::{GuestEnd, event_of_exit},
    lifecycle::{Event, Reason, State, Transition, step},
};
use tracing::Instrument;

use super::{FORCED, Goal, Happening, Next, Task, Waiter};
use crate::{
    engine::{
        error::{Error, one_line},
        job::{JobHandle, Stages},
        request::{OnReboot, Start},
        view::{JobKind, Object},
    },
    ports::{self, Ended, GuestFacts},
};

const REBOOT: Stages = &["start", "boot"];

impl Task {
    /// What the end of the VMM means, and why it ended.
    pub(super) async fn judge_end(&mut self, ended: &Ended) -> (Event, Reason) {
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

    /// Boots a guest that has rebooted: its VMM has ended, and what belonged to that boot is released. Jobs that wait for
    /// the guest go on waiting.
    pub(super) async fn boot_again(&mut self) -> Next {
        let about = vec![Object::Vm(self.vm.id)];
        // Not counted: the guest must not be lost because its owner has much under way.
        let job = self.shared.jobs.begin_unasked(JobKind::VmRestart, self.vm.owner, about, REBOOT);
        let start = Start::default();
        let booted = self.bring_up(&job, start).instrument(job.span()).await;
        let waiters = std::mem::take(&mut self.waiters);
        match booted {
            Ok(()) => {
                // What they waited for beside the task ended with the boot.
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
            }
        }
        Next::Continue
    }

    /// Looks whether the guest is there to stay; when it is shutting down, it is started again once it is off.
    pub(super) fn make_sure_it_is_up(&mut self, job: JobHandle, start: Start) {
        let timeout = start.ready_timeout.unwrap_or(self.shared.settings.ready_timeout);
        self.wait_for(job, Goal::Up(start));
        let (shared, vm, token) = (Arc::clone(&self.shared), self.vm.id, self.vm.token.clone());
        self.beside.spawn(async move {
            Happening::Looked(shared.ports.guest.wait_ready(vm, &token, timeout).await)
        });
    }

    pub(super) fn looked(&mut self, facts: ports::Result<GuestFacts>) {
        let is_up = |goal| matches!(goal, Goal::Up(_));
        match facts {
            Ok(facts) if facts.stopping => {
                for waiter in self.waiters.iter().filter(|waiter| is_up(waiter.goal)) {
                    waiter.job.stage("start", "waiting for the guest to power off");
                }
            }
            Ok(_) => self.take_waiters(is_up).into_iter().for_each(|job| job.finish(Ok(()))),
            Err(error) => {
                let error = self.not_ready(error);
                self.fail_waiters(&Arc::new(error), is_up);
            }
        }
    }

    /// The error of a guest that did not answer.
    pub(super) fn not_ready(&self, error: ports::Error) -> Error {
        match error {
            ports::Error::Timeout { after, .. } => {
                Error::GuestTimeout { name: self.vm.name.to_string(), seconds: after.as_secs() }
            }
            other => other.into(),
        }
    }

    /// Notices when nothing runs in the guest any more although its VMM does.
    pub(super) fn watch_for_standstill(&mut self) {
        let (shared, vm) = (Arc::clone(&self.shared), self.vm.id);
        self.beside.spawn(async move {
            loop {
                match shared.ports.logs.stood_still(vm).await {
                    Ok(end) => return Happening::StoodStill(end),
                    Err(error) => {
                        tracing::warn!(%vm, error = %one_line(&error), "cannot watch a console log");
                        tokio::time::sleep(WATCH_AGAIN).await;
                    }
                }
            }
        });
    }

    pub(super) async fn stood_still(&mut self, end: GuestEnd) {
        match step(self.vm.state, Event::Stop) {
            Ok(transition @ Transition::To(_)) => {
                tracing::info!(vm = %self.vm.id, ?end, "nothing runs in the guest any more");
                if let Err(error) = self.begin_stop(transition, FORCED, end.reason()).await {
                    tracing::error!(vm = %self.vm.id, %error, "cannot end a sandbox whose guest has halted");
                }
            }
            // Somebody waits for it to end.
            _ if self.vm.state == State::Stopping => self.kill_now(),
            _ => {}
        }
    }
}

/// How long to wait before a console is looked at again that could not be read.
const WATCH_AGAIN: Duration = Duration::from_secs(60);
