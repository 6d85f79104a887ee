//! The addresses of allowed names that a guest was told, which are the destinations that the packet filter lets through.

use core::net::IpAddr;
use std::collections::{HashMap, HashSet};

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
    /// The names that resolved to it, the latest last.
    names: Vec<HostName>,
    /// The latest look-up.
    at: u64,
}

impl Grants {
    /// Returns the destinations that have to go to make room for others: those that were looked up longest ago.
    pub fn surplus(&self, new: &[Grant]) -> Vec<Grant> {
        let new: HashSet<Grant> = new.iter().copied().collect();
        let others = self.known.iter().filter(|(grant, _)| !new.contains(grant));
        let mut others: Vec<(u64, Grant)> = others.map(|(grant, known)| (known.at, *grant)).collect();
        others.sort_unstable();
        let surplus = (others.len() + new.len()).saturating_sub(MAX_GRANTS);
        others.into_iter().take(surplus).map(|(_, grant)| grant).collect()
    }

    /// Adds the destinations of a name, for which there must be room.
    pub fn add(&mut self, name: &HostName, grants: &[Grant]) {
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
    }

    /// Returns the destinations that a policy does not allow.
    pub fn beyond(&self, policy: &AllowList) -> Vec<Grant> {
        let mut ports_of = HashMap::new();
        let mut is_allowed = |grant: &Grant, name| {
            let ports: &Vec<Ports> = ports_of.entry(name).or_insert_with(|| policy.ports_of(name));
            ports.iter().any(|ports| ports.cover(grant.ports))
        };
        let beyond = self
            .known
            .iter()
            .filter(|(grant, known)| !known.names.iter().any(|name| is_allowed(grant, name)));
        beyond.map(|(grant, _)| *grant).collect()
    }

    /// Removes destinations.
    pub fn forget(&mut self, gone: &[Grant]) {
        for grant in gone {
            self.known.remove(grant);
        }
    }

    /// Returns all destinations, each with the name that was looked up last.
    pub fn iter(&self) -> impl Iterator<Item = (Grant, &HostName)> {
        self.known.iter().filter_map(|(grant, known)| Some((*grant, known.names.last()?)))
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
        assert_eq!(grants.beyond(&list(&["a.example", "b.example"])), []);
        let gone = grants.beyond(&list(&["b.example"]));
        assert_eq!(gone, [grant(1)]);
        assert_eq!(grants.iter().count(), 2, "nothing goes before the packet filter has changed");
        grants.forget(&gone);
        assert_eq!(grants.iter().collect::<Vec<_>>(), [(grant(2), &name("b.example"))]);
        assert_eq!(grants.beyond(&list(&["b.example:443"])), [grant(2)], "other ports");
    }

    #[test]
    fn a_guest_has_a_bounded_number_of_destinations() {
        let mut grants = Grants::default();
        let answers: Vec<Vec<Grant>> = (0..100).map(|n| (n * 64..n * 64 + 64).map(grant).collect()).collect();
        for (n, answer) in answers.iter().enumerate() {
            let surplus = grants.surplus(answer);
            let oldest = n.checked_sub(MAX_GRANTS / 64).map(|n| answers[n].clone());
            assert_eq!(surplus, oldest.unwrap_or_default(), "{n}");
            assert_eq!(grants.surplus(answer), surplus, "asking changes nothing");
            grants.forget(&surplus);
            grants.add(&name("a.example"), answer);
        }
        assert_eq!(grants.iter().count(), MAX_GRANTS);
        assert_eq!(grants.surplus(&answers[99]), [], "they are there");
        for n in 0..100 {
            grants.add(&name(&format!("a{n}.example")), &answers[99][..1]);
        }
        assert_eq!(grants.known[&answers[99][0]].names.len(), MAX_NAMES);
    }
}
