//! What a restricted guest was allowed and denied, and how often. A guest chooses the names and addresses, so all is
//! bounded: rows, their lengths, and how many denials its owner hears of.

use core::{hash::Hash, net::IpAddr};
use std::collections::HashMap;

use super::host_name::HostName;
use crate::{
    id::{Timestamp, VmId},
    net::port::Protocol,
};

/// The most rows of each kind. The one that was last seen longest ago goes first.
const MAX_ROWS: usize = 128;
/// How many denials of one guest are announced in a second.
const ANNOUNCED_PER_SECOND: u32 = 8;
/// How long the same destination is not announced again, in microseconds.
const QUIET: u64 = 60_000_000;
const SECOND: u64 = 1_000_000;

/// Where a guest wanted to go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Destination {
    /// A name, in a look-up.
    Name(HostName),
    /// A port of an address, in a packet.
    Address(IpAddr, Protocol, u16),
}

impl Destination {
    /// Returns the name or the address.
    pub fn host(&self) -> String {
        match self {
            Self::Name(name) => name.to_string(),
            Self::Address(address, ..) => address.to_string(),
        }
    }

    /// Returns the port; 0 for a look-up.
    pub fn port(&self) -> u16 {
        match self {
            Self::Name(_) => 0,
            Self::Address(.., port) => *port,
        }
    }

    /// Returns the protocol: `dns` for a look-up.
    pub fn protocol(&self) -> &'static str {
        match self {
            Self::Name(_) => "dns",
            Self::Address(_, protocol, _) => protocol.as_str(),
        }
    }
}

/// A denial that the owner hears of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The sandbox.
    pub vm: VmId,
    /// Where it wanted to go.
    pub destination: Destination,
}

/// How often something was seen, and when last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// How often.
    pub count: u64,
    /// When last.
    pub last: Timestamp,
    announced: Timestamp,
}

/// How often a guest was allowed and denied something, with what is no longer in the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Look-ups of allowed names.
    pub allowed: u64,
    /// Denials.
    pub denied: u64,
}

/// What one guest was allowed and denied.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EgressLog {
    allowed: HashMap<HostName, Tally>,
    denied: HashMap<Destination, Tally>,
    totals: Totals,
    /// The second that the announcements are counted for, and their number.
    announcements: (u64, u32),
}

impl EgressLog {
    /// Counts a look-up of an allowed name.
    pub fn allow(&mut self, name: &HostName, now: Timestamp) {
        self.totals.allowed = self.totals.allowed.saturating_add(1);
        count(&mut self.allowed, name, 1, now);
    }

    /// Counts denials of a destination. Returns whether the owner should hear of it.
    pub fn deny(&mut self, destination: &Destination, times: u64, now: Timestamp) -> bool {
        self.totals.denied = self.totals.denied.saturating_add(times);
        let second = now.0 / SECOND;
        if self.announcements.0 != second {
            self.announcements = (second, 0);
        }
        let has_room = self.announcements.1 < ANNOUNCED_PER_SECOND;
        let tally = count(&mut self.denied, destination, times, now);
        let is_due = tally.announced == Timestamp::default() || now.0 >= tally.announced.0 + QUIET;
        if !has_room || !is_due {
            return false;
        }
        tally.announced = now;
        self.announcements.1 += 1;
        true
    }

    /// Returns the allowed names, the latest first.
    pub fn allowed(&self) -> Vec<(&HostName, Tally)> {
        latest_first(&self.allowed)
    }

    /// Returns the denied destinations, the latest first.
    pub fn denied(&self) -> Vec<(&Destination, Tally)> {
        latest_first(&self.denied)
    }
}

/// The most denials that wait to be announced.
const MAX_PENDING: usize = 1024;

/// The logs of all restricted guests.
#[derive(Debug, Default)]
pub struct EgressLogs {
    logs: HashMap<VmId, EgressLog>,
    pending: Vec<Denial>,
}

impl EgressLogs {
    /// Begins to count for a restricted guest. A repeat changes nothing.
    pub fn follow(&mut self, vm: VmId) {
        self.logs.entry(vm).or_default();
    }

