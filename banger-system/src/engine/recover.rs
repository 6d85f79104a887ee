//! Recovery: makes database, ledger and host agree when the service starts.
//!
//! Sandboxes keep running while the service is down, and the last run may have crashed between any two steps.
//! Recovery assumes nothing about the last run. It reads what should exist, lists what does, and handles each VM
//! with the same code as a running service:
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
//! Only a database that cannot be read keeps the service from starting: without it, everything would look like an
//! orphan. A list that the host does not give, and an orphan that cannot be removed, are problems ([`super::problems`]).
//! [`run`] tries them again as long as the service runs, and the rest of the recovery does not wait for them.
//!
//! Reattaching (`vm_task/reattach.rs`) means: watch the process again, set up the network interface again, and wait
//! for the guest. A guest does not notice it. Its token is in the row, which was stored before the guest booted.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
    time::Duration,
};

use banger_domain::{id::VmId, resource::Resource};
use banger_image::record::{Image, Kernel};
use tokio::sync::mpsc;

use super::{
    Engine, Shared,
    error::{Result, one_line},
    lease::Lease,
    problems::Subject,
    view::JobKind,
    vm_task::{Command, INBOX, VmTask},
};
use crate::ports::{Ports, supervisor::Started};

/// Pause before the next try.
const RETRY: Duration = Duration::from_secs(60);

/// What a look at the host shows: the VMs that have a resource, and the processes of those that have one.
type Found = BTreeMap<VmId, Option<Started>>;

impl Engine {
    /// Recovers the state of an earlier run. Must be called once, before the engine serves requests. Fails if the
    /// database cannot be read.
    pub async fn recover(&self) -> Result<()> {
        let (shared, ports) = (&self.shared, &self.shared.ports);
        self.recover_library().await?;
        self.recover_catalogs().await;
        let vms = ports.store.vms().await?;

        // The union of the ledger and what the host shows: either alone may be incomplete.
        let mut held: BTreeMap<VmId, BTreeSet<Resource>> = BTreeMap::new();
        for (vm, resource) in ports.store.ledger().await? {
            held.entry(vm).or_default().insert(resource);
        }
        let mut processes = None;
        for resource in Resource::ALL {
            let Some(found) = shared.scan(resource).await else { continue };
            for vm in found.keys() {
                held.entry(*vm).or_default().insert(resource);
            }
            if resource == Resource::Unit {
                processes = Some(found);
            }
        }
        // A broken network does not stop the service: starts fail with the reason, and `doctor` shows it.
        if let Err(error) = shared.subnet().await {
            tracing::error!(error = %one_line(&error), "cannot set up the network for guests");
        }

        for vm in vms {
            let held = held.remove(&vm.id).unwrap_or_default();
            let process = match &mut processes {
                Some(processes) => processes.remove(&vm.id).flatten(),
                // It is unknown. If there is no process, the supervisor will report that it has ended.
                None => vm.state.is_up().then(|| Started { unit: String::new(), pid: 0, user: 0 }),
            };
            let lease = Lease::of(vm.id, held, ports.clone(), shared.problems.clone());
            let (sender, inbox) = mpsc::channel(INBOX);
            shared.inventory.add_recovered(shared.view(vm.clone(), String::new(), 0), sender);
            VmTask::reattached(Arc::clone(shared), vm, lease, process, inbox);
        }
        for (vm, resources) in held {
            shared.remove_orphan(vm, resources).await;
        }
        shared.remove_old_host_kernels().await;
        if let Err(error) = ports.templates.tidy().await {
            tracing::error!(error = %one_line(&error), "cannot remove old templates");
        }
        Ok(())
    }

    async fn recover_library(&self) -> Result<()> {
        let (shared, ports) = (&self.shared, &self.shared.ports);
        for kernel in ports.store.kernels().await? {
            shared.inventory.add(kernel);
        }
        for image in ports.store.images().await? {
            shared.inventory.add(image);
        }
        shared.remove_kernel_orphans().await;
        shared.remove_image_orphans().await;
        Ok(())
    }
}

/// Tries again what has failed, until the engine is dropped.
pub(super) async fn run(shared: Weak<Shared>) {
    while let Some(problems) = shared.upgrade().map(|shared| shared.problems.clone()) {
        problems.wait().await;
        tokio::time::sleep(RETRY).await;
        let Some(shared) = shared.upgrade() else { return };
        shared.retry().await;
    }
}

