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
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Arc, Weak},
    time::Duration,
};

use banger_domain::{id::VmId, resource::Resource, vm::Vm};
use banger_image::record::{Image, Kernel};
use tokio::sync::mpsc;

use super::{
    Engine, Shared,
    error::{Result, one_line},
    lease::{Lease, Left},
    library::item::Stored,
    problems::Subject,
    view::{Item, JobKind, VmView},
    vm_task::{Command, INBOX, Snapshot, VmTask},
};
use crate::ports::{Ports, disks::FrozenLayer, supervisor::Started};

/// Pause before the next try.
const RETRY: Duration = Duration::from_secs(60);

/// What a look at the host shows: the VMs that have a resource, and the processes of those that have one.
type Found = BTreeMap<VmId, Option<Started>>;

impl Engine {
    /// Recovers the state of an earlier run. Must be called once, before the engine serves requests. Fails if the
    /// database cannot be read.
    pub async fn recover(&self) -> Result<()> {
        let (shared, ports) = (&self.shared, &self.shared.ports);
        shared.recover_items::<Kernel>().await?;
        shared.recover_items::<Image>().await?;
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

        let (snapshots, vms): (Vec<Vm>, Vec<Vm>) = vms.into_iter().partition(|vm| vm.snapshot_of.is_some());
        let mut snapshots = shared.recover_snapshots(snapshots, &vms, &mut held).await;
        for vm in vms {
            let held = held.remove(&vm.id).unwrap_or_default();
            let process = match &mut processes {
                Some(processes) => processes.remove(&vm.id).flatten(),
                // It is unknown. If there is no process, the supervisor will report that it has ended.
                None => vm.state.is_up().then(|| Started { unit: String::new(), pid: 0, user: 0 }),
            };
            let lease = Lease::of(vm.id, held, ports.clone(), shared.problems.clone());
            let frozen = shared.frozen_layers(vm.id).await;
            let (sender, inbox) = mpsc::channel(INBOX);
            let view = shared.view(vm.clone(), String::new(), 0);
            shared.inventory.add_recovered(VmView { frozen: frozen.clone(), ..view }, sender);
            let snapshots = snapshots.remove(&vm.id).unwrap_or_default();
            VmTask::reattached(Arc::clone(shared), vm, lease, process, (frozen, snapshots), inbox);
        }
        for (vm, resources) in held {
            shared.remove_orphan(vm, resources).await;
        }
        shared.follow_autostart().await;
        shared.remove_old_host_kernels().await;
        if let Err(error) = ports.templates.tidy().await {
            tracing::error!(error = %one_line(&error), "cannot remove old templates");
        }
        Ok(())
    }
}

/// Tries again what has failed, until the engine is dropped.
pub(super) async fn run(shared: Weak<Shared>) {
    while let Some(problems) = shared.upgrade().map(|shared| shared.problems.clone()) {
        problems.wait().await;
        tokio::time::sleep(RETRY).await;
        let Some(shared) = shared.upgrade() else { return };
        let _turn = shared.repairing.lock().await;
        shared.retry().await;
    }
}

impl Shared {
    /// Tries again what has failed. Only one caller may do so at a time.
    pub(super) async fn retry(self: &Arc<Self>) {
        let mut left: BTreeMap<VmId, BTreeSet<Resource>> = BTreeMap::new();
        for subject in self.problems.all().into_keys() {
            match subject {
                Subject::Scan(resource) => {
                    for (vm, process) in self.scan(resource).await.unwrap_or_default() {
                        self.release_or_hold(vm, [resource].into(), process).await;
                    }
                }
                Subject::KernelOrphans => self.retry_items::<Kernel>().await,
                Subject::ImageOrphans => self.retry_items::<Image>().await,
                Subject::KernelFiles(id) => self.remove_files::<Kernel>(id).await,
                Subject::ImageFiles(id) => self.remove_files::<Image>(id).await,
                Subject::Resource(vm, resource) => drop(left.entry(vm).or_default().insert(resource)),
                Subject::Interface(vm) => match self.inventory.inbox(vm) {
                    // A task that is busy is asked the next time.
                    Ok(inbox) => drop(inbox.try_send(Command::RetryNic)),
                    Err(_) => self.problems.clear(subject),
                },
            }
        }
        for (vm, resources) in left {
            self.release_or_hold(vm, resources, None).await;
        }
    }

