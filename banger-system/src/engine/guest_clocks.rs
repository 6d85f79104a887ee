//! Keeps the clocks of guests right. A guest's clock starts from the boot configuration, drifts with its kernel's
//! clock source, and stands still while the host sleeps. The regular comparison also shows that a guest has stopped
//! answering.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use banger_domain::clock::Occasion;

use super::Shared;
use crate::ports::guest_link;

/// Pause after a failure to follow the host's clock.
const RETRY: Duration = Duration::from_secs(60);

/// Corrects the clocks of guests until the engine is dropped.
pub(super) async fn run(shared: Weak<Shared>) {
    while let Some(clock) = shared.upgrade().map(|shared| Arc::clone(&shared.ports.clock)) {
        let occasion = match clock.due().await {
            Ok(occasion) => occasion,
            Err(error) => {
                tracing::error!(%error, "cannot follow the host's clock; guest clocks are not corrected");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let Some(shared) = shared.upgrade() else { return };
        for view in shared.inventory.vms().into_iter().filter(|view| view.is_ready()) {
            let shared = Arc::clone(&shared);
            // Concurrently: a guest that does not answer must not delay the others.
            tokio::spawn(async move {
                match shared.ports.guest.sync_clock(view.vm.id, &view.vm.token, occasion).await {
                    Ok(()) => {}
                    Err(guest_link::Error::Timeout { .. }) => shared.suspect_silent(view.vm.id),
                    // Not a warning every minute.
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
