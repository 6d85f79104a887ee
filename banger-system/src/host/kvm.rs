//! Whether guests run under KVM here.

use std::{sync::mpsc::channel, thread, time::Duration};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Error, VcpuExit};

use crate::ports::{Check, Status};

/// The device.
pub const DEVICE: &str = "/dev/kvm";

/// How long the shortest guest may take, on a host that is busy with others.
const PATIENCE: Duration = Duration::from_secs(2);
const PAGE: usize = 4096;
/// The instruction that halts a processor, and the page in which one begins, at its byte 0xff0 (Intel SDM volume 3,
/// "First Instruction Executed").
const HALT: u8 = 0xf4;
const FIRST_PAGE: u64 = 0xffff_f000;
/// Three pages that no memory may have: an Intel processor that cannot run real mode by itself needs them.
const TASK_STATE: usize = 0xfeff_d000;

/// Whether guests of any kernel run under KVM here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kvm {
    /// They do.
    Works,
    /// They do not.
    Unusable(Why),
}

/// Why guests do not run under KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// There is no device, or the processor has no virtualisation of its own. Some hosts offer the device without it,
    /// for guests that are made for them.
    Absent,
    /// Another hypervisor has the processor's virtualisation.
    Taken,
    /// A guest was tried, and did not do what it should.
    Broken,
}

impl Kvm {
    /// Looks, and runs a guest of one instruction.
    pub fn find() -> Self {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        if !has_virtualisation(&cpu) {
            return Kvm::Unusable(Why::Absent);
        }
        let (tell, told) = channel();
        // A guest that does not come to its end cannot be ended either.
        thread::spawn(move || tell.send(run_a_guest()));
        match told.recv_timeout(PATIENCE) {
            Ok(Ok(true)) => Kvm::Works,
            Ok(Ok(false)) | Err(_) => Kvm::Unusable(Why::Broken),
            Ok(Err(error)) => Kvm::Unusable(match error.errno() {
                libc::EBUSY => Why::Taken,
                libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::EACCES | libc::EPERM => Why::Absent,
                _ => Why::Broken,
            }),
        }
    }

    /// What `doctor` says of it.
    pub fn check(self) -> Check {
        let (status, message, hint) = match self {
            Kvm::Works => (Status::Pass, "machines run under KVM", ""),
            Kvm::Unusable(Why::Absent) => (
                Status::Warn,
                "there is no usable KVM: machines are emulated, and slow",
                "turn on virtualisation in the firmware, or nested virtualisation on the outer host",
            ),
            Kvm::Unusable(Why::Taken) => (
                Status::Warn,
                "another hypervisor has the processor's virtualisation: machines are emulated, and slow",
                "end its machines, or remove its module; then restart banger-system",
            ),
            Kvm::Unusable(Why::Broken) => (
                Status::Warn,
                "KVM is there, and a guest does not run: machines are emulated, and slow",
                "look into the kernel's log; on a virtual host, ask who runs it about nested virtualisation",
            ),
        };
        Check { name: "kvm", status, message: message.to_owned(), hint: hint.to_owned() }
    }
}

/// Runs a guest that halts at once. Returns whether it did.
pub fn run_a_guest() -> Result<bool, Error> {
    let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
    vm.set_tss_address(TASK_STATE)?;
    let memory = Box::new(Page([HALT; PAGE]));
    let region = kvm_userspace_memory_region {
        guest_phys_addr: FIRST_PAGE,
        memory_size: PAGE as u64,
        userspace_addr: memory.0.as_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the page is there until the guest has gone, below, and no guest writes to it that halts at once.
    #[expect(unsafe_code, reason = "what a guest does to memory, no compiler sees")]
    unsafe {
        vm.set_user_memory_region(region)?;
    }
    let mut cpu = vm.create_vcpu(0)?;
    let has_halted = matches!(cpu.run(), Ok(VcpuExit::Hlt));
    drop((cpu, vm));
    drop(memory);
    Ok(has_halted)
}

/// Memory of a guest.
#[repr(align(4096))]
struct Page([u8; PAGE]);

fn has_virtualisation(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags"));
    flags.unwrap_or_default().split_whitespace().any(|flag| matches!(flag, "vmx" | "svm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtualisation_is_a_flag_of_the_processor() {
        assert!(has_virtualisation("processor\t: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(has_virtualisation("flags\t\t: svm\n"));
        assert!(!has_virtualisation("flags\t\t: fpu svm_lock\nbugs : vmx\n"));
        assert!(!has_virtualisation(""));
    }
}
