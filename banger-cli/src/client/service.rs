//! The methods of the service that this client calls.

use std::{collections::HashMap, os::fd::OwnedFd, time::Duration};

use banger_proto::bus::{
    ErrorName,
    names::{IMAGE_INTERFACE, JOB_INTERFACE, KERNEL_INTERFACE, MANAGER_INTERFACE, VM_INTERFACE},
    option::{agent, stream},
    proxy::{Facts, Options},
    record::{ChangeRow, CheckRow, PhaseRow, VmRow},
};
use zbus::{Fd, ObjectPath, OwnedObjectPath, Variant};

use crate::{
    client::{
        bus::{Bus, manager_path},
        object::Object,
    },
    error::{Error, Result},
    remote::client::Filled,
    ui::suggest,
};

/// A kind of object with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A sandbox.
    Vm,
    /// An image.
    Image,
    /// A kernel.
    Kernel,
}

impl Kind {
    /// Returns the interface of these objects.
    pub const fn interface(self) -> &'static str {
        match self {
            Kind::Vm => VM_INTERFACE,
            Kind::Image => IMAGE_INTERFACE,
            Kind::Kernel => KERNEL_INTERFACE,
        }
    }

    /// Returns the group of verbs about these objects, such as `banger image`.
    pub const fn group(self) -> &'static str {
        match self {
            Kind::Vm => "vm",
            Kind::Image => "image",
            Kind::Kernel => "kernel",
        }
    }
}

/// Returns the id of an object from its path.
pub fn id_of(object: &ObjectPath<'_>) -> String {
    object.as_str().rsplit('/').next().unwrap_or_default().to_owned()
}

/// The result of a job.
#[derive(Debug)]
pub struct JobResult {
    /// `done`, `failed` or `canceled`.
    pub result: String,
    /// The error name, if the job has failed.
    pub error_name: String,
    /// The message of the service.
    pub error_message: String,
    /// Data about the result.
    pub data: Facts,
}

type Files<'a> = HashMap<&'a str, Fd<'a>>;

impl Bus {
    /// Returns the object with this reference.
    pub async fn find(&self, kind: Kind, reference: &str) -> Result<OwnedObjectPath> {
        let method = match kind {
            Kind::Vm => "GetVM",
            Kind::Image => "GetImage",
            Kind::Kernel => "GetKernel",
        };
        match self.call(&manager_path(), MANAGER_INTERFACE, method, &(reference,)).await {
            Err(error) => Err(self.suggest(kind, reference, error).await),
            found => found,
        }
    }

    /// Adds the most similar existing name as a suggestion to an error about a missing object.
    async fn suggest(&self, kind: Kind, reference: &str, error: Error) -> Error {
        const MISSING: [ErrorName; 3] =
            [ErrorName::NoSuchVm, ErrorName::NoSuchImage, ErrorName::NoSuchKernel];
        if !error.name().is_some_and(|name| MISSING.contains(&name)) {
            return error;
        }
        // A failure to find suggestions is not an error.
        let objects = self.objects(kind.interface()).await.unwrap_or_default();
        match suggest::closest(reference, objects.iter().map(Object::name)) {
            Some(name) => {
                let hint = error.hint().unwrap_or_default();
                error.with_hint(format!("did you mean {name}? {hint}"))
            }
            None => error,
        }
    }

    /// Creates a sandbox. Returns its object and the job that completes it.
    pub async fn create_vm(
        &self,
        name: &str,
        options: &Options<'_>,
    ) -> Result<(OwnedObjectPath, OwnedObjectPath)> {
        self.call(&manager_path(), MANAGER_INTERFACE, "CreateVM", &(name, options)).await
    }

    /// Lists the sandboxes of all users.
    pub async fn list_vms(&self, filter: &Options<'_>) -> Result<Vec<VmRow>> {
        self.call(&manager_path(), MANAGER_INTERFACE, "ListVMs", &(filter,)).await
    }

    /// Pulls an image. Returns the job.
    pub async fn pull_image(&self, reference: &str, options: &Options<'_>) -> Result<OwnedObjectPath> {
        self.call(&manager_path(), MANAGER_INTERFACE, "PullImage", &(reference, options)).await
    }

    /// Pulls a kernel from a catalog. Returns the job.
    pub async fn pull_kernel(&self, entry: &str, options: &Options<'_>) -> Result<OwnedObjectPath> {
        self.call(&manager_path(), MANAGER_INTERFACE, "PullKernel", &(entry, options)).await
    }

    /// Lists the entries of the catalogs as last fetched.
    pub async fn list_catalog(&self, options: &Options<'_>) -> Result<Vec<Facts>> {
        self.call(&manager_path(), MANAGER_INTERFACE, "ListCatalog", &(options,)).await
    }

    /// Fetches the catalogs. Returns the job.
    pub async fn refresh_catalog(&self, options: &Options<'_>) -> Result<OwnedObjectPath> {
        self.call(&manager_path(), MANAGER_INTERFACE, "RefreshCatalog", &(options,)).await
    }

