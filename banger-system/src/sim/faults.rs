//! Faults of the host in memory: a step that fails or panics, and the death of the service at any access to the host.

use std::{
    collections::BTreeSet,
    panic::resume_unwind,
    sync::{MutexGuard, PoisonError},
    time::Duration,
};

use banger_domain::{id::VmId, lifecycle, resource::Resource, vm::Vm};

use super::{Sim, State};
use crate::ports::{FromHost as _, HostError};

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A step fails: the host lacks something.
    Error,
    /// A step fails: it takes too long.
    Timeout,
    /// A step fails: the disk is full.
    NoSpace,
    /// A step panics.
    Panic,
    /// The service dies at an access to the host, before it has an effect. Nothing that it still does has one.
    Killed,
}

impl Fault {
    fn error(self, doing: &str) -> HostError {
        match self {
            Fault::Timeout => HostError::timeout(format!("told to fail: {doing}"), Duration::from_secs(1)),
            Fault::NoSpace => HostError::no_space(format!("told to fail: {doing}")),
            Fault::Error | Fault::Panic | Fault::Killed => {
                HostError::not_ready(format!("told to fail: {doing}"))
            }
        }
    }
}

/// The planned fault, and how far the service has come.
#[derive(Default)]
pub(super) struct Faults {
    /// How many steps with an effect were made or tried.
    steps: usize,
    /// How many accesses there were.
    accesses: usize,
    planned: Option<(usize, Fault)>,
    /// How often the service has died.
    deaths: u64,
}

impl Sim {
    /// Makes the `n`-th step with an effect fail, counted from 0 from now on; `None` makes none fail.
    pub fn fail_at(&self, n: Option<usize>) {
        self.plan(n.map(|n| (n, Fault::Error)));
    }

    /// Makes the `n`-th step panic, counted as by [`Sim::fail_at`].
    pub fn panic_at(&self, n: Option<usize>) {
        self.plan(n.map(|n| (n, Fault::Panic)));
    }

    /// Plans a fault at the `n`-th step, or access for [`Fault::Killed`], counted from 0 from now on.
    pub fn plan(&self, fault: Option<(usize, Fault)>) {
        let mut state = self.lock();
        state.faults = Faults { planned: fault, deaths: state.faults.deaths, ..Faults::default() };
    }

    /// Returns the number of steps since [`Sim::fail_at`].
    pub fn steps(&self) -> usize {
        self.lock().faults.steps
    }

    /// Ends the plan, and returns the host for the next service, and whether the fault has happened.
    pub fn next_service(&self) -> (Self, bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let happened = state.faults.planned.is_some_and(|(n, fault)| match fault {
            Fault::Killed => state.faults.deaths > self.deaths,
            _ => state.faults.steps > n,
        });
        state.faults = Faults { deaths: state.faults.deaths.max(self.deaths + 1), ..Faults::default() };
        (Self { state: self.state.clone(), deaths: state.faults.deaths }, happened)
    }

    /// Counts a step with an effect. Called before the effect, so that a failed step has none.
    pub(super) fn step(&self, doing: &str) -> Result<MutexGuard<'_, State>, HostError> {
        let mut state = self.lock();
        let n = state.faults.steps;
        state.faults.steps += 1;
        match state.faults.planned {
            Some((_, Fault::Killed)) => Ok(state),
            Some((planned, Fault::Panic)) if planned == n => panic!("told to panic: {doing}"),
            Some((planned, fault)) if planned == n => Err(fault.error(doing)),
            _ => Ok(state),
        }
    }

    /// Returns the state. Ends the calling task without a word if its service is dead, or dies now.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let n = state.faults.accesses;
        state.faults.accesses += 1;
        if state.faults.planned == Some((n, Fault::Killed)) {
            state.faults.deaths += 1;
        }
        let is_dead = state.faults.deaths > self.deaths;
        if is_dead && !std::thread::panicking() {
            drop(state);
            resume_unwind(Box::new("the service is dead"));
        }
        state
    }

    /// Returns the rows of all VMs, as text, sorted.
    pub fn rows(&self) -> Vec<String> {
        self.lock().vms.values().map(|vm| format!("{vm:?}")).collect()
    }

    /// Returns where ledger, host and store do not agree. Empty when nothing is under way and nothing is left over.
    pub fn disagreements(&self) -> Vec<String> {
        let state = self.lock();
        let mut found = Vec::new();
        let mut known: BTreeSet<VmId> = state.ledger.iter().map(|(vm, _)| *vm).collect();
        for resource in Resource::ALL {
            known.extend(state.holders(resource));
        }
        known.extend(state.vms.keys());
        for id in known {
            let row = state.vms.get(&id);
            let Some(wanted) = row.map_or(Some(Vec::new()), wanted) else {
                found.push(format!("{id} is still {}", row.map(|vm| vm.state.as_str()).unwrap_or_default()));
                continue;
            };
            for resource in Resource::ALL {
                let (is_wanted, is_held, is_recorded) = (
                    wanted.contains(&resource),
                    state.holders(resource).contains(&id),
                    state.ledger.contains(&(id, resource)),
                );
                if is_wanted != is_held || is_wanted != is_recorded {
                    let row = row.map_or("no row", |vm| vm.state.as_str());
                    found.push(format!(
                        "{id} ({row}): {}: wanted {is_wanted}, held {is_held}, recorded {is_recorded}",
                        resource.as_str()
                    ));
                }
            }
        }
        let wants_boot = state.vms.values().any(|vm| vm.spec.starts_with_host());
        if wants_boot != state.wanted_at_boot {
            found.push(format!("start at boot: rows {wants_boot}, host {}", state.wanted_at_boot));
        }
        let images: BTreeSet<_> = state.images.keys().copied().collect();
        if images != state.image_files {
            found.push(format!("images: rows {images:?}, files {:?}", state.image_files));
        }
        let kernels: BTreeSet<_> = state.kernels.keys().copied().collect();
        if kernels != state.kernel_files {
            found.push(format!("kernels: rows {kernels:?}, files {:?}", state.kernel_files));
        }
        found
    }
}

impl State {
    /// Returns the VMs that have a resource on the host.
    fn holders(&self, resource: Resource) -> BTreeSet<VmId> {
        match resource {
            Resource::Disks => self.disks.clone(),
            Resource::Mapper => self.mappers.clone(),
            Resource::Sockets => self.sockets.clone(),
            Resource::Nic => self.nics.keys().chain(self.dozing.keys()).copied().collect(),
            Resource::Capture => self.captures.all.keys().copied().collect(),
            Resource::Unit => {
                let alive = self.processes.iter().filter(|(_, end)| end.borrow().is_none());
                alive.map(|(vm, _)| *vm).collect()
            }
        }
    }
}

/// Returns the resources that a VM has when nothing is under way; `None` if its state says that something is.
fn wanted(vm: &Vm) -> Option<Vec<Resource>> {
    use lifecycle::State as S;
    match vm.state {
        S::Created | S::Stopped | S::Failed => Some(vec![Resource::Disks]),
        S::Suspended if vm.wakes() => Some(vec![Resource::Disks, Resource::Capture, Resource::Nic]),
        S::Suspended => Some(vec![Resource::Disks, Resource::Capture]),
        S::Running | S::Paused => {
            Some(Resource::ALL.into_iter().filter(|resource| *resource != Resource::Capture).collect())
        }
        S::Starting | S::Suspending | S::Resuming | S::Stopping | S::Deleting => None,
    }
}
