//! Client proxies. They call methods without the interactive flag; a client with an authentication agent repeats the
//! call with `zbus::Proxy::call_with_flags`.

use std::collections::HashMap;

use zbus::{OwnedFd, OwnedObjectPath, OwnedVariant, Variant, proxy};

use super::record::{ChangeRow, CheckRow, ImageRow, JobRow, KernelRow, PhaseRow, VmRow};

/// Options of a call.
pub type Options<'a> = HashMap<&'a str, Variant<'a>>;
/// Facts in a reply.
pub type Facts = HashMap<String, OwnedVariant>;

/// The manager.
#[proxy(
    interface = "dev.banger.Manager1",
    default_service = "dev.banger.Manager1",
    default_path = "/dev/banger/Manager1"
)]
pub trait Manager {
    /// Creates a sandbox. Returns it and the job that completes it.
    #[zbus(name = "CreateVM")]
    fn create_vm(&self, name: &str, options: Options<'_>)
    -> zbus::Result<(OwnedObjectPath, OwnedObjectPath)>;
    /// Returns the sandbox with this id, id prefix (6 digits or more), name, or `user/name`.
    #[zbus(name = "GetVM")]
    fn get_vm(&self, reference: &str) -> zbus::Result<OwnedObjectPath>;
    /// Lists the caller's sandboxes.
    #[zbus(name = "ListVMs")]
    fn list_vms(&self, filter: Options<'_>) -> zbus::Result<Vec<VmRow>>;
    /// Creates an image from the given files. Returns the job, whose data names the `image`.
    fn import_image(
        &self,
        name: &str,
        files: HashMap<&str, zbus::Fd<'_>>,
        options: Options<'_>,
    ) -> zbus::Result<OwnedObjectPath>;
    /// Creates an image from a catalog entry or a registry. Returns the job, whose data has the `image`, its `digest`,
    /// and its size in `bytes`.
    fn pull_image(&self, reference: &str, options: Options<'_>) -> zbus::Result<OwnedObjectPath>;
    /// Removes downloads of registries from the cache. Returns the job, whose data has the number of `blobs` and
    /// their `bytes`.
    fn prune_cache(&self, options: Options<'_>) -> zbus::Result<OwnedObjectPath>;
    /// Returns the image with this reference: an id, an id prefix, a name, `user/name`, or the reference it was
    /// pulled by.
    fn get_image(&self, reference: &str) -> zbus::Result<OwnedObjectPath>;
    /// Lists the caller's images and the shared ones.
    fn list_images(&self, filter: Options<'_>) -> zbus::Result<Vec<ImageRow>>;
    /// Creates a kernel from the given files. Returns the job, whose data names the `kernel`.
    fn import_kernel(
        &self,
        name: &str,
        files: HashMap<&str, zbus::Fd<'_>>,
        options: Options<'_>,
    ) -> zbus::Result<OwnedObjectPath>;
    /// Returns the kernel with this reference.
    fn get_kernel(&self, reference: &str) -> zbus::Result<OwnedObjectPath>;
    /// Lists the caller's kernels and the shared ones.
    fn list_kernels(&self, filter: Options<'_>) -> zbus::Result<Vec<KernelRow>>;
    /// Creates a kernel from a catalog entry. Returns the job, whose data has the `kernel`, its `digest`, and its
    /// size in `bytes`.
    fn pull_kernel(&self, entry: &str, options: Options<'_>) -> zbus::Result<OwnedObjectPath>;
    /// Lists the entries of the catalogs as last fetched; see [`super::option::catalog`].
    fn list_catalog(&self, options: Options<'_>) -> zbus::Result<Vec<Facts>>;
    /// Fetches the catalogs. Returns the job, whose data has the number of `catalogs`, and the `problems` with some
    /// of them, one per line.
    fn refresh_catalog(&self, options: Options<'_>) -> zbus::Result<OwnedObjectPath>;
    /// Returns the job with this id.
    fn get_job(&self, id: &str) -> zbus::Result<OwnedObjectPath>;
    /// Lists the caller's jobs.
    fn list_jobs(&self, filter: Options<'_>) -> zbus::Result<Vec<JobRow>>;
    /// Subscribes to the signals of the caller's objects.
    fn subscribe(&self, options: Options<'_>) -> zbus::Result<()>;
    /// Ends the subscription.
    fn unsubscribe(&self) -> zbus::Result<()>;
    /// Returns `yes`, `auth` or `no` for each polkit action.
    fn get_permissions(&self) -> zbus::Result<HashMap<String, String>>;
    /// Returns the limits that apply to the caller.
    fn get_limits(&self) -> zbus::Result<Facts>;
    /// Runs the checks of the host that the service itself uses.
    fn diagnose(&self, options: Options<'_>) -> zbus::Result<Vec<CheckRow>>;
    /// Repairs what can be repaired without risk. Returns rows with the status `fixed`, and then the checks.
    fn repair(&self, options: Options<'_>) -> zbus::Result<Vec<CheckRow>>;
    /// Opens a stream to read the metrics of the service from, as OpenMetrics text.
    fn open_metrics(&self, filter: Options<'_>) -> zbus::Result<OwnedFd>;

    /// A sandbox of the caller was created.
    #[zbus(signal, name = "VMNew")]
    fn vm_new(&self, id: &str, vm: zbus::ObjectPath<'_>) -> zbus::Result<()>;
    /// A sandbox of the caller was deleted.
    #[zbus(signal, name = "VMRemoved")]
    fn vm_removed(&self, id: &str, vm: zbus::ObjectPath<'_>) -> zbus::Result<()>;

    /// The version of the service.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> zbus::Result<String>;
    /// Grows by one with each addition to the interfaces.
    #[zbus(property(emits_changed_signal = "const"))]
    fn api_level(&self) -> zbus::Result<u32>;
    /// The features of this service on this host.
    #[zbus(property(emits_changed_signal = "const"))]
    fn features(&self) -> zbus::Result<Vec<String>>;
    /// The image of a sandbox that names none.
    #[zbus(property)]
    fn default_image(&self) -> zbus::Result<String>;
    /// The kernel of an image that names none.
    #[zbus(property)]
    fn default_kernel(&self) -> zbus::Result<String>;
}

/// A sandbox.
#[proxy(interface = "dev.banger.Manager1.VM", default_service = "dev.banger.Manager1")]
pub trait Vm {
    /// Boots it.
    fn start(&self, options: Options<'_>) -> zbus::Result<OwnedObjectPath>;
    /// Shuts it down.
    fn stop(&self, options: Options<'_>) -> zbus::Result<OwnedObjectPath>;
    /// Shuts it down and boots it.
    fn restart(&self, options: Options<'_>) -> zbus::Result<OwnedObjectPath>;
    /// Takes all processor time from it, until [`Vm::unpause`].
    fn pause(&self) -> zbus::Result<()>;
    /// Ends a pause.
    fn unpause(&self) -> zbus::Result<()>;
    /// Writes its memory to disk and ends it.
    fn suspend(&self, options: Options<'_>) -> zbus::Result<OwnedObjectPath>;
    /// Continues a suspended one.
    fn resume(&self, options: Options<'_>) -> zbus::Result<OwnedObjectPath>;
    /// Sends a signal to the VMM.
    fn kill(&self, signal: i32) -> zbus::Result<()>;
    /// Deletes it with its disks.
    fn delete(&self, options: Options<'_>) -> zbus::Result<OwnedObjectPath>;
    /// Renames it.
    fn rename(&self, name: &str) -> zbus::Result<()>;
    /// Sets the lifetime; see [`super::option::lifetime`].
    fn set_lifetime(&self, lifetime: &str) -> zbus::Result<()>;
    /// Opens a stream to the guest agent. The greeting is done: the agent waits for one request.
    fn open_agent(&self, options: Options<'_>) -> zbus::Result<OwnedFd>;
    /// Opens a connection to a service in the guest; see [`super::option::stream`].
    fn open_stream(&self, service: &str, options: Options<'_>) -> zbus::Result<OwnedFd>;
    /// Opens a pipe to read a log from.
    fn open_log(&self, log: &str, options: Options<'_>) -> zbus::Result<OwnedFd>;
    /// Returns its recent changes of state, and the phases of its last boot.
    fn get_history(&self, options: Options<'_>) -> zbus::Result<(Vec<ChangeRow>, Vec<PhaseRow>)>;

    /// The state of the sandbox has changed.
    #[zbus(signal, name = "StateChanged")]
    fn state_transition(&self, old_state: &str, new_state: &str, reason: &str) -> zbus::Result<()>;

    /// 32 lower-case hexadecimal digits.
    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> zbus::Result<String>;
    /// Unique per owner.
    #[zbus(property)]
    fn name(&self) -> zbus::Result<String>;
    /// The owner.
    #[zbus(property(emits_changed_signal = "const"))]
    fn owner_uid(&self) -> zbus::Result<u32>;
    /// A state of the lifecycle.
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    /// Whether the guest agent answers.
    #[zbus(property)]
    fn ready(&self) -> zbus::Result<bool>;
    /// The public host key of its ssh server: `ssh-ed25519 AAAA…`.
    #[zbus(property(emits_changed_signal = "const"))]
    fn ssh_host_key(&self) -> zbus::Result<String>;
    /// Why it is in this state.
    #[zbus(property)]
    fn state_reason(&self) -> zbus::Result<String>;
}

/// An image.
#[proxy(interface = "dev.banger.Manager1.Image", default_service = "dev.banger.Manager1")]
pub trait Image {
    /// Removes it.
    fn delete(&self, options: Options<'_>) -> zbus::Result<()>;
    /// Writes it to an empty file, as a tar archive of an OCI image layout. Returns the job, whose data has the
    /// `digest` of the manifest, and the `bytes` of the archive.
    fn export(&self, file: zbus::Fd<'_>, options: Options<'_>) -> zbus::Result<OwnedObjectPath>;
    /// Gives it another name.
    fn rename(&self, name: &str) -> zbus::Result<()>;
    /// Makes it visible to all users, or to its owner only.
    fn set_shared(&self, shared: bool) -> zbus::Result<()>;

    /// Its source: the reference it was pulled by, or a description.
    #[zbus(property)]
    fn source(&self) -> zbus::Result<String>;
    /// The digest of the manifest it was pulled by; empty if it was imported from files.
    #[zbus(property(emits_changed_signal = "const"))]
    fn manifest_digest(&self) -> zbus::Result<String>;
    /// How to run its programs; see [`super::option::image_config`].
    #[zbus(property(emits_changed_signal = "const"))]
    fn config(&self) -> zbus::Result<Facts>;
}

/// A kernel.
#[proxy(interface = "dev.banger.Manager1.Kernel", default_service = "dev.banger.Manager1")]
pub trait Kernel {
    /// Removes it.
    fn delete(&self, options: Options<'_>) -> zbus::Result<()>;
    /// Gives it another name.
    fn rename(&self, name: &str) -> zbus::Result<()>;
}

/// A job.
#[proxy(interface = "dev.banger.Manager1.Job", default_service = "dev.banger.Manager1")]
pub trait Job {
    /// Asks the job to stop and to undo its changes.
    fn cancel(&self) -> zbus::Result<()>;
    /// Waits until the job has ended, or for this many microseconds; 0 waits without a limit. The result of a job
    /// that still runs is empty.
    fn wait(&self, timeout_usec: u64) -> zbus::Result<(String, String, String, Facts)>;

    /// A stage has begun.
    #[zbus(signal, name = "Stage")]
    fn stage_begun(&self, stage: &str, index: u32, count: u32, message: &str) -> zbus::Result<()>;
    /// The job has ended.
    #[zbus(signal)]
    fn completed(
        &self,
        result: &str,
        error_name: &str,
        error_message: &str,
        data: HashMap<String, OwnedVariant>,
    ) -> zbus::Result<()>;

    /// The objects that the job works on.
    #[zbus(property)]
    fn objects(&self) -> zbus::Result<Vec<OwnedObjectPath>>;
    /// `queued`, `running`, `done`, `failed` or `canceled`.
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    /// The current stage.
    #[zbus(property, name = "Stage")]
    fn current_stage(&self) -> zbus::Result<String>;
    /// 0 to 1, or -1 if unknown.
    #[zbus(property)]
    fn progress(&self) -> zbus::Result<f64>;
    /// Bytes done in the current stage.
    #[zbus(property)]
    fn bytes_done(&self) -> zbus::Result<u64>;
    /// Bytes to do in the current stage; 0 if unknown.
    #[zbus(property)]
    fn bytes_total(&self) -> zbus::Result<u64>;
}
