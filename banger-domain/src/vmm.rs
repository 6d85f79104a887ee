//! Chooses the VMM of a sandbox.

use std::fmt;

use super::architecture::Architecture;

/// A supported VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmmKind {
    /// Small and fast; needs KVM.
    Firecracker,
    /// Runs everywhere, without KVM too.
    Qemu,
}

/// Which VMM somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VmmChoice {
    /// The best one that works.
    #[default]
    Auto,
    /// This one and no other.
    Only(VmmKind),
}

/// What this host supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Guests of any kernel run under KVM.
    pub kvm: bool,
    /// Firecracker is installed.
    pub firecracker: bool,
    /// QEMU is installed.
    pub qemu: bool,
}

/// The most virtual processors that Firecracker gives a guest (its `MAX_SUPPORTED_VCPUS`).
pub const FIRECRACKER_VCPUS: u32 = 32;

/// Debian's package of QEMU for this host.
const QEMU_PACKAGE: &str = Architecture::HOST.differences().qemu_package;

/// Why no VMM can run a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The requested VMM is not installed.
    #[error("{0} is not installed: install it, or let the service choose with --vmm auto")]
    Missing(VmmKind),
    /// Firecracker was requested, and needs KVM.
    #[error("Firecracker needs KVM, which does not work on this host: use --vmm qemu")]
    NeedsKvm,
    /// Firecracker was requested, and does not support this many virtual processors.
    #[error("Firecracker has at most {FIRECRACKER_VCPUS} virtual processors: use --vmm qemu for more")]
    TooManyVcpus,
    /// No VMM is installed.
    #[error("no VMM is installed that works on this host: install QEMU (the package {QEMU_PACKAGE})")]
    None,
}

/// Chooses the VMM of a sandbox with this many virtual processors. The sandbox's own choice takes precedence over the
/// configured one.
pub fn choose(own: VmmChoice, configured: VmmChoice, facts: Facts, vcpus: u32) -> Result<VmmKind, Refused> {
    let choice = if own == VmmChoice::Auto { configured } else { own };
    let fits = vcpus <= FIRECRACKER_VCPUS;
    match choice {
        VmmChoice::Only(VmmKind::Firecracker) if !facts.firecracker => {
            Err(Refused::Missing(VmmKind::Firecracker))
        }
        VmmChoice::Only(VmmKind::Firecracker) if !facts.kvm => Err(Refused::NeedsKvm),
        VmmChoice::Only(VmmKind::Firecracker) if !fits => Err(Refused::TooManyVcpus),
        VmmChoice::Only(VmmKind::Firecracker) => Ok(VmmKind::Firecracker),
        VmmChoice::Only(VmmKind::Qemu) if !facts.qemu => Err(Refused::Missing(VmmKind::Qemu)),
        VmmChoice::Only(VmmKind::Qemu) => Ok(VmmKind::Qemu),
        VmmChoice::Auto if facts.firecracker && facts.kvm && fits => Ok(VmmKind::Firecracker),
        VmmChoice::Auto if facts.qemu => Ok(VmmKind::Qemu),
        VmmChoice::Auto => Err(Refused::None),
    }
}

/// Explains which VMM an ordinary sandbox gets, and why.
pub fn explain(configured: VmmChoice, facts: Facts) -> String {
    let chosen = match choose(VmmChoice::Auto, configured, facts, 1) {
        Ok(chosen) => chosen,
        Err(refused) => return refused.to_string(),
    };
    let why = match (configured, facts) {
        (VmmChoice::Only(_), _) => "the configuration says so",
        (VmmChoice::Auto, Facts { firecracker: false, .. }) => "Firecracker is not installed",
        (VmmChoice::Auto, Facts { kvm: false, .. }) => {
            "Firecracker needs KVM, which does not work on this host"
        }
        (VmmChoice::Auto, _) => "it is installed, and KVM works",
    };
    format!("sandboxes run under {chosen}: {why}")
}

