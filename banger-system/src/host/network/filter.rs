//! The kernel's packet filter, by netlink. The rules are applied once; guests come and go as elements of sets, which
//! takes microseconds.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use banger_domain::{
    egress::{address::Neighbours, grants::Grants, nets::check_nets},
    id::VmId,
    net::{
        TABLE,
        element::{Element, Ipv6, Set, conflicts, counters, elements, grant_of, take_elements_of},
        nic::{Nic, TapName},
        port::Port,
        ruleset::{Bounds, delete_table, ruleset},
        subnet::Subnet,
    },
};
use crabtables::{Batch, ChainHook, Family, Hook, Policy, SetElem, SetElemList, Socket};
use rustix::io::Errno;

use super::{
    grants::elements_of,
    nft::{Rules, add_to, failed, remove_from},
};
use crate::ports::{
    FromHost as _,
    network::{Error, Result},
};

/// The packet filter. Every method blocks. Clones share the state.
#[derive(Clone, Default)]
pub(super) struct Filter(Arc<Mutex<State>>);

#[derive(Default)]
pub(super) struct State {
    socket: Option<Socket>,
    /// What the rules were made for, once they were made.
    prepared: Option<(Subnet, Ipv6)>,
    /// How many connections guests may have, if the kernel counts them.
    bounds: Option<Bounds>,
    /// The guests that this run of the service added.
    pub(super) known: BTreeMap<VmId, Nic>,
    /// The destinations of restricted guests.
    pub(super) grants: BTreeMap<VmId, Grants>,
    /// Guests that have no room for other destinations, and when that is looked at again.
    pub(super) full: BTreeMap<VmId, Duration>,
    /// The networks on the links of the host.
    pub(super) neighbours: Neighbours,
    /// The beginning of the time of destinations.
    begun: Option<Instant>,
    /// The links on which this run enabled forwarding for guests alone.
    opened: BTreeSet<String>,
    /// Elements of earlier runs that this run has not taken over; `None` until they are needed.
    left: Option<Vec<Element>>,
    /// Elements that were removed, and that a packet may have added again: one that was looked up just before. The next
    /// change of the packet filter removes them once more.
    pub(super) leaving: Vec<Element>,
}

/// Another program's chain that drops packets by default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ForeignDrop {
    /// The family and name of its table, and its name.
    pub(super) chain: String,
    /// Which packets pass through it.
    pub(super) hook: &'static str,
}

impl Filter {
    /// Applies the rules, and adds this run's guests again.
    pub(super) fn prepare(&self, subnet: Subnet, ipv6: Ipv6) -> Result<()> {
        let mut state = self.lock();
        state.prepared = Some((subnet, ipv6));
        state.repair()
    }

    /// Applies the rules again, as [`Filter::prepare`] does. Returns whether rules or guests were missing.
    pub(super) fn restore(&self) -> Result<bool> {
        let mut state = self.lock();
        let before = state.extent()?;
        state.repair()?;
        Ok(state.extent()? != before)
    }

    /// Removes the table with everything in it.
    pub(super) fn withdraw(&self) -> Result<()> {
        let mut state = self.lock();
        state.prepared = None;
        let mut batch = Batch::new();
        batch.add_table(&crabtables::Table::new(Family::Inet, TABLE));
        batch.delete_table(Family::Inet, TABLE);
        state.commit(&batch).map_err(|error| failed("remove the table of the packet filter", error))
    }

    /// Adds or changes a guest, as a whole or not at all. Removes elements that it no longer has, whichever run added them.
    pub(super) fn put(&self, nic: &Nic) -> Result<()> {
        let mut state = self.lock();
        let ipv6 = state.ipv6();
        let before = match state.known.get(&nic.vm) {
            Some(known) => elements(known, ipv6),
            None => state.inherit(nic)?,
        };
        state.swap(nic, before)
    }

