//! Starts the sandboxes that start when the host boots.

use banger_domain::lifecycle::State;

use super::{
    Engine, Shared,
    error::one_line,
    request::{Start, StartCause},
};

impl Engine {
    /// Starts these sandboxes in the order of their creation, if the host has booted since the last run of the service.
    /// Suspended ones stay so. The job of each start says how it ended.
    pub async fn start_with_host(&self) {
        let ports = &self.shared.ports;
        if !ports.host_boot.is_first_run() {
            return;
        }
        let mut vms = self.vms();
        vms.retain(|view| view.vm.spec.starts_with_host() && view.vm.state != State::Suspended);
        vms.sort_by_key(|view| (view.vm.created_at, view.vm.id));
        let start = Start { cause: StartCause::HostBoot, ..Start::default() };
        for view in vms {
            if let Err(error) = self.start_vm(view.vm.id, start).await {
                tracing::error!(vm = %view.vm.id, error = %one_line(&error), "cannot start a sandbox at boot");
            }
        }
        if let Err(error) = ports.host_boot.note_run().await {
            tracing::error!(error = %one_line(&error), "cannot note that the service has run");
        }
    }
}

impl Shared {
    /// Makes the host start the service at its next boot if a sandbox is to start then. A failure is logged: the next
    /// change, and the next start of the service, try it again.
    pub(super) async fn follow_autostart(&self) {
        // The last one to look must be the last one to write.
        let _locked = self.autostart.lock().await;
        let wanted = self.inventory.vms().iter().any(|view| view.vm.spec.starts_with_host());
        if let Err(error) = self.ports.host_boot.want_service(wanted).await {
            tracing::error!(error = %one_line(&error), "cannot change whether the service starts at boot");
        }
    }
}
