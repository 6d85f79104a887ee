//! What restricted guests reach: the addresses of allowed names, which the name server adds before it answers, and what
//! the packet filter has refused.

use std::{net::IpAddr, time::Duration};

use banger_domain::{
    egress::{
        address::Neighbours,
        allow_list::AllowList,
        entry::Ports,
        grants::{Grant, Grants, MAX_GRANTS, OPEN},
        host_name::HostName,
        log::Destination,
    },
    id::VmId,
    net::{
        TABLE,
        element::{Element, Set, grant_element, grant_of, named_grant},
        nic::{Nic, TapName},
    },
};
use crabtables::{Batch, Family, expr::Expr};

use super::{
    filter::{Filter, State},
    nft::{add_to, failed, keyed, remove_from},
};
use crate::ports::network::Result;

/// Pause before the destinations of a full guest are queried again.
const STAYS_FULL: Duration = Duration::from_secs(1);

/// What came of a look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Granting {
    /// The guest reaches the addresses, if they are of the internet.
    Done,
    /// The guest may not reach the name.
    NotAllowed,
    /// The guest uses as many destinations as it may have.
    NoRoom,
}

/// Denials of one guest that the packet filter has counted.
pub(super) struct Denied {
    pub(super) vm: VmId,
    pub(super) destination: Destination,
    pub(super) times: u64,
}

impl Filter {
    /// Lets a guest send to the addresses of a name for some minutes, if it may reach the name.
    pub(super) fn grant(&self, vm: VmId, name: &HostName, addresses: &[IpAddr]) -> Result<Granting> {
        let mut state = self.lock();
        let Some(nic) = state.known.get(&vm).filter(|nic| nic.is_restricted()).cloned() else {
            return Ok(Granting::NotAllowed);
        };
        let grants = nic.allowed.grants(name, addresses, &state.neighbours);
        if grants.is_empty() {
            return Ok(match nic.allowed.ports_of(name).is_empty() {
                true => Granting::NotAllowed,
                false => Granting::Done,
            });
        }
        let now = state.now();
        if state.grants.entry(vm).or_default().are_fresh(name, &grants, now) {
            return Ok(Granting::Done);
        }
        let cannot = |error| failed(format!("let {} reach {name}", nic.tap()), error);
        if !state.make_room(&nic, &grants, now).map_err(cannot)? {
            return Ok(Granting::NoRoom);
        }
        state.note_use(&nic, &grants, now).map_err(cannot)?;
        // Known before they are added: nothing is in the kernel that is not known.
        state.grants.entry(vm).or_default().add(name, &grants, now);
        let new: Vec<Element> =
            grants.iter().map(|grant| grant_element(&nic.tap(), *grant, Some(name))).collect();
        let mut batch = Batch::new();
        remove_from(&mut batch, &state.leaving);
        // Adding an element that exists does not begin its time again on every kernel.
        remove_from(&mut batch, &new);
        add_to(&mut batch, &new);
        match state.commit(&batch) {
            // The table is gone. It comes back with these elements.
            Err(error) if error.is_not_found() => state.repair()?,
            granted => granted.map_err(cannot)?,
        }
        state.leaving.clear();
        // Later than the kernel began their time, so that a packet is told from this.
        let now = state.now();
        state.grants.entry(vm).or_default().note_added(&grants, now);
        Ok(Granting::Done)
    }

    /// Sets the networks on the links of the host, and withdraws what guests were granted there.
    pub(super) fn set_neighbours(&self, neighbours: Neighbours) -> Result<()> {
        let mut state = self.lock();
        let state = &mut *state;
        state.neighbours = neighbours;
        let mut gone = Vec::new();
        for (vm, grants) in &state.grants {
            let allowed = state.known.get(vm).map(|nic| &nic.allowed);
            let beyond = allowed.map(|allowed| grants.beyond(allowed, &state.neighbours)).unwrap_or_default();
            gone.extend((!beyond.is_empty()).then_some((*vm, beyond)));
        }
        if gone.is_empty() {
            return Ok(());
        }
        let elements: Vec<Element> =
            gone.iter().flat_map(|(vm, beyond)| elements_of(&TapName::of(*vm), beyond)).collect();
        let mut batch = Batch::new();
        remove_from(&mut batch, &state.leaving);
        remove_from(&mut batch, &elements);
        match state.commit(&batch) {
            Err(error) if error.is_not_found() => {}
            removed => removed.map_err(|error| failed("withdraw the addresses of neighbours", error))?,
        }
        for (vm, beyond) in gone {
            state.grants.entry(vm).or_default().forget(&beyond);
        }
        state.leaving = elements;
        state.withdraw_again();
        Ok(())
    }

