//! What differs between the processor architectures of hosts. A guest has the architecture of its host.
//!
//! Everything is a value of [`Architecture::differences`], so that a test on one architecture covers the others. The
//! reasons are in `docs/decisions/0002-qemu-machine.md` (x86-64) and `docs/decisions/0071-arm64.md`.

use std::fmt;

/// A processor architecture of hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// 64-bit x86.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

/// What differs between architectures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Differences {
    /// The name that Rust, the kernel (`uname -m`) and QEMU's programs have for it.
    pub name: &'static str,
    /// The name that people read.
    pub title: &'static str,
    /// Debian's package of QEMU.
    pub qemu_package: &'static str,
    /// Debian's kernel for guests.
    pub kernel_package: &'static str,
    /// How VMMs get the kernel.
    pub kernel: KernelFormat,
    /// How to recognise a processor that can run guests under KVM.
    pub virtualisation: Virtualisation,
    /// What to do on a host where KVM does not work.
    pub kvm_hint: &'static str,
    /// QEMU's arguments.
    pub qemu: Qemu,
    /// The kernel command line under Firecracker.
    pub firecracker: &'static str,
}

/// The format in which VMMs read a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelFormat {
    /// An ELF `vmlinux`.
    Elf,
    /// The uncompressed `Image` of `Documentation/arch/arm64/booting.rst`.
    Image,
}

/// How to recognise a processor that can run guests under KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Virtualisation {
    /// It has one of these flags in `/proc/cpuinfo`. The device may also be there without them.
    Flags(&'static [&'static str]),
    /// The device is only there if it can.
    Device,
}

/// QEMU's arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Qemu {
    /// Under KVM.
    pub kvm: Model,
    /// Under emulation.
    pub tcg: Model,
    /// The firmware that enters the kernel, in QEMU's own directory; none if QEMU itself enters it.
    pub firmware: Option<&'static str>,
    /// The kernel command line.
    pub command_line: &'static str,
}

/// The computer that QEMU shows to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Model {
    /// `-M`, without the memory.
    pub machine: &'static str,
    /// `-cpu`.
    pub cpu: &'static str,
}

/// `microvm` has no clock by which an emulated guest can calibrate another: one boot in three hangs at "could not
/// calculate TSC khz". This is q35 without devices that our guests never use.
const Q35: &str = "q35,smm=off,sata=off,smbus=off,usb=off,vmport=off,graphics=off";

const X86_64: Differences = Differences {
    name: "x86_64",
    title: "x86-64",
    qemu_package: "qemu-system-x86",
    kernel_package: "linux-image-cloud-amd64",
    kernel: KernelFormat::Elf,
    // kvm-pvm offers the device for paravirtualised guests alone.
    virtualisation: Virtualisation::Flags(&["vmx", "svm"]),
    kvm_hint: "turn on virtualisation in the firmware, or nested virtualisation on the outer host",
    qemu: Qemu {
        kvm: Model { machine: Q35, cpu: "host" },
        // Five levels of page tables are one more step at each miss of the translation cache.
        tcg: Model { machine: Q35, cpu: "max,la57=off" },
        firmware: Some("qboot.rom"),
        // The kernel logs to the serial line, and a panic ends the VMM: with `-no-reboot`, so does a reboot.
        //
        // On a busy host the kernel's timer test takes a late tick for a broken timer, and the kernel hangs; under KVM
        // it skips that test by itself. Its tests of ciphers are an eighth of an emulated boot.
        command_line: "console=ttyS0 quiet panic=-1 reboot=t no_timer_check cryptomgr.notests net.ifnames=0",
    },
    // Reboots and panics reset the guest through the keyboard controller, which ends the VMM; it has no power switch.
    // Probing that controller for a mouse or multiplexer is skipped, and there is one serial line. Devices are found by
    // ACPI. Firecracker itself adds `pci=off`.
    firecracker: "console=ttyS0 quiet panic=-1 reboot=k cryptomgr.notests 8250.nr_uarts=1 i8042.noaux i8042.nomux \
                  i8042.dumbkbd banger.off=reset net.ifnames=0",
};

