//! All names at one moment. A table is built from all sandboxes that run or wake when they are used, and never changes: a
//! change replaces the whole table.

use core::net::IpAddr;
use std::{collections::HashMap, sync::Arc};

use super::{
    DOMAIN,
    label::UserLabel,
    question::{Answer, Data, Kind, Zone},
    reverse::{self, ReverseName},
};
use crate::{
    egress::allow_list::AllowList,
    id::{Timestamp, VmId},
    name::Name,
    net::{
        nic::Nat,
        subnet::{Slot, Subnet},
    },
};

/// A sandbox that has names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedVm {
    /// The sandbox.
    pub vm: VmId,
    /// Its own name.
    pub name: Name,
    /// Its owner.
    pub user: UserLabel,
    /// Index among the addresses.
    pub slot: Slot,
    /// Whether the guest reaches other networks through the host, and so may ask for names there.
    pub nat: Nat,
    /// What it reaches there without NAT for everything.
    pub allowed: Arc<AllowList>,
    /// When it started.
    pub since: Timestamp,
    /// Whether its guest can answer.
    pub presence: Presence,
}

/// Whether a guest can answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Presence {
    /// It runs.
    Up,
    /// It is suspended, and resumed when somebody looks its name up.
    Asleep,
}

/// Who sends a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client<'a> {
    /// The host. Its users see every name too: `ps` and the routes already show as much.
    Host,
    /// A guest, which sees only the guests of its owner.
    Guest(&'a NamedVm),
}

/// The names of all sandboxes that run or wake when they are used.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    subnet: Subnet,
    /// Those that run first, then by start time.
    holders: Vec<NamedVm>,
    by_slot: HashMap<Slot, usize>,
    /// By user, then by name.
    by_user: HashMap<String, HashMap<String, usize>>,
    /// The sandbox that had the name first, by name.
    first: HashMap<String, usize>,
}

impl Table {
    /// Builds the table of these sandboxes.
    pub fn of(subnet: Subnet, mut holders: Vec<NamedVm>) -> Self {
        // Which sandbox gets a short name must not depend on the order of the argument.
        holders.sort_by_key(|holder| (holder.presence, holder.since, holder.vm));
        let (mut by_slot, mut first) = (HashMap::new(), HashMap::new());
        let mut by_user: HashMap<String, HashMap<String, usize>> = HashMap::new();
        for (index, holder) in holders.iter().enumerate() {
            let (user, name) = (holder.user.to_string(), holder.name.to_string());
            by_slot.insert(holder.slot, index);
            first.entry(name.clone()).or_insert(index);
            by_user.entry(user).or_default().entry(name).or_insert(index);
        }
        Self { subnet, holders, by_slot, by_user, first }
    }

    /// Returns the addresses of guests.
    pub fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// Returns the number of sandboxes.
    pub fn len(&self) -> usize {
        self.holders.len()
    }

    /// Returns whether there is no sandbox.
    pub fn is_empty(&self) -> bool {
        self.holders.is_empty()
    }

    /// Returns whether a guest with a name has this slot.
    pub fn has_guest_at(&self, slot: Slot) -> bool {
        self.by_slot.contains_key(&slot)
    }

    /// Returns whether this sandbox has a name.
    pub fn has_guest(&self, vm: VmId) -> bool {
        self.holders.iter().any(|holder| holder.vm == vm)
    }

    /// Returns the names of a sandbox on the host, the permanent one first; none if it neither runs nor wakes.
    pub fn names_of(&self, vm: VmId) -> Vec<String> {
        let Some(index) = self.holders.iter().position(|holder| holder.vm == vm) else { return Vec::new() };
        let holder = &self.holders[index];
        let mut names = vec![full_name(holder)];
        if self.first.get(holder.name.as_str()) == Some(&index) {
            names.push(format!("{}.{DOMAIN}", holder.name));
        }
        names
    }

