//! Detects KVM.

use std::fs::{self, OpenOptions};

use banger_domain::architecture::Architecture;

use crate::ports::{Check, Status};

/// The device.
pub const DEVICE: &str = "/dev/kvm";

/// Whether guests of any kernel run with KVM on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kvm {
    /// They do.
    Works,
    /// They do not.
    Unusable,
}

impl Kvm {
    /// Checks that the device can be opened and that the processor supports virtualisation. Some hosts offer the
    /// device without it, for paravirtualised guests.
    pub fn find() -> Self {
        let opens = OpenOptions::new().read(true).write(true).open(DEVICE).is_ok();
        let virtualisation = Architecture::HOST.differences().virtualisation;
        if opens && virtualisation.is_in(|| fs::read_to_string("/proc/cpuinfo").ok()) {
            Kvm::Works
        } else {
            Kvm::Unusable
        }
    }

    /// Returns what `doctor` shows about it.
    pub fn check(self) -> Check {
        let (status, message, hint) = match self {
            Kvm::Works => (Status::Pass, "KVM works", ""),
            Kvm::Unusable => (
                Status::Warn,
                "KVM does not work: sandboxes are emulated, which is slow",
                Architecture::HOST.differences().kvm_hint,
            ),
        };
        Check { name: "kvm", status, message: message.to_owned(), hint: hint.to_owned() }
    }
}