    /// Counts a look-up of an allowed name.
    pub fn allow(&mut self, vm: VmId, name: &HostName, now: Timestamp) {
        if let Some(log) = self.logs.get_mut(&vm) {
            log.allow(name, now);
        }
    }

    /// Counts denials of a destination, and keeps the announcement if there is one.
    pub fn deny(&mut self, vm: VmId, destination: Destination, times: u64, now: Timestamp) {
        let is_announced = self.logs.get_mut(&vm).is_some_and(|log| log.deny(&destination, times, now));
        if is_announced && self.pending.len() < MAX_PENDING {
            self.pending.push(Denial { vm, destination });
        }
    }

    /// Returns the denials to announce, once.
    pub fn take_pending(&mut self) -> Vec<Denial> {
        core::mem::take(&mut self.pending)
    }

    /// Returns the log of a guest.
    pub fn of(&self, vm: VmId) -> EgressLog {
        self.logs.get(&vm).cloned().unwrap_or_default()
    }

    /// Returns how often a guest was allowed and denied something.
    pub fn totals(&self, vm: VmId) -> Totals {
        self.logs.get(&vm).map(|log| log.totals).unwrap_or_default()
    }

    /// Forgets a guest that has ended.
    pub fn forget(&mut self, vm: VmId) {
        self.logs.remove(&vm);
    }
}

fn count<'a, Key: Clone + Eq + Hash>(
    rows: &'a mut HashMap<Key, Tally>,
    key: &Key,
    times: u64,
    now: Timestamp,
) -> &'a mut Tally {
    if rows.len() >= MAX_ROWS
        && !rows.contains_key(key)
        && let Some(oldest) = rows.iter().min_by_key(|(_, tally)| tally.last).map(|(key, _)| key.clone())
    {
        rows.remove(&oldest);
    }
    let tally = rows.entry(key.clone()).or_default();
    tally.count = tally.count.saturating_add(times);
    tally.last = now;
    tally
}

fn latest_first<Key: Ord>(rows: &HashMap<Key, Tally>) -> Vec<(&Key, Tally)> {
    let mut rows: Vec<_> = rows.iter().map(|(key, tally)| (key, *tally)).collect();
    rows.sort_by(|(one, a), (other, b)| b.last.cmp(&a.last).then_with(|| one.cmp(other)));
    rows
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn name(n: u64) -> Destination {
        Destination::Name(format!("host{n}.example").parse().unwrap())
    }

    #[test]
    fn a_flood_of_denied_names_is_bounded_in_memory_and_announcements() {
        let mut log = EgressLog::default();
        let announced = |log: &mut EgressLog, second: u64| {
            (0..1000).filter(|n| log.deny(&name(*n), 1, Timestamp(second * SECOND + n))).count()
        };
        assert_eq!(announced(&mut log, 100), ANNOUNCED_PER_SECOND as usize);
        assert_eq!(announced(&mut log, 101), ANNOUNCED_PER_SECOND as usize);
        assert_eq!(log.denied().len(), MAX_ROWS);
        assert_eq!(log.denied()[0].0, &name(999));
    }

    #[test]
    fn a_guest_that_has_ended_is_not_counted() {
        let (mut logs, vm) = (EgressLogs::default(), VmId::from_bits(1));
        let deny = |logs: &mut EgressLogs| {
            logs.deny(vm, name(1), 1, Timestamp(SECOND));
            (logs.of(vm).denied().len(), logs.take_pending().len())
        };
        assert_eq!(deny(&mut logs), (0, 0));
        logs.follow(vm);
        logs.follow(vm);
        assert_eq!(deny(&mut logs), (1, 1));
        logs.forget(vm);
        assert_eq!(deny(&mut logs), (0, 0));
    }

    #[test]
    fn the_same_destination_is_announced_once_a_minute_and_always_counted() {
        let mut log = EgressLog::default();
        let at = |second: u64| Timestamp(second * SECOND);
        assert!(log.deny(&name(1), 1, at(100)));
        assert!(!log.deny(&name(1), 3, at(130)));
        assert!(log.deny(&name(1), 1, at(161)));
        assert_eq!(log.denied()[0].1.count, 5);
        log.allow(&"a.example".parse().unwrap(), at(161));
        assert_eq!(log.allowed()[0].1.count, 1);
    }
}