    /// Returns whether a name of `before` is gone, belongs to another sandbox now, or to one that has to wake first.
    pub fn has_lost_names_of(&self, before: &Table) -> bool {
        before.subnet != self.subnet
            || before.holders.iter().any(|old| {
                let same = |new: &NamedVm| new.slot == old.slot && new.presence <= old.presence;
                !self.find(old.user.as_str(), old.name.as_str()).is_some_and(same)
            })
            || before.first.iter().any(|(name, &old)| {
                let new = self.first.get(name).and_then(|&index| self.holders.get(index));
                new.map(|new| new.slot) != before.holders.get(old).map(|old| old.slot)
            })
    }

    /// Returns who asks from this address: the host or a running guest. `None` for any other address, which gets no
    /// answer. The packet filter ensures that guests cannot forge their address.
    pub fn client(&self, source: IpAddr) -> Option<Client<'_>> {
        let (gateway4, gateway6) = self.subnet.gateway();
        if source == gateway4 || source == gateway6 {
            return Some(Client::Host);
        }
        self.find_at(source).map(Client::Guest)
    }

    /// Answers a question about a name, given as lower-case labels.
    pub fn answer(&self, client: Client<'_>, labels: &[&[u8]], kind: Kind) -> Answer {
        if let [rest @ .., domain] = labels
            && *domain == DOMAIN.as_bytes()
        {
            return self.answer_name(client, rest, kind);
        }
        match reverse::parse(self.subnet, labels) {
            Some((zone, place)) => self.answer_address(client, zone, place, kind),
            None => Answer::NotOurs,
        }
    }

    fn answer_name(&self, client: Client<'_>, labels: &[&[u8]], kind: Kind) -> Answer {
        let text: Option<Vec<&str>> = labels.iter().map(|label| core::str::from_utf8(label).ok()).collect();
        match text.as_deref() {
            Some([]) => self.apex(kind),
            Some(&[name]) => match self.short(client, name) {
                Some(holder) => self.addresses(holder, kind),
                // There are names below it.
                None if self.has_names_of(client, name) => Answer::NoData(Zone::Names),
                None => Answer::NoName(Zone::Names),
            },
            Some(&[name, user]) => match self.find(user, name) {
                Some(holder) if may_know(client, holder) => self.addresses(holder, kind),
                _ => Answer::NoName(Zone::Names),
            },
            _ => Answer::NoName(Zone::Names),
        }
    }

    /// Answers for the domain itself, which is the host.
    fn apex(&self, kind: Kind) -> Answer {
        let (v4, v6) = self.subnet.gateway();
        Answer::Records(match kind {
            Kind::A => vec![Data::A(v4)],
            Kind::Aaaa => vec![Data::Aaaa(v6)],
            Kind::Soa => vec![Data::Soa(Zone::Names)],
            Kind::Ns => vec![Data::Ns],
            Kind::Any => vec![Data::A(v4), Data::Aaaa(v6), Data::Soa(Zone::Names), Data::Ns],
            Kind::Ptr | Kind::Other => return Answer::NoData(Zone::Names),
        })
    }

    /// Finds a name without a user: among the client's own for a guest, among all for the host.
    fn short(&self, client: Client<'_>, name: &str) -> Option<&NamedVm> {
        match client {
            Client::Host => self.holders.get(*self.first.get(name)?),
            Client::Guest(guest) => self.find(guest.user.as_str(), name),
        }
    }

    fn has_names_of(&self, client: Client<'_>, user: &str) -> bool {
        match client {
            Client::Host => self.by_user.contains_key(user),
            Client::Guest(guest) => guest.user.as_str() == user,
        }
    }

    fn find(&self, user: &str, name: &str) -> Option<&NamedVm> {
        self.holders.get(*self.by_user.get(user)?.get(name)?)
    }

    fn addresses(&self, holder: &NamedVm, kind: Kind) -> Answer {
        let Some((v4, v6)) = self.subnet.guest(holder.slot) else { return Answer::NoName(Zone::Names) };
        let records = match kind {
            Kind::A => vec![Data::A(v4)],
            Kind::Aaaa => vec![Data::Aaaa(v6)],
            Kind::Any => vec![Data::A(v4), Data::Aaaa(v6)],
            Kind::Ptr | Kind::Soa | Kind::Ns | Kind::Other => return Answer::NoData(Zone::Names),
        };
        match holder.presence {
            Presence::Up => Answer::Records(records),
            Presence::Asleep => Answer::Asleep(holder.vm, records),
        }
    }

    fn answer_address(&self, client: Client<'_>, zone: Zone, place: ReverseName, kind: Kind) -> Answer {
        match (place, kind) {
            (ReverseName::Apex, Kind::Soa) => Answer::Records(vec![Data::Soa(zone)]),
            (ReverseName::Apex, Kind::Ns) => Answer::Records(vec![Data::Ns]),
            (ReverseName::Apex, Kind::Any) => Answer::Records(vec![Data::Soa(zone), Data::Ns]),
            (ReverseName::Apex | ReverseName::Between, _) => Answer::NoData(zone),
            (ReverseName::Nowhere, _) => Answer::NoName(zone),
            (ReverseName::Address(address), kind) => match (self.name_of(client, address), kind) {
                (Some(name), Kind::Ptr | Kind::Any) => Answer::Records(vec![Data::Ptr(name)]),
                (Some(_), _) => Answer::NoData(zone),
                (None, _) => Answer::NoName(zone),
            },
        }
    }

    /// Returns the permanent name of an address.
    fn name_of(&self, client: Client<'_>, address: IpAddr) -> Option<String> {
        let (gateway4, gateway6) = self.subnet.gateway();
        if address == gateway4 || address == gateway6 {
            return Some(DOMAIN.to_owned());
        }
        let holder = self.find_at(address).filter(|holder| may_know(client, holder))?;
        Some(full_name(holder))
    }

    fn find_at(&self, address: IpAddr) -> Option<&NamedVm> {
        let slot = match address {
            IpAddr::V4(v4) => self.subnet.slot_of(v4),
            IpAddr::V6(v6) => self.subnet.slot_of_v6(v6),
        };
        self.holders.get(*self.by_slot.get(&slot?)?)
    }
}

