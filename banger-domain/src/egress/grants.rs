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
const PRECISION: Duration = Duration::from_millis(20);
/// How many destinations go at once, if as many are of no use: then the packet filter is asked less often.
const BLOCK: usize = 64;
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
    /// The latest packet to it that is known of.
    used: Option<Duration>,
}

impl Known {
    /// Takes in for how long the packet filter has seen neither a packet nor a look-up.
    fn note_unused(&mut self, now: Duration, unused: Duration) {
        let seen = now.saturating_sub(unused);
        if self.added.is_none_or(|added| seen > added + PRECISION) {
            self.used = self.used.max(Some(seen));
        }
    }

    fn is_in_use(&self, now: Duration) -> bool {
        self.used.is_some_and(|used| now < used + IN_USE)
    }

    fn is_recent(&self, now: Duration) -> bool {
        now < self.at + IN_USE
    }
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

    /// Returns the destinations that have to go to make room for others. Those that have ended or were never used since they
    /// were looked up go first, and some more of them; then those that were used longest ago; then the oldest of those that
    /// were looked up just before. `None` if the rest is in use.
    ///
    /// `unused` returns for how long the packet filter has seen no packet and no look-up of a destination; `None` if it
    /// no longer has it.
    pub fn surplus<E>(
        &mut self,
        new: &[Grant],
        now: Duration,
        mut unused: impl FnMut(&Grant) -> Result<Option<Duration>, E>,
    ) -> Result<Option<Vec<Grant>>, E> {
        let surplus = self.excess(new);
        if surplus == 0 {
            return Ok(Some(Vec::new()));
        }
        let new: HashSet<&Grant> = new.iter().collect();
        let mut others: Vec<(Duration, Grant)> = Vec::new();
        others.extend(
            self.0.iter().filter(|(grant, _)| !new.contains(grant)).map(|(grant, known)| (known.at, *grant)),
        );
        others.sort_unstable();
        let (mut gone, mut quiet, mut recent) = (Vec::new(), Vec::new(), Vec::new());
        for (_, grant) in others {
            let Some(known) = self.0.get_mut(&grant) else { continue };
            // All that follow were looked up later.
            let is_enough = known.is_recent(now) && gone.len() + quiet.len() + recent.len() >= surplus;
            if is_enough || gone.len() >= surplus.max(BLOCK) {
                break;
            }
            // It stays in use for a while, and need not be asked about.
            if known.is_in_use(now) {
                continue;
            }
            match unused(&grant)? {
                None => gone.push(grant),
                Some(time) => {
                    known.note_unused(now, time);
                    match known.used {
                        Some(_) if known.is_in_use(now) => {}
                        _ if known.is_recent(now) => recent.push(grant),
                        Some(used) => quiet.push((used, grant)),
                        None => gone.push(grant),
                    }
                }
            }
        }
        quiet.sort_unstable();
        let more = quiet.into_iter().map(|(_, grant)| grant).chain(recent);
        gone.extend(more.take(surplus.saturating_sub(gone.len())).collect::<Vec<_>>());
        Ok((gone.len() >= surplus).then_some(gone))
    }