impl VmmChoice {
    /// Returns the word used in the configuration, in options and in the database.
    pub const fn as_str(self) -> &'static str {
        use banger_proto::bus::option::vmm;
        match self {
            VmmChoice::Auto => vmm::AUTO,
            VmmChoice::Only(VmmKind::Firecracker) => vmm::FIRECRACKER,
            VmmChoice::Only(VmmKind::Qemu) => vmm::QEMU,
        }
    }

    /// Parses a word of [`VmmChoice::as_str`].
    pub fn parse(word: &str) -> Option<Self> {
        let all = [VmmChoice::Auto, VmmChoice::Only(VmmKind::Firecracker), VmmChoice::Only(VmmKind::Qemu)];
        all.into_iter().find(|choice| choice.as_str() == word)
    }
}

impl fmt::Display for VmmKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            VmmKind::Firecracker => "Firecracker",
            VmmKind::Qemu => "QEMU",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Facts = Facts { kvm: true, firecracker: true, qemu: true };
    const FIRECRACKER: VmmChoice = VmmChoice::Only(VmmKind::Firecracker);
    const QEMU: VmmChoice = VmmChoice::Only(VmmKind::Qemu);

    fn check(facts: Facts, vcpus: u32, expect: Result<VmmKind, Refused>) {
        assert_eq!(choose(VmmChoice::Auto, VmmChoice::Auto, facts, vcpus), expect, "{facts:?} {vcpus}");
    }

    #[test]
    fn firecracker_is_chosen_where_it_works() {
        check(ALL, 32, Ok(VmmKind::Firecracker));
        check(Facts { qemu: false, ..ALL }, 1, Ok(VmmKind::Firecracker));
        check(ALL, 33, Ok(VmmKind::Qemu));
        check(Facts { kvm: false, ..ALL }, 1, Ok(VmmKind::Qemu));
        check(Facts { firecracker: false, ..ALL }, 1, Ok(VmmKind::Qemu));
        check(Facts { kvm: false, qemu: false, ..ALL }, 1, Err(Refused::None));
    }

    #[test]
    fn a_choice_is_followed_or_refused_and_the_vms_own_takes_precedence() {
        let check = |own, configured, facts, vcpus, expect| {
            assert_eq!(choose(own, configured, facts, vcpus), expect, "{own:?} {configured:?} {facts:?}");
        };
        check(QEMU, FIRECRACKER, ALL, 1, Ok(VmmKind::Qemu));
        check(FIRECRACKER, QEMU, ALL, 1, Ok(VmmKind::Firecracker));
        check(VmmChoice::Auto, QEMU, ALL, 1, Ok(VmmKind::Qemu));
        check(FIRECRACKER, VmmChoice::Auto, Facts { kvm: false, ..ALL }, 1, Err(Refused::NeedsKvm));
        check(FIRECRACKER, VmmChoice::Auto, ALL, 33, Err(Refused::TooManyVcpus));
        let none = Facts { firecracker: false, qemu: false, ..ALL };
        check(FIRECRACKER, VmmChoice::Auto, none, 1, Err(Refused::Missing(VmmKind::Firecracker)));
        check(QEMU, VmmChoice::Auto, none, 1, Err(Refused::Missing(VmmKind::Qemu)));
    }

    #[test]
    fn the_reason_is_the_one_that_decided() {
        let check = |configured, facts, expect: &str| {
            assert_eq!(explain(configured, facts), format!("sandboxes run under {expect}"));
        };
        check(VmmChoice::Auto, ALL, "Firecracker: it is installed, and KVM works");
        check(QEMU, ALL, "QEMU: the configuration says so");
        check(VmmChoice::Auto, Facts { firecracker: false, ..ALL }, "QEMU: Firecracker is not installed");
        let no_kvm = Facts { kvm: false, ..ALL };
        check(VmmChoice::Auto, no_kvm, "QEMU: Firecracker needs KVM, which does not work on this host");
        assert_eq!(explain(FIRECRACKER, no_kvm), Refused::NeedsKvm.to_string());
    }

    #[test]
    fn wishes_read_back() {
        for choice in [VmmChoice::Auto, FIRECRACKER, QEMU] {
            assert_eq!(VmmChoice::parse(choice.as_str()), Some(choice));
        }
        assert_eq!(VmmChoice::parse("bochs"), None);
    }
}
