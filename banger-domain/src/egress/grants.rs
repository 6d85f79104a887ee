//! The addresses of allowed names that a guest was told, which are the destinations that the packet filter lets through.
//!
//! Times are durations since a fixed moment of the caller's choice.

use core::{net::IpAddr, time::Duration};
use std::collections::{HashMap, HashSet};

use super::{address::Neighbours, allow_list::AllowList, entry::Ports, host_name::HostName};

/// The most destinations of one guest at a time.
pub const MAX_GRANTS: usize = 512;
/// How long a guest may send to a destination after it has looked it up, or last sent to it. Answers to restricted guests
/// may be cached for [`RESTRICTED_TTL`] at most, so a guest that follows the DNS always looks up in time.
///
/// [`RESTRICTED_TTL`]: crate::dns::RESTRICTED_TTL
pub const OPEN: Duration = Duration::from_secs(300);
/// A look-up within this time after the last one leaves the packet filter as it is. What is left of [`OPEN`] is more than
/// answers may be cached.
const FRESH: Duration = Duration::from_secs(120);
/// A destination to which the guest has sent something within this time makes room for no other one.
const IN_USE: Duration = Duration::from_secs(60);
/// More than the clock of the packet filter differs from the caller's.
const PRECISION: Duration = Duration::from_millis(100);
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
pub struct Grants(HashMap<Grant, Known>);

#[derive(Debug, Clone, Default)]
struct Known {
    /// The names that resolved to it, the latest last.
    names: Vec<HostName>,
    /// The latest look-up.
    at: Duration,
    /// When the packet filter got it with the latest name; `None` if that is not known.
    added: Option<Duration>,
}

impl Grants {
    /// Returns whether a look-up of a name leaves the packet filter as it is: it has these destinations already, with this
    /// name and enough time left.
    pub fn are_fresh(&self, name: &HostName, grants: &[Grant], now: Duration) -> bool {
        grants.iter().all(|grant| {
            self.0.get(grant).is_some_and(|known| {
                known.names.last() == Some(name)
                    && known.added.is_some_and(|added| now < added.saturating_add(FRESH))
            })
        })
    }

    /// Returns for how many of these destinations there is no room.
    pub fn excess(&self, new: &[Grant]) -> usize {
        let new: HashSet<&Grant> = new.iter().filter(|grant| !self.0.contains_key(*grant)).collect();
        (self.0.len() + new.len()).saturating_sub(MAX_GRANTS)
    }

    /// Returns the destinations that have to go to make room for others: those that have ended or were never used since
    /// their look-up, the oldest first, and then those that were used longest ago. `None` if the rest is in use.
    ///
    /// `unused` returns for how long the packet filter has seen no packet and no look-up of a destination; `None` if it
    /// no longer has it.
    pub fn surplus<E>(
        &self,
        new: &[Grant],
        now: Duration,
        mut unused: impl FnMut(&Grant) -> Result<Option<Duration>, E>,
    ) -> Result<Option<Vec<Grant>>, E> {
        let surplus = self.excess(new);
        let others = self.0.iter().filter(|(grant, _)| !new.contains(grant));
        let mut others: Vec<(Duration, Grant)> = others.map(|(grant, known)| (known.at, *grant)).collect();
        others.sort_unstable();
        let (mut gone, mut quiet) = (Vec::new(), Vec::new());
        for (_, grant) in others {
            if gone.len() == surplus {
                break;
            }
            match unused(&grant)? {
                Some(time) if !self.was_used(&grant, now, time) => gone.push(grant),
                Some(time) if time < IN_USE => {}
                Some(time) => quiet.push((time, grant)),
                None => gone.push(grant),
            }
        }
        quiet.sort_unstable_by(|one, other| other.cmp(one));
        gone.extend(quiet.into_iter().map(|(_, grant)| grant).take(surplus - gone.len()));
        Ok((gone.len() == surplus).then_some(gone))
    }

    /// Returns whether a guest has sent something to a destination since it was added, of which the packet filter has seen
    /// nothing for this time.
    fn was_used(&self, grant: &Grant, now: Duration, unused: Duration) -> bool {
        let added = self.0.get(grant).and_then(|known| known.added);
        added.is_none_or(|added| now.saturating_sub(unused) > added + PRECISION)
    }

