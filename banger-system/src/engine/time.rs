//! The time in guests. They get it at boot and count on by themselves, which they do not while the host sleeps.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use super::Shared;

/// How long to wait after a failure to follow the clock.
const AGAIN: Duration = Duration::from_secs(60);

/// Sets the clocks of guests when that of the host has jumped, for as long as there is an engine.
pub(super) async fn keep(shared: Weak<Shared>) {
    while let Some(clock) = shared.upgrade().map(|shared| Arc::clone(&shared.ports.clock)) {
        match clock.changed().await {
            Ok(()) => {}
            Err(error) => {
                tracing::error!(%error, "the clocks of guests are not kept");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        }
        let Some(shared) = shared.upgrade() else { return };
        for view in shared.registry.vms().into_iter().filter(|view| view.vm.is_ready()) {
            let ports = shared.ports.clone();
            // Beside each other: a guest that does not answer keeps no other one waiting.
            tokio::spawn(async move {
                let set = ports.guest.set_time(view.vm.id, &view.vm.token, ports.clock.now()).await;
                if let Err(error) = set {
                    tracing::warn!(vm = %view.vm.id, %error, "cannot set the clock of a guest");
                }
            });
        }
    }
}
