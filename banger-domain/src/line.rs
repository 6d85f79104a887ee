//! A queue that is fair between users: requests are served round robin, one of each user, and no user takes more
//! than a share of the places. A user with many requests delays their own first.

use std::collections::{BTreeMap, VecDeque};

use super::id::Uid;

/// How many may be served, and may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Served at once, of all users.
    pub places: usize,
    /// Served at once, of one user.
    pub places_per_user: usize,
    /// Waiting, of one user.
    pub waiting_per_user: usize,
}

impl Bounds {
    /// Bounds for work that loads the host, of which it does so many pieces at once. One place is kept from each user,
    /// so that somebody else's first piece of work does not wait for one user's long ones.
    pub fn of_workers(places: usize) -> Self {
        let places = places.max(1);
        Self { places, places_per_user: (places - 1).max(1), waiting_per_user: usize::MAX }
    }
}

/// A user has as many requests in the line as the bounds allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the line is full")]
pub struct Full;

/// The line. Requests are told apart by their numbers.
#[derive(Debug)]
pub struct Line {
    bounds: Bounds,
    users: BTreeMap<Uid, Share>,
    /// Users with requests that wait; the one whose turn is next comes first.
    rounds: VecDeque<Uid>,
    served: usize,
}

#[derive(Debug, Default)]
struct Share {
    served: Vec<u64>,
    waiting: VecDeque<u64>,
}