    /// Adds the destinations of a name, for which there must be room.
    pub fn add(&mut self, name: &HostName, grants: &[Grant], now: Duration) {
        for grant in grants {
            let known = self.0.entry(*grant).or_default();
            (known.at, known.added) = (now, None);
            known.names.retain(|other| other != name);
            known.names.push(name.clone());
            if known.names.len() > MAX_NAMES {
                known.names.remove(0);
            }
        }
    }

    /// Notes that the packet filter has these destinations, each with its latest name.
    pub fn note_added(&mut self, grants: &[Grant], now: Duration) {
        for grant in grants {
            if let Some(known) = self.0.get_mut(grant) {
                known.added = Some(now);
            }
        }
    }

    /// Notes that the packet filter may have lost all destinations.
    pub fn note_lost(&mut self) {
        self.0.values_mut().for_each(|known| known.added = None);
    }

    /// Returns the destinations that a policy does not allow, and those of neighbours.
    pub fn beyond(&self, policy: &AllowList, neighbours: &Neighbours) -> Vec<Grant> {
        let mut ports_of = HashMap::new();
        let mut is_allowed = |grant: &Grant, name| {
            let ports: &Vec<Ports> = ports_of.entry(name).or_insert_with(|| policy.ports_of(name));
            ports.iter().any(|ports| ports.cover(grant.ports)) && !neighbours.have(grant.address)
        };
        let beyond =
            self.0.iter().filter(|(grant, known)| !known.names.iter().any(|name| is_allowed(grant, name)));
        beyond.map(|(grant, _)| *grant).collect()
    }

    /// Removes destinations.
    pub fn forget(&mut self, gone: &[Grant]) {
        for grant in gone {
            self.0.remove(grant);
        }
    }

