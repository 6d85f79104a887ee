//! Looks once a minute at the sandboxes that have an idle policy. One timer serves all of them, and without any it does not
//! run.
//!
//! What each of them means is decided in its own task (`vm_task/idle.rs`).

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use banger_domain::{id::VmId, idle::Use, lifecycle::State};
use tokio::sync::watch;

use super::{Engine, Shared, view::VmView, vm_task::Command};

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(60);

/// Looks at sandboxes until the engine is dropped.
pub(super) async fn run(shared: Weak<Shared>, mut changes: watch::Receiver<()>) {
    loop {
        let Some(any) = shared.upgrade().map(|shared| shared.inventory.any_vm(is_watched)) else { return };
        if !any {
            match changes.changed().await {
                Ok(()) => continue,
                Err(_) => return,
            }
        }
        tokio::time::sleep(PERIOD).await;
        let Some(shared) = shared.upgrade() else { return };
        for view in shared.inventory.vms().into_iter().filter(|view| is_watched(view)) {
            let shared = Arc::clone(&shared);
            // Concurrently: a guest that does not answer must not delay the others.
            tokio::spawn(async move {
                let used = shared.ports.guest.usage(view.vm.id, &view.vm.token).await;
                let used = used.inspect_err(|error| {
                    tracing::debug!(vm = %view.vm.id, %error, "cannot ask a guest who uses it");
                });
                shared.tell_use(view.vm.id, Some(used.ok())).await;
            });
        }
    }
}

fn is_watched(view: &VmView) -> bool {
    view.vm.spec.idle.is_some() && view.vm.state == State::Running && view.is_ready()
}

impl Shared {
    /// Tells a VM's task how its guest is used. `None` says that a client uses it now.
    async fn tell_use(&self, vm: VmId, used: Option<Option<Use>>) {
        if let Ok(inbox) = self.inventory.inbox(vm) {
            // A task that has ended does not need it.
            let _ = inbox.send(Command::Used(used)).await;
        }
    }
}

impl Engine {
    /// Notes that a client uses a guest.
    pub(super) async fn note_use(&self, vm: VmId) {
        if self.vm(vm).is_some_and(|view| view.vm.spec.idle.is_some()) {
            self.shared.tell_use(vm, None).await;
        }
    }
}