fn full_name(holder: &NamedVm) -> String {
    format!("{}.{}.{DOMAIN}", holder.name, holder.user)
}

fn may_know(client: Client<'_>, holder: &NamedVm) -> bool {
    match client {
        Client::Host => true,
        Client::Guest(guest) => guest.user == holder.user,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::id::Uid;

    fn holder(id: u128, name: &str, user: &str, since: u64) -> NamedVm {
        NamedVm {
            vm: VmId::from_bits(id),
            name: name.parse().unwrap(),
            user: UserLabel::of(user, Uid(1000)),
            slot: Slot(u32::try_from(id).unwrap()),
            nat: Nat::Off,
            allowed: Arc::default(),
            since: Timestamp(since),
            presence: Presence::Up,
        }
    }

    fn table(holders: &[NamedVm]) -> Table {
        Table::of("172.30.0.0/16 fd12:3456:789a::/64".parse().unwrap(), holders.to_vec())
    }

    /// Returns the answer that a client at this address gets.
    fn ask(table: &Table, from: &str, name: &str, kind: Kind) -> Answer {
        let labels: Vec<&[u8]> = name.split('.').map(str::as_bytes).collect();
        table.answer(table.client(from.parse().unwrap()).unwrap(), &labels, kind)
    }

    fn a(address: &str) -> Answer {
        Answer::Records(vec![Data::A(address.parse().unwrap())])
    }

    const HOST: &str = "172.30.0.1";
    const NO_NAME: Answer = Answer::NoName(Zone::Names);
    const NO_DATA: Answer = Answer::NoData(Zone::Names);

    #[test]
    fn a_vm_has_a_name_of_its_own_and_the_short_one_when_it_was_first() {
        let names = table(&[holder(1, "web", "alice", 20), holder(2, "web", "bob", 10)]);
        assert_eq!(names.names_of(VmId::from_bits(1)), ["web.alice.vm"]);
        assert_eq!(names.names_of(VmId::from_bits(2)), ["web.bob.vm", "web.vm"]);
        assert_eq!(names.names_of(VmId::from_bits(3)), [""; 0]);
    }

    #[test]
    fn the_one_that_had_a_name_first_keeps_it() {
        let (alices, bobs) = (holder(7, "web", "alice", 10), holder(3, "web", "bob", 20));
        for both in [[alices.clone(), bobs.clone()], [bobs.clone(), alices.clone()]] {
            let table = table(&both);
            assert_eq!(ask(&table, HOST, "web.vm", Kind::A), a("172.30.0.9"));
            assert_eq!(ask(&table, HOST, "web.alice.vm", Kind::A), a("172.30.0.9"));
            assert_eq!(ask(&table, HOST, "web.bob.vm", Kind::A), a("172.30.0.5"));
        }
        assert_eq!(ask(&table(&[bobs]), HOST, "web.vm", Kind::A), a("172.30.0.5"));
    }

    #[test]
    fn every_kind_of_record_is_answered() {
        let table = table(&[holder(0, "web", "alice", 1)]);
        let v6: core::net::Ipv6Addr = "fd12:3456:789a::2".parse().unwrap();
        assert_eq!(ask(&table, HOST, "web.vm", Kind::Aaaa), Answer::Records(vec![Data::Aaaa(v6)]));
        assert_eq!(ask(&table, HOST, "web.vm", Kind::Other), NO_DATA);
        assert_eq!(ask(&table, HOST, "web.vm", Kind::Soa), NO_DATA);
        assert_eq!(ask(&table, HOST, "alice.vm", Kind::A), NO_DATA);
        assert_eq!(ask(&table, HOST, "nobody.vm", Kind::A), NO_NAME);
        assert_eq!(ask(&table, HOST, "x.web.alice.vm", Kind::A), NO_NAME);
        assert_eq!(ask(&table, HOST, "vm", Kind::A), a(HOST));
        assert_eq!(ask(&table, HOST, "vm", Kind::Soa), Answer::Records(vec![Data::Soa(Zone::Names)]));
        assert_eq!(ask(&table, HOST, "vm", Kind::Ns), Answer::Records(vec![Data::Ns]));
        assert_eq!(ask(&table, HOST, "example.org", Kind::A), Answer::NotOurs);
        assert_eq!(ask(&table, HOST, "vm.example.org", Kind::A), Answer::NotOurs);
        assert_eq!(ask(&table, HOST, "1.0.0.127.in-addr.arpa", Kind::Ptr), Answer::NotOurs);

        let name = Answer::Records(vec![Data::Ptr("web.alice.vm".to_owned())]);
        assert_eq!(ask(&table, HOST, "2.0.30.172.in-addr.arpa", Kind::Ptr), name);
        assert_eq!(
            ask(&table, HOST, "2.0.30.172.in-addr.arpa", Kind::A),
            Answer::NoData(Zone::Reverse4),
            "an address has a name and nothing else"
        );
        let six = format!("2{}.{}", ".0".repeat(15), reverse::zone6(table.subnet()));
        assert_eq!(ask(&table, HOST, &six, Kind::Ptr), name);
        assert_eq!(
            ask(&table, HOST, "1.0.30.172.in-addr.arpa", Kind::Ptr),
            Answer::Records(vec![Data::Ptr("vm".to_owned())])
        );
        assert_eq!(ask(&table, HOST, "3.0.30.172.in-addr.arpa", Kind::Ptr), Answer::NoName(Zone::Reverse4));
        assert_eq!(ask(&table, HOST, "0.30.172.in-addr.arpa", Kind::Ptr), Answer::NoData(Zone::Reverse4));
    }

    #[test]
    fn a_guest_knows_its_owners_guests_and_nobody_else() {
        let table = table(&[
            holder(0, "web", "alice", 1),
            holder(1, "db", "alice", 2),
            holder(2, "web", "bob", 3),
            holder(3, "mail", "bob", 4),
        ]);
        for alice in ["172.30.0.3", "fd12:3456:789a::3"] {
            assert_eq!(ask(&table, alice, "web.vm", Kind::A), a("172.30.0.2"));
            assert_eq!(ask(&table, alice, "web.alice.vm", Kind::A), a("172.30.0.2"));
            for (name, zone) in [
                ("web.bob.vm", Zone::Names),
                ("mail.bob.vm", Zone::Names),
                ("mail.vm", Zone::Names),
                ("bob.vm", Zone::Names),
                ("4.0.30.172.in-addr.arpa", Zone::Reverse4),
            ] {
                for kind in [Kind::A, Kind::Ptr, Kind::Any, Kind::Other] {
                    assert_eq!(ask(&table, alice, name, kind), Answer::NoName(zone), "{name}");
                }
            }
        }
        // The first one with the name is another user's, so this guest must not learn of it.
        assert_eq!(ask(&table, "172.30.0.4", "web.vm", Kind::A), a("172.30.0.4"));
    }

    #[test]
    fn a_sandbox_that_sleeps_is_woken_by_those_who_may_know_it_and_who_ask_for_its_address() {
        let asleep = |holder| NamedVm { presence: Presence::Asleep, ..holder };
        let (web, bobs) = (asleep(holder(0, "web", "alice", 1)), holder(1, "web", "bob", 2));
        let (mail, carols) = (holder(2, "mail", "alice", 3), holder(3, "db", "carol", 4));
        let up = NamedVm { presence: Presence::Up, ..web.clone() };
        let before = table(&[up, mail.clone()]);
        let table = table(&[web.clone(), bobs, mail, carols]);
        let wakes = Answer::Asleep(web.vm, vec![Data::A("172.30.0.2".parse().unwrap())]);
        assert_eq!(ask(&table, HOST, "web.alice.vm", Kind::A), wakes);
        assert_eq!(ask(&table, "172.30.0.4", "web.vm", Kind::A), wakes);
        // One that runs has the short name, whichever was first.
        assert_eq!(ask(&table, HOST, "web.vm", Kind::A), a("172.30.0.3"));
        for guest in ["172.30.0.3", "172.30.0.5"] {
            assert_eq!(ask(&table, guest, "web.alice.vm", Kind::A), NO_NAME, "of another owner");
        }
        let name = Answer::Records(vec![Data::Ptr("web.alice.vm".to_owned())]);
        assert_eq!(ask(&table, HOST, "2.0.30.172.in-addr.arpa", Kind::Ptr), name, "nobody connects by that");
        assert_eq!(ask(&table, HOST, "web.alice.vm", Kind::Other), NO_DATA);
        assert!(table.has_lost_names_of(&before), "a resolver must ask again");
        assert!(!before.has_lost_names_of(&Table::of(before.subnet(), vec![web])));
    }

    #[test]
    fn other_clients_are_neither_the_host_nor_a_guest() {
        let table = table(&[holder(0, "web", "alice", 1)]);
        for stranger in ["172.30.0.3", "172.30.0.0", "192.0.2.1", "127.0.0.1", "fd12:3456:789a::9", "::1"] {
            assert_eq!(table.client(stranger.parse().unwrap()), None, "{stranger}");
        }
        assert_eq!(table.client("fd12:3456:789a::1".parse().unwrap()), Some(Client::Host));
    }

    #[test]
    fn labels_that_are_not_text_are_not_names() {
        let table = table(&[holder(0, "web", "alice", 1)]);
        let labels: [&[u8]; 3] = [b"\xff\x00", b"a.b", b"vm"];
        assert_eq!(table.answer(Client::Host, &labels, Kind::A), NO_NAME);
        assert_eq!(table.answer(Client::Host, &[b"web.alice", b"vm"], Kind::A), NO_NAME);
        assert_eq!(table.answer(Client::Host, &[], Kind::A), Answer::NotOurs);
    }

    #[test]
    fn a_lost_name_is_noticed_and_a_new_one_is_not_lost() {
        let (web, db, bobs) =
            (holder(0, "web", "alice", 1), holder(1, "db", "alice", 2), holder(2, "web", "bob", 3));
        let before = table(&[web.clone(), bobs.clone()]);
        assert!(!table(&[web.clone(), db, bobs.clone()]).has_lost_names_of(&before));
        assert!(table(&[web]).has_lost_names_of(&before));
        assert!(table(&[bobs]).has_lost_names_of(&before));
    }
}