impl Line {
    /// An empty line.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, users: BTreeMap::new(), rounds: VecDeque::new(), served: 0 }
    }

    /// Lets a request wait. It is served when [`Line::serve_next`] returns it, which may be at once.
    pub fn join(&mut self, user: Uid, request: u64) -> Result<(), Full> {
        let is_place_free = self.served < self.bounds.places;
        let share = self.users.entry(user).or_default();
        let begins =
            is_place_free && share.waiting.is_empty() && share.served.len() < self.bounds.places_per_user;
        if !begins && share.waiting.len() >= self.bounds.waiting_per_user {
            return Err(Full);
        }
        share.waiting.push_back(request);
        if !self.rounds.contains(&user) {
            self.rounds.push_back(user);
        }
        Ok(())
    }

    /// The request to serve now, which takes a place. Call it until it returns none.
    pub fn serve_next(&mut self) -> Option<u64> {
        if self.served >= self.bounds.places {
            return None;
        }
        let (users, most) = (&self.users, self.bounds.places_per_user);
        let has_room = |user: &Uid| users.get(user).is_some_and(|share| share.served.len() < most);
        let at = self.rounds.iter().position(has_room)?;
        let user = self.rounds.remove(at)?;
        let share = self.users.get_mut(&user)?;
        let request = share.waiting.pop_front()?;
        share.served.push(request);
        if !share.waiting.is_empty() {
            self.rounds.push_back(user);
        }
        self.served += 1;
        Some(request)
    }

    /// Serves a request that waits at once, whatever the bounds say: one that is being served needs it. `false` when it
    /// does not wait.
    pub fn promote(&mut self, user: Uid, request: u64) -> bool {
        let Some(share) = self.users.get_mut(&user) else { return false };
        let Some(at) = share.waiting.iter().position(|waiting| *waiting == request) else { return false };
        share.waiting.remove(at);
        share.served.push(request);
        self.served += 1;
        if share.waiting.is_empty() {
            self.rounds.retain(|other| *other != user);
        }
        true
    }

    /// Takes a request out of the line, or frees its place. One that is not there is fine.
    pub fn leave(&mut self, user: Uid, request: u64) {
        let Some(share) = self.users.get_mut(&user) else { return };
        let before = share.served.len();
        share.served.retain(|served| *served != request);
        self.served -= before - share.served.len();
        share.waiting.retain(|waiting| *waiting != request);
        if share.waiting.is_empty() {
            self.rounds.retain(|other| *other != user);
            if share.served.is_empty() {
                self.users.remove(&user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    const ALICE: Uid = Uid(1);
    const BOB: Uid = Uid(2);
    const CAROL: Uid = Uid(3);

    fn line(places: usize, places_per_user: usize, waiting_per_user: usize) -> Line {
        Line::new(Bounds { places, places_per_user, waiting_per_user })
    }

    fn served(line: &mut Line) -> Vec<u64> {
        std::iter::from_fn(|| line.serve_next()).collect()
    }

    #[test]
    fn a_user_has_so_many_places_and_so_many_that_wait() {
        let mut line = line(100, 8, 32);
        let admitted: Vec<u64> = (0..600)
            .filter(|n| {
                line.join(ALICE, *n).is_ok_and(|()| {
                    line.serve_next();
                    true
                })
            })
            .collect();
        assert_eq!(admitted, Vec::from_iter(0..40));
        assert_eq!(line.join(ALICE, 600), Err(Full));
        assert_eq!(line.join(BOB, 700), Ok(()));
        assert_eq!(served(&mut line), [700]);
        line.leave(ALICE, 0);
        assert_eq!(served(&mut line), [8]);
        assert_eq!(line.join(ALICE, 601), Ok(()));
    }

    #[test]
    fn another_users_first_request_does_not_wait_behind_ones_many() {
        let mut line = Line::new(Bounds::of_workers(2));
        for n in 0..40 {
            line.join(ALICE, n).unwrap();
        }
        // One of the two places is kept for somebody else.
        assert_eq!(served(&mut line), [0]);
        line.join(BOB, 100).unwrap();
        line.join(BOB, 101).unwrap();
        line.join(CAROL, 200).unwrap();
        assert_eq!(served(&mut line), [100]);
        line.leave(ALICE, 0);
        // Alice has waited longest.
        assert_eq!(served(&mut line), [1]);
        line.leave(BOB, 100);
        assert_eq!(served(&mut line), [200]);
        line.leave(ALICE, 1);
        assert_eq!(served(&mut line), [101]);
    }

    #[test]
    fn who_gives_up_is_not_served() {
        let mut line = line(1, 1, 9);
        for n in 0..3 {
            line.join(ALICE, n).unwrap();
        }
        assert_eq!(served(&mut line), [0]);
        line.leave(ALICE, 1);
        line.leave(ALICE, 1);
        line.leave(BOB, 7);
        line.leave(ALICE, 0);
        assert_eq!(served(&mut line), [2]);
        line.leave(ALICE, 2);
        assert!(line.users.is_empty() && line.rounds.is_empty() && line.served == 0);
    }

    #[test]
    fn what_is_needed_by_what_is_served_does_not_wait() {
        let mut line = line(1, 1, 9);
        for n in 0..3 {
            line.join(ALICE, n).unwrap();
        }
        assert_eq!(served(&mut line), [0]);
        assert!(line.promote(ALICE, 2));
        assert!(!line.promote(ALICE, 2) && !line.promote(BOB, 1));
        line.leave(ALICE, 2);
        assert_eq!(served(&mut line), Vec::<u64>::new());
        line.leave(ALICE, 0);
        assert_eq!(served(&mut line), [1]);
    }

    #[test]
    fn a_host_with_one_place_serves_everybody() {
        assert_eq!(Bounds::of_workers(0).places_per_user, 1);
        assert_eq!(Bounds::of_workers(1).places_per_user, 1);
        assert_eq!(Bounds::of_workers(8).places_per_user, 7);
    }

    proptest! {
        #[test]
        fn the_bounds_hold_and_no_place_stays_empty_while_somebody_waits(
            steps in prop::collection::vec((0u8..3, 0u32..4, 0u64..40), 0..200),
        ) {
            let mut line = line(3, 2, 4);
            let mut where_is: BTreeMap<u64, Uid> = BTreeMap::new();
            let mut served: BTreeSet<u64> = BTreeSet::new();
            for (n, (what, user, which)) in steps.into_iter().enumerate() {
                let user = Uid(user);
                match what {
                    0 => {
                        if line.join(user, n as u64).is_ok() {
                            where_is.insert(n as u64, user);
                        }
                    }
                    _ => {
                        let Some((&request, &owner)) = where_is.iter().nth(which as usize % where_is.len().max(1)) else { continue };
                        line.leave(owner, request);
                        where_is.remove(&request);
                        served.remove(&request);
                    }
                }
                served.extend(std::iter::from_fn(|| line.serve_next()));
                let of = |user: Uid, of: &dyn Fn(&u64) -> bool| where_is.iter().filter(|(r, u)| **u == user && of(r)).count();
                prop_assert!(served.len() <= 3);
                for user in (0..4).map(Uid) {
                    let (runs, waits) = (of(user, &|r| served.contains(r)), of(user, &|r| !served.contains(r)));
                    prop_assert!(runs <= 2 && waits <= 4);
                    prop_assert!(waits == 0 || runs == 2 || served.len() == 3);
                }
            }
        }
    }
}
