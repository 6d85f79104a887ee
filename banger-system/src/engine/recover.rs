//! The first thing the service does: it reads the database, looks at what exists on the host, and makes the two agree.
//! A running sandbox is reattached as it is; resources without a sandbox are removed.

use std::collections::{BTreeMap, BTreeSet};

use banger_domain::{id::VmId, resource::Resource};
use tokio::sync::mpsc;

use super::{
    Engine,
    error::{Result, one_line},
    lease::Lease,
    machine::{INBOX, Task},
};
use crate::ports::Started;

impl Engine {
    /// Takes over what an earlier run of the service left. To be called once, before anything is asked.
    pub async fn recover(&self) -> Result<()> {
        self.recover_library().await?;
        self.recover_catalogs().await;
        let ports = &self.shared.ports;
        let mut processes: BTreeMap<VmId, Started> = ports.supervisor.found().await?.into_iter().collect();

        // What may exist is what the ledger says and what the host shows: either alone may be behind.
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
        // The service runs without a network, too: a start says what is wrong, and so does `doctor`.
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
            self.shared.registry.adopt(self.shared.view(vm.clone(), String::new(), 0), sender);
            let process = processes.remove(&vm.id);
            Task::adopt(std::sync::Arc::clone(&self.shared), vm, lease, process, inbox);
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
            self.shared.registry.add_kernel(kernel);
        }
        for image in ports.store.images().await? {
            self.shared.registry.add_image(image);
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