    /// Removes and returns what the packet filter has refused to guests.
    pub(super) fn take_denied(&self) -> Result<Vec<Denied>> {
        let mut state = self.lock();
        // For the last time: no packet is on its way for so long.
        if state.withdraw_again() {
            state.leaving.clear();
        }
        if !state.known.values().any(Nic::is_restricted) {
            return Ok(Vec::new());
        }
        let guests: Vec<(VmId, TapName)> = state.known.values().map(|nic| (nic.vm, nic.tap())).collect();
        let (mut denied, mut batch) = (Vec::new(), Batch::new());
        for (element, times) in state.denied()? {
            remove_from(&mut batch, std::slice::from_ref(&element));
            let guest = guests.iter().find(|(_, tap)| is_of(&element, tap));
            if let (Some((vm, _)), Some(Grant { address, ports: Ports::One(protocol, port) })) =
                (guest, grant_of(&element))
            {
                let destination = Destination::Address(address, protocol, port);
                denied.push(Denied { vm: *vm, destination, times });
            }
        }
        match state.commit(&batch) {
            Err(error) if error.is_not_found() => Ok(denied),
            taken => taken.map(|()| denied).map_err(|error| failed("read what was refused to guests", error)),
        }
    }
}

/// Returns whether an element is about the guest with this TAP.
fn is_of(element: &Element, tap: &TapName) -> bool {
    let mut name = tap.as_str().as_bytes().to_vec();
    name.resize(16, 0);
    element.key.starts_with(&name)
}

/// Returns the elements of these destinations of a guest, to remove them.
pub(super) fn elements_of(tap: &TapName, grants: &[Grant]) -> Vec<Element> {
    grants.iter().map(|grant| grant_element(tap, *grant, None)).collect()
}

impl State {
    /// Returns the elements of the destinations that a guest was granted.
    pub(super) fn granted(&self, vm: VmId) -> Vec<Element> {
        let tap = TapName::of(vm);
        let grants = self.grants.get(&vm).into_iter().flat_map(Grants::iter);
        grants.map(|(grant, name)| grant_element(&tap, grant, Some(name))).collect()
    }

    /// Removes destinations that a guest does not use, if it has no room for these. Returns whether there is room then.
    fn make_room(&mut self, nic: &Nic, new: &[Grant], now: Duration) -> crabtables::Result<bool> {
        let tap = nic.tap();
        if self.grants.entry(nic.vm).or_default().excess(new) == 0 {
            return Ok(true);
        }
        if self.full.get(&nic.vm).is_some_and(|until| now < *until) {
            return Ok(false);
        }
        // Out of the way while the packet filter is asked.
        let mut grants = self.grants.remove(&nic.vm).unwrap_or_default();
        let surplus = grants.surplus(new, now, |grant| self.unused(&tap, *grant));
        self.grants.insert(nic.vm, grants);
        let Some(surplus) = surplus? else {
            if self.full.insert(nic.vm, now + STAYS_FULL).is_none() {
                tracing::warn!(vm = %nic.vm, most = MAX_GRANTS, "a guest uses all the addresses that it may have at a time");
            }
            return Ok(false);
        };
        self.full.remove(&nic.vm);
        let gone = elements_of(&tap, &surplus);
        let mut batch = Batch::new();
        remove_from(&mut batch, &self.leaving);
        remove_from(&mut batch, &gone);
        match self.commit(&batch) {
            Err(error) if error.is_not_found() => {}
            removed => removed?,
        }
        self.grants.entry(nic.vm).or_default().forget(&surplus);
        self.leaving = gone;
        Ok(true)
    }

