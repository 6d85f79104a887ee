//! The network interface of a guest. Its names on the host are functions of the VM's id.

use core::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};
use std::{collections::BTreeSet, sync::Arc};

use super::{
    port::{Port, Scope},
    subnet::{Slot, Subnet},
};
use crate::{
    egress::allow_list::AllowList,
    id::{Uid, VmId},
};

/// The prefix of all TAP names, by which the packet filter recognises guests.
pub const TAP_PREFIX: &str = "bgr-";
/// The prefix of spare TAPs that belong to no VM yet. The packet filter does not take them for guests.
pub const WARM_PREFIX: &str = "bgw";
/// How many digits of the VM's id follow: as many as fit into the 15 characters of a link's name.
const TAP_DIGITS: usize = 15 - TAP_PREFIX.len();
/// The alias of a TAP is this prefix and the VM's id.
const ALIAS_PREFIX: &str = "banger vm ";

/// The interface of a guest, as the host should set it up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// The sandbox.
    pub vm: VmId,
    /// Its owner.
    pub owner: Uid,
    /// The guest's IPv4 address.
    pub v4: Ipv4Addr,
    /// The guest's IPv6 address.
    pub v6: Ipv6Addr,
    /// Whether the guest reaches networks beyond the host.
    pub nat: Nat,
    /// What it reaches there without NAT for everything.
    pub allowed: Arc<AllowList>,
    /// The ports of the host that are published for the guest.
    pub ports: BTreeSet<Port>,
    /// Whether the guest reaches other guests of its owner.
    pub same_owner: SameOwner,
}

/// Whether guests of the same owner reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SameOwner {
    /// They do.
    #[default]
    Connected,
    /// They are isolated, as if each had another owner.
    Apart,
}

/// Whether a guest reaches networks beyond the host, with the host's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Nat {
    /// No.
    #[default]
    Off,
    /// Yes.
    On,
}

impl Nic {
    /// Returns the interface for this slot, without NAT and ports. `None` beyond the last slot.
    pub fn new(vm: VmId, owner: Uid, subnet: Subnet, slot: Slot) -> Option<Self> {
        let (v4, v6) = subnet.guest(slot)?;
        Some(Self {
            vm,
            owner,
            v4,
            v6,
            nat: Nat::Off,
            allowed: Arc::default(),
            ports: BTreeSet::new(),
            same_owner: SameOwner::Connected,
        })
    }

    /// Returns whether the guest reaches only what it is allowed beyond the host, and not nothing.
    pub fn is_restricted(&self) -> bool {
        self.nat == Nat::Off && !self.allowed.is_empty()
    }

    /// Returns whether packets are forwarded between the guest and networks beyond the host.
    pub fn reaches_outside(&self) -> bool {
        self.nat == Nat::On || self.is_restricted() || self.ports.iter().any(|port| port.scope == Scope::All)
    }

    /// Returns the name of the TAP.
    pub fn tap(&self) -> TapName {
        TapName::of(self.vm)
    }

    /// Returns the hardware address of the guest's side.
    pub fn mac(&self) -> Mac {
        Mac::of_guest(self.vm)
    }
}

/// The name of a TAP.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TapName(String);

impl TapName {
    /// Returns the name of a VM's TAP. Two VMs get the same name with a chance of 1 in 2⁴⁴; the alias then
    /// distinguishes them, and the second one does not start.
    pub fn of(vm: VmId) -> Self {
        let id = vm.to_string();
        Self(format!("{TAP_PREFIX}{}", &id[..TAP_DIGITS]))
    }

    /// Returns the name of a spare TAP.
    pub fn warm(n: u32) -> Self {
        Self(format!("{WARM_PREFIX}{n}"))
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TapName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns the alias of a VM's TAP, which marks it as banger's.
pub fn tap_alias(vm: VmId) -> String {
    format!("{ALIAS_PREFIX}{vm}")
}

/// Returns the VM whose TAP has this alias.
pub fn vm_of_alias(alias: &str) -> Option<VmId> {
    alias.strip_prefix(ALIAS_PREFIX)?.parse().ok()
}

/// A hardware address, locally administered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The hardware address of the host's side of every TAP. They can be equal, since no two share a link.
    pub const HOST: Mac = Mac([0x02, 0x62, 0x67, 0, 0, 1]);

    /// Returns the hardware address of a guest.
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
    fn foreign_aliases_belong_to_no_vm() {
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