    /// Remembers the use of destinations, before they are added again: that begins their time in the packet filter.
    pub fn note_use<E>(
        &mut self,
        grants: &[Grant],
        now: Duration,
        mut unused: impl FnMut(&Grant) -> Result<Option<Duration>, E>,
    ) -> Result<(), E> {
        for grant in grants {
            if let Some(known) = self.0.get_mut(grant)
                && !known.is_in_use(now)
                && let Some(time) = unused(grant)?
            {
                known.note_unused(now, time);
            }
        }
        Ok(())
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

    /// Notes that the packet filter has got all destinations again.
    pub fn note_restored(&mut self, now: Duration) {
        self.0.values_mut().for_each(|known| known.added = Some(now));
    }

    /// Removes the destinations that the packet filter does not have, if their time has ended. `was_lost` says whether the
    /// packet filter has lost all of them, with those whose time has not ended.
    pub fn forget_ended(&mut self, now: Duration, was_lost: bool, is_there: impl Fn(&Grant) -> bool) {
        self.0.retain(|grant, known| {
            // That of an earlier run of the service was looked up before this one knew of it.
            let begun = if was_lost { known.added.max(Some(known.at)) } else { known.added };
            let seen = begun.max(known.used);
            is_there(grant) || seen.is_some_and(|seen| now + PRECISION < seen + OPEN)
        });
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
        grants.note_restored(at(14));
        check(&grants, "a.example", &[grant(1)], at(14), true);
        let cached = Duration::from_secs(crate::dns::RESTRICTED_TTL.into());
        assert!(OPEN - FRESH > cached, "an address would end while its answer is cached");
    }

    #[test]
    fn what_has_ended_is_forgotten_unless_the_packet_filter_still_has_it() {
        let left = |now, was_lost, there: &[Grant]| {
            let mut grants = Grants::default();
            look_up(&mut grants, "a.example", &[grant(1), grant(2)], at(0));
            look_up(&mut grants, "a.example", &[grant(3)], at(200));
            // The one of an earlier run.
            grants.add(&name("a.example"), &[grant(4)], at(200));
            grants.forget_ended(now, was_lost, |grant| there.contains(grant));
            let mut left: Vec<u32> = grants.0.keys().map(number).collect();
            left.sort_unstable();
            left
        };
        assert_eq!(left(at(299), false, &[]), [1, 2, 3]);
        assert_eq!(left(at(300), false, &[grant(1)]), [1, 3]);
        assert_eq!(left(at(300), true, &[]), [3, 4]);
        assert_eq!(left(at(600), true, &[]), Vec::<u32>::new());
        assert_eq!(left(at(600), false, &[grant(1), grant(4)]), [1, 4]);
    }

    /// Returns destinations that were looked up one a second.
    fn full() -> Grants {
        let mut grants = Grants::default();
        for n in 0..MAX_GRANTS as u32 {
            look_up(&mut grants, "a.example", &[grant(n)], at(n.into()));
        }
        grants
    }

    /// Returns the number of a destination.
    fn number(grant: &Grant) -> u32 {
        match grant.address {
            IpAddr::V4(v4) => v4.to_bits() - 0x0800_0000,
            IpAddr::V6(_) => u32::MAX,
        }
    }

    /// Returns the destinations that go for three others at this time, and how many the packet filter was asked about.
    /// `unused` returns seconds.
    fn make_room(
        grants: &mut Grants,
        now: u64,
        unused: &dyn Fn(u32) -> Option<u64>,
    ) -> (Option<Vec<u32>>, usize) {
        let new: Vec<Grant> = (1000..1003).map(grant).collect();
        let mut asked = 0;
        let found = grants.surplus(&new, at(now), |grant| {
            asked += 1;
            Ok::<_, ()>(unused(number(grant)).map(Duration::from_secs))
        });
        (found.unwrap().map(|gone| gone.iter().map(number).collect()), asked)
    }

    #[test]
    fn destinations_in_use_make_no_room() {
        let check = |what: &str, unused: &dyn Fn(u32) -> Option<u64>, expect: Option<&[u32]>| {
            let (found, _) = make_room(&mut full(), 1000, unused);
            assert_eq!(found.as_deref(), expect, "{what}");
        };
        let never = |n: u32| Some(1000 - u64::from(n));
        let block: Vec<u32> = (0..64).collect();
        check("never used", &never, Some(&block));
        let later: Vec<u32> = (2..66).collect();
        check("the oldest two are used", &|n| if n < 2 { Some(5) } else { never(n) }, Some(&later));
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
    fn what_was_looked_up_just_before_goes_after_what_is_quiet() {
        // The last look-up was at 511, so some are younger than a minute.
        let never = |n: u32| Some(520 - u64::from(n));
        let used = |n: u32| if n < 450 { Some(5) } else { never(n) };
        let (found, _) = make_room(&mut full(), 520, &used);
        assert_eq!(found, Some((450..=460).collect()), "those that are old enough, as a block");
        let used = |n: u32| if n <= 460 { Some(if n == 8 { 80 } else { 5 }) } else { never(n) };
        assert_eq!(make_room(&mut full(), 520, &used).0, Some(vec![8, 461, 462]));
    }

    #[test]
    fn a_repeated_look_up_is_no_sign_that_a_destination_is_unused() {
        let mut grants = full();
        let first = [grant(0)];
        // A packet 10 s before the next look-up, which begins its time in the packet filter again.
        grants.note_use(&first, at(1000), |_| Ok::<_, ()>(Some(at(10)))).unwrap();
        look_up(&mut grants, "b.example", &first, at(1000));
        let unused = |n: u32| match n {
            0 => Some(5),
            1 | 2 => None,
            _ => Some(1),
        };
        assert_eq!(make_room(&mut grants, 1005, &unused).0, None);
    }

    #[test]
    fn the_packet_filter_is_asked_seldom() {
        let mut grants = full();
        assert_eq!(make_room(&mut grants, 1000, &|_| Some(5)), (None, MAX_GRANTS));
        assert_eq!(make_room(&mut grants, 1001, &|_| Some(6)), (None, 0), "they are still in use");
        assert_eq!(make_room(&mut grants, 1050, &|_| Some(5)).1, 0);
        assert_eq!(
            make_room(&mut grants, 1056, &|_| Some(5)).1,
            MAX_GRANTS,
            "a minute after their last packet"
        );
        // Many look-ups without any use.
        assert_eq!(make_room(&mut full(), 512, &|n| Some(512 - u64::from(n))).1, 64);
    }

    #[test]
    fn a_guest_has_a_bounded_number_of_destinations() {
        let mut grants = Grants::default();
        let answers: Vec<Vec<Grant>> = (0..100).map(|n| (n * 64..n * 64 + 64).map(grant).collect()).collect();
        let ended = |_: &Grant| Ok::<_, ()>(None);
        for (n, answer) in answers.iter().enumerate() {
            let surplus = grants.surplus(answer, at(1000), ended).unwrap().unwrap();
            let oldest = n.checked_sub(MAX_GRANTS / 64).map(|n| answers[n].clone());
            assert_eq!(surplus, oldest.unwrap_or_default(), "{n}");
            grants.forget(&surplus);
            look_up(&mut grants, "a.example", answer, at(n as u64));
        }
        assert_eq!(grants.iter().count(), MAX_GRANTS);
        let asked = |_: &Grant| Err(());
        assert_eq!(grants.surplus(&answers[99], at(0), asked), Ok(Some(Vec::new())), "they are there");
        assert_eq!(grants.surplus(&answers[0], at(0), asked), Err(()), "what cannot be known is no answer");
    }
}
