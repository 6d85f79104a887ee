//! Captures in memory. A capture is the configuration that its guest had: without it, a guest does not answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
};

use async_trait::async_trait;
use banger_domain::{
    id::{KernelId, Timestamp, VmId},
    resource::Resource,
};
use banger_proto::{guest::GuestConfig, size::Bytes};

use super::Sim;
use crate::ports::{
    FromHost as _, HostError,
    captures::{Captures, Error, HostFacts, Origin, Result, Stored, Unfinished, difference},
    vmm,
};

/// What a capture takes on disk.
const SIZE: Bytes = Bytes::mib(100);

/// What a host in memory has of captures.
#[derive(Default)]
pub(super) struct State {
    /// The captures, complete or not, with what their guests had in memory.
    pub(super) all: BTreeMap<VmId, Captured>,
    /// What the VMMs write at the moment, by the number of the pipe.
    saved: BTreeMap<u64, Guest>,
    /// The number of the last file.
    last_file: u64,
    /// The guests that stand still because they are saved, or were loaded.
    pub(super) standing: BTreeSet<VmId>,
    damaged: bool,
    /// Saving takes until this is false.
    pub(super) slow: bool,
    /// VMMs keep the pipe open that they write to.
    keeps_pipes: bool,
    /// VMMs cannot be ended.
    immortal: bool,
    /// Another VMM is installed.
    upgraded: bool,
    /// VMMs cannot save guests.
    impossible: bool,
}

pub(super) struct Captured {
    guest: Guest,
    complete: Option<(HostFacts, Stored)>,
    origin: Option<Origin>,
}

/// What a guest has in memory.
#[derive(Clone)]
struct Guest {
    config: GuestConfig,
    /// Whether its processes are frozen.
    is_frozen: bool,
}

/// Returns the number of a pipe, which is the same at both ends.
fn number_of(pipe: &OwnedFd) -> u64 {
    rustix::fs::fstat(pipe).map_or(0, |pipe| pipe.st_ino)
}

impl Sim {
    /// Changes the captures on disk.
    pub fn damage_captures(&self) {
        self.lock().captures.damaged = true;
    }

    /// Makes saving and loading a guest take until this is called again, or lets it end.
    pub fn slow_captures(&self, slow: bool) {
        self.lock().captures.slow = slow;
    }

    /// Makes VMMs keep the pipe open that they have written a guest to, as one does that its guest has taken over.
    pub fn keep_pipes(&self, keep: bool) {
        self.lock().captures.keeps_pipes = keep;
    }

    /// Makes VMMs impossible to end, or possible again.
    pub fn withstand_kills(&self, withstand: bool) {
        self.lock().captures.immortal = withstand;
    }

    pub(super) fn may_end(&self) -> Result<(), HostError> {
        match self.lock().captures.immortal {
            true => Err(HostError::not_ready("the unit does not go away")),
            false => Ok(()),
        }
    }

    /// Gives a VM another kernel, in the database.
    pub fn replace_kernel_of(&self, vm: VmId, kernel: KernelId) {
        let mut state = self.lock();
        state.kernel_files.insert(kernel);
        if let Some(vm) = state.vms.get_mut(&vm) {
            vm.kernel = kernel;
        }
    }

    /// Replaces the VMM by another version.
    pub fn upgrade_saving_vmm(&self) {
        self.lock().captures.upgraded = true;
    }

    /// Makes the VMM one that cannot save guests.
    pub fn forbid_captures(&self) {
        self.lock().captures.impossible = true;
    }

    /// Returns whether a VM has a capture that can be loaded.
    pub fn is_captured(&self, vm: VmId) -> bool {
        self.lock().captures.all.get(&vm).is_some_and(|capture| capture.complete.is_some())
    }

    /// Returns whether a guest has run on layers whose names were not on the storage.
    pub fn has_run_unsynced(&self) -> bool {
        self.lock().ran_unsynced
    }

    /// Returns whether the guest of a VM stands still.
    pub fn stands_still(&self, vm: VmId) -> bool {
        self.lock().captures.standing.contains(&vm)
    }

    pub(super) fn vmm_facts(&self) -> vmm::Result<HostFacts> {
        let state = self.lock();
        if state.captures.impossible {
            return Err(HostError::NotReady { message: "this VMM cannot save guests".to_owned() }.into());
        }
        let version = if state.captures.upgraded { "2" } else { "1" };
        Ok([("the VMM".to_owned(), version.to_owned())].into())
    }

