//! Reattaches a VM's task to a VMM that an earlier run of the service started.

use std::{collections::BTreeSet, time::Duration};

use banger_domain::{
    clock::Occasion,
    id::Timestamp,
    lifecycle::{Event, Reason, State},
    resource::{Resource, Scope},
    vm::Lifetime,
};

use super::{Next, VmTask, suspend::go_on};
use crate::{
    engine::{
        error::{Error, one_line},
        problems::Subject,
    },
    ports::supervisor::{Ended, Started},
};

impl VmTask {
    pub(super) async fn reattach(&mut self, process: Option<Started>) -> Next {
        self.reattach_capture(process.is_some()).await;
        match (self.vm.state, process) {
            (State::Deleting, _) => self.finish_deletion().await,
            (State::Suspended, _) => {
                self.publish();
                // Failures are logged in the lease, and tried again.
                drop(self.rest().await);
                Next::Continue
            }
            (State::Starting, Some(_)) if !self.has_begun().await => {
                tracing::warn!(vm = %self.vm.id, "found a VMM whose start was interrupted; ending it");
                self.lease.release(Scope::Boot).await;
                self.ended_unwatched(State::Starting).await
            }
            (state, Some(process)) if state.is_up() => {
                tracing::info!(vm = %self.vm.id, pid = process.pid, "found a running sandbox");
                self.unit = process.unit;
                self.pid = process.pid;
                if state == State::Starting {
                    self.apply(Event::Launched);
                }
                self.publish();
                self.freeze_as_stored().await;
                if self.vm.state == State::Running {
                    self.let_continue();
                }
                self.reattach_nic().await;
                self.watch_vmm();
                self.watch_for_halt();
                match state {
                    State::Stopping => self.request_shutdown(self.shared.settings.stop_timeout),
                    State::Paused => {}
                    _ => self.watch_guest(self.shared.settings.ready_timeout, Occasion::Regular),
                }
                Next::Continue
            }
            (state, process) if state.is_up() || process.is_some() => {
                self.lease.release(Scope::Boot).await;
                self.ended_unwatched(state).await
            }
            _ => {
                // A job that made an image of its disk had it attached.
                self.lease.release(Scope::Boot).await;
                self.plan_restart_unwatched();
                Next::Continue
            }
        }
    }

    /// Brings the state of a VM whose memory was being written or loaded into one that a running service could have left.
    /// What `suspend.rs` and `resume.rs` say about crashes happens here.
    async fn reattach_capture(&mut self, is_running: bool) {
        let is_captured = self.is_captured_on_disk().await;
        let guest_stands = async |task: &Self| is_running && !task.has_begun().await;
        match self.vm.state {
            State::Suspending if is_running => {
                self.discard_capture().await;
                self.apply(Event::SuspendFailed);
                if let Err(error) = go_on(&self.shared.ports, self.vm.id).await {
                    tracing::error!(vm = %self.vm.id, error = %one_line(&error), "a guest does not go on");
                }
                self.save_or_log().await;
            }
            State::Suspending if is_captured => {
                self.apply(Event::Suspended);
                self.become_suspended().await;
            }
            State::Resuming => {
                self.apply(Event::LaunchFailed);
                self.become_suspended().await;
            }
            // The row was stored in the last step before its guest would have run.
            State::Running if is_captured && guest_stands(self).await => {
                self.apply(Event::Suspend);
                self.apply(Event::Suspended);
                self.become_suspended().await;
            }
            State::Suspended => {}
            _ => self.discard_capture().await,
        }
    }

    async fn is_captured_on_disk(&mut self) -> bool {
        if !self.lease.holds(Resource::Capture) {
            return false;
        }
        let stored = self.shared.ports.captures.stored(self.vm.id).await;
        self.captured = stored.unwrap_or_else(|error| {
            tracing::error!(vm = %self.vm.id, error = %one_line(&error), "cannot look at a suspended guest");
            None
        });
        self.captured.is_some()
    }

    async fn become_suspended(&mut self) {
        tracing::warn!(vm = %self.vm.id, "the service ended while it suspended or resumed a sandbox, which is suspended");
        self.vm.reason = match (&self.vm.reason, self.vm.spec.idle) {
            (reason @ Reason::Idle(_), _) => reason.clone(),
            // It was being woken, and wakes the next time.
            (Reason::Woken(_), Some(policy)) => Reason::Idle(policy.in_words()),
            _ => Reason::UserRequest,
        };
        self.clear_boot();
        self.save_or_log().await;
    }

