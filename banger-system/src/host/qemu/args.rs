//! A sandbox as QEMU's command line. Every file is named by its number in the process: QEMU opens no path
//! of the host.

use banger_domain::{
    id::VmId,
    machine::{Access, Machine, Medium},
};

/// Channels to the agent: the service's own, and one for each command that runs at once. A virtio-serial
/// device has up to 31 ports, of which the first is for a console.
pub const CHANNELS: usize = 24;

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceleration {
    /// The processor.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

/// The name of a drive's file.
pub fn drive_name(index: usize) -> String {
    format!("drive{index}")
}

/// The name of the file that a drive's layer lies on.
pub fn base_name(index: usize) -> String {
    format!("base{index}")
}

/// The name of an interface's TAP.
pub fn nic_name(index: usize) -> String {
    format!("net{index}")
}

/// The name of a channel's socket.
pub fn channel_name(index: usize) -> String {
    format!("agent{index}")
}

/// The name of the control socket.
pub const QMP: &str = "qmp";

/// `microvm` has no clock by which a guest under emulation can measure another: one boot in three stands
/// still at "could not calculate TSC khz". This is q35 without what a guest of ours never uses.
const MACHINE: &str = "q35,smm=off,sata=off,smbus=off,usb=off,vmport=off,graphics=off";
/// Firmware that does nothing but enter the kernel; QEMU looks for it in its own directory.
const FIRMWARE: &str = "qboot.rom";
/// The kernel prints to the serial line, and a panic ends the machine: with `-no-reboot` a reboot does too.
///
/// On a busy host the kernel's test of the timer takes a late tick for a broken timer, and the kernel hangs;
/// under KVM it leaves that test out by itself. Its tests of ciphers are an eighth of an emulated boot.
/// `docs/decisions/0002-qemu-machine.md` has the measurements.
const COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 reboot=t no_timer_check cryptomgr.notests net.ifnames=0";

/// The program and its arguments.
pub fn of(program: &str, machine: &Machine, acceleration: Acceleration) -> Vec<String> {
    let mut args = vec![program.to_owned()];
    let mut add = |words: &[&str]| args.extend(words.iter().map(|&word| word.to_owned()));
    add(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    add(&["-name", &name(machine), "-uuid", &uuid(machine.vm)]);
    add(&["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    add(&["-M", MACHINE, "-bios", FIRMWARE]);
    match acceleration {
        Acceleration::Kvm => add(&["-accel", "kvm", "-cpu", "host"]),
        // Five levels of page tables are one more step at each miss of the translation cache.
        Acceleration::Tcg => add(&["-accel", "tcg,thread=multi", "-cpu", "max,la57=off"]),
    }
    add(&["-smp", &machine.vcpus.to_string(), "-m", &format!("{}M", machine.memory.in_mib())]);
    add(&["-kernel", "/proc/self/fd/{fd:kernel}", "-initrd", "/proc/self/fd/{fd:initrd}"]);
    add(&["-append", COMMAND_LINE]);

    add(&["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
    add(&["-chardev", "socket,id=qmp,fd={fd:qmp},server=on,wait=off", "-mon", "chardev=qmp,mode=control"]);
    add(&["-device", "virtio-serial-pci,max_ports=31"]);
    for index in 0..CHANNELS {
        let file = channel_name(index);
        add(&["-chardev", &format!("socket,id={file},fd={{fd:{file}}},server=on,wait=off")]);
        let prefix = banger_proto::guest::CHANNEL_PREFIX;
        add(&["-device", &format!("virtserialport,chardev={file},name={prefix}{index}")]);
    }
    for (index, nic) in machine.nics.iter().enumerate() {
        let file = nic_name(index);
        add(&["-netdev", &format!("tap,id={file},fd={{fd:{file}}}")]);
        // Nothing boots from it, and its ROM would be another file to find.
        add(&["-device", &format!("virtio-net-pci,netdev={file},mac={},romfile=", nic.mac)]);
    }
    let drives = drives(machine);
    add(&drives.iter().map(String::as_str).collect::<Vec<_>>());
    add(&["-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci,rng=rng"]);
    args
}

/// The disks: each file has a number of its own in QEMU's table.
fn drives(machine: &Machine) -> Vec<String> {
    let mut words = Vec::new();
    let mut sets = 1..;
    let mut open = |words: &mut Vec<String>, driver: &str, name: &str, node: &str, access: Access| {
        let set = sets.next().unwrap_or_default();
        let (read_only, discard) = match access {
            Access::ReadOnly => ("on", "ignore"),
            Access::ReadWrite => ("off", "unmap"),
        };
        words.extend(["-add-fd".to_owned(), format!("fd={{fd:{name}}},set={set}"), "-blockdev".to_owned()]);
        words.push(format!(
            "driver={driver},node-name={node},filename=/dev/fdset/{set},locking=off,read-only={read_only},\
             discard={discard},cache.direct=off"
        ));
    };
    for (index, drive) in machine.drives.iter().enumerate() {
        let name = drive_name(index);
        match &drive.medium {
            Medium::File => open(&mut words, "file", &name, &name, drive.access),
            Medium::BlockDevice => open(&mut words, "host_device", &name, &name, drive.access),
            Medium::Layer { .. } => {
                let (base, layer) = (base_name(index), format!("layer{index}"));
                open(&mut words, "file", &base, &base, Access::ReadOnly);
                open(&mut words, "file", &name, &layer, drive.access);
                let over = format!("driver=qcow2,node-name={name},file={layer},backing={base},discard=unmap");
                words.extend(["-blockdev".to_owned(), over]);
            }
        }
        words.extend(["-device".to_owned(), format!("virtio-blk-pci,drive={name}")]);
    }
    words
}

/// A name holds only letters, digits and hyphens, so that it needs no escape.
fn name(machine: &Machine) -> String {
    format!("banger-{}", machine.name)
}

fn uuid(vm: VmId) -> String {
    let id = vm.to_string();
    [&id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use banger_domain::{
        id::Uid,
        machine::{Drive, Nic},
    };
    use banger_proto::size::Bytes;

    use super::*;

    #[test]
    fn a_machine_is_put_into_these_words() {
        let machine = Machine {
            vm: VmId::from_bits(0xabc),
            owner: Uid(1000),
            name: "calm-otter".into(),
            vmm: banger_domain::monitor::Wish::Auto,
            vcpus: 2,
            memory: Bytes::gib(1),
            kernel: "/host/kernel".into(),
            initramfs: Vec::new(),
            guest_archive: Vec::new(),
            drives: vec![
                Drive {
                    path: "/host/layer".into(),
                    access: Access::ReadWrite,
                    medium: Medium::Layer { base: "/host/image".into() },
                },
                Drive { path: "/host/device".into(), access: Access::ReadWrite, medium: Medium::BlockDevice },
                Drive { path: "/host/disk".into(), access: Access::ReadOnly, medium: Medium::File },
            ],
            nics: vec![Nic { tap: "bgr-0".into(), mac: "02:67:00:00:00:01".into() }],
        };
        let words = of("/usr/bin/qemu", &machine, Acceleration::Tcg);
        let golden = include_str!("args.golden");
        let lines: Vec<&str> = words.iter().map(String::as_str).collect();
        assert_eq!(lines.join("\n"), golden.trim_end());
        assert!(!golden.contains("/host"), "a path of the host is in it");
    }
}
