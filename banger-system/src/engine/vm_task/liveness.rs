//! Notices a guest that stops answering although its VMM runs. It is not ready until it answers again.
//!
//! A guest that answers is not probed: the clock check each minute and the requests of users show that it is alive.
//! Only after one of these has timed out does the task probe it, every [`PROBE_INTERVAL`], until it answers.

use std::{sync::Arc, time::Duration};

use super::{TaskEvent, VmTask};
use crate::ports::guest_link::{self, GuestFacts};

/// Time for one answer. A guest that is only busy answers within this time.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause between two probes of a silent guest.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// Whether a guest that was ready still answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Liveness {
    #[default]
    Answering,
    /// One request timed out; a probe is running.
    Suspected,
    Silent,
}

impl VmTask {
    /// Probes the guest, because a request to it timed out.
    pub(super) fn suspect(&mut self) {
        if self.liveness == Liveness::Answering && self.vm.is_ready() {
            self.liveness = Liveness::Suspected;
            self.probe(Duration::ZERO);
        }
    }

    fn probe(&mut self, pause: Duration) {
        let (shared, vm, token) = (Arc::clone(&self.shared), self.vm.id, self.vm.token.clone());
        self.background.spawn(async move {
            tokio::time::sleep(pause).await;
            TaskEvent::Probed(shared.ports.guest.wait_ready(vm, &token, PROBE_TIMEOUT).await)
        });
    }

    pub(super) fn probed(&mut self, facts: guest_link::Result<GuestFacts>) {
        if !self.vm.is_ready() {
            // It was paused after the question.
            self.liveness = Liveness::Answering;
            return;
        }
        let before = self.liveness;
        self.liveness = match facts {
            Ok(_) => Liveness::Answering,
            Err(error) => {
                if before != Liveness::Silent {
                    tracing::warn!(vm = %self.vm.id, %error, "the guest stopped answering");
                }
                self.probe(PROBE_INTERVAL);
                Liveness::Silent
            }
        };
        if (before == Liveness::Silent) != (self.liveness == Liveness::Silent) {
            self.publish();
        }
    }
}
