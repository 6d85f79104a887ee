//! The addresses of allowed names that a guest was told, which are the destinations that the packet filter lets through.

use core::net::IpAddr;
use std::collections::HashMap;

use super::{allow_list::AllowList, entry::Ports, host_name::HostName};

/// The most destinations of one guest at a time. The one that was looked up longest ago goes first.
pub const MAX_GRANTS: usize = 512;
/// The most names that are known of one destination. Sites behind one address may be many.
const MAX_NAMES: usize = 8;

/// A destination that a guest reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Grant {
    /// The address.
    pub address: IpAddr,
    /// Its ports.
    pub ports: Ports,
}

/// The destinations of one guest.
#[derive(Debug, Clone, Default)]
pub struct Grants {
    known: HashMap<Grant, Known>,
    /// Counts look-ups.
    clock: u64,
}

#[derive(Debug, Clone, Default)]
struct Known {
    /// The names that resolved to it; none for a destination of an earlier run of the service.
    names: Vec<HostName>,
    /// The latest look-up.
    at: u64,
}

impl Grants {
    /// Adds the destinations of a name. Returns those that have to go to make room.
    pub fn add(&mut self, name: &HostName, grants: &[Grant]) -> Vec<Grant> {
        self.clock += 1;
        for grant in grants {
            let known = self.known.entry(*grant).or_default();
            known.at = self.clock;
            known.names.retain(|other| other != name);
            known.names.push(name.clone());
            if known.names.len() > MAX_NAMES {
                known.names.remove(0);
            }
        }
        let mut gone = Vec::new();
        while self.known.len() > MAX_GRANTS {
            let Some(oldest) = self.known.iter().min_by_key(|(_, known)| known.at).map(|(grant, _)| *grant)
            else {
                break;
            };
            self.known.remove(&oldest);
            gone.push(oldest);
        }
        gone
    }

    /// Adds a destination of an earlier run of the service, whose names are not known.
    pub fn inherit(&mut self, grant: Grant) {
        self.known.entry(grant).or_default();
    }

    /// Removes and returns the destinations that a changed policy no longer allows. Those of an earlier run are among
    /// them: nobody knows what allowed them.
    pub fn withdraw(&mut self, now: &AllowList) -> Vec<Grant> {
        let is_allowed = |grant: &Grant, known: &Known| {
            known.names.iter().any(|name| now.ports_of(name).iter().any(|ports| ports.cover(grant.ports)))
        };
        self.known.extract_if(|grant, known| !is_allowed(grant, known)).map(|(grant, _)| grant).collect()
    }

    /// Returns all destinations.
    pub fn iter(&self) -> impl Iterator<Item = Grant> + '_ {
        self.known.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use core::net::Ipv4Addr;

    use super::*;
    use crate::egress::{Egress, preset::Presets};

    fn list(words: &[&str]) -> AllowList {
        AllowList::of(&Egress::parse(words).unwrap(), &Presets::default())
    }

    fn grant(n: u32) -> Grant {
        Grant { address: Ipv4Addr::from_bits(0x0800_0000 + n).into(), ports: Ports::Any }
    }

    fn name(text: &str) -> HostName {
        text.parse().unwrap()
    }

    #[test]
    fn destinations_go_with_the_last_name_that_allows_them() {
        let mut grants = Grants::default();
        grants.add(&name("a.example"), &[grant(1), grant(2)]);
        grants.add(&name("b.example"), &[grant(2)]);
        grants.inherit(grant(3));
        assert_eq!(grants.withdraw(&list(&["b.example"])).len(), 2, "1 and 3");
        assert_eq!(grants.iter().collect::<Vec<_>>(), [grant(2)]);
        assert_eq!(grants.withdraw(&list(&["b.example:443"])), [grant(2)], "other ports");
    }

    #[test]
    fn a_guest_has_a_bounded_number_of_destinations() {
        let mut grants = Grants::default();
        for n in 0..10_000 {
            let gone = grants.add(&name("a.example"), &[grant(n)]);
            let bound = u32::try_from(MAX_GRANTS).unwrap();
            assert_eq!(gone, n.checked_sub(bound).map(grant).into_iter().collect::<Vec<_>>(), "{n}");
        }
        assert_eq!(grants.iter().count(), MAX_GRANTS);
        for n in 0..100 {
            grants.add(&name(&format!("a{n}.example")), &[grant(9999)]);
        }
        assert_eq!(grants.known[&grant(9999)].names.len(), MAX_NAMES);
    }
}
