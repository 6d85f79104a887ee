//! A launch description as requests to Firecracker's API, as defined in its
//! `src/firecracker/swagger/firecracker.yaml`. Files are named by their descriptor numbers.

use banger_domain::{
    architecture::Architecture,
    launch_spec::{Access, LaunchSpec},
};
use banger_jail::{jail::VM_DIRECTORY, message::FIRST_FILE};
use serde::Serialize;

/// The names of the files before the drives, in the order in which the process gets them.
pub const KERNEL: &str = "kernel";
/// See [`KERNEL`].
pub const INITRD: &str = "initrd";
/// How many files come before the drives.
const FILES_BEFORE_DRIVES: usize = 2;

/// The socket of the API.
pub const API_SOCKET: &str = "api.sock";
/// The socket of the guest's vsock ports.
pub const VSOCK_SOCKET: &str = "vsock.sock";
/// The lowest context id of a guest. Each VMM has a vsock of its own, so all guests can have the same.
const GUEST_CID: u32 = 3;

/// A request to the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Put {
    MachineConfig {
        vcpu_count: u32,
        mem_size_mib: u64,
    },
    BootSource {
        kernel_image_path: String,
        initrd_path: String,
        boot_args: &'static str,
    },
    Drive {
        drive_id: String,
        path_on_host: String,
        /// A root device would get `root=` into the command line, which is the agent's decision.
        is_root_device: bool,
        is_read_only: bool,
        /// `Writeback` flushes when the guest does; the default never does.
        cache_type: &'static str,
    },
    NetworkInterface {
        iface_id: String,
        host_dev_name: String,
        guest_mac: String,
    },
    Vsock {
        guest_cid: u32,
        uds_path: String,
    },
    Entropy {},
    Balloon {
        amount_mib: u32,
        deflate_on_oom: bool,
    },
    Action {
        action_type: &'static str,
    },
}

/// Boots the configured guest.
pub const START: Put = Put::Action { action_type: "InstanceStart" };

impl Put {
    /// Returns the path of the request.
    pub fn path(&self) -> String {
        match self {
            Put::MachineConfig { .. } => "/machine-config".to_owned(),
            Put::BootSource { .. } => "/boot-source".to_owned(),
            Put::Drive { drive_id, .. } => format!("/drives/{drive_id}"),
            Put::NetworkInterface { iface_id, .. } => format!("/network-interfaces/{iface_id}"),
            Put::Vsock { .. } => "/vsock".to_owned(),
            Put::Entropy {} => "/entropy".to_owned(),
            Put::Balloon { .. } => "/balloon".to_owned(),
            Put::Action { .. } => "/actions".to_owned(),
        }
    }
}

/// Returns the program and its arguments. Its own log goes to standard error; standard output is the guest's console.
/// At the usual log level it would warn of each port that a kernel probes.
pub fn argv(program: &str, spec: &LaunchSpec) -> Vec<String> {
    let api = format!("{VM_DIRECTORY}/{API_SOCKET}");
    let id = spec.vm.to_string();
    [program, "--id", &id, "--api-sock", &api, "--log-path", "/proc/self/fd/2", "--level", "Error"]
        .map(str::to_owned)
        .into()
}

/// Returns the name of a drive's file.
pub fn drive_name(index: usize) -> String {
    format!("drive{index}")
}

/// Returns all requests before [`START`], in order. The guest counts drives in the order of the requests.
pub fn of(architecture: Architecture, spec: &LaunchSpec) -> Vec<Put> {
    let mut puts = vec![
        Put::MachineConfig { vcpu_count: spec.vcpus, mem_size_mib: spec.memory.in_mib() },
        Put::BootSource {
            kernel_image_path: file(0),
            initrd_path: file(1),
            boot_args: architecture.differences().firecracker,
        },
    ];
    puts.extend(spec.drives.iter().enumerate().map(|(index, drive)| Put::Drive {
        drive_id: drive_name(index),
        path_on_host: file(FILES_BEFORE_DRIVES + index),
        is_root_device: false,
        is_read_only: drive.access == Access::ReadOnly,
        cache_type: "Writeback",
    }));
    puts.extend(spec.nics.iter().enumerate().map(|(index, nic)| Put::NetworkInterface {
        iface_id: format!("eth{index}"),
        host_dev_name: nic.tap.clone(),
        guest_mac: nic.mac.clone(),
    }));
    puts.push(Put::Vsock { guest_cid: GUEST_CID, uds_path: format!("{VM_DIRECTORY}/{VSOCK_SOCKET}") });
    puts.push(Put::Entropy {});
    // No memory is taken from the guest unless the balloon is inflated.
    puts.push(Put::Balloon { amount_mib: 0, deflate_on_oom: true });
    puts
}

/// Returns the path of the file at this index.
fn file(index: usize) -> String {
    format!("/proc/self/fd/{}", FIRST_FILE as usize + index)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use banger_domain::{
        id::{Uid, VmId},
        launch_spec::{Drive, Medium, Nic},
        vmm::VmmChoice,
    };
    use banger_proto::size::Bytes;

    use super::*;

    fn spec() -> LaunchSpec {
        LaunchSpec {
            vm: VmId::from_bits(0xabc),
            owner: Uid(1000),
            name: "calm-otter".into(),
            vmm: VmmChoice::Auto,
            vcpus: 3,
            memory: Bytes::gib(1),
            kernel: "/host/kernel".into(),
            initramfs: Vec::new(),
            drives: vec![
                Drive { path: "/host/disk/a".into(), access: Access::ReadWrite, medium: Medium::File },
                Drive { path: "/host/disk/b".into(), access: Access::ReadOnly, medium: Medium::File },
            ],
            nics: vec![Nic { tap: "bgr-0000abc".into(), mac: "02:00:00:00:0a:bc".into() }],
        }
    }

    #[test]
    fn the_requests_are_these() {
        let spec = spec();
        let mut lines = vec![argv("/usr/bin/firecracker", &spec).join(" ")];
        for put in of(Architecture::X86_64, &spec).iter().chain([&START]) {
            lines.push(format!("PUT {} {}", put.path(), serde_json::to_string(put).unwrap()));
        }
        let golden = include_str!("requests.golden");
        assert_eq!(lines.join("\n"), golden.trim_end());
        assert!(!golden.contains("/host"), "a path of the host is in it");
    }

    #[test]
    fn arm64_differs_in_the_kernels_command_line_alone() {
        let (x86, arm) = (of(Architecture::X86_64, &spec()), of(Architecture::Aarch64, &spec()));
        assert_eq!(x86.len(), arm.len());
        let different: Vec<_> = arm.iter().filter(|put| !x86.contains(put)).collect();
        let [Put::BootSource { boot_args, .. }] = different[..] else { panic!("{different:?}") };
        assert_eq!(
            *boot_args,
            "console=ttyS0 quiet panic=-1 cryptomgr.notests 8250.nr_uarts=1 net.ifnames=0"
        );
    }
}