    /// Removes the published ports of all guests.
    pub(super) fn unpublish_all(&self) -> Result<()> {
        let mut state = self.lock();
        let mut batch = Batch::new();
        for set in Set::OF_PORTS {
            batch.flush_set(Family::Inet, TABLE, set.name());
        }
        match state.commit(&batch) {
            Err(error) if error.is_not_found() => {}
            result => {
                result.map_err(|error| failed("remove published ports from the packet filter", error))?
            }
        }
        state.known.values_mut().for_each(|nic| nic.ports.clear());
        Ok(())
    }

    /// Removes a guest, whichever run added it.
    pub(super) fn remove(&self, vm: VmId) -> Result<()> {
        let mut state = self.lock();
        let (ipv6, tap) = (state.ipv6(), TapName::of(vm));
        let mut gone = match state.known.get(&vm) {
            Some(nic) => elements(nic, ipv6),
            None => state.left_of(&tap)?,
        };
        gone.extend(state.granted(vm));
        gone.extend(state.denied_to(&tap));
        let mut batch = Batch::new();
        remove_from(&mut batch, &state.leaving);
        remove_from(&mut batch, &gone);
        remove_from(&mut batch, &counters(&tap));
        match state.commit(&batch) {
            // The table is gone, and so are its elements.
            Err(error) if error.is_not_found() => {}
            result => result.map_err(|error| failed("remove a guest from the packet filter", error))?,
        }
        state.known.remove(&vm);
        state.grants.remove(&vm);
        state.full.remove(&vm);
        state.forget_left(&tap);
        state.leaving = gone.into_iter().filter(|element| grant_of(element).is_some()).collect();
        state.withdraw_again();
        Ok(())
    }

    /// Returns the guests in the table, of this run or an earlier one.
    pub(super) fn found(&self) -> Result<Vec<VmId>> {
        let elements = self.lock().list(Set::Source4.name())?;
        let vms = elements.iter().filter_map(|element| element.comment()?.parse().ok());
        Ok(vms.collect::<BTreeSet<_>>().into_iter().collect())
    }

    /// Marks exactly the links on which forwarding was enabled for guests alone.
    pub(super) fn mark_opened(&self, links: &BTreeSet<String>) -> Result<()> {
        let mut state = self.lock();
        let mut batch = Batch::new();
        batch.flush_set(Family::Inet, TABLE, OPENED);
        batch.add_elems(&marks(links));
        state.commit(&batch).map_err(|error| failed("mark the links that lead outside", error))?;
        state.opened.clone_from(links);
        Ok(())
    }

    /// Returns the marked links, of this run or an earlier one.
    pub(super) fn opened(&self) -> Result<BTreeSet<String>> {
        let elements = self.lock().list(OPENED)?;
        let name = |element: SetElem| {
            let key = element.key?;
            let end = key.iter().position(|byte| *byte == 0).unwrap_or(key.len());
            String::from_utf8(key[..end].to_vec()).ok()
        };
        Ok(elements.into_iter().filter_map(name).collect())
    }

    /// Returns whether a guest of this run needs to reach networks beyond the host.
    pub(super) fn reaches_outside(&self) -> bool {
        self.lock().known.values().any(Nic::reaches_outside)
    }

    /// Returns whether the table exists.
    pub(super) fn is_there(&self) -> Result<bool> {
        match self.lock().with(|socket| socket.get_table(Family::Inet, TABLE)) {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(failed("look for the table of the packet filter", error)),
        }
    }

    /// Returns other programs' chains that drop packets from or to guests, whatever our rules say.
    pub(super) fn foreign_drops(&self) -> Result<Vec<ForeignDrop>> {
        let chains = self.lock().with(|socket| socket.list_chains(Family::Unspec, None));
        let chains = chains.map_err(|error| failed("list the chains of the packet filter", error))?;
        let hooks = [(Hook::FORWARD, "forward"), (Hook::INPUT, "input")];
        let drops =
            chains.into_iter().filter(|chain| chain.policy == Some(Policy::Drop)).filter_map(|chain| {
                let ChainHook { hook, .. } = chain.hook.as_ref()?;
                let (_, name) = hooks.iter().find(|(known, _)| known == hook)?;
                let family = chain.family.name();
                Some(ForeignDrop { chain: format!("{family} {} {}", chain.table, chain.name), hook: name })
            });
        Ok(drops.collect())
    }