    /// Returns the snapshots of an earlier run, by their VM, and takes what they hold. The row of one whose VM is gone is
    /// deleted, and what it holds becomes an orphan.
    async fn recover_snapshots(
        &self,
        rows: Vec<Vm>,
        vms: &[Vm],
        held: &mut BTreeMap<VmId, BTreeSet<Resource>>,
    ) -> BTreeMap<VmId, Vec<Snapshot>> {
        let known: HashSet<VmId> = vms.iter().map(|vm| vm.id).collect();
        let mut all: BTreeMap<VmId, Vec<Snapshot>> = BTreeMap::new();
        for row in rows {
            let id = row.id;
            let Some(of) = row.snapshot_of.filter(|of| known.contains(of)) else {
                tracing::warn!(vm = %id, "removing a snapshot without a sandbox");
                if let Err(error) = self.ports.store.delete_vm(id).await {
                    tracing::error!(vm = %id, %error, "cannot delete the row of a snapshot");
                    held.remove(&id);
                }
                continue;
            };
            let lease = Lease::of(
                id,
                held.remove(&id).unwrap_or_default(),
                self.ports.clone(),
                self.problems.clone(),
            );
            let frozen = self.frozen_layers(id).await;
            all.entry(of).or_default().push(Snapshot::recovered(self, row, lease, frozen).await);
        }
        all
    }

    /// Lets a VM's task decide about resources, or removes those of a VM that is gone. The look at the host came
    /// first, and a VM is known before it has any resource, so nothing is taken from a new one. The VM of a template
    /// removes its own, and the task of a VM those of its snapshots.
    async fn release_or_hold(&self, vm: VmId, resources: BTreeSet<Resource>, process: Option<Started>) {
        if self.makes_template_in(vm) || self.inventory.is_snapshot(vm) {
            return;
        }
        match self.inventory.inbox(vm) {
            // If the task has ended meanwhile, it has released everything, or the next try does.
            Ok(inbox) => drop(inbox.send(Command::Found { resources, process }).await),
            Err(_) => drop(self.remove_orphan(vm, resources).await),
        }
    }

    /// Returns the frozen layers of a VM, which only count against a quota. A failure is logged.
    pub(super) async fn frozen_layers(&self, vm: VmId) -> Vec<FrozenLayer> {
        self.ports.disks.frozen(vm).await.unwrap_or_else(|error| {
            tracing::error!(%vm, error = %one_line(&error), "cannot look for the layers of a disk");
            Vec::new()
        })
    }

    /// Removes resources of a VM that is gone. Returns what is left.
    pub(super) async fn remove_orphan(&self, vm: VmId, resources: BTreeSet<Resource>) -> Vec<Left> {
        tracing::warn!(%vm, ?resources, "removing resources without a sandbox");
        Lease::of(vm, resources, self.ports.clone(), self.problems.clone()).release_all().await
    }

    /// Returns the VMs that have a resource on the host. A failure becomes a problem.
    async fn scan(&self, resource: Resource) -> Option<Found> {
        let found = look(&self.ports, resource).await;
        self.note_result(Subject::Scan(resource), found)
    }

    /// Makes the inventory and the files of a kind agree with the rows. Adds what the inventory lacks, and removes files
    /// without a row: an import was interrupted. Fails if the rows cannot be read; all else becomes a problem.
    async fn recover_items<I: Stored>(&self) -> Result<()> {
        // Neither a deletion nor a replacement is half done.
        let _locked = self.library.lock.lock().await;
        let found = I::found_files(&self.ports).await;
        // An import that has ended by now has a row for its files.
        if self.is_importing() {
            return Ok(());
        }
        let rows = I::rows(&*self.ports.store).await?;
        // An import that has begun meanwhile publishes its object itself.
        if self.is_importing() {
            return Ok(());
        }
        let known: HashSet<I::Id> = rows.iter().map(Item::id).collect();
        for item in rows {
            if self.inventory.item::<I>(item.id()).is_none() {
                self.inventory.add(item);
            }
        }
        let found = self.note_result(I::ORPHANS, found).unwrap_or_default();
        for id in found.into_iter().filter(|id| !known.contains(id)) {
            tracing::warn!(%id, kind = I::KIND.noun(), "removing files without a row");
            self.remove_files::<I>(id).await;
        }
        Ok(())
    }

    async fn retry_items<I: Stored>(&self) {
        if let Err(error) = self.recover_items::<I>().await {
            self.note(I::ORPHANS, Err(error));
        }
    }

    async fn remove_files<I: Stored>(&self, id: I::Id) {
        self.note(I::files(id), I::remove_files(&self.ports, id).await);
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

    pub(super) fn note<E: std::error::Error>(&self, subject: Subject, result: Result<(), E>) {
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
pub(super) async fn look(ports: &Ports, resource: Resource) -> Result<Found> {
    let vms = match resource {
        Resource::Disks => ports.disks.found().await?,
        Resource::Capture => ports.captures.found().await?,
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
