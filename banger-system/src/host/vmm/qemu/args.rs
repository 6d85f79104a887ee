//! A launch description as QEMU's command line. Every file is named by its descriptor number: QEMU opens no path of
//! the host.

use banger_domain::{
    architecture::Architecture,
    id::VmId,
    launch_spec::{Access, LaunchSpec, Medium},
    net::nic::Mac,
};
use banger_proto::guest::config::TEMPLATE_MAC;

/// Channels to the agent: the service's own, and one for each stream. A virtio-serial device has up to 31 ports, of
/// which the first is for a console.
pub const CHANNELS: usize = 24;

/// How the guest's instructions run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceleration {
    /// On the processor.
    Kvm,
    /// By QEMU's translator.
    Tcg,
}

/// How a guest begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It boots.
    Boot,
    /// It boots and is captured: without an identity, and with devices that have nothing behind them.
    Template,
    /// It continues from a capture. Firmware, kernel and initramfs are in the captured memory.
    Child,
    /// It continues from a capture with all of its memory, which it gets from a stream.
    Resumed,
}

/// Returns the name of a drive's file.
pub fn drive_name(index: usize) -> String {
    format!("drive{index}")
}

/// Returns the name of the file below a drive's overlay.
pub fn base_name(index: usize) -> String {
    format!("base{index}")
}

/// Returns the name of the file of a frozen layer between the two.
pub fn frozen_name(index: usize, number: usize) -> String {
    format!("frozen{index}-{number}")
}

/// Returns the name of an interface's TAP.
pub fn nic_name(index: usize) -> String {
    format!("net{index}")
}

/// Returns the name of a channel's socket.
pub fn channel_name(index: usize) -> String {
    format!("agent{index}")
}

/// The name of the control socket.
pub const QMP: &str = "qmp";

/// The name of the file that is the guest's memory.
pub const MEMORY: &str = "memory";

