//! A guest that stops answering although its VMM runs: it is not ready until it answers again. Nothing is asked of it
//! beyond what the service asks anyway, until it has once not answered.

use std::{sync::Arc, time::Duration};

use super::{Happening, Task};
use crate::ports::{self, GuestFacts};

/// How long a guest may take to answer before it counts as silent. One that is only busy is done by then.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Between two questions to a guest that does not answer.
const PAUSE: Duration = Duration::from_secs(5);

/// Whether the guest answers, once it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Answers {
    #[default]
    Yes,
    /// It did not, and is asked again.
    Doubted,
    No,
}

impl Task {
    /// Somebody got no answer of the guest in time.
    pub(super) fn doubt(&mut self) {
        if self.answers == Answers::Yes && self.vm.is_ready() {
            self.answers = Answers::Doubted;
            self.ask_again(Duration::ZERO);
        }
    }

    fn ask_again(&mut self, pause: Duration) {
        let (shared, vm, token) = (Arc::clone(&self.shared), self.vm.id, self.vm.token.clone());
        self.beside.spawn(async move {
            tokio::time::sleep(pause).await;
            Happening::Answered(shared.ports.guest.wait_ready(vm, &token, TIMEOUT).await)
        });
    }

    pub(super) fn answered(&mut self, facts: ports::Result<GuestFacts>) {
        let before = self.answers;
        self.answers = match facts {
            Ok(_) => Answers::Yes,
            Err(error) => {
                if before != Answers::No {
                    tracing::warn!(vm = %self.vm.id, %error, "the guest does not answer any more");
                }
                self.ask_again(PAUSE);
                Answers::No
            }
        };
        if (before == Answers::No) != (self.answers == Answers::No) {
            self.publish();
        }
    }
}
