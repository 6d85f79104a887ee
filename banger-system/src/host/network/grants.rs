//! What restricted guests reach: the addresses of allowed names, which the name server adds before it answers, and what
//! the packet filter has refused.

use std::net::IpAddr;

use banger_domain::{
    egress::{allow_list::AllowList, entry::Ports, grants::Grant, host_name::HostName, log::Destination},
    id::VmId,
    net::{
        element::{Element, Set, grant_element, grant_of},
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
        let ports = nic.allowed.ports_of(name);
        let mut grants = Vec::new();
        for address in addresses {
            grants.extend(ports.iter().map(|ports| Grant { address: *address, ports: *ports }));
        }
        if grants.is_empty() {
            return Ok(!ports.is_empty());
        }
        let gone = state.grants.entry(vm).or_default().add(name, &grants);
        // A name with many ports may have more destinations than there is room for.
        grants.retain(|grant| !gone.contains(grant));
        let elements = |grants: &[Grant]| -> Vec<Element> {
            grants.iter().map(|grant| grant_element(&nic.tap(), *grant)).collect()
        };
        let mut batch = Batch::new();
        remove_from(&mut batch, &elements(&gone));
        // Adding an element that exists does not begin its time again on every kernel.
        remove_from(&mut batch, &elements(&grants));
        add_to(&mut batch, vm, &elements(&grants));
        let granted = match state.commit(&batch) {
            // The table is gone. It comes back with these elements.
            Err(error) if error.is_not_found() => return state.repair().map(|()| true),
            granted => granted,
        };
        granted.map(|()| true).map_err(|error| failed(format!("let {} reach {name}", nic.tap()), error))
    }

    /// Returns whether a guest is restricted.
    pub(super) fn is_restricted(&self, vm: VmId) -> bool {
        self.lock().known.get(&vm).is_some_and(Nic::is_restricted)
    }

    /// Removes and returns what the packet filter has refused to guests.
    pub(super) fn take_denied(&self) -> Result<Vec<Denied>> {
        let mut state = self.lock();
        if !state.known.values().any(Nic::is_restricted) {
            return Ok(Vec::new());
        }
        let guests: Vec<(VmId, TapName)> = state.known.values().map(|nic| (nic.vm, nic.tap())).collect();
        let (mut denied, mut batch) = (Vec::new(), Batch::new());
        for set in Set::DENIED {
            for found in state.list(set.name())? {
                let times = found.exprs.iter().find_map(|expr| match expr {
                    Expr::Counter(counter) => Some(counter.packets),
                    _ => None,
                });
                let Some(key) = found.key else { continue };
                let element = Element { set, key, end: None, value: None };
                remove_from(&mut batch, std::slice::from_ref(&element));
                let guest = guests.iter().find(|(_, tap)| element.key.starts_with(&padded(tap)));
                if let (Some((vm, _)), Some(Grant { address, ports: Ports::One(protocol, port) })) =
                    (guest, grant_of(&element))
                {
                    let destination = Destination::Address(address, protocol, port);
                    denied.push(Denied { vm: *vm, destination, times: times.unwrap_or(1).max(1) });
                }
            }
        }
        match state.commit(&batch) {
            Err(error) if error.is_not_found() => Ok(denied),
            taken => taken.map(|()| denied).map_err(|error| failed("read what was refused to guests", error)),
        }
    }
}

/// Returns a link's name as it is in a key.
fn padded(tap: &TapName) -> Vec<u8> {
    let mut name = tap.as_str().as_bytes().to_vec();
    name.resize(16, 0);
    name
}

impl State {
    /// Returns the elements of the destinations that a guest was granted.
    pub(super) fn granted(&self, vm: VmId) -> Vec<Element> {
        let tap = TapName::of(vm);
        let grants = self.grants.get(&vm).into_iter().flat_map(|grants| grants.iter());
        grants.map(|grant| grant_element(&tap, grant)).collect()
    }

    /// Keeps the destinations that an earlier run has granted to a restricted guest, so that its connections outlive a
    /// restart of the service. Returns the other elements.
    pub(super) fn inherit_grants(&mut self, nic: &Nic, left: Vec<Element>) -> Vec<Element> {
        if !nic.is_restricted() {
            return left;
        }
        let grants = self.grants.entry(nic.vm).or_default();
        left.into_iter()
            .filter(|element| grant_of(element).map(|grant| grants.inherit(grant)).is_none())
            .collect()
    }

    /// Forgets the destinations that a guest may no longer reach, and returns their elements.
    pub(super) fn withdraw_grants(&mut self, nic: &Nic) -> Vec<Element> {
        let is_same = self
            .known
            .get(&nic.vm)
            .is_none_or(|known| (known.nat, &known.allowed) == (nic.nat, &nic.allowed));
        let Some(grants) = self.grants.get_mut(&nic.vm).filter(|_| !is_same) else { return Vec::new() };
        let nothing = AllowList::default();
        let withdrawn = grants.withdraw(if nic.is_restricted() { &nic.allowed } else { &nothing });
        withdrawn.into_iter().map(|grant| grant_element(&nic.tap(), grant)).collect()
    }

    /// Removes elements once more. A packet that was looked up just before they were removed may have added one again.
    pub(super) fn withdraw_again(&mut self, withdrawn: &[Element]) -> Result<()> {
        let mut batch = Batch::new();
        remove_from(&mut batch, withdrawn);
        self.commit(&batch).map_err(|error| failed("withdraw what a guest may reach", error))
    }

    /// Remembers destinations again that could not be withdrawn.
    pub(super) fn keep_grants(&mut self, vm: VmId, withdrawn: &[Element]) {
        let grants = self.grants.entry(vm).or_default();
        withdrawn.iter().filter_map(grant_of).for_each(|grant| grants.inherit(grant));
    }
}
