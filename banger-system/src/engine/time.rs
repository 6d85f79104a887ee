//! The time in guests. They count on by themselves from what they were told at boot, each as fast as its kernel
//! believes to be right, and not at all while the host sleeps. The question for the time is also what shows that a guest
//! has stopped answering.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use banger_domain::clock::Occasion;

use super::Shared;
use crate::ports;

/// How long to wait after a failure to follow the clock.
const AGAIN: Duration = Duration::from_secs(60);

/// Keeps the clocks of guests right, for as long as there is an engine.
pub(super) async fn keep(shared: Weak<Shared>) {
    while let Some(clock) = shared.upgrade().map(|shared| Arc::clone(&shared.ports.clock)) {
        let occasion = match clock.due().await {
            Ok(occasion) => occasion,
            Err(error) => {
                tracing::error!(%error, "the clocks of guests are not kept");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        let Some(shared) = shared.upgrade() else { return };
        for view in shared.registry.vms().into_iter().filter(|view| view.is_ready()) {
            let shared = Arc::clone(&shared);
            // Beside each other: a guest that does not answer keeps no other one waiting.
            tokio::spawn(async move {
                match shared.ports.guest.mend_clock(view.vm.id, &view.vm.token, occasion).await {
                    Ok(()) => {}
                    Err(ports::Error::Timeout { .. }) => shared.doubt(view.vm.id),
                    // Each minute the same is no news.
                    Err(error) if occasion == Occasion::Regular => {
                        tracing::debug!(vm = %view.vm.id, %error, "cannot compare the clock of a guest");
                    }
                    Err(error) => {
                        tracing::warn!(vm = %view.vm.id, %error, "cannot set the clock of a guest");
                    }
                }
            });
        }
    }
}
