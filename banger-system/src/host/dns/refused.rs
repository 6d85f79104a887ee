//! Counts the look-ups that were refused to guests without NAT, so that commands can explain why a name is unknown.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use banger_domain::{dns::table::Table, id::VmId};

/// The number of refused look-ups of each running sandbox that has any.
#[derive(Clone, Default)]
pub(super) struct Refused(Arc<Mutex<HashMap<VmId, u64>>>);

impl Refused {
    /// Counts a look-up. A guest has no more than its quota of them per second.
    pub(super) fn add(&self, vm: VmId) {
        let mut all = self.lock();
        let count = all.entry(vm).or_default();
        *count = count.saturating_add(1);
    }

    /// Returns the number of a sandbox.
    pub(super) fn of(&self, vm: VmId) -> u64 {
        self.lock().get(&vm).copied().unwrap_or_default()
    }

    /// Forgets the sandboxes that have ended.
    pub(super) fn retain(&self, names: &Table) {
        self.lock().retain(|vm, _| names.has_guest(*vm));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VmId, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