    /// Returns all destinations, each with the name that was looked up last.
    pub fn iter(&self) -> impl Iterator<Item = (Grant, &HostName)> {
        self.0.iter().filter_map(|(grant, known)| Some((*grant, known.names.last()?)))
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

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Adds the destinations of a name, and lets the packet filter have them.
    fn look_up(grants: &mut Grants, name: &str, new: &[Grant], now: Duration) {
        grants.add(&self::name(name), new, now);
        grants.note_added(new, now);
    }

    #[test]
    fn destinations_go_with_the_last_name_that_allows_them() {
        let mut grants = Grants::default();
        look_up(&mut grants, "a.example", &[grant(1), grant(2)], at(1));
        look_up(&mut grants, "b.example", &[grant(2)], at(2));
        let beyond = |grants: &Grants, words: &[&str]| grants.beyond(&list(words), &Neighbours::default());
        assert_eq!(beyond(&grants, &["a.example", "b.example"]), []);
        let near = Grant { address: "2001:db8:1::5".parse().unwrap(), ports: Ports::Any };
        look_up(&mut grants, "a.example", &[near], at(2));
        let joined = Neighbours::of([("2001:db8:1::".parse().unwrap(), 64)]);
        assert_eq!(grants.beyond(&list(&["a.example", "b.example"]), &joined), [near]);
        grants.forget(&[near]);
        let gone = beyond(&grants, &["b.example"]);
        assert_eq!(gone, [grant(1)]);
        assert_eq!(grants.iter().count(), 2, "nothing goes before the packet filter has changed");
        grants.forget(&gone);
        assert_eq!(grants.iter().collect::<Vec<_>>(), [(grant(2), &name("b.example"))]);
        assert_eq!(beyond(&grants, &["b.example:443"]), [grant(2)], "other ports");
        for n in 0..100 {
            look_up(&mut grants, &format!("a{n}.example"), &[grant(2)], at(3));
        }
        assert_eq!(grants.0[&grant(2)].names.len(), MAX_NAMES);
    }

    #[test]
    fn a_repeated_look_up_is_fresh_while_enough_time_is_left() {
        let mut grants = Grants::default();
        let both = [grant(1), grant(2)];
        let check = |grants: &Grants, of: &str, new: &[Grant], now, expect| {
            assert_eq!(grants.are_fresh(&name(of), new, now), expect, "{of} {new:?} {now:?}");
        };
        grants.add(&name("a.example"), &both, at(10));
        check(&grants, "a.example", &both, at(10), false);
        grants.note_added(&both, at(10));
        check(&grants, "a.example", &both, at(10), true);
        check(&grants, "a.example", &both, at(10) + FRESH, false);
        check(&grants, "a.example", &[grant(1), grant(3)], at(11), false);
        check(&grants, "b.example", &both, at(11), false);
        // The next run of the service reads the name from the packet filter.
        look_up(&mut grants, "b.example", &[grant(2)], at(12));
        check(&grants, "a.example", &both, at(13), false);
        check(&grants, "a.example", &[grant(1)], at(13), true);
        grants.note_lost();
        check(&grants, "a.example", &[grant(1)], at(13), false);
        let cached = Duration::from_secs(crate::dns::RESTRICTED_TTL.into());
        assert!(OPEN - FRESH > cached, "an address would end while its answer is cached");
    }

    /// Returns destinations that were looked up one a second.
    fn full() -> Grants {
        let mut grants = Grants::default();
        for n in 0..MAX_GRANTS as u32 {
            look_up(&mut grants, "a.example", &[grant(n)], at(n.into()));
        }
        grants
    }

    #[test]
    fn destinations_in_use_make_no_room() {
        let (grants, now) = (full(), at(1000));
        let new: Vec<Grant> = (1000..1003).map(grant).collect();
        let check = |what: &str, unused: &dyn Fn(u32) -> Option<u64>, expect: Option<&[u32]>| {
            let seconds = |grant: &Grant| match grant.address {
                IpAddr::V4(v4) => unused(v4.to_bits() - 0x0800_0000).map(Duration::from_secs),
                IpAddr::V6(_) => None,
            };
            let found = grants.surplus(&new, now, |grant| Ok::<_, ()>(seconds(grant))).unwrap();
            let expect = expect.map(|numbers| numbers.iter().map(|n| grant(*n)).collect::<Vec<_>>());
            assert_eq!(found, expect, "{what}");
        };
        let never = |n: u32| Some(1000 - u64::from(n));
        check("never used", &never, Some(&[0, 1, 2]));
        check("the oldest two are used", &|n| if n < 2 { Some(5) } else { never(n) }, Some(&[2, 3, 4]));
        check(
            "some have ended",
            &|n| if [7, 9, 11].contains(&n) { None } else { Some(5) },
            Some(&[7, 9, 11]),
        );
        check("all are used", &|_| Some(5), None);
        check("two are quiet", &|n| if [3, 5].contains(&n) { Some(100) } else { Some(5) }, None);
        check(
            "never used before quiet, and quiet by time",
            &|n| match n {
                500 => Some(500),
                3 => Some(70),
                4 => Some(90),
                5 => Some(80),
                _ => Some(59),
            },
            Some(&[500, 4, 5]),
        );
    }

    #[test]
    fn a_guest_has_a_bounded_number_of_destinations() {
        let mut grants = Grants::default();
        let answers: Vec<Vec<Grant>> = (0..100).map(|n| (n * 64..n * 64 + 64).map(grant).collect()).collect();
        let ended = |_: &Grant| Ok::<_, ()>(None);
        for (n, answer) in answers.iter().enumerate() {
            let surplus = grants.surplus(answer, at(0), ended).unwrap().unwrap();
            let oldest = n.checked_sub(MAX_GRANTS / 64).map(|n| answers[n].clone());
            assert_eq!(surplus, oldest.unwrap_or_default(), "{n}");
            assert_eq!(
                grants.surplus(answer, at(0), ended).unwrap(),
                Some(surplus.clone()),
                "asking changes nothing"
            );
            grants.forget(&surplus);
            look_up(&mut grants, "a.example", answer, at(n as u64));
        }
        assert_eq!(grants.iter().count(), MAX_GRANTS);
        let asked = |_: &Grant| Err(());
        assert_eq!(grants.surplus(&answers[99], at(0), asked), Ok(Some(Vec::new())), "they are there");
        assert_eq!(grants.surplus(&answers[0], at(0), asked), Err(()), "what cannot be known is no answer");
    }
}
