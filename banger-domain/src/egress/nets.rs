//! How many networks the policies of running sandboxes may have. The packet filter keeps them in sets of ranges, whose
//! memory and time for a look-up grow with their number.

use crate::{limits::Exceeded, net::nic::Nic};

/// The most networks of all running sandboxes of one owner.
pub const MAX_OF_OWNER: usize = 1024;
/// The most networks of all running sandboxes.
pub const MAX_OF_HOST: usize = 8192;
const NETWORKS: &str = "networks in egress policies of running sandboxes";

/// Checks that a guest with this interface fits beside the others. One of the others may be the same guest before a
/// change.
pub fn check_nets<'a>(others: impl Iterator<Item = &'a Nic>, nic: &Nic) -> Result<(), Exceeded> {
    let new = count(nic);
    let (mut before, mut of_owner, mut of_host) = (0, new, new);
    for other in others {
        if other.vm == nic.vm {
            before = count(other);
            continue;
        }
        of_host += count(other);
        of_owner += if other.owner == nic.owner { count(other) } else { 0 };
    }
    if new <= before {
        return Ok(());
    }
    let (limit, would_be) = (MAX_OF_OWNER.to_string(), of_owner.to_string());
    match (of_owner <= MAX_OF_OWNER, of_host <= MAX_OF_HOST) {
        (true, true) => Ok(()),
        (false, _) => Err(Exceeded::Quota { what: NETWORKS, limit, would_be }),
        (_, false) => Err(Exceeded::Host { what: NETWORKS, limit: MAX_OF_HOST }),
    }
}

/// Returns how many networks are in the packet filter for a guest.
fn count(nic: &Nic) -> usize {
    if nic.is_restricted() { nic.allowed.nets().len() } else { 0 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use super::*;
    use crate::{
        egress::{Egress, allow_list::AllowList, preset::Presets},
        id::{Uid, VmId},
        net::{nic::Nat, subnet::Slot},
    };

    fn nic(n: u32, owner: u32, nets: usize) -> Nic {
        let words: Vec<String> = (0..nets).map(|n| format!("10.0.{n}.1")).collect();
        let allowed = AllowList::of(&Egress::parse(&words).unwrap(), &Presets::default());
        let subnet = "172.30.0.0/16 fd12:3456:789a::/64".parse().unwrap();
        let nic = Nic::new(VmId::from_bits(n.into()), Uid(owner), subnet, Slot(n)).unwrap();
        Nic { allowed: Arc::new(allowed), ..nic }
    }

    #[test]
    fn networks_are_bounded_for_an_owner_and_for_the_host() {
        let hers: Vec<Nic> = (0..16).map(|n| nic(n, 1, 64)).collect();
        assert_eq!(check_nets(hers[1..].iter(), &hers[0]), Ok(()));
        assert_eq!(check_nets(hers.iter(), &hers[0]), Ok(()), "a change of one of them");
        let one_more = check_nets(hers.iter(), &nic(99, 1, 1)).unwrap_err().to_string();
        assert_eq!(
            one_more,
            "you may have 1024 networks in egress policies of running sandboxes, and this would make it 1025"
        );
        assert_eq!(check_nets(hers.iter(), &nic(99, 1, 0)), Ok(()));
        assert_eq!(check_nets(hers.iter(), &Nic { nat: Nat::On, ..nic(99, 1, 1) }), Ok(()));
        assert_eq!(check_nets(hers.iter(), &nic(99, 2, 1)), Ok(()));
        let too_many: Vec<Nic> = (0..17).map(|n| nic(n, 1, 64)).collect();
        assert_eq!(check_nets(too_many.iter(), &nic(0, 1, 63)), Ok(()), "fewer are always possible");
        let everyone: Vec<Nic> = (0..128).map(|n| nic(n, n / 16, 64)).collect();
        let full = check_nets(everyone.iter(), &nic(200, 99, 1)).unwrap_err().to_string();
        assert_eq!(
            full,
            "this host has no room for more than 8192 networks in egress policies of running sandboxes"
        );
    }
}