    /// Returns whether the rules were made.
    pub(super) fn is_prepared(&self) -> bool {
        self.lock().prepared.is_some()
    }

    /// Returns how many connections guests may have; `None` if the kernel does not count them.
    pub(super) fn bounds(&self) -> Option<Bounds> {
        self.lock().bounds
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns how many connections the kernel tracks; `None` if it does not say yet.
fn max_connections() -> Option<u32> {
    fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").ok()?.trim().parse().ok()
}

/// The set of links on which forwarding was enabled for guests alone.
const OPENED: &str = "opened";

/// Returns the elements of these links in that set.
fn marks(links: &BTreeSet<String>) -> SetElemList {
    let mut list = SetElemList::new(Family::Inet, TABLE, OPENED);
    list.elems.extend(links.iter().map(|link| {
        let mut name = link.as_bytes().to_vec();
        name.resize(16, 0);
        SetElem::new(name)
    }));
    list
}

impl State {
    /// Returns the time in which destinations are counted.
    pub(super) fn now(&mut self) -> Duration {
        self.begun.get_or_insert_with(Instant::now).elapsed()
    }

    fn ipv6(&self) -> Ipv6 {
        self.prepared.map_or(Ipv6::Absent, |(_, ipv6)| ipv6)
    }

    /// Returns how many rules and guests the table has: none of either if it does not exist.
    fn extent(&mut self) -> Result<(usize, usize)> {
        let rules = match self.with(|socket| socket.list_rules(Family::Inet, Some(TABLE), None)) {
            Ok(rules) => rules.len(),
            Err(error) if error.is_not_found() => 0,
            Err(error) => return Err(failed("list the rules of the packet filter", error)),
        };
        Ok((rules, self.list(Set::Source4.name())?.len()))
    }

    /// Restores the table, whatever happened to it.
    pub(super) fn repair(&mut self) -> Result<()> {
        let Some((subnet, ipv6)) = self.prepared else {
            return Err(Error::not_ready("the network for guests is not set up"));
        };
        self.grants.values_mut().for_each(Grants::note_lost);
        let bounds = Bounds::for_table(max_connections());
        self.bounds = Some(bounds);
        let rules = ruleset(subnet, self.bounds);
        if let Err(error) = self.apply(&rules) {
            // Sets and chains cannot be changed into others, and this table may be of another version.
            tracing::warn!(%error, "replacing the table of the packet filter");
            if let Err(error) = self.apply(&format!("{}{rules}", delete_table())) {
                self.apply(&format!("{}{}", delete_table(), ruleset(subnet, None)))?;
                tracing::error!(%error, "the kernel cannot limit connections: guests can fill its table");
                self.bounds = None;
            }
        }
        let mut batch = Batch::new();
        remove_from(&mut batch, &self.leaving);
        for nic in self.known.values() {
            add_to(&mut batch, &elements(nic, ipv6));
            add_to(&mut batch, &self.granted(nic.vm));
        }
        // A link that is no longer a way out meanwhile is closed only if its mark is found.
        if !self.opened.is_empty() {
            batch.add_elems(&marks(&self.opened));
        }
        self.commit(&batch).map_err(|error| failed("add the guests to the packet filter again", error))?;
        self.leaving.clear();
        let now = self.now();
        self.grants.values_mut().for_each(|grants| grants.note_restored(now));
        Ok(())
    }

    /// Applies rules, completely or not at all.
    fn apply(&mut self, rules: &str) -> Result<()> {
        let rules = Rules::compile(rules)?;
        self.commit(rules.batch()).map_err(|error| rules.refused(error))
    }

    /// Replaces these elements by those of the guest in one step, and withdraws destinations that it may no longer reach.
    fn swap(&mut self, nic: &Nic, mut before: Vec<Element>) -> Result<()> {
        check_nets(self.known.values(), nic)?;
        let after = elements(nic, self.ipv6());
        before.retain(|element| !after.contains(element));
        let beyond = self.grants_beyond(nic);
        let withdrawn = elements_of(&nic.tap(), &beyond);
        let mut batch = Batch::new();
        for gone in [&self.leaving, &before, &withdrawn] {
            remove_from(&mut batch, gone);
        }
        add_to(&mut batch, &after);
        let result = match self.commit(&batch) {
            // Somebody flushed the packet filter.
            Err(error) if error.is_not_found() => {
                self.repair()?;
                self.commit(&batch)
            }
            result => result,
        };
        result.map_err(|error| match error.errno().map(Errno::from_raw_os_error) {
            // A map already has an entry for the port of another guest.
            Some(Errno::BUSY | Errno::EXIST) => Error::Taken { message: self.taken(nic) },
            _ => failed(format!("add {} to the packet filter", nic.tap()), error),
        })?;
        self.known.insert(nic.vm, nic.clone());
        self.forget_left(&nic.tap());
        if let Some(grants) = self.grants.get_mut(&nic.vm) {
            grants.forget(&beyond);
        }
        // What earlier runs left without a name is among them.
        self.leaving = before.into_iter().filter(|element| grant_of(element).is_some()).collect();
        self.leaving.extend(withdrawn);
        self.withdraw_again();
        Ok(())
    }

    /// Says which port of this guest is published for another one.
    fn taken(&mut self, nic: &Nic) -> String {
        let there = self.all().unwrap_or_default();
        match nic.ports.iter().find(|port| conflicts(&there, nic, **port)) {
            Some(Port { host, protocol, .. }) => {
                format!(
                    "port {host}/{protocol} of the host is published by another sandbox; choose another one"
                )
            }
            None => "a port of the host is published by another sandbox; choose another one".to_owned(),
        }
    }

    /// Returns what earlier runs left of this guest. The kernel is asked once; from then on all changes are known.
    pub(super) fn left_of(&mut self, tap: &TapName) -> Result<Vec<Element>> {
        let mut left = match self.left.take() {
            Some(left) => left,
            None => self.all()?,
        };
        let found = take_elements_of(&mut left, tap);
        left.extend(found.iter().cloned());
        self.left = Some(left);
        Ok(found)
    }

    /// Forgets what earlier runs left of this guest, once it has been removed or taken over.
    fn forget_left(&mut self, tap: &TapName) {
        if let Some(left) = &mut self.left {
            take_elements_of(left, tap);
        }
    }

    fn all(&mut self) -> Result<Vec<Element>> {
        let mut all = Vec::new();
        for set in Set::ALL {
            all.extend(self.list(set.name())?.into_iter().filter_map(|element| {
                let value = element.data.as_ref().and_then(|data| data.as_value()).map(<[u8]>::to_vec);
                let comment = element.comment().map(str::to_owned);
                Some(Element { set, key: element.key?, end: element.key_end, value, comment })
            }));
        }
        Ok(all)
    }

    /// Returns the elements of a set; none if there is no such set.
    pub(super) fn list(&mut self, set: &str) -> Result<Vec<SetElem>> {
        match self.with(|socket| socket.list_elems(Family::Inet, TABLE, set)) {
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            result => result.map_err(|error| failed(format!("list the set {set}"), error)),
        }
    }

    pub(super) fn commit(&mut self, batch: &Batch) -> crabtables::Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        self.with(|socket| socket.commit(batch).map(drop))
    }

    pub(super) fn with<T>(
        &mut self,
        talk: impl FnOnce(&mut Socket) -> crabtables::Result<T>,
    ) -> crabtables::Result<T> {
        if self.socket.is_none() {
            self.socket = Some(Socket::new()?);
        }
        let result = self
            .socket
            .as_mut()
            .map(talk)
            .unwrap_or_else(|| Err(io::Error::from(io::ErrorKind::NotConnected).into()));
        // After a lost or truncated answer, the next request must not read the rest of it.
        if matches!(result, Err(crabtables::Error::Io(_) | crabtables::Error::Malformed(_))) {
            self.socket = None;
        }
        result
    }
}