    /// Removes cached downloads. Returns the job.
    pub async fn prune_cache(&self, options: &Options<'_>) -> Result<OwnedObjectPath> {
        self.call(&manager_path(), MANAGER_INTERFACE, "PruneCache", &(options,)).await
    }

    /// Creates an image from files. Returns the job.
    pub async fn import_image(
        &self,
        name: &str,
        files: &Files<'_>,
        options: &Options<'_>,
    ) -> Result<OwnedObjectPath> {
        self.call(&manager_path(), MANAGER_INTERFACE, "ImportImage", &(name, files, options)).await
    }

    /// Creates a kernel from files. Returns the job.
    pub async fn import_kernel(
        &self,
        name: &str,
        files: &Files<'_>,
        options: &Options<'_>,
    ) -> Result<OwnedObjectPath> {
        self.call(&manager_path(), MANAGER_INTERFACE, "ImportKernel", &(name, files, options)).await
    }

    /// Returns the service's checks of the host.
    pub async fn diagnose(&self) -> Result<Vec<CheckRow>> {
        self.call(&manager_path(), MANAGER_INTERFACE, "Diagnose", &(Options::new(),)).await
    }

    /// Repairs what can be repaired without risk. Returns what was repaired, and the service's checks of the host.
    pub async fn repair(&self) -> Result<Vec<CheckRow>> {
        self.call(&manager_path(), MANAGER_INTERFACE, "Repair", &(Options::new(),)).await
    }

    /// Opens a stream with the metrics of the service.
    pub async fn open_metrics(&self, filter: &Options<'_>) -> Result<OwnedFd> {
        let fd: zbus::OwnedFd =
            self.call(&manager_path(), MANAGER_INTERFACE, "OpenMetrics", &(filter,)).await?;
        Ok(fd.into())
    }

    /// Subscribes to the signals of the service.
    pub async fn subscribe(&self, options: &Options<'_>) -> Result<()> {
        self.call(&manager_path(), MANAGER_INTERFACE, "Subscribe", &(options,)).await
    }

    /// Returns the properties of the manager.
    pub async fn manager(&self) -> Result<Object> {
        self.properties(&manager_path(), MANAGER_INTERFACE).await
    }

    /// Calls `Start`, `Stop`, `Restart` or `Delete` of a sandbox. Returns the job.
    pub async fn change_vm(
        &self,
        vm: &ObjectPath<'_>,
        method: &str,
        options: &Options<'_>,
    ) -> Result<OwnedObjectPath> {
        self.call(vm, VM_INTERFACE, method, &(options,)).await
    }

    /// Sends a signal to the VMM of a sandbox.
    pub async fn kill_vm(&self, vm: &ObjectPath<'_>, signal: i32) -> Result<()> {
        self.call(vm, VM_INTERFACE, "Kill", &(signal,)).await
    }

    /// Calls `Pause` or `Unpause` of a sandbox.
    pub async fn call_vm(&self, vm: &ObjectPath<'_>, method: &str) -> Result<()> {
        self.call(vm, VM_INTERFACE, method, &()).await
    }

    /// Renames an object.
    pub async fn rename(&self, kind: Kind, object: &ObjectPath<'_>, name: &str) -> Result<()> {
        self.call(object, kind.interface(), "Rename", &(name,)).await
    }

    /// Sets the [lifetime](banger_proto::bus::option::lifetime) of a sandbox.
    pub async fn set_lifetime(&self, vm: &ObjectPath<'_>, lifetime: &str) -> Result<()> {
        self.call(vm, VM_INTERFACE, "SetLifetime", &(lifetime,)).await
    }

    /// Changes the configuration of a sandbox.
    pub async fn configure_vm(&self, vm: &ObjectPath<'_>, options: &Options<'_>) -> Result<()> {
        self.call(vm, VM_INTERFACE, "Configure", &(options,)).await
    }

    /// Adds entries to what a sandbox may reach beyond the host, and removes others.
    pub async fn change_egress(&self, vm: &ObjectPath<'_>, allow: &[String], deny: &[String]) -> Result<()> {
        self.call(vm, VM_INTERFACE, "ChangeEgress", &(allow, deny)).await
    }

    /// Makes an image of a sandbox's system disk. Returns the job.
    pub async fn commit_vm(
        &self,
        vm: &ObjectPath<'_>,
        name: &str,
        options: &Options<'_>,
    ) -> Result<OwnedObjectPath> {
        self.call(vm, VM_INTERFACE, "Commit", &(name, options)).await
    }

    /// Makes sandboxes of another one, or of a snapshot of it. Returns them, and the job.
    pub async fn fork_vm(
        &self,
        vm: &ObjectPath<'_>,
        count: u32,
        options: &Options<'_>,
    ) -> Result<(Vec<OwnedObjectPath>, OwnedObjectPath)> {
        self.call(vm, VM_INTERFACE, "Fork", &(count, options)).await
    }

    /// Makes a snapshot of a sandbox. Returns the job.
    pub async fn create_snapshot(&self, vm: &ObjectPath<'_>, name: &str) -> Result<OwnedObjectPath> {
        self.call(vm, VM_INTERFACE, "CreateSnapshot", &(name, Options::new())).await
    }

