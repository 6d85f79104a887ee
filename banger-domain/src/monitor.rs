//! Chooses the VMM of a sandbox.

use std::fmt;

/// A program that machines run under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Monitor {
    /// Small and fast; needs KVM.
    Firecracker,
    /// Runs everywhere, without KVM too.
    Qemu,
}

/// What somebody wants of the choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wish {
    /// The best one that works.
    #[default]
    Auto,
    /// This one and no other.
    Only(Monitor),
}

/// What the choice depends on.
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

/// Why a machine has no monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It was asked for, and is not installed.
    #[error("{0} is not installed: install it, or let the service choose with --vmm auto")]
    Missing(Monitor),
    /// Firecracker was asked for, and cannot run a guest here.
    #[error("Firecracker needs KVM, which does not work on this host: use --vmm qemu")]
    NeedsKvm,
    /// Firecracker was asked for, and cannot run this guest.
    #[error("Firecracker has at most {FIRECRACKER_VCPUS} virtual processors: use --vmm qemu for more")]
    TooManyVcpus,
    /// Nothing that could run it is installed.
    #[error("no VMM is installed that works on this host: install QEMU (the package qemu-system-x86)")]
    None,
}

/// The VMM of a sandbox with this many virtual processors. The sandbox's own option takes precedence over what
/// is configured for all.
pub fn choose(machine: Wish, configured: Wish, facts: Facts, vcpus: u32) -> Result<Monitor, Refused> {
    let wish = if machine == Wish::Auto { configured } else { machine };
    let fits = vcpus <= FIRECRACKER_VCPUS;
    match wish {
        Wish::Only(Monitor::Firecracker) if !facts.firecracker => Err(Refused::Missing(Monitor::Firecracker)),
        Wish::Only(Monitor::Firecracker) if !facts.kvm => Err(Refused::NeedsKvm),
        Wish::Only(Monitor::Firecracker) if !fits => Err(Refused::TooManyVcpus),
        Wish::Only(Monitor::Firecracker) => Ok(Monitor::Firecracker),
        Wish::Only(Monitor::Qemu) if !facts.qemu => Err(Refused::Missing(Monitor::Qemu)),
        Wish::Only(Monitor::Qemu) => Ok(Monitor::Qemu),
        Wish::Auto if facts.firecracker && facts.kvm && fits => Ok(Monitor::Firecracker),
        Wish::Auto if facts.qemu => Ok(Monitor::Qemu),
        Wish::Auto => Err(Refused::None),
    }
}

/// Why a machine of ordinary size runs under what [`choose`] chooses.
pub fn explain(configured: Wish, facts: Facts) -> String {
    let chosen = match choose(Wish::Auto, configured, facts, 1) {
        Ok(chosen) => chosen,
        Err(refused) => return refused.to_string(),
    };
    let why = match (configured, facts) {
        (Wish::Only(_), _) => "the configuration says so",
        (Wish::Auto, Facts { firecracker: false, .. }) => "Firecracker is not installed",
        (Wish::Auto, Facts { kvm: false, .. }) => "Firecracker needs KVM, which does not work on this host",
        (Wish::Auto, _) => "it is installed, and KVM works",
    };
    format!("sandboxes run under {chosen}: {why}")
}

impl Wish {
    /// The word of the configuration, the option and the store.
    pub const fn as_str(self) -> &'static str {
        use banger_proto::bus::option::vmm;
        match self {
            Wish::Auto => vmm::AUTO,
            Wish::Only(Monitor::Firecracker) => vmm::FIRECRACKER,
            Wish::Only(Monitor::Qemu) => vmm::QEMU,
        }
    }

    /// Parses a word of [`Wish::as_str`].
    pub fn parse(word: &str) -> Option<Self> {
        let all = [Wish::Auto, Wish::Only(Monitor::Firecracker), Wish::Only(Monitor::Qemu)];
        all.into_iter().find(|wish| wish.as_str() == word)
    }
}

impl fmt::Display for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Monitor::Firecracker => "Firecracker",
            Monitor::Qemu => "QEMU",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Facts = Facts { kvm: true, firecracker: true, qemu: true };
    const FIRECRACKER: Wish = Wish::Only(Monitor::Firecracker);
    const QEMU: Wish = Wish::Only(Monitor::Qemu);

    fn check(facts: Facts, vcpus: u32, expect: Result<Monitor, Refused>) {
        assert_eq!(choose(Wish::Auto, Wish::Auto, facts, vcpus), expect, "{facts:?} {vcpus}");
    }

    #[test]
    fn firecracker_is_chosen_where_it_works() {
        check(ALL, 32, Ok(Monitor::Firecracker));
        check(Facts { qemu: false, ..ALL }, 1, Ok(Monitor::Firecracker));
        check(ALL, 33, Ok(Monitor::Qemu));
        check(Facts { kvm: false, ..ALL }, 1, Ok(Monitor::Qemu));
        check(Facts { firecracker: false, ..ALL }, 1, Ok(Monitor::Qemu));
        check(Facts { kvm: false, qemu: false, ..ALL }, 1, Err(Refused::None));
    }

    #[test]
    fn a_wish_is_followed_or_refused_and_the_machines_own_goes_first() {
        let check = |machine, configured, facts, vcpus, expect| {
            assert_eq!(
                choose(machine, configured, facts, vcpus),
                expect,
                "{machine:?} {configured:?} {facts:?}"
            );
        };
        check(QEMU, FIRECRACKER, ALL, 1, Ok(Monitor::Qemu));
        check(FIRECRACKER, QEMU, ALL, 1, Ok(Monitor::Firecracker));
        check(Wish::Auto, QEMU, ALL, 1, Ok(Monitor::Qemu));
        check(FIRECRACKER, Wish::Auto, Facts { kvm: false, ..ALL }, 1, Err(Refused::NeedsKvm));
        check(FIRECRACKER, Wish::Auto, ALL, 33, Err(Refused::TooManyVcpus));
        let none = Facts { firecracker: false, qemu: false, ..ALL };
        check(FIRECRACKER, Wish::Auto, none, 1, Err(Refused::Missing(Monitor::Firecracker)));
        check(QEMU, Wish::Auto, none, 1, Err(Refused::Missing(Monitor::Qemu)));
    }

    #[test]
    fn the_reason_is_the_one_that_decided() {
        let check = |configured, facts, expect: &str| {
            assert_eq!(explain(configured, facts), format!("sandboxes run under {expect}"));
        };
        check(Wish::Auto, ALL, "Firecracker: it is installed, and KVM works");
        check(QEMU, ALL, "QEMU: the configuration says so");
        check(Wish::Auto, Facts { firecracker: false, ..ALL }, "QEMU: Firecracker is not installed");
        let no_kvm = Facts { kvm: false, ..ALL };
        check(Wish::Auto, no_kvm, "QEMU: Firecracker needs KVM, which does not work on this host");
        assert_eq!(explain(FIRECRACKER, no_kvm), Refused::NeedsKvm.to_string());
    }

    #[test]
    fn wishes_read_back() {
        for wish in [Wish::Auto, FIRECRACKER, QEMU] {
            assert_eq!(Wish::parse(wish.as_str()), Some(wish));
        }
        assert_eq!(Wish::parse("bochs"), None);
    }
}