impl Shared {
    async fn retry(self: &Arc<Self>) {
        let mut left: BTreeMap<VmId, BTreeSet<Resource>> = BTreeMap::new();
        for subject in self.problems.all().into_keys() {
            match subject {
                Subject::Scan(resource) => {
                    for (vm, process) in self.scan(resource).await.unwrap_or_default() {
                        self.release_or_hold(vm, [resource].into(), process).await;
                    }
                }
                Subject::KernelScan => self.remove_kernel_orphans().await,
                Subject::ImageScan => self.remove_image_orphans().await,
                Subject::KernelFiles(id) => self.note(subject, self.ports.kernel_files.remove(id).await),
                Subject::ImageFiles(id) => self.note(subject, self.ports.image_files.remove(id).await),
                Subject::Resource(vm, resource) => drop(left.entry(vm).or_default().insert(resource)),
            }
        }
        for (vm, resources) in left {
            self.release_or_hold(vm, resources, None).await;
        }
    }

    /// Lets a VM's task decide about resources, or removes those of a VM that is gone. The look at the host came
    /// first, and a VM is known before it has any resource, so nothing is taken from a new one.
    async fn release_or_hold(&self, vm: VmId, resources: BTreeSet<Resource>, process: Option<Started>) {
        match self.inventory.inbox(vm) {
            // If the task has ended meanwhile, it has released everything, or the next try does.
            Ok(inbox) => drop(inbox.send(Command::Found { resources, process }).await),
            Err(_) => self.remove_orphan(vm, resources).await,
        }
    }

    async fn remove_orphan(&self, vm: VmId, resources: BTreeSet<Resource>) {
        tracing::warn!(%vm, ?resources, "removing resources without a sandbox");
        Lease::of(vm, resources, self.ports.clone(), self.problems.clone()).release_all().await;
    }

    /// Returns the VMs that have a resource on the host. A failure becomes a problem.
    async fn scan(&self, resource: Resource) -> Option<Found> {
        let found = look(&self.ports, resource).await;
        self.note_result(Subject::Scan(resource), found)
    }

    /// Removes the files of kernels without a row: an import was interrupted.
    async fn remove_kernel_orphans(&self) {
        let found = self.ports.kernel_files.found().await;
        // Files get their row a moment after they appear.
        if found.is_ok() && self.is_importing() {
            return;
        }
        let found = self.note_result(Subject::KernelScan, found).unwrap_or_default();
        for id in found.into_iter().filter(|id| self.inventory.item::<Kernel>(*id).is_none()) {
            tracing::warn!(kernel = %id, "removing files without a kernel");
            self.note(Subject::KernelFiles(id), self.ports.kernel_files.remove(id).await);
        }
    }

    /// Removes the files of images without a row.
    async fn remove_image_orphans(&self) {
        let found = self.ports.image_files.found().await;
        // Files get their row a moment after they appear.
        if found.is_ok() && self.is_importing() {
            return;
        }
        let found = self.note_result(Subject::ImageScan, found).unwrap_or_default();
        for id in found.into_iter().filter(|id| self.inventory.item::<Image>(*id).is_none()) {
            tracing::warn!(image = %id, "removing files without an image");
            self.note(Subject::ImageFiles(id), self.ports.image_files.remove(id).await);
        }
    }

    /// Returns whether there may be files that get their row in a moment.
    fn is_importing(&self) -> bool {
        let imports = [
            JobKind::ImageImport,
            JobKind::ImagePull,
            JobKind::ImageCommit,
            JobKind::KernelImport,
            JobKind::KernelPull,
        ];
        self.jobs.all().iter().any(|job| job.outcome.is_none() && imports.contains(&job.kind))
    }

    fn note<E: std::error::Error>(&self, subject: Subject, result: Result<(), E>) {
        let _ = self.note_result(subject, result);
    }

    /// Logs a failure and makes it a problem; a success ends the problem.
    fn note_result<T, E: std::error::Error>(&self, subject: Subject, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => {
                self.problems.clear(subject);
                Some(value)
            }
            Err(error) => {
                tracing::error!(?subject, error = %one_line(&error), "recovery is incomplete");
                self.problems.set(subject, &error);
                None
            }
        }
    }
}

/// Lists the VMs that have a resource on the host.
async fn look(ports: &Ports, resource: Resource) -> Result<Found> {
    let vms = match resource {
        Resource::Disks => ports.disks.found().await?,
        Resource::Mapper => ports.disks.attached().await?,
        Resource::Nic => ports.network.found().await?,
        Resource::Sockets => ports.vmm.found().await?,
        Resource::Unit => {
            let processes = ports.supervisor.found().await?;
            return Ok(processes.into_iter().map(|(vm, process)| (vm, Some(process))).collect());
        }
    };
    Ok(vms.into_iter().map(|vm| (vm, None)).collect())
}
