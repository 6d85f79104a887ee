//! The network interface of one guest. Its names on the host are functions of the machine's id.

use core::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};
use std::collections::BTreeSet;

use super::{
    port::{Port, Scope},
    subnet::{Slot, Subnet},
};
use crate::id::{Uid, VmId};

/// How the names of all TAPs begin; the rules of the packet filter know guests by it.
pub const TAP_PREFIX: &str = "bgr-";
/// How the names of TAPs begin that no machine has yet: not as those of guests.
pub const WARM_PREFIX: &str = "bgw";
/// How many digits of the machine's id follow: as many as fit into the 15 characters of a link's name.
const TAP_DIGITS: usize = 15 - TAP_PREFIX.len();
/// The alias of a TAP is this and the machine's id.
const ALIAS_PREFIX: &str = "banger vm ";

/// A guest's interface, as wanted on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// The machine.
    pub vm: VmId,
    /// Its owner.
    pub owner: Uid,
    /// The guest's IPv4 address.
    pub v4: Ipv4Addr,
    /// The guest's IPv6 address.
    pub v6: Ipv6Addr,
    /// Whether the guest reaches what lies beyond the host.
    pub nat: Nat,
    /// The ports of the host that lead to the guest.
    pub ports: BTreeSet<Port>,
    /// Whether other guests of its owner reach it.
    pub siblings: Siblings,
}

/// Whether guests of one owner reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Siblings {
    /// They do.
    #[default]
    Connected,
    /// They do not, as if each had another owner.
    Apart,
}

/// Whether a guest reaches what lies beyond the host, in the name of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Nat {
    /// It does not.
    #[default]
    Off,
    /// It does.
    On,
}

impl Nic {
    /// The interface of a machine at this place, with neither NAT nor ports; none beyond the last place.
    pub fn new(vm: VmId, owner: Uid, subnet: Subnet, slot: Slot) -> Option<Self> {
        let (v4, v6) = subnet.guest(slot)?;
        Some(Self { vm, owner, v4, v6, nat: Nat::Off, ports: BTreeSet::new(), siblings: Siblings::Connected })
    }

    /// Whether packets go between the guest and what lies beyond the host.
    pub fn leads_outside(&self) -> bool {
        self.nat == Nat::On || self.ports.iter().any(|port| port.scope == Scope::All)
    }

    /// The name of the TAP.
    pub fn tap(&self) -> TapName {
        TapName::of(self.vm)
    }

    /// The hardware address of the guest's side.
    pub fn mac(&self) -> Mac {
        Mac::of_guest(self.vm)
    }
}

/// The name of a machine's TAP.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TapName(String);

impl TapName {
    /// The name of the TAP of this machine. Two machines have the same with a chance of 1 in 2⁴⁴; the
    /// alias then tells them apart, and the second one does not start.
    pub fn of(vm: VmId) -> Self {
        let id = vm.to_string();
        Self(format!("{TAP_PREFIX}{}", &id[..TAP_DIGITS]))
    }

    /// The name of a TAP that no machine has yet.
    pub fn warm(n: u32) -> Self {
        Self(format!("{WARM_PREFIX}{n}"))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TapName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The alias of a sandbox's TAP, which marks it as banger's.
pub fn tap_alias(vm: VmId) -> String {
    format!("{ALIAS_PREFIX}{vm}")
}

/// The machine whose TAP has this alias.
pub fn vm_of_alias(alias: &str) -> Option<VmId> {
    alias.strip_prefix(ALIAS_PREFIX)?.parse().ok()
}

/// A hardware address, locally administered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The host's side of every TAP. They may all have the same: no two share a link.
    pub const HOST: Mac = Mac([0x02, 0x62, 0x67, 0, 0, 1]);

    /// The guest's side of a machine's TAP.
    pub fn of_guest(vm: VmId) -> Self {
        let id = vm.to_string();
        let byte = |n: usize| u8::from_str_radix(&id[2 * n..2 * n + 2], 16).unwrap_or_default();
        Self([0x02, 0x67, byte(0), byte(1), byte(2), byte(3)])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_functions_of_the_id() {
        let vm: VmId = "0123456789abcdef0123456789abcdef".parse().unwrap();
        assert_eq!(TapName::of(vm).as_str(), "bgr-0123456789a");
        assert_eq!(tap_alias(vm), "banger vm 0123456789abcdef0123456789abcdef");
        assert_eq!(Mac::of_guest(vm).to_string(), "02:67:01:23:45:67");
    }

    #[test]
    fn foreign_aliases_are_nobodys() {
        for alias in ["", "banger", "banger vm ", "banger vm x", "my banger vm 1"] {
            assert_eq!(vm_of_alias(alias), None, "{alias}");
        }
    }

    proptest! {
        #[test]
        fn names_fit_and_addresses_are_local_and_of_one_receiver(bits: u128) {
            let vm = VmId::from_bits(bits);
            prop_assert!(TapName::of(vm).as_str().len() <= 15);
            prop_assert_eq!(vm_of_alias(&tap_alias(vm)), Some(vm));
            prop_assert!(tap_alias(vm).len() < 256);
            let mac = Mac::of_guest(vm);
            prop_assert_eq!(mac.0[0] & 0b11, 0b10);
            prop_assert_ne!(mac, Mac::HOST);
        }
    }
}
