//! A machine in Firecracker's words: what is put to its API before the guest starts, as its
//! `src/firecracker/swagger/firecracker.yaml` has it. Every file is named by its number in the process.

use banger_domain::machine::{Access, Machine};
use banger_jail::{message::FIRST_FILE, walls::MACHINE_DIRECTORY};
use serde::Serialize;

/// The names of the files that come before the drives, in the order in which the process gets them.
pub const KERNEL: &str = "kernel";
/// See [`KERNEL`].
pub const INITRD: &str = "initrd";
/// How many files come before the drives.
const FILES_BEFORE_DRIVES: usize = 2;

/// The socket of the API.
pub const API_SOCKET: &str = "api.sock";
/// The socket behind which the guest's vsock ports are.
pub const VSOCK_SOCKET: &str = "vsock.sock";
/// The first number that a guest may have. Each monitor has a vsock of its own, so all have the same.
const GUEST_CID: u32 = 3;

/// The kernel prints to the serial line, and ends the monitor by a reset through the keyboard controller, by
/// which a panic ends it too. That controller has neither mouse nor multiplexer to look for, and there is one
/// serial line. Devices are found by ACPI. Firecracker adds `pci=off` of its own.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 reboot=k cryptomgr.notests 8250.nr_uarts=1 i8042.noaux \
                            i8042.nomux i8042.dumbkbd banger.off=reset net.ifnames=0";

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
        /// One that is gets `root=` into the command line, which is for the agent to decide.
        is_root_device: bool,
        is_read_only: bool,
        /// `Writeback` flushes when the guest does; the default does not.
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

/// Boots what was configured.
pub const START: Put = Put::Action { action_type: "InstanceStart" };

impl Put {
    /// Where it is put.
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

/// The program and its arguments. What it says of itself goes to standard error; standard output is the
/// guest's. It would warn of each port that a kernel looks for a device at.
pub fn argv(program: &str, machine: &Machine) -> Vec<String> {
    let api = format!("{MACHINE_DIRECTORY}/{API_SOCKET}");
    let id = machine.vm.to_string();
    [program, "--id", &id, "--api-sock", &api, "--log-path", "/proc/self/fd/2", "--level", "Error"]
        .map(str::to_owned)
        .into()
}

/// The name of a drive's file.
pub fn drive_name(index: usize) -> String {
    format!("drive{index}")
}

/// Every request to the API before [`START`], in order. The guest counts drives in the order in
/// which they are put.
pub fn of(machine: &Machine) -> Vec<Put> {
    let mut puts = vec![
        Put::MachineConfig { vcpu_count: machine.vcpus, mem_size_mib: machine.memory.in_mib() },
        Put::BootSource { kernel_image_path: file(0), initrd_path: file(1), boot_args: COMMAND_LINE },
    ];
    puts.extend(machine.drives.iter().enumerate().map(|(index, drive)| Put::Drive {
        drive_id: drive_name(index),
        path_on_host: file(FILES_BEFORE_DRIVES + index),
        is_root_device: false,
        is_read_only: drive.access == Access::ReadOnly,
        cache_type: "Writeback",
    }));
    puts.extend(machine.nics.iter().enumerate().map(|(index, nic)| Put::NetworkInterface {
        iface_id: format!("eth{index}"),
        host_dev_name: nic.tap.clone(),
        guest_mac: nic.mac.clone(),
    }));
    puts.push(Put::Vsock { guest_cid: GUEST_CID, uds_path: format!("{MACHINE_DIRECTORY}/{VSOCK_SOCKET}") });
    puts.push(Put::Entropy {});
    // Nothing is taken from the guest unless somebody inflates it.
    puts.push(Put::Balloon { amount_mib: 0, deflate_on_oom: true });
    puts
}

/// The path of the file that the process got in this place.
fn file(index: usize) -> String {
    format!("/proc/self/fd/{}", FIRST_FILE as usize + index)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use banger_domain::{
        id::{Uid, VmId},
        machine::{Drive, Medium, Nic},
        monitor::Wish,
    };
    use banger_proto::size::Bytes;

    use super::*;

    #[test]
    fn the_agent_is_told_that_there_is_no_power_switch() {
        assert!(COMMAND_LINE.split(' ').any(|word| word == banger_proto::guest::OFF_BY_RESET));
    }

    #[test]
    fn a_machine_is_put_into_these_words() {
        let machine = Machine {
            vm: VmId::from_bits(0xabc),
            owner: Uid(1000),
            name: "calm-otter".into(),
            vmm: Wish::Auto,
            vcpus: 3,
            memory: Bytes::gib(1),
            kernel: "/host/kernel".into(),
            initramfs: Vec::new(),
            guest_archive: Vec::new(),
            drives: vec![
                Drive { path: "/host/disk/a".into(), access: Access::ReadWrite, medium: Medium::File },
                Drive { path: "/host/disk/b".into(), access: Access::ReadOnly, medium: Medium::File },
            ],
            nics: vec![Nic { tap: "bgr-0000abc".into(), mac: "02:00:00:00:0a:bc".into() }],
        };
        let mut lines = vec![argv("/usr/bin/firecracker", &machine).join(" ")];
        for put in of(&machine).iter().chain([&START]) {
            lines.push(format!("PUT {} {}", put.path(), serde_json::to_string(put).unwrap()));
        }
        let golden = include_str!("words.golden");
        assert_eq!(lines.join("\n"), golden.trim_end());
        assert!(!golden.contains("/host"), "a path of the host is in it");
    }
}
