//! What restricted guests reach: the addresses of allowed names, which the name server adds before it answers, and what
//! the packet filter has refused.

use std::net::IpAddr;

use banger_domain::{
    egress::{
        allow_list::AllowList,
        entry::Ports,
        grants::{Grant, Grants},
        host_name::HostName,
        log::Destination,
    },
    id::VmId,
    net::{
        element::{Element, Set, grant_element, grant_of, named_grant},
        nic::{Nic, TapName},
    },
};
use crabtables::{Batch, expr::Expr};

use super::{
    filter::{Filter, State},
    nft::{add_to, failed, remove_from},
};
use crate::ports::network::Result;

/// Denials of one guest that the packet filter has counted.
pub(super) struct Denied {
    pub(super) vm: VmId,
    pub(super) destination: Destination,
    pub(super) times: u64,
}

impl Filter {
    /// Lets a guest send to the addresses of a name for some minutes, if it may reach the name. Returns whether it may.
    pub(super) fn grant(&self, vm: VmId, name: &HostName, addresses: &[IpAddr]) -> Result<bool> {
        let mut state = self.lock();
        let Some(nic) = state.known.get(&vm).filter(|nic| nic.is_restricted()).cloned() else {
            return Ok(false);
        };
        let grants = nic.allowed.grants(name, addresses);
        if grants.is_empty() {
            return Ok(!nic.allowed.ports_of(name).is_empty());
        }
        let cannot = |error| failed(format!("let {} reach {name}", nic.tap()), error);
        state.make_room(&nic, &grants).map_err(cannot)?;
        // Known before they are added: nothing is in the kernel that is not known.
        state.grants.entry(vm).or_default().add(name, &grants);
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
        Ok(true)
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

    /// Removes the destinations of a guest that were looked up longest ago, if it has no room for these.
    fn make_room(&mut self, nic: &Nic, new: &[Grant]) -> crabtables::Result<()> {
        let surplus = self.grants.entry(nic.vm).or_default().surplus(new);
        if surplus.is_empty() {
            return Ok(());
        }
        let gone = elements_of(&nic.tap(), &surplus);
        let mut batch = Batch::new();
        remove_from(&mut batch, &self.leaving);
        remove_from(&mut batch, &gone);
        match self.commit(&batch) {
            Err(error) if error.is_not_found() => {}
            removed => removed?,
        }
        self.grants.entry(nic.vm).or_default().forget(&surplus);
        self.leaving = gone;
        Ok(())
    }

    /// Takes over the destinations that an earlier run has granted to a guest, so that its connections outlive a restart
    /// of the service. Returns what is left of earlier runs and starts besides.
    pub(super) fn inherit(&mut self, nic: &Nic) -> Result<Vec<Element>> {
        let mut left = self.left_of(&nic.tap())?;
        let grants = self.grants.entry(nic.vm).or_default();
        left.retain(|element| {
            named_grant(element).map(|(grant, name)| grants.add(&name, &[grant])).is_none()
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
            Some(grants) if !is_same => grants.beyond(allowed),
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