    /// Remembers the use of destinations that are about to be added again.
    fn note_use(&mut self, nic: &Nic, again: &[Grant], now: Duration) -> crabtables::Result<()> {
        let tap = nic.tap();
        let mut grants = self.grants.remove(&nic.vm).unwrap_or_default();
        let noted = grants.note_use(again, now, |grant| self.unused(&tap, *grant));
        self.grants.insert(nic.vm, grants);
        noted
    }

    /// Returns for how long the packet filter has seen neither a packet to a destination nor a look-up of it; `None` if it
    /// no longer has it.
    fn unused(&mut self, tap: &TapName, grant: Grant) -> crabtables::Result<Option<Duration>> {
        let element = grant_element(tap, grant, None);
        let name = element.set.name();
        match self.with(|socket| socket.get_elems(Family::Inet, TABLE, name, &[keyed(&element)])) {
            Err(error) if error.is_not_found() => Ok(None),
            found => {
                let left = found?.first().and_then(|found| found.expiration);
                Ok(left.map(|left| OPEN.saturating_sub(left)))
            }
        }
    }

    /// Takes over the destinations that an earlier run has granted to a guest, so that its connections outlive a restart
    /// of the service. Returns what is left of earlier runs and starts besides.
    pub(super) fn inherit(&mut self, nic: &Nic) -> Result<Vec<Element>> {
        let (mut left, now) = (self.left_of(&nic.tap())?, self.now());
        let grants = self.grants.entry(nic.vm).or_default();
        left.retain(|element| {
            named_grant(element).map(|(grant, name)| grants.add(&name, &[grant], now)).is_none()
        });
        left.extend(self.denied_to(&nic.tap()));
        Ok(left)
    }

    /// Returns the destinations that a guest may no longer reach.
    pub(super) fn grants_beyond(&self, nic: &Nic) -> Vec<Grant> {
        let known = self.known.get(&nic.vm);
        let is_same = known.is_some_and(|known| (known.nat, &known.allowed) == (nic.nat, &nic.allowed));
        let nothing = AllowList::default();
        let allowed = if nic.is_restricted() { &*nic.allowed } else { &nothing };
        match self.grants.get(&nic.vm) {
            Some(grants) if !is_same => grants.beyond(allowed, &self.neighbours),
            _ => Vec::new(),
        }
    }

    /// Removes once more what was removed just before: a packet that was on its way then may have added it again. Returns
    /// whether that worked.
    pub(super) fn withdraw_again(&mut self) -> bool {
        let mut batch = Batch::new();
        remove_from(&mut batch, &self.leaving);
        match self.commit(&batch) {
            Err(error) if !error.is_not_found() => {
                tracing::warn!(%error, "cannot yet withdraw what a guest may reach");
                false
            }
            _ => true,
        }
    }

    /// Returns what the packet filter has refused to a guest, or to an earlier one with this TAP.
    pub(super) fn denied_to(&mut self, tap: &TapName) -> Vec<Element> {
        match self.denied() {
            Ok(denied) => {
                denied.into_iter().map(|(element, _)| element).filter(|element| is_of(element, tap)).collect()
            }
            // They only count, and end by themselves.
            Err(error) => {
                tracing::warn!(%error, "cannot forget what was refused to a guest");
                Vec::new()
            }
        }
    }

    /// Returns what the packet filter has refused to guests, and how often.
    fn denied(&mut self) -> Result<Vec<(Element, u64)>> {
        let mut denied = Vec::new();
        for set in Set::DENIED {
            for found in self.list(set.name())? {
                let times = found.exprs.iter().find_map(|expr| match expr {
                    Expr::Counter(counter) => Some(counter.packets),
                    _ => None,
                });
                let Some(key) = found.key else { continue };
                let element = Element { set, key, end: None, value: None, comment: None };
                denied.push((element, times.unwrap_or(1).max(1)));
            }
        }
        Ok(denied)
    }
}
