//! Client proxies. Methods that may need authentication are called without the interactive flag; a
//! client that has an agent calls them again with `zbus::Proxy::call_with_flags`.

use std::collections::HashMap;

use zbus::{OwnedFd, OwnedObjectPath, OwnedVariant, Variant, proxy};

use super::record::{CheckRow, ImageRow, JobRow, KernelRow, VmRow};

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
    /// Creates a sandbox. Returns it and the job that finishes it.
    #[zbus(name = "CreateVM")]
    fn create_vm(&self, name: &str, options: Options<'_>)
    -> zbus::Result<(OwnedObjectPath, OwnedObjectPath)>;
    /// The machine with this id, id prefix (6 digits or more), name, or `user/name`.
    #[zbus(name = "GetVM")]
    fn get_vm(&self, reference: &str) -> zbus::Result<OwnedObjectPath>;
    /// The caller's machines.
    #[zbus(name = "ListVMs")]
    fn list_vms(&self, filter: Options<'_>) -> zbus::Result<Vec<VmRow>>;
    /// Makes an image of the given files. Returns the job, whose data names the `image`.
    fn import_image(
        &self,
        name: &str,
        files: HashMap<&str, zbus::Fd<'_>>,
        options: Options<'_>,
    ) -> zbus::Result<OwnedObjectPath>;
    /// Makes an image of a catalog's, by its name there, or of a registry's. Returns the job, whose data names the `image`, its `digest` and the `bytes`
    /// that it takes.
    fn pull_image(&self, reference: &str, options: Options<'_>) -> zbus::Result<OwnedObjectPath>;
    /// Removes from the cache what registries sent. Returns the job, whose data tells the `blobs` and their
    /// `bytes`.
    fn prune_cache(&self, options: Options<'_>) -> zbus::Result<OwnedObjectPath>;
    /// The image with this reference: an id, an id prefix, a name, `user/name`, or what it was pulled as.
    fn get_image(&self, reference: &str) -> zbus::Result<OwnedObjectPath>;
    /// The caller's and the shared images.
    fn list_images(&self, filter: Options<'_>) -> zbus::Result<Vec<ImageRow>>;
    /// Makes a kernel of the given files. Returns the job, whose data names the `kernel`.
    fn import_kernel(
        &self,
        name: &str,
        files: HashMap<&str, zbus::Fd<'_>>,
        options: Options<'_>,
    ) -> zbus::Result<OwnedObjectPath>;
    /// The kernel with this reference.
    fn get_kernel(&self, reference: &str) -> zbus::Result<OwnedObjectPath>;
    /// The caller's and the shared kernels.
    fn list_kernels(&self, filter: Options<'_>) -> zbus::Result<Vec<KernelRow>>;
    /// Makes a kernel of a catalog's. Returns the job, whose data names the `kernel`, its `digest` and the `bytes`
    /// that it takes.
    fn pull_kernel(&self, entry: &str, options: Options<'_>) -> zbus::Result<OwnedObjectPath>;
    /// What the catalogs have, as they were last fetched; see [`super::option::catalog`].
    fn list_catalog(&self, options: Options<'_>) -> zbus::Result<Vec<Facts>>;
    /// Fetches the catalogs. Returns the job, whose data tells how many `catalogs` there are, and the `problems`
    /// with some of them, a line for each.
    fn refresh_catalog(&self, options: Options<'_>) -> zbus::Result<OwnedObjectPath>;
    /// The job with this id.
    fn get_job(&self, id: &str) -> zbus::Result<OwnedObjectPath>;
    /// The caller's jobs.
    fn list_jobs(&self, filter: Options<'_>) -> zbus::Result<Vec<JobRow>>;
    /// Asks for the signals of the caller's objects.
    fn subscribe(&self, options: Options<'_>) -> zbus::Result<()>;
    /// Ends what `Subscribe` began.
    fn unsubscribe(&self) -> zbus::Result<()>;
    /// For each polkit action `yes`, `auth` or `no`.
    fn get_permissions(&self) -> zbus::Result<HashMap<String, String>>;
    /// The limits that hold for the caller.
    fn get_limits(&self) -> zbus::Result<Facts>;
    /// Looks at the host with the checks that the service itself uses.
    fn diagnose(&self, options: Options<'_>) -> zbus::Result<Vec<CheckRow>>;

    /// A machine of the caller has come.
    #[zbus(signal, name = "VMNew")]
    fn vm_new(&self, id: &str, vm: zbus::ObjectPath<'_>) -> zbus::Result<()>;
    /// A machine of the caller has gone.
    #[zbus(signal, name = "VMRemoved")]
    fn vm_removed(&self, id: &str, vm: zbus::ObjectPath<'_>) -> zbus::Result<()>;

    /// The version of the service.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> zbus::Result<String>;
    /// Grows by one with each addition to the interfaces.
    #[zbus(property(emits_changed_signal = "const"))]
    fn api_level(&self) -> zbus::Result<u32>;
    /// What this service can do on this host.
    #[zbus(property(emits_changed_signal = "const"))]
    fn features(&self) -> zbus::Result<Vec<String>>;
    /// The image of a machine for which none is named.
    #[zbus(property)]
    fn default_image(&self) -> zbus::Result<String>;
    /// The kernel of an image for which none is named.
    #[zbus(property)]
    fn default_kernel(&self) -> zbus::Result<String>;
}

/// A machine.
#[proxy(interface = "dev.banger.Manager1.VM", default_service = "dev.banger.Manager1")]
pub trait Vm {
    /// Boots it.
    fn start(&self, options: Options<'_>) -> zbus::Result<OwnedObjectPath>;
    /// Shuts it down.
    fn stop(&self, options: Options<'_>) -> zbus::Result<OwnedObjectPath>;
    /// Shuts it down and boots it.
    fn restart(&self, options: Options<'_>) -> zbus::Result<OwnedObjectPath>;
    /// Sends a signal to the machine monitor.
    fn kill(&self, signal: i32) -> zbus::Result<()>;
    /// Removes it with its disks.
    fn delete(&self, options: Options<'_>) -> zbus::Result<OwnedObjectPath>;
    /// Gives it another name.
    fn rename(&self, name: &str) -> zbus::Result<()>;
    /// See [`super::option::lifetime`].
    fn set_lifetime(&self, lifetime: &str) -> zbus::Result<()>;
    /// A stream to the guest agent, with the greeting done: it waits for one request.
    fn open_agent(&self, options: Options<'_>) -> zbus::Result<OwnedFd>;
    /// A connection to what listens in the guest; see [`super::option::stream`].
    fn open_stream(&self, service: &str, options: Options<'_>) -> zbus::Result<OwnedFd>;
    /// A pipe from which a log can be read.
    fn open_log(&self, log: &str, options: Options<'_>) -> zbus::Result<OwnedFd>;

    /// The state of the machine has changed.
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
    /// A word of the lifecycle.
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    /// Whether the guest agent answers.
    #[zbus(property)]
    fn ready(&self) -> zbus::Result<bool>;
    /// The public half of the key by which its ssh server shows who it is: `ssh-ed25519 AAAA…`.
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
    /// Writes it into an empty file, as a tar archive of an OCI image layout. Returns the job, whose data tells the
    /// `digest` of the manifest, and the `bytes` of the archive.
    fn export(&self, file: zbus::Fd<'_>, options: Options<'_>) -> zbus::Result<OwnedObjectPath>;
    /// Lets every user see it, or its owner alone.
    fn set_shared(&self, shared: bool) -> zbus::Result<()>;

    /// Where it came from: what it was pulled as, or words for people.
    #[zbus(property)]
    fn source(&self) -> zbus::Result<String>;
    /// The digest of the manifest that it was pulled as; empty where it was made of files.
    #[zbus(property(emits_changed_signal = "const"))]
    fn manifest_digest(&self) -> zbus::Result<String>;
    /// How its programs want to be run; see [`super::option::image_config`].
    #[zbus(property(emits_changed_signal = "const"))]
    fn config(&self) -> zbus::Result<Facts>;
}

/// A kernel.
#[proxy(interface = "dev.banger.Manager1.Kernel", default_service = "dev.banger.Manager1")]
pub trait Kernel {
    /// Removes it.
    fn delete(&self, options: Options<'_>) -> zbus::Result<()>;
}

/// A job.
#[proxy(interface = "dev.banger.Manager1.Job", default_service = "dev.banger.Manager1")]
pub trait Job {
    /// Asks it to end and to undo what it did.
    fn cancel(&self) -> zbus::Result<()>;
    /// Waits until it has ended, or this many microseconds; 0 waits without a limit. A job that still runs has
    /// an empty result.
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

    /// What it is about.
    #[zbus(property)]
    fn objects(&self) -> zbus::Result<Vec<OwnedObjectPath>>;
    /// `queued`, `running`, `done`, `failed` or `canceled`.
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    /// The stage that is under way.
    #[zbus(property, name = "Stage")]
    fn current_stage(&self) -> zbus::Result<String>;
    /// 0 to 1, or -1 where it is unknown.
    #[zbus(property)]
    fn progress(&self) -> zbus::Result<f64>;
    /// Bytes that the stage has done.
    #[zbus(property)]
    fn bytes_done(&self) -> zbus::Result<u64>;
    /// Bytes that the stage is to do; 0 where nobody counts or knows.
    #[zbus(property)]
    fn bytes_total(&self) -> zbus::Result<u64>;
}
