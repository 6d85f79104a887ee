//! Names in memory.

use std::sync::Arc;

use async_trait::async_trait;
use banger_domain::{dns::table::Table, id::VmId};

use super::Sim;
use crate::ports::{
    Check,
    names::{Lookups, Names},
    wake::{Cause, Wake, Woken},
};

impl Sim {
    /// The names that were published last.
    pub fn names(&self) -> Option<Arc<Table>> {
        self.lock().names.clone()
    }

    /// Looks the name of a suspended VM up. Returns whether it runs.
    pub async fn look_up(&self, vm: VmId) -> Woken {
        let wakes = Arc::clone(&self.lock().lookups_to_wake);
        wakes.wake(vm, Cause::Name).await
    }

    /// Sets how many look-ups were refused to a sandbox.
    pub fn refuse_lookups(&self, vm: VmId, count: u64) {
        self.lock().refused_lookups.insert(vm, count);
    }
}

#[async_trait]
impl Names for Sim {
    fn publish(&self, names: Arc<Table>) {
        self.lock().names = Some(names);
    }

    fn refused(&self, vm: VmId) -> u64 {
        self.lock().refused_lookups.get(&vm).copied().unwrap_or_default()
    }

    fn lookups(&self) -> Lookups {
        Lookups { refused: self.lock().refused_lookups.values().sum(), ..Lookups::default() }
    }

    async fn wanted(&self) -> Wake {
        let wakes = Arc::clone(&self.lock().lookups_to_wake);
        wakes.next().await
    }

    async fn withdraw(&self) {
        self.lock().names = None;
    }

    async fn checks(&self) -> Vec<Check> {
        Vec::new()
    }
}
