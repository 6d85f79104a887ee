//! What a machine has on the host, as data. Every name is a function of the machine's id, so that each
//! thing can be found again from the kernel, from systemd and from the file system alone.

use std::path::{Path, PathBuf};

use super::id::{ImageId, KernelId, Uid, VmId};

/// The file in an image's directory.
pub const IMAGE_FILE: &str = "rootfs.ext4";
/// The ELF file in a kernel's directory.
pub const KERNEL_FILE: &str = "vmlinux";
/// The archive of modules in a kernel's directory.
pub const MODULES_FILE: &str = "modules.cpio";
/// The file system of all modules in a kernel's directory.
pub const MODULE_TREE_FILE: &str = "modules.ext4";

/// A thing on the host that belongs to one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// The directory with its disks and logs.
    Disks,
    /// What makes block devices of its disks: mapper node and loop devices, where it has them.
    Mapper,
    /// Its network interface: a TAP with its routes, and its elements in the packet filter.
    Nic,
    /// The directory of its sockets.
    Sockets,
    /// The unit, or process, of its monitor.
    Unit,
}

/// How long a resource lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// From creation to deletion.
    Machine,
    /// From start to stop.
    Boot,
}

impl Resource {
    /// Every resource, in the order in which they are made.
    pub const ALL: [Resource; 5] =
        [Resource::Disks, Resource::Mapper, Resource::Nic, Resource::Sockets, Resource::Unit];

    /// How long it lives.
    pub const fn span(self) -> Span {
        match self {
            Resource::Disks => Span::Machine,
            Resource::Mapper | Resource::Nic | Resource::Sockets | Resource::Unit => Span::Boot,
        }
    }

    /// The word in the ledger.
    pub const fn as_str(self) -> &'static str {
        match self {
            Resource::Disks => "disks",
            Resource::Nic => "nic",
            Resource::Mapper => "mapper",
            Resource::Sockets => "sockets",
            Resource::Unit => "unit",
        }
    }

    /// The resource that [`Resource::as_str`] calls so.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.as_str() == word)
    }
}

/// The systemd unit of a machine.
pub fn unit_name(vm: VmId) -> String {
    format!("banger-vm-{vm}.service")
}

/// The machine whose unit this is.
pub fn vm_of_unit(unit: &str) -> Option<VmId> {
    unit.strip_prefix("banger-vm-")?.strip_suffix(".service")?.parse().ok()
}

/// The name and the UUID of a machine's mapper node.
pub fn mapper_name(vm: VmId) -> String {
    format!("banger-{vm}")
}

/// The machine whose mapper node this is.
pub fn vm_of_mapper(name: &str) -> Option<VmId> {
    name.strip_prefix("banger-")?.parse().ok()
}

/// The slice of all units.
pub const SLICE: &str = "banger.slice";

/// All units of imports.
pub const IMPORT_UNITS: &str = "banger-import-*.service";

/// The systemd unit of an image's import.
pub fn import_unit_name(image: ImageId) -> String {
    format!("banger-import-{image}.service")
}

/// The user that systemd makes for an image's import.
pub fn import_user(image: ImageId) -> String {
    let id = image.to_string();
    format!("bgi-{}", &id[..20])
}

/// The slice of all units of one owner, a child of `banger.slice`.
pub fn slice_name(owner: Uid) -> String {
    format!("banger-u{owner}.slice")
}

/// The user that systemd makes for a machine's unit, within the 31 characters of a user name.
pub fn dynamic_user(vm: VmId) -> String {
    let id = vm.to_string();
    format!("bgr-{}", &id[..20])
}

/// Where the service keeps its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// What must survive: `/var/lib/banger`.
    pub state: PathBuf,
    /// What lives while machines run: `/run/banger`.
    pub runtime: PathBuf,
    /// Our programs: `/usr/libexec/banger`.
    pub libexec: PathBuf,
}

impl Places {
    /// The database.
    pub fn database(&self) -> PathBuf {
        self.state.join("db/banger.sqlite")
    }

    /// What the service that runs has locked.
    pub fn lock(&self) -> PathBuf {
        self.state.join("lock")
    }

    /// The directory of a machine's disks and logs.
    pub fn vm_dir(&self, vm: VmId) -> PathBuf {
        self.vms().join(vm.to_string())
    }

    /// The parent of [`Places::vm_dir`].
    pub fn vms(&self) -> PathBuf {
        self.state.join("vms")
    }

