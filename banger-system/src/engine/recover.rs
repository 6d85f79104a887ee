//! Recovery: makes database, ledger and host agree when the service starts.
//!
//! Sandboxes keep running while the service is down, and a crash may have come between any two steps. Recovery
//! assumes nothing about the last run. It reads what should exist and lists what does, and handles each VM by the
//! same code as a running service:
//!
//! ```text
//!    rows (store.vms)     ledger (store.ledger)     host (units, sockets, interfaces, mappers, directories)
//!           │                        └────────────┬────────────┘
//!           │                                     ▼
//!           │                        held: all that may exist, by VM
//!           ▼                                     │
//!    for each VM with a row ◄─────────────────────┤
//!      a process is found ──► reattach to it      │
//!      no process ──────────► it has ended:       │
//!                             release its boot    │
//!      state `deleting` ────► finish the deletion ▼
//!                                    for each VM without a row: release everything
//! ```
//!
//! Images, kernels and catalogs come first, because VMs refer to them. Files of images and kernels that have no row
//! are removed: an import was interrupted.
//!
//! Reattaching (`vm_task/reattach.rs`) means: watch the process again, set up the network interface again, and wait
//! for the guest. A guest does not notice it. Its token is in the row, which was stored before the guest booted.

use std::collections::{BTreeMap, BTreeSet};

use banger_domain::{id::VmId, resource::Resource};
use tokio::sync::mpsc;

use super::{
    Engine,
    error::{Result, one_line},
    lease::Lease,
    vm_task::{INBOX, VmTask},
};
use crate::ports::supervisor::Started;

impl Engine {
    /// Recovers the state of an earlier run. Must be called once, before the engine serves requests.
    pub async fn recover(&self) -> Result<()> {
        self.recover_library().await?;
        self.recover_catalogs().await;
        let ports = &self.shared.ports;
        let mut processes: BTreeMap<VmId, Started> = ports.supervisor.found().await?.into_iter().collect();

        // The union of the ledger and what the host shows: either alone may be incomplete.
        let mut held: BTreeMap<VmId, BTreeSet<Resource>> = BTreeMap::new();
        for (vm, resource) in ports.store.ledger().await? {
            held.entry(vm).or_default().insert(resource);
        }
        for vm in processes.keys() {
            held.entry(*vm).or_default().insert(Resource::Unit);
        }
        for vm in ports.vmm.found().await? {
            held.entry(vm).or_default().insert(Resource::Sockets);
        }
        // A broken network does not stop the service: starts fail with the reason, and `doctor` shows it.
        match ports.network.found().await {
            Ok(found) => {
                for vm in found {
                    held.entry(vm).or_default().insert(Resource::Nic);
                }
            }
            Err(error) => {
                tracing::error!(error = %one_line(&error), "cannot look for the interfaces of sandboxes")
            }
        }
        if let Err(error) = self.shared.subnet().await {
            tracing::error!(error = %one_line(&error), "cannot set up the network for guests");
        }
        for vm in ports.disks.attached().await? {
            held.entry(vm).or_default().insert(Resource::Mapper);
        }
        for vm in ports.disks.found().await? {
            held.entry(vm).or_default().insert(Resource::Disks);
        }

        for vm in ports.store.vms().await? {
            let lease = Lease::of(vm.id, held.remove(&vm.id).unwrap_or_default(), ports.clone());
            let (sender, inbox) = mpsc::channel(INBOX);
            self.shared.inventory.add_recovered(self.shared.view(vm.clone(), String::new(), 0), sender);
            let process = processes.remove(&vm.id);
            VmTask::reattached(std::sync::Arc::clone(&self.shared), vm, lease, process, inbox);
        }

        for (vm, resources) in held {
            tracing::warn!(%vm, ?resources, "removing resources without a sandbox");
            Lease::of(vm, resources, ports.clone()).release_all().await;
        }
        Ok(())
    }

    async fn recover_library(&self) -> Result<()> {
        let ports = &self.shared.ports;
        for kernel in ports.store.kernels().await? {
            self.shared.inventory.add(kernel);
        }
        for image in ports.store.images().await? {
            self.shared.inventory.add(image);
        }
        for id in ports.kernel_files.found().await? {
            if self.kernel(id).is_none() {
                tracing::warn!(kernel = %id, "removing files without a kernel");
                ports.kernel_files.remove(id).await?;
            }
        }
        for id in ports.image_files.found().await? {
            if self.image(id).is_none() {
                tracing::warn!(image = %id, "removing files without an image");
                ports.image_files.remove(id).await?;
            }
        }
        Ok(())
    }
}