const AARCH64: Differences = Differences {
    name: "aarch64",
    title: "arm64",
    qemu_package: "qemu-system-arm",
    kernel_package: "linux-image-cloud-arm64",
    kernel: KernelFormat::Image,
    virtualisation: Virtualisation::Device,
    // The kernel gives up hypervisor mode (EL2) if a boot loader or hypervisor enters it below that.
    kvm_hint: "a host whose kernel starts in hypervisor mode (EL2) has KVM; dmesg | grep -i kvm shows why it does not work",
    qemu: Qemu {
        // The host's interrupt controller: KVM emulates no other version on most processors.
        kvm: Model { machine: "virt,gic-version=host", cpu: "host" },
        // Version 2, the default, has at most 8 processors. Computing pointer authentication as the architecture
        // describes it takes a large part of an emulated boot. With 52-bit addresses (LPA2), many kernels before 5.12
        // hang before their first line, and newer ones may use a fifth level of page tables.
        tcg: Model { machine: "virt,gic-version=3", cpu: "max,pauth-impdef=on,lpa2=off" },
        firmware: None,
        // Reboots go through PSCI. The serial line is a PL011.
        command_line: "console=ttyAMA0 quiet panic=-1 cryptomgr.notests net.ifnames=0",
    },
    // The serial line is a 16550 here. PSCI has a power switch, and Firecracker exits when it is used. Devices are found
    // by the device tree.
    firecracker: "console=ttyS0 quiet panic=-1 cryptomgr.notests 8250.nr_uarts=1 net.ifnames=0",
};

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("banger runs on x86-64 and arm64");

impl Architecture {
    /// Every supported one.
    pub const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];
    /// The one of this host.
    pub const HOST: Self = if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 };

    /// Returns what differs from the others.
    pub const fn differences(self) -> &'static Differences {
        match self {
            Self::X86_64 => &X86_64,
            Self::Aarch64 => &AARCH64,
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.differences().title)
    }
}

impl Virtualisation {
    /// Returns whether the processor can run guests, if the device opens. `cpuinfo` reads `/proc/cpuinfo`; it is only called
    /// where that matters.
    pub fn is_in(self, cpuinfo: impl FnOnce() -> Option<String>) -> bool {
        match self {
            Self::Device => true,
            Self::Flags(any) => {
                let cpuinfo = cpuinfo().unwrap_or_default();
                let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags"));
                flags.unwrap_or_default().split_whitespace().any(|flag| any.contains(&flag))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words that only x86-64 knows, in arguments and command lines.
    const OF_X86: &[&str] = &[
        "q35",
        "smm",
        "vmport",
        "qboot",
        "la57",
        "reboot=t",
        "reboot=k",
        "no_timer_check",
        "i8042",
        "amd64",
    ];

    #[test]
    fn each_architecture_has_its_own_words_alone() {
        let all = |architecture: Architecture| format!("{:?}", architecture.differences());
        let (x86, arm) = (all(Architecture::X86_64), all(Architecture::Aarch64));
        for word in OF_X86 {
            assert!(x86.contains(word) && !arm.contains(word), "{word}");
        }
        for word in ["virt,", "gic-version", "ttyAMA0", "pauth", "lpa2=off", "EL2", "arm64"] {
            assert!(arm.contains(word) && !x86.contains(word), "{word}");
        }
    }

    #[test]
    fn every_kernel_logs_to_a_line_that_its_vmm_has_and_ends_it_when_it_panics() {
        for (command_line, console, off_by_reset) in [
            (X86_64.qemu.command_line, "console=ttyS0", false),
            (X86_64.firecracker, "console=ttyS0", true),
            (AARCH64.qemu.command_line, "console=ttyAMA0", false),
            (AARCH64.firecracker, "console=ttyS0", false),
        ] {
            let words: Vec<_> = command_line.split(' ').collect();
            for word in [console, "quiet", "panic=-1", "net.ifnames=0"] {
                assert!(words.contains(&word), "{command_line}: {word}");
            }
            let has = words.contains(&banger_proto::guest::OFF_BY_RESET);
            assert_eq!(has, off_by_reset, "{command_line}");
            assert!(!words.contains(&""), "{command_line}");
        }
    }

    #[test]
    fn the_host_has_one_of_them() {
        let name = Architecture::HOST.differences().name;
        assert_eq!(name, std::env::consts::ARCH);
        assert_eq!(Architecture::ALL.iter().filter(|other| other.differences().name == name).count(), 1);
        assert_eq!(Architecture::ALL.map(|one| one.to_string()), ["x86-64", "arm64"]);
    }

    #[test]
    fn virtualisation_is_a_flag_of_the_processor_where_the_device_does_not_prove_it() {
        let x86 = |cpuinfo: &str| X86_64.virtualisation.is_in(|| Some(cpuinfo.to_owned()));
        assert!(x86("processor\t: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(x86("flags\t\t: svm\n"));
        assert!(!x86("flags\t\t: fpu svm_lock\nbugs : vmx\n"));
        assert!(!x86(""));
        assert!(!X86_64.virtualisation.is_in(|| None));
        assert!(AARCH64.virtualisation.is_in(|| None));
    }
}
