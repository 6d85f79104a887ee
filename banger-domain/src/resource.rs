//! What a sandbox has on the host, as data. Every name is a function of the VM's id, so that each thing can be found
//! again from the kernel, systemd and the file system alone.

use std::path::{Path, PathBuf};

use super::{
    id::{ImageId, KernelId, Uid, VmId},
    limits::Disk,
};

/// The file in an image's directory.
pub const IMAGE_FILE: &str = "rootfs.ext4";
/// The ELF file in a kernel's directory.
pub const KERNEL_FILE: &str = "vmlinux";
/// The archive of modules in a kernel's directory.
pub const MODULES_FILE: &str = "modules.cpio";
/// The file system of all modules in a kernel's directory.
pub const MODULE_TREE_FILE: &str = "modules.ext4";

/// A thing on the host that belongs to one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// The directory with its disks and logs.
    Disks,
    /// The memory of a suspended guest, on disk.
    Capture,
    /// The block devices of its disks: mapper node and loop devices, if it uses them.
    Mapper,
    /// Its network interface: a TAP with its routes, and its elements in the packet filter.
    Nic,
    /// The directory of its sockets.
    Sockets,
    /// The unit or process of its VMM.
    Unit,
}

/// How long a resource lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Until deletion.
    Vm,
    /// From start to stop.
    Boot,
}

impl Resource {
    /// All resources, in the order in which they are made.
    pub const ALL: [Resource; 6] = [
        Resource::Disks,
        Resource::Capture,
        Resource::Mapper,
        Resource::Nic,
        Resource::Sockets,
        Resource::Unit,
    ];

    /// Returns how long it lives.
    pub const fn scope(self) -> Scope {
        match self {
            Resource::Disks | Resource::Capture => Scope::Vm,
            Resource::Mapper | Resource::Nic | Resource::Sockets | Resource::Unit => Scope::Boot,
        }
    }

    /// Returns the word used in the ledger.
    pub const fn as_str(self) -> &'static str {
        match self {
            Resource::Disks => "disks",
            Resource::Capture => "capture",
            Resource::Nic => "nic",
            Resource::Mapper => "mapper",
            Resource::Sockets => "sockets",
            Resource::Unit => "unit",
        }
    }

    /// Parses a word of [`Resource::as_str`].
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.as_str() == word)
    }
}

/// Returns the name of a VM's systemd unit.
pub fn unit_name(vm: VmId) -> String {
    format!("banger-vm-{vm}.service")
}

/// Returns the name of a VM in the host's list of virtual machines. Users choose names, and only see their own: the id
/// tells others nothing and is taken by nothing else.
pub fn machine_name(vm: VmId) -> String {
    format!("banger-{vm}")
}

/// Returns the VM whose unit this is.
pub fn vm_of_unit(unit: &str) -> Option<VmId> {
    unit.strip_prefix("banger-vm-")?.strip_suffix(".service")?.parse().ok()
}

/// Returns the name and UUID of a VM's mapper node.
pub fn mapper_name(vm: VmId) -> String {
    format!("banger-{vm}")
}

/// Returns the VM whose mapper node this is.
pub fn vm_of_mapper(name: &str) -> Option<VmId> {
    name.strip_prefix("banger-")?.parse().ok()
}

/// The slice of all units.
pub const SLICE: &str = "banger.slice";

/// All units of imports.
pub const IMPORT_UNITS: &str = "banger-import-*.service";

/// Returns the name of the systemd unit that imports an image.
pub fn import_unit_name(image: ImageId) -> String {
    format!("banger-import-{image}.service")
}

/// Returns the name of the dynamic user that imports an image.
pub fn import_user(image: ImageId) -> String {
    let id = image.to_string();
    format!("bgi-{}", &id[..20])
}

/// Returns the name of the slice of an owner's units, a child of `banger.slice`.
pub fn slice_name(owner: Uid) -> String {
    format!("banger-u{owner}.slice")
}

/// Returns the name of a unit's dynamic user, at most 31 characters.
pub fn dynamic_user(vm: VmId) -> String {
    let id = vm.to_string();
    format!("bgr-{}", &id[..20])
}

/// The directories and files of the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Persistent state: `/var/lib/banger`.
    pub state: PathBuf,
    /// Runtime state: `/run/banger`.
    pub runtime: PathBuf,
    /// Programs: `/usr/libexec/banger`.
    pub libexec: PathBuf,
}

impl Paths {
    /// Returns the database.
    pub fn database(&self) -> PathBuf {
        self.state.join("db/banger.sqlite")
    }

    /// Returns the file that the running service has locked.
    pub fn lock(&self) -> PathBuf {
        self.state.join("lock")
    }

    /// Returns the mark that the service has run since the host booted.
    pub fn has_run(&self) -> PathBuf {
        self.runtime.join("has-run")
    }

    /// Returns the mark that makes the host start the service when it boots.
    pub fn wanted_at_boot(&self) -> PathBuf {
        self.state.join("start-at-boot")
    }

    /// Returns the directory of a VM's disks and logs.
    pub fn vm_dir(&self, vm: VmId) -> PathBuf {
        self.vms().join(vm.to_string())
    }

    /// Returns the parent of [`Paths::vm_dir`].
    pub fn vms(&self) -> PathBuf {
        self.state.join("vms")
    }

    /// Returns a VM's private clone of its image.
    pub fn system_disk(&self, vm: VmId) -> PathBuf {
        self.vm_dir(vm).join("system.ext4")
    }

    /// Returns a VM's qcow2 overlay, if it has one instead of a clone.
    pub fn system_layer(&self, vm: VmId) -> PathBuf {
        self.vm_dir(vm).join("system.qcow2")
    }