    /// Takes over resources that a late look at the host has found, and releases those that are not needed.
    pub(super) async fn found(&mut self, resources: BTreeSet<Resource>, process: Option<Started>) -> Next {
        self.lease.add(resources);
        match (self.vm.state, process) {
            (State::Deleting, _) => return self.finish_deletion().await,
            (state, Some(process)) if state.is_up() && self.pid == 0 => {
                self.unit = process.unit;
                self.pid = process.pid;
                self.publish();
            }
            // Its VMM could not be ended.
            (State::Suspending, _) if self.is_captured => self.kill_vmm(),
            (state, _) if state.is_up() => {}
            // Its disk is attached for a reason.
            _ if self.commit.is_some() => {}
            // Failures are logged in the lease, and tried again.
            _ => drop(self.rest().await),
        }
        if !matches!(self.vm.state, State::Suspending | State::Suspended | State::Resuming) {
            self.discard_capture().await;
            self.publish();
        }
        Next::Continue
    }

    /// Returns whether the guest has begun to run. A VMM that does not say so is left to the time limit of the boot.
    pub(super) async fn has_begun(&self) -> bool {
        let begun = self.shared.ports.vmm.has_begun(self.vm.id).await;
        begun.unwrap_or_else(|error| {
            tracing::warn!(vm = %self.vm.id, %error, "cannot ask a VMM whether its guest runs");
            true
        })
    }

    /// Removes a sandbox whose deletion has begun.
    async fn finish_deletion(&mut self) -> Next {
        let (error, next) = self.remove().await;
        if let Some(error) = error {
            tracing::error!(vm = %self.vm.id, error = %one_line(&error), "cannot finish deleting a sandbox");
        }
        next
    }

    /// Handles the end of a VMM that no service watched. The console log may say how the guest ended.
    async fn ended_unwatched(&mut self, state: State) -> Next {
        let (event, reason) = match state.is_up() {
            true => self.classify_end(&Ended::Unknown).await,
            false => (Event::Exited, Reason::Lost),
        };
        // An end for an unknown reason does not count as a failure.
        let (event, reason) = match reason {
            Reason::Lost if self.shared.ports.host_boot.is_first_run() => {
                (Event::Exited, Reason::HostRestart)
            }
            Reason::Lost => (Event::Exited, reason),
            reason => (event, reason),
        };
        if state.is_up() {
            self.apply(event);
        }
        self.vm.reason = reason;
        let was_ready = self.vm.ready_at != Timestamp::default();
        self.clear_boot();
        if event == Event::Rebooted && self.vm.state == State::Starting {
            return self.reboot().await;
        }
        if state.is_up() && self.vm.lifetime == Lifetime::UntilStopped {
            if was_ready {
                return self.delete_automatically(self.vm.reason.clone()).await;
            }
            // Its owner will want to read its logs.
            self.vm.lifetime = Lifetime::Persistent;
        }
        self.save_or_log().await;
        self.plan_restart_unwatched();
        Next::Continue
    }

    /// Starts a VM again that ended while no service ran. What starts when the host boots is not its policy's matter.
    fn plan_restart_unwatched(&mut self) {
        if !self.shared.ports.host_boot.is_first_run() {
            self.plan_restart(Duration::ZERO);
        }
    }

    /// Reattaches the network interface of a running sandbox. If that fails, the sandbox keeps running with what earlier
    /// runs left, and it is tried again.
    async fn reattach_nic(&mut self) {
        if let Err(error) = self.shared.check_ceiling(&self.vm.spec.egress) {
            tracing::warn!(vm = %self.vm.id, %error, "a running sandbox reaches less than its policy says");
        }
        self.shared.log_missing_presets(self.vm.id, &self.vm.spec.egress);
        self.set_up_nic_again().await;
    }

    /// Tries again what has failed when the interface was reattached.
    pub(super) async fn retry_nic(&mut self) {
        match self.vm.state {
            state if state.is_up() => self.set_up_nic_again().await,
            State::Suspended if self.vm.wakes() && !self.dozes => drop(self.doze().await),
            _ => self.shared.problems.clear(Subject::Interface(self.vm.id)),
        }
    }

    async fn set_up_nic_again(&mut self) {
        let problem = Subject::Interface(self.vm.id);
        let taken = match self.shared.nic(&self.vm).await {
            Ok(nic) => self.shared.ports.network.reattach(&nic).await.map_err(Error::from),
            Err(error) => Err(error),
        };
        match taken {
            Ok(taken) => {
                for port in &taken {
                    tracing::warn!(vm = %self.vm.id, %port, "something else uses a published port");
                }
                self.blocked_ports = taken;
                self.shared.problems.clear(problem);
                self.publish();
            }
            Err(error) => {
                tracing::error!(vm = %self.vm.id, error = %one_line(&error), "cannot reattach an interface");
                self.shared.problems.set(problem, &error);
            }
        }
    }
}