    /// Lists the snapshots of a sandbox, with the [keys](banger_proto::bus::option::snapshot) of each.
    pub async fn list_snapshots(&self, vm: &ObjectPath<'_>) -> Result<Vec<Facts>> {
        self.call(vm, VM_INTERFACE, "ListSnapshots", &()).await
    }

    /// Puts a sandbox back to a snapshot of it. Returns the job.
    pub async fn restore_snapshot(&self, vm: &ObjectPath<'_>, name: &str) -> Result<OwnedObjectPath> {
        self.call(vm, VM_INTERFACE, "RestoreSnapshot", &(name, Options::new())).await
    }

    /// Deletes a snapshot of a sandbox.
    pub async fn delete_snapshot(&self, vm: &ObjectPath<'_>, name: &str) -> Result<()> {
        self.call(vm, VM_INTERFACE, "DeleteSnapshot", &(name,)).await
    }

    /// Publishes a port of a sandbox on the host; with 0 the service chooses the host's port. Returns that port.
    pub async fn publish_port(
        &self,
        vm: &ObjectPath<'_>,
        protocol: &str,
        guest: u16,
        host: u16,
        options: &Options<'_>,
    ) -> Result<u16> {
        self.call(vm, VM_INTERFACE, "PublishPort", &(protocol, guest, host, options)).await
    }

    /// Unpublishes a port.
    pub async fn unpublish_port(&self, vm: &ObjectPath<'_>, protocol: &str, host: u16) -> Result<()> {
        self.call(vm, VM_INTERFACE, "UnpublishPort", &(protocol, host)).await
    }

    /// Opens a stream to the agent in a sandbox, which waits for one request. If all streams for this
    /// [purpose](agent) are in use, waits for one: at most for `timeout`, or as long as the service allows.
    pub async fn open_agent(
        &self,
        vm: &ObjectPath<'_>,
        purpose: &str,
        timeout: Option<Duration>,
    ) -> Result<OwnedFd> {
        let mut options = Options::from([(agent::PURPOSE, Variant::from(purpose))]);
        if let Some(timeout) = timeout {
            let micros = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
            options.insert(agent::TIMEOUT, Variant::from(micros));
        }
        let fd: zbus::OwnedFd = self.call(vm, VM_INTERFACE, "OpenAgent", &(options,)).await?;
        Ok(fd.into())
    }

    /// Opens a connection to the ssh server in a sandbox.
    pub async fn open_ssh(&self, vm: &ObjectPath<'_>) -> Result<OwnedFd> {
        let fd: zbus::OwnedFd =
            self.call(vm, VM_INTERFACE, "OpenStream", &(stream::SSH, Options::new())).await?;
        Ok(fd.into())
    }

    /// Opens a pipe with a log of a sandbox.
    pub async fn open_log(&self, vm: &ObjectPath<'_>, log: &str, options: &Options<'_>) -> Result<OwnedFd> {
        let fd: zbus::OwnedFd = self.call(vm, VM_INTERFACE, "OpenLog", &(log, options)).await?;
        Ok(fd.into())
    }

    /// Returns the recent changes of a sandbox, and the phases of its last boot.
    pub async fn history(&self, vm: &ObjectPath<'_>) -> Result<(Vec<ChangeRow>, Vec<PhaseRow>)> {
        self.call(vm, VM_INTERFACE, "GetHistory", &(Options::new(),)).await
    }

    /// Deletes an image or a kernel.
    pub async fn delete(&self, kind: Kind, object: &ObjectPath<'_>) -> Result<()> {
        self.call(object, kind.interface(), "Delete", &(Options::new(),)).await
    }

    /// Writes an image to an empty file. Returns the job, and for a remote host the file there.
    pub async fn export_image(
        &self,
        image: &ObjectPath<'_>,
        file: Fd<'_>,
    ) -> Result<(OwnedObjectPath, Option<Filled>)> {
        self.fill(image, IMAGE_INTERFACE, "Export", &(file, Options::new())).await
    }

    /// Gives an image another name. Returns the image with this name.
    pub async fn tag_image(&self, image: &ObjectPath<'_>, name: &str) -> Result<OwnedObjectPath> {
        self.call(image, IMAGE_INTERFACE, "Tag", &(name, Options::new())).await
    }

    /// Makes an image visible to all users, or to its owner only.
    pub async fn share_image(&self, image: &ObjectPath<'_>, shared: bool) -> Result<()> {
        self.call(image, IMAGE_INTERFACE, "SetShared", &(shared,)).await
    }

    /// Waits until a job has ended.
    pub async fn wait_job(&self, job: &ObjectPath<'_>) -> Result<JobResult> {
        const WITHOUT_END: u64 = 0;
        let (result, error_name, error_message, data) =
            self.call(job, JOB_INTERFACE, "Wait", &(WITHOUT_END,)).await?;
        Ok(JobResult { result, error_name, error_message, data })
    }

    /// Asks a job to stop and to undo its changes.
    pub async fn cancel_job(&self, job: &ObjectPath<'_>) -> Result<()> {
        self.call(job, JOB_INTERFACE, "Cancel", &()).await
    }
}