    pub(super) async fn until_fast(&self) {
        while self.lock().captures.slow {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    pub(super) fn halt_guest(&self, vm: VmId) -> vmm::Result<()> {
        self.step("stop a guest")?.captures.standing.insert(vm);
        Ok(())
    }

    pub(super) async fn save_guest(&self, vm: VmId, to: OwnedFd) -> vmm::Result<()> {
        self.halt_guest(vm)?;
        self.until_fast().await;
        let mut state = self.step("save a guest")?;
        let is_frozen = state.frozen_guests.contains(&vm);
        let Some(config) = state.configured.get(&vm).cloned() else {
            return Err(vmm::Error::Failed { message: "the guest has no memory".to_owned() });
        };
        state.captures.saved.insert(number_of(&to), Guest { config, is_frozen });
        Ok(())
    }

    pub(super) fn load_guest(&self, vm: VmId) -> vmm::Result<()> {
        let mut state = self.step("load a guest")?;
        let guest = state.captures.all.get(&vm).map(|capture| capture.guest.clone());
        let guest =
            guest.ok_or_else(|| vmm::Error::Failed { message: "there is nothing to load".to_owned() })?;
        state.configured.insert(vm, guest.config);
        if guest.is_frozen {
            state.frozen_guests.insert(vm);
        }
        state.captures.standing.insert(vm);
        Ok(())
    }

    pub(super) fn let_guest_run(&self, vm: VmId) -> vmm::Result<()> {
        let mut state = self.step("let a guest run")?;
        state.captures.standing.remove(&vm);
        if state.unsynced_layers.contains(&vm) {
            state.ran_unsynced = true;
        }
        Ok(())
    }
}

#[async_trait]
impl Captures for Sim {
    async fn receive(&self, vm: VmId, from: OwnedFd, _most: Bytes) -> Result<Box<dyn Unfinished>> {
        drop(self.step("write the memory of a guest")?);
        while self.lock().captures.keeps_pipes {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
        Ok(Box::new(Receiving { sim: self.clone(), vm, pipe: number_of(&from), _from: from }))
    }

    async fn share(&self, of: VmId, with: VmId, facts: &HostFacts) -> Result<Stored> {
        let mut state = self.step("share the memory of a guest")?;
        let shared = state.captures.all.get(&of);
        let complete = shared.and_then(|shared| Some((shared, shared.complete.clone()?)));
        let (shared, (mut all, stored)) =
            complete.ok_or_else(|| Error::Damaged { message: "its memory is missing".to_owned() })?;
        all.extend(facts.clone());
        let (guest, origin) = (shared.guest.clone(), shared.origin.clone());
        let captured = Captured { guest, complete: Some((all, stored)), origin };
        state.captures.all.insert(with, captured);
        Ok(stored)
    }

    async fn origin(&self, vm: VmId) -> Result<Option<Origin>> {
        Ok(self.lock().captures.all.get(&vm).and_then(|capture| capture.origin.clone()))
    }

    async fn check(&self, vm: VmId, facts: &HostFacts) -> Result<()> {
        let state = self.lock();
        let capture = state.captures.all.get(&vm).and_then(|capture| capture.complete.as_ref());
        let (captured, _) =
            capture.ok_or_else(|| Error::Damaged { message: "its memory is missing".to_owned() })?;
        match difference(captured, facts) {
            Some(what) => Err(Error::Differs { what }),
            None => Ok(()),
        }
    }

    async fn send(&self, _vm: VmId, _to: OwnedFd) -> Result<()> {
        match self.step("read the memory of a guest")?.captures.damaged {
            true => Err(Error::Damaged { message: "its memory on disk has changed".to_owned() }),
            false => Ok(()),
        }
    }

    async fn stored(&self, vm: VmId) -> Result<Option<Stored>> {
        let state = self.lock();
        let complete = state.captures.all.get(&vm).and_then(|capture| capture.complete.as_ref());
        Ok(complete.map(|(_, stored)| *stored))
    }

    async fn remove(&self, vm: VmId) -> Result<()> {
        self.removal(Resource::Capture)?.captures.all.remove(&vm);
        Ok(())
    }

    async fn found(&self) -> Result<Vec<VmId>> {
        Ok(self.scan(Resource::Capture)?.captures.all.keys().copied().collect())
    }
}

/// A capture that is being written.
struct Receiving {
    sim: Sim,
    vm: VmId,
    /// Its number stays its own while it is open.
    pipe: u64,
    _from: OwnedFd,
}

#[async_trait]
impl Unfinished for Receiving {
    async fn finish(
        self: Box<Self>,
        facts: &HostFacts,
        at: Timestamp,
        origin: Option<Origin>,
    ) -> Result<Stored> {
        let mut state = self.sim.step("store the memory of a guest")?;
        let guest = state.captures.saved.remove(&self.pipe);
        let guest = guest.ok_or_else(|| Error::Damaged { message: "nothing was saved".to_owned() })?;
        state.captures.last_file += 1;
        let stored = Stored { size: SIZE, at, file: Some(state.captures.last_file) };
        let captured = Captured { guest, complete: Some((facts.clone(), stored)), origin };
        state.captures.all.insert(self.vm, captured);
        Ok(stored)
    }
}