    /// A machine's private clone of its image.
    pub fn system_disk(&self, vm: VmId) -> PathBuf {
        self.vm_dir(vm).join("system.ext4")
    }

    /// A machine's layer over its image, where it has no clone.
    pub fn system_layer(&self, vm: VmId) -> PathBuf {
        self.vm_dir(vm).join("system.qcow2")
    }

    /// The image below the layer: another name of the image's own file.
    pub fn system_base(&self, vm: VmId) -> PathBuf {
        self.vm_dir(vm).join("base.ext4")
    }

    /// What a machine has changed of its image, where the kernel puts the two together.
    pub fn overlay(&self, vm: VmId) -> PathBuf {
        self.vm_dir(vm).join("system.cow")
    }

    /// What a machine's system disk has behind its image, where the kernel puts the two together.
    pub fn system_tail(&self, vm: VmId) -> PathBuf {
        self.vm_dir(vm).join("system.tail")
    }

    /// A machine's work disk.
    pub fn work_disk(&self, vm: VmId) -> PathBuf {
        self.vm_dir(vm).join("work.ext4")
    }

    /// The ring file of the serial console.
    pub fn console_log(&self, vm: VmId) -> PathBuf {
        self.vm_dir(vm).join("console.ring")
    }

    /// What the monitor says, a ring file too.
    pub fn vmm_log(&self, vm: VmId) -> PathBuf {
        self.vm_dir(vm).join("vmm.ring")
    }

    /// The directory of a machine's sockets.
    pub fn socket_dir(&self, vm: VmId) -> PathBuf {
        self.sockets().join(vm.to_string())
    }

    /// The part of [`Places::socket_dir`] that a monitor sees and may write to, when it makes its sockets
    /// itself.
    pub fn machine_dir(&self, vm: VmId) -> PathBuf {
        self.socket_dir(vm).join("machine")
    }

    /// The parent of [`Places::socket_dir`].
    pub fn sockets(&self) -> PathBuf {
        self.runtime.join("vm")
    }

    /// The empty directory that the root of every monitor is mounted in.
    pub fn jail(&self) -> PathBuf {
        self.runtime.join("jail")
    }

    /// The directory of images.
    pub fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    /// The root file system of an image.
    pub fn image(&self, image: ImageId) -> PathBuf {
        self.images().join(image.to_string()).join(IMAGE_FILE)
    }

    /// The directory of kernels.
    pub fn kernels(&self) -> PathBuf {
        self.state.join("kernels")
    }

    /// A kernel as ELF.
    pub fn kernel(&self, kernel: KernelId) -> PathBuf {
        self.kernels().join(kernel.to_string()).join(KERNEL_FILE)
    }

    /// The archive of a kernel's modules.
    pub fn kernel_modules(&self, kernel: KernelId) -> PathBuf {
        self.kernels().join(kernel.to_string()).join(MODULES_FILE)
    }

    /// The file system of all modules of a kernel, where it came with modules.
    pub fn module_tree(&self, kernel: KernelId) -> PathBuf {
        self.kernels().join(kernel.to_string()).join(MODULE_TREE_FILE)
    }

    /// What is kept of catalogs.
    pub fn catalogs(&self) -> PathBuf {
        self.state.join("catalogs")
    }

    /// The archive of the agent, the same for every machine.
    pub fn agent_archive(&self) -> PathBuf {
        self.state.join("agent.cpio")
    }

    /// One of our programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.libexec.join(Path::new(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_name_leads_back_to_the_machine() {
        let vm = VmId::from_bits(77);
        assert_eq!(vm_of_unit(&unit_name(vm)), Some(vm));
        assert_eq!(vm_of_unit("banger-vm-x.service"), None);
        assert_eq!(vm_of_unit("ssh.service"), None);
    }

    #[test]
    fn a_mapper_name_leads_back_to_the_machine() {
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
        let places = Places {
            state: "/var/lib/banger".into(),
            runtime: "/run/banger".into(),
            libexec: "/usr/libexec/banger".into(),
        };
        let longest = places.socket_dir(VmId::from_bits(u128::MAX)).join("agent-23.sock");
        assert!(longest.as_os_str().len() < 108, "{longest:?}");
    }

    #[test]
    fn resources_read_back() {
        for resource in Resource::ALL {
            assert_eq!(Resource::parse(resource.as_str()), Some(resource));
        }
    }
}
