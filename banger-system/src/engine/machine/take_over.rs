//! Reattaches the task of a sandbox after a restart of the service.

use banger_domain::{
    clock::Occasion,
    lifecycle::{Event, Reason, State},
    resource::Scope,
};

use super::{Next, Task};
use crate::{
    engine::error::one_line,
    ports::{Ended, Started},
};

impl Task {
    pub(super) async fn take_over(&mut self, process: Option<Started>) -> Next {
        match (self.vm.state, process) {
            (State::Deleting, _) => {
                let (error, next) = self.remove().await;
                if let Some(error) = error {
                    tracing::error!(vm = %self.vm.id, %error, "cannot finish deleting a sandbox");
                }
                next
            }
            (state, Some(process)) if state.is_up() => {
                tracing::info!(vm = %self.vm.id, pid = process.pid, "found a running sandbox");
                self.unit = process.unit;
                self.pid = process.pid;
                if state == State::Starting {
                    self.vm.state = State::Running;
                }
                self.publish();
                self.plug_again().await;
                self.watch_end();
                self.watch_for_standstill();
                if state == State::Stopping {
                    self.ask_to_shut_down(self.shared.settings.stop_timeout);
                } else {
                    self.watch_guest(self.shared.settings.ready_timeout, Occasion::Regular);
                }
                Next::Continue
            }
            (state, process) if state.is_up() || process.is_some() => {
                self.lease.release(Scope::Boot).await;
                self.ended_meanwhile(state).await
            }
            _ => Next::Continue,
        }
    }

    /// The VMM ended while no service watched. Its console may say how.
    async fn ended_meanwhile(&mut self, state: State) -> Next {
        let (event, reason) = match state.is_up() {
            true => self.judge_end(&Ended::Unknown).await,
            false => (Event::Exited, Reason::Lost),
        };
        match (event, &reason) {
            // Nobody says that it failed.
            (_, Reason::Lost) => self.vm.state = if state.is_up() { State::Stopped } else { state },
            _ => self.happen(event),
        }
        self.vm.reason = reason;
        self.forget_boot();
        if event == Event::Rebooted && self.vm.state == State::Starting {
            return self.boot_again().await;
        }
        self.log_failed_save().await;
        Next::Continue
    }

    /// Takes over the interface of a sandbox that runs. Without it the sandbox runs on.
    pub(super) async fn plug_again(&mut self) {
        let taken = match self.shared.nic(&self.vm).await {
            Ok(nic) => self.shared.ports.network.take_over(&nic).await,
            Err(error) => Err(error),
        };
        match taken {
            Ok(taken) => {
                for port in &taken {
                    tracing::warn!(vm = %self.vm.id, %port, "something else uses a published port");
                }
                self.blocked_ports = taken;
                self.publish();
            }
            Err(error) => {
                tracing::error!(vm = %self.vm.id, error = %one_line(&error), "cannot reattach an interface");
            }
        }
    }
}