/// Returns the program and its arguments.
pub fn of(
    architecture: Architecture,
    program: &str,
    spec: &LaunchSpec,
    acceleration: Acceleration,
    role: Role,
) -> Vec<String> {
    let qemu = &architecture.differences().qemu;
    let (accelerator, model) = match acceleration {
        Acceleration::Kvm => ("kvm", &qemu.kvm),
        Acceleration::Tcg => ("tcg,thread=multi", &qemu.tcg),
    };
    let mut args = vec![program.to_owned()];
    let mut add = |words: &[&str]| args.extend(words.iter().map(|&word| word.to_owned()));
    add(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    match role {
        Role::Boot => add(&["-name", &name(spec), "-uuid", &uuid(spec.vm)]),
        Role::Child | Role::Resumed => add(&["-name", &name(spec)]),
        // Without a UUID, the guest's init makes up its machine id.
        Role::Template => add(&["-name", "banger-template"]),
    }
    add(&["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    // Pages that guests of two users share would tell each of them by their timing what the other has.
    add(&["-M", &format!("{},mem-merge=off,memory-backend=ram0", model.machine)]);
    if let Some(firmware) = qemu.firmware {
        add(&["-bios", firmware]);
    }
    add(&["-accel", accelerator, "-cpu", model.cpu]);
    let memory = format!("{}M", spec.memory.in_mib());
    add(&["-smp", &spec.vcpus.to_string(), "-m", &memory]);
    let backend = match role {
        // Reading a page of a file that nobody wrote makes it one of memory, and QEMU reads each page that it loads or saves.
        Role::Boot | Role::Resumed => format!("memory-backend-ram,id=ram0,size={memory}"),
        Role::Template | Role::Child => {
            let share = if role == Role::Child { "off" } else { "on" };
            format!(
                "memory-backend-file,id=ram0,mem-path=/proc/self/fd/{{fd:{MEMORY}}},size={memory},share={share}"
            )
        }
    };
    add(&["-object", &backend]);
    match role {
        Role::Child | Role::Resumed => add(&["-incoming", "defer"]),
        Role::Boot | Role::Template => {
            add(&["-kernel", "/proc/self/fd/{fd:kernel}", "-initrd", "/proc/self/fd/{fd:initrd}"]);
            add(&["-append", qemu.command_line]);
        }
    }

    add(&["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
    add(&["-chardev", "socket,id=qmp,fd={fd:qmp},server=on,wait=off", "-mon", "chardev=qmp,mode=control"]);
    add(&["-device", "virtio-serial-pci,max_ports=31"]);
    for index in 0..CHANNELS {
        let file = channel_name(index);
        add(&["-chardev", &format!("socket,id={file},fd={{fd:{file}}},server=on,wait=off")]);
        let prefix = banger_proto::guest::CHANNEL_PREFIX;
        add(&["-device", &format!("virtserialport,chardev={file},name={prefix}{index}")]);
    }
    let (drives, nics) = match role {
        Role::Template => (empty_drives(spec), Vec::new()),
        Role::Boot | Role::Child | Role::Resumed => (drives(spec), spec.nics.iter().enumerate().collect()),
    };
    if role == Role::Template {
        for _ in &spec.nics {
            add(&["-device", &format!("virtio-net-pci,mac={},romfile=", Mac(TEMPLATE_MAC))]);
        }
    }
    for (index, nic) in nics {
        let file = nic_name(index);
        add(&["-netdev", &format!("tap,id={file},fd={{fd:{file}}}")]);
        // Nothing boots from it, and its ROM would be another file to find.
        add(&["-device", &format!("virtio-net-pci,netdev={file},mac={},romfile=", nic.mac)]);
    }
    add(&drives.iter().map(String::as_str).collect::<Vec<_>>());
    add(&["-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci,rng=rng"]);
    args
}

/// Returns the disks, each file with a number of its own in QEMU's table.
fn drives(spec: &LaunchSpec) -> Vec<String> {
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
    for (index, drive) in spec.drives.iter().enumerate() {
        let name = drive_name(index);
        match &drive.medium {
            Medium::File => open(&mut words, "file", &name, &name, drive.access),
            Medium::BlockDevice => open(&mut words, "host_device", &name, &name, drive.access),
            Medium::Layer { frozen, .. } => {
                let (mut below, layer) = (base_name(index), format!("layer{index}"));
                open(&mut words, "file", &below, &below, Access::ReadOnly);
                for number in 0..frozen.len() {
                    let file = frozen_name(index, number);
                    let node = format!("below{index}-{number}");
                    open(&mut words, "file", &file, &file, Access::ReadOnly);
                    let over =
                        format!("driver=qcow2,node-name={node},file={file},backing={below},read-only=on");
                    words.extend(["-blockdev".to_owned(), over]);
                    below = node;
                }
                open(&mut words, "file", &name, &layer, drive.access);
                let over =
                    format!("driver=qcow2,node-name={name},file={layer},backing={below},discard=unmap");
                words.extend(["-blockdev".to_owned(), over]);
            }
        }
        words.extend(["-device".to_owned(), format!("virtio-blk-pci,drive={name}")]);
    }
    words
}

/// Returns as many empty disks as the guest has. Their size does not matter: no driver has looked at it.
fn empty_drives(spec: &LaunchSpec) -> Vec<String> {
    let names = (0..spec.drives.len()).map(drive_name);
    let words = names.flat_map(|name| {
        let disk = format!("driver=null-co,node-name={name},read-zeroes=on,size=1048576");
        ["-blockdev".to_owned(), disk, "-device".to_owned(), format!("virtio-blk-pci,drive={name}")]
    });
    words.collect()
}

/// Returns the name of the process. A sandbox's name has only letters, digits and hyphens, so it needs no escape.
fn name(spec: &LaunchSpec) -> String {
    format!("banger-{}", spec.name)
}

fn uuid(vm: VmId) -> String {
    let id = vm.to_string();
    [&id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use banger_domain::{
        id::Uid,
        launch_spec::{Drive, Nic},
    };
    use banger_proto::size::Bytes;

    use super::*;

    fn spec() -> LaunchSpec {
        LaunchSpec {
            vm: VmId::from_bits(0xabc),
            owner: Uid(1000),
            name: "calm-otter".into(),
            vmm: banger_domain::vmm::VmmChoice::Auto,
            vcpus: 2,
            memory: Bytes::gib(1),
            kernel: "/host/kernel".into(),
            initramfs: Vec::new(),
            drives: vec![
                Drive {
                    path: "/host/layer".into(),
                    access: Access::ReadWrite,
                    medium: Medium::Layer { base: "/host/image".into(), frozen: Vec::new() },
                },
                Drive { path: "/host/device".into(), access: Access::ReadWrite, medium: Medium::BlockDevice },
                Drive { path: "/host/disk".into(), access: Access::ReadOnly, medium: Medium::File },
            ],
            nics: vec![Nic { tap: "bgr-0".into(), mac: "02:67:00:00:00:01".into() }],
        }
    }

    fn lines(role: Role) -> Vec<String> {
        of(Architecture::X86_64, "/usr/bin/qemu", &spec(), Acceleration::Tcg, role)
    }

    #[test]
    fn the_command_line_is_this() {
        let golden = include_str!("args.golden");
        assert_eq!(lines(Role::Boot).join("\n"), golden.trim_end());
        assert!(!golden.contains("/host"), "a path of the host is in it");
    }

    /// Returns the words that differ between two command lines, from the first one and from the second.
    fn difference(one: &[String], other: &[String]) -> (Vec<String>, Vec<String>) {
        let without = |all: &[String], known: &[String]| {
            all.iter().filter(|word| !known.contains(word)).cloned().collect()
        };
        (without(one, other), without(other, one))
    }

    #[test]
    fn arm64_differs_in_the_computer_and_the_kernels_command_line_alone() {
        use Architecture::{Aarch64, X86_64};
        let of = |architecture, acceleration| of(architecture, "", &spec(), acceleration, Role::Boot);
        let (x86, arm) = difference(&of(X86_64, Acceleration::Tcg), &of(Aarch64, Acceleration::Tcg));
        assert_eq!(
            arm,
            [
                "virt,gic-version=3,mem-merge=off,memory-backend=ram0",
                "max,pauth-impdef=on,lpa2=off",
                "console=ttyAMA0 quiet panic=-1 cryptomgr.notests net.ifnames=0",
            ]
        );
        assert_eq!(x86[1..3], ["-bios", "qboot.rom"]);
        assert_eq!(x86.len(), arm.len() + 2);
        let (tcg, kvm) = difference(&of(Aarch64, Acceleration::Tcg), &of(Aarch64, Acceleration::Kvm));
        assert_eq!(kvm, ["virt,gic-version=host,mem-merge=off,memory-backend=ram0", "kvm", "host"]);
        assert_eq!(tcg.len(), kvm.len());
    }

    /// Returns the words that only the second role has.
    fn added(without: Role, with: Role) -> Vec<String> {
        let known = lines(without);
        lines(with).into_iter().filter(|word| !known.contains(word)).collect()
    }

    #[test]
    fn frozen_layers_stand_on_each_other_and_are_only_read() {
        let mut spec = spec();
        let frozen = vec!["/host/1".into(), "/host/2".into()];
        spec.drives[0].medium = Medium::Layer { base: "/host/image".into(), frozen };
        let words = of(Architecture::X86_64, "/usr/bin/qemu", &spec, Acceleration::Tcg, Role::Boot);
        let nodes: Vec<_> = words.iter().filter(|word| word.starts_with("driver=qcow2")).collect();
        assert_eq!(
            nodes,
            [
                "driver=qcow2,node-name=below0-0,file=frozen0-0,backing=base0,read-only=on",
                "driver=qcow2,node-name=below0-1,file=frozen0-1,backing=below0-0,read-only=on",
                "driver=qcow2,node-name=drive0,file=layer0,backing=below0-1,discard=unmap",
            ]
        );
        let is_read_only = |name: &str| {
            let node = format!("node-name={name},");
            words.iter().any(|word| word.contains(&node) && word.contains("read-only=on"))
        };
        assert!(["base0", "frozen0-0", "frozen0-1"].into_iter().all(is_read_only) && !is_read_only("layer0"));
    }

    #[test]
    fn a_template_has_the_same_devices_with_nothing_behind_them() {
        let memory = "memory-backend-file,id=ram0,mem-path=/proc/self/fd/{fd:memory},size=1024M,share";
        let disk = |index| format!("driver=null-co,node-name=drive{index},read-zeroes=on,size=1048576");
        let card = "virtio-net-pci,mac=02:67:00:00:00:00,romfile=".to_owned();
        let name = "banger-template".to_owned();
        let template = [name, format!("{memory}=on"), card, disk(0), disk(1), disk(2)];
        assert_eq!(added(Role::Boot, Role::Template), template);
        let child = [format!("{memory}=off"), "-incoming".to_owned(), "defer".to_owned()];
        assert_eq!(added(Role::Boot, Role::Child), child);
        assert_eq!(added(Role::Boot, Role::Resumed), ["-incoming", "defer"]);
        // The guest sees devices in the order of the command line.
        let devices = |role| {
            let all = lines(role).into_iter();
            let devices = all.filter(|word| word.contains("-pci") || word.contains("virtserialport"));
            devices.map(|word| word.split([',']).next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(devices(Role::Template), devices(Role::Child));
        assert_eq!(devices(Role::Boot), devices(Role::Child));
        assert_eq!(devices(Role::Boot), devices(Role::Resumed));
    }

    #[test]
    fn a_template_names_no_sandbox() {
        let words = lines(Role::Template).join("\n");
        assert!(
            !words.contains("abc") && !words.contains("otter") && !words.contains("02:67:00:00:00:01"),
            "{words}"
        );
    }
}
