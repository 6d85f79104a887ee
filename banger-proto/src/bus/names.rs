//! Names on the bus and in polkit.

/// The well-known name of the service.
pub const SERVICE: &str = "dev.banger.Manager1";
/// The manager, which is also the ObjectManager of the tree.
pub const MANAGER_PATH: &str = "/dev/banger/Manager1";
/// Parent of all sandbox objects; the last element is the id.
pub const VM_PARENT: &str = "/dev/banger/Manager1/vm";
/// Parent of all image objects; the last element is the id.
pub const IMAGE_PARENT: &str = "/dev/banger/Manager1/image";
/// Parent of all kernel objects; the last element is the id.
pub const KERNEL_PARENT: &str = "/dev/banger/Manager1/kernel";
/// Parent of all job objects; the last element is the id.
pub const JOB_PARENT: &str = "/dev/banger/Manager1/job";

/// The interface of the manager.
pub const MANAGER_INTERFACE: &str = "dev.banger.Manager1";
/// The interface of a sandbox.
pub const VM_INTERFACE: &str = "dev.banger.Manager1.VM";
/// The interface of an image.
pub const IMAGE_INTERFACE: &str = "dev.banger.Manager1.Image";
/// The interface of a kernel.
pub const KERNEL_INTERFACE: &str = "dev.banger.Manager1.Kernel";
/// The interface of a job.
pub const JOB_INTERFACE: &str = "dev.banger.Manager1.Job";
/// All interfaces of the service.
pub const INTERFACES: [&str; 5] =
    [MANAGER_INTERFACE, VM_INTERFACE, IMAGE_INTERFACE, KERNEL_INTERFACE, JOB_INTERFACE];

/// Keys of the details that go to polkit with an action: for the text of a dialog and for an administrator's rules.
pub mod detail {
    /// What a dialog calls the object, such as `sandbox web` or `image debian`.
    pub const OBJECT: &str = "object";
    /// Name of the user who owns it.
    pub const OWNER: &str = "owner";
    /// User id of the owner.
    pub const OWNER_UID: &str = "owner_uid";
    /// Name of the sandbox.
    pub const VM: &str = "vm";
    /// Id of the sandbox.
    pub const VM_ID: &str = "vm_id";
    /// Name or reference of the image, or name of the kernel.
    pub const IMAGE: &str = "image";
    /// The port of the host to publish, such as `port 80` or `a free port`.
    pub const PORT: &str = "port";
}

/// The polkit actions.
pub mod action {
    /// Create and start the caller's own sandboxes.
    pub const VM_RUN: &str = "dev.banger.vm.run";
    /// See sandboxes of other users.
    pub const VM_VIEW_OTHERS: &str = "dev.banger.vm.view-others";
    /// Stop, change or delete sandboxes of other users.
    pub const VM_MANAGE_OTHERS: &str = "dev.banger.vm.manage-others";
    /// Open consoles, logs and agent streams of sandboxes of other users.
    pub const VM_ACCESS_OTHERS: &str = "dev.banger.vm.access-others";
    /// Publish ports of a sandbox on every address of the host.
    pub const VM_PUBLISH: &str = "dev.banger.vm.publish";
    /// Download images and kernels.
    pub const IMAGE_PULL: &str = "dev.banger.image.pull";
    /// Import local images and kernels.
    pub const IMAGE_IMPORT: &str = "dev.banger.image.import";
    /// Share, change or delete images and kernels for all users.
    pub const IMAGE_MANAGE_SHARED: &str = "dev.banger.image.manage-shared";
    /// Repair what sandboxes of all users have left on the host.
    pub const HOST_REPAIR: &str = "dev.banger.host.repair";

    /// Actions that the packaged rules allow to members of the group `banger` in any session.
    pub const OF_GROUP: [&str; 3] = [VM_RUN, IMAGE_PULL, IMAGE_IMPORT];

    /// Every action that the policy file declares.
    pub const ALL: [&str; 9] = [
        VM_RUN,
        VM_VIEW_OTHERS,
        VM_MANAGE_OTHERS,
        VM_ACCESS_OTHERS,
        VM_PUBLISH,
        IMAGE_PULL,
        IMAGE_IMPORT,
        IMAGE_MANAGE_SHARED,
        HOST_REPAIR,
    ];
}
