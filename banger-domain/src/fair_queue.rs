//! A queue that is fair between users. Requests are served round robin, one per user, and no user takes more than a
//! share of the slots: a user with many requests delays only their own.

use std::collections::{BTreeMap, VecDeque};

use super::id::Uid;

/// How many requests may be served and may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Served at a time, for all users.
    pub slots: usize,
    /// Served at a time, for one user.
    pub slots_per_user: usize,
    /// Waiting, for one user.
    pub waiting_per_user: usize,
}

impl Bounds {
    /// Returns the bounds for workers that load the host. One slot is kept from each user, so that another user's
    /// first request does not wait for one user's long ones.
    pub fn for_workers(slots: usize) -> Self {
        let slots = slots.max(1);
        Self { slots, slots_per_user: (slots - 1).max(1), waiting_per_user: usize::MAX }
    }
}

/// The user has as many waiting requests as the bounds allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the line is full")]
pub struct Full;

/// The queue. Requests are identified by numbers.
#[derive(Debug)]
pub struct FairQueue {
    bounds: Bounds,
    users: BTreeMap<Uid, Share>,
    /// Users with waiting requests; the next to be served is first.
    rounds: VecDeque<Uid>,
    served: usize,
}

#[derive(Debug, Default)]
struct Share {
    served: Vec<u64>,
    waiting: VecDeque<u64>,
}

impl FairQueue {
    /// Returns an empty queue.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, users: BTreeMap::new(), rounds: VecDeque::new(), served: 0 }
    }

    /// Adds a request. It is served when [`FairQueue::pop`] returns it, which may be at once.
    pub fn push(&mut self, user: Uid, request: u64) -> Result<(), Full> {
        let is_slot_free = self.served < self.bounds.slots;
        let share = self.users.entry(user).or_default();
        let begins =
            is_slot_free && share.waiting.is_empty() && share.served.len() < self.bounds.slots_per_user;
        if !begins && share.waiting.len() >= self.bounds.waiting_per_user {
            return Err(Full);
        }
        share.waiting.push_back(request);
        if !self.rounds.contains(&user) {
            self.rounds.push_back(user);
        }
        Ok(())
    }

    /// Returns the next request to serve, which then takes a slot. Call it until it returns `None`.
    pub fn pop(&mut self) -> Option<u64> {
        if self.served >= self.bounds.slots {
            return None;
        }
        let (users, most) = (&self.users, self.bounds.slots_per_user);
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

    /// Serves a waiting request at once, beyond the bounds, because a served request depends on it. Returns `false`
    /// if it is not waiting.
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

    /// Removes a request, or frees its slot. Does nothing if it is not there.
    pub fn remove(&mut self, user: Uid, request: u64) {
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

    fn queue(slots: usize, slots_per_user: usize, waiting_per_user: usize) -> FairQueue {
        FairQueue::new(Bounds { slots, slots_per_user, waiting_per_user })
    }

    fn served(queue: &mut FairQueue) -> Vec<u64> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn a_user_has_a_share_of_the_slots_and_of_the_waiting() {
        let mut queue = queue(100, 8, 32);
        let admitted: Vec<u64> = (0..600)
            .filter(|n| {
                queue.push(ALICE, *n).is_ok_and(|()| {
                    queue.pop();
                    true
                })
            })
            .collect();
        assert_eq!(admitted, Vec::from_iter(0..40));
        assert_eq!(queue.push(ALICE, 600), Err(Full));
        assert_eq!(queue.push(BOB, 700), Ok(()));
        assert_eq!(served(&mut queue), [700]);
        queue.remove(ALICE, 0);
        assert_eq!(served(&mut queue), [8]);
        assert_eq!(queue.push(ALICE, 601), Ok(()));
    }

    #[test]
    fn another_users_first_request_does_not_wait_behind_ones_many() {
        let mut queue = FairQueue::new(Bounds::for_workers(2));
        for n in 0..40 {
            queue.push(ALICE, n).unwrap();
        }
        // One of the two slots is reserved for other users.
        assert_eq!(served(&mut queue), [0]);
        queue.push(BOB, 100).unwrap();
        queue.push(BOB, 101).unwrap();
        queue.push(CAROL, 200).unwrap();
        assert_eq!(served(&mut queue), [100]);
        queue.remove(ALICE, 0);
        // Alice has waited longest.
        assert_eq!(served(&mut queue), [1]);
        queue.remove(BOB, 100);
        assert_eq!(served(&mut queue), [200]);
        queue.remove(ALICE, 1);
        assert_eq!(served(&mut queue), [101]);
    }

    #[test]
    fn a_request_that_gives_up_is_not_served() {
        let mut queue = queue(1, 1, 9);
        for n in 0..3 {
            queue.push(ALICE, n).unwrap();
        }
        assert_eq!(served(&mut queue), [0]);
        queue.remove(ALICE, 1);
        queue.remove(ALICE, 1);
        queue.remove(BOB, 7);
        queue.remove(ALICE, 0);
        assert_eq!(served(&mut queue), [2]);
        queue.remove(ALICE, 2);
        assert!(queue.users.is_empty() && queue.rounds.is_empty() && queue.served == 0);
    }

    #[test]
    fn a_request_that_a_served_one_needs_does_not_wait() {
        let mut queue = queue(1, 1, 9);
        for n in 0..3 {
            queue.push(ALICE, n).unwrap();
        }
        assert_eq!(served(&mut queue), [0]);
        assert!(queue.promote(ALICE, 2));
        assert!(!queue.promote(ALICE, 2) && !queue.promote(BOB, 1));
        queue.remove(ALICE, 2);
        assert_eq!(served(&mut queue), Vec::<u64>::new());
        queue.remove(ALICE, 0);
        assert_eq!(served(&mut queue), [1]);
    }

    #[test]
    fn a_host_with_one_slot_serves_everybody() {
        assert_eq!(Bounds::for_workers(0).slots_per_user, 1);
        assert_eq!(Bounds::for_workers(1).slots_per_user, 1);
        assert_eq!(Bounds::for_workers(8).slots_per_user, 7);
    }

    proptest! {
        #[test]
        fn the_bounds_hold_and_no_slot_stays_empty_while_somebody_waits(
            steps in prop::collection::vec((0u8..3, 0u32..4, 0u64..40), 0..200),
        ) {
            let mut queue = queue(3, 2, 4);
            let mut where_is: BTreeMap<u64, Uid> = BTreeMap::new();
            let mut served: BTreeSet<u64> = BTreeSet::new();
            for (n, (what, user, which)) in steps.into_iter().enumerate() {
                let user = Uid(user);
                match what {
                    0 => {
                        if queue.push(user, n as u64).is_ok() {
                            where_is.insert(n as u64, user);
                        }
                    }
                    _ => {
                        let Some((&request, &owner)) = where_is.iter().nth(which as usize % where_is.len().max(1)) else { continue };
                        queue.remove(owner, request);
                        where_is.remove(&request);
                        served.remove(&request);
                    }
                }
                served.extend(std::iter::from_fn(|| queue.pop()));
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