    /// Returns the image below the qcow2 overlay: a hard link to the image's file.
    pub fn system_base(&self, vm: VmId) -> PathBuf {
        self.vm_dir(vm).join("base.ext4")
    }

    /// Returns what a VM has changed of its frozen work disk, if it was frozen. The work disk is then the base.
    pub fn work_layer(&self, vm: VmId) -> PathBuf {
        self.vm_dir(vm).join("work.qcow2")
    }

    /// Returns the frozen layer of a disk with this number, 1 for the lowest: a hard link that the VMs share.
    pub fn frozen_layer(&self, vm: VmId, disk: Disk, number: usize) -> PathBuf {
        let name = match disk {
            Disk::System => "system",
            Disk::Work => "work",
        };
        self.vm_dir(vm).join(format!("{name}.{number}.qcow2"))
    }

    /// Returns a VM's device-mapper overlay.
    pub fn overlay(&self, vm: VmId) -> PathBuf {
        self.vm_dir(vm).join("system.cow")
    }

    /// Returns the part of a VM's system disk beyond the end of its image, if device-mapper puts them together.
    pub fn system_tail(&self, vm: VmId) -> PathBuf {
        self.vm_dir(vm).join("system.tail")
    }

    /// Returns a VM's work disk.
    pub fn work_disk(&self, vm: VmId) -> PathBuf {
        self.vm_dir(vm).join("work.ext4")
    }

    /// Returns the ring file of the serial console.
    pub fn console_log(&self, vm: VmId) -> PathBuf {
        self.vm_dir(vm).join("console.ring")
    }

    /// Returns the ring file of the VMM's own output.
    pub fn vmm_log(&self, vm: VmId) -> PathBuf {
        self.vm_dir(vm).join("vmm.ring")
    }

    /// Returns the directory of a VM's sockets.
    pub fn socket_dir(&self, vm: VmId) -> PathBuf {
        self.sockets().join(vm.to_string())
    }

    /// Returns the part of [`Paths::socket_dir`] that the VMM sees and may write to, if it makes its sockets itself.
    pub fn vmm_dir(&self, vm: VmId) -> PathBuf {
        self.socket_dir(vm).join("machine")
    }

    /// Returns the parent of [`Paths::socket_dir`].
    pub fn sockets(&self) -> PathBuf {
        self.runtime.join("vm")
    }

    /// Returns the empty directory over which the root of every jail is mounted.
    pub fn jail(&self) -> PathBuf {
        self.runtime.join("jail")
    }

    /// Returns the directory of images.
    pub fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    /// Returns the root file system of an image.
    pub fn image(&self, image: ImageId) -> PathBuf {
        self.images().join(image.to_string()).join(IMAGE_FILE)
    }

    /// Returns the directory of kernels.
    pub fn kernels(&self) -> PathBuf {
        self.state.join("kernels")
    }

    /// Returns a kernel as an ELF file.
    pub fn kernel(&self, kernel: KernelId) -> PathBuf {
        self.kernels().join(kernel.to_string()).join(KERNEL_FILE)
    }

    /// Returns the archive of a kernel's modules.
    pub fn kernel_modules(&self, kernel: KernelId) -> PathBuf {
        self.kernels().join(kernel.to_string()).join(MODULES_FILE)
    }

    /// Returns the file system with all modules of a kernel, if it came with modules.
    pub fn module_tree(&self, kernel: KernelId) -> PathBuf {
        self.kernels().join(kernel.to_string()).join(MODULE_TREE_FILE)
    }

    /// Returns the directory of templates.
    pub fn templates(&self) -> PathBuf {
        self.state.join("templates")
    }

    /// Returns the directory of the memory of suspended sandboxes.
    pub fn captures(&self) -> PathBuf {
        self.state.join("captures")
    }

    /// Returns the directory of stored catalogs.
    pub fn catalogs(&self) -> PathBuf {
        self.state.join("catalogs")
    }

    /// Returns the archive of the agent, the same for every VM.
    pub fn agent_archive(&self) -> PathBuf {
        self.state.join("agent.cpio")
    }

    /// Returns the path of one of banger's programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.libexec.join(Path::new(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_name_leads_back_to_the_vm() {
        let vm = VmId::from_bits(77);
        assert_eq!(vm_of_unit(&unit_name(vm)), Some(vm));
        assert_eq!(vm_of_unit("banger-vm-x.service"), None);
        assert_eq!(vm_of_unit("ssh.service"), None);
    }

    #[test]
    fn a_mapper_name_leads_back_to_the_vm() {
        let vm = VmId::from_bits(77);
        assert_eq!(vm_of_mapper(&mapper_name(vm)), Some(vm));
        assert_eq!(vm_of_mapper("banger-x"), None);
        assert_eq!(vm_of_mapper("vg-root"), None);
    }

    #[test]
    fn a_dynamic_user_is_a_valid_user_name() {
        let user = dynamic_user(VmId::from_bits(u128::MAX));
        assert!(user.len() <= 31, "{user}");
    }

    #[test]
    fn socket_paths_fit_into_a_socket_address() {
        let paths = Paths {
            state: "/var/lib/banger".into(),
            runtime: "/run/banger".into(),
            libexec: "/usr/libexec/banger".into(),
        };
        let longest = paths.socket_dir(VmId::from_bits(u128::MAX)).join("agent-23.sock");
        assert!(longest.as_os_str().len() < 108, "{longest:?}");
    }

    #[test]
    fn resources_read_back() {
        for resource in Resource::ALL {
            assert_eq!(Resource::parse(resource.as_str()), Some(resource));
        }
    }
}
