//! Wakes suspended sandboxes that are used: by a connection to a published port, or by a look-up of the name.
//!
//! The adapters notice the use and ask ([`crate::ports::wake`]). Only a sandbox that was suspended because it idled is woken, if
//! its policy says so ([`Vm::wakes`](banger_domain::vm::Vm::wakes)). Nobody calls who could be authorised: the owner has allowed
//! it by the policy, and the resumption counts against the owner's jobs and quota. However many clients ask, there is one
//! resumption; a refusal counts for those who ask within [`REST`].

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use banger_domain::{id::VmId, lifecycle::State};
use tokio::time::Instant;

use super::{
    Engine, Shared,
    error::{Error, Result, one_line},
    request::{Start, StartCause, WaitFor},
    view::Outcome,
};
use crate::ports::wake::{Cause, Wake, Woken};

/// How long a sandbox is left alone that could not be woken. Its clients try again and again.
const REST: Duration = Duration::from_secs(10);

/// The sandboxes that are being woken.
#[derive(Default)]
pub(super) struct Waking(Mutex<HashMap<VmId, Attempt>>);

enum Attempt {
    /// It is being woken for these. The adapters bound their number.
    For(Vec<Wake>),
    /// It could not be woken.
    Refused(Instant),
}

/// Serves requests until the engine is dropped.
pub(super) async fn run(shared: Weak<Shared>) {
    while let Some(ports) = shared.upgrade().map(|shared| shared.ports.clone()) {
        let wake = tokio::select! {
            wake = ports.network.wanted() => wake,
            wake = ports.names.wanted() => wake,
        };
        let Some(shared) = shared.upgrade() else { return };
        shared.wake_for(wake);
    }
}

impl Shared {
    /// Wakes a sandbox in the background, unless that is under way.
    fn wake_for(self: &Arc<Self>, wake: Wake) {
        let (vm, cause) = (wake.vm, wake.cause);
        {
            let mut all = self.waking.lock();
            all.retain(|_, attempt| match attempt {
                Attempt::For(_) => true,
                Attempt::Refused(at) => at.elapsed() < REST,
            });
            match all.entry(vm) {
                Entry::Occupied(mut entry) => match entry.get_mut() {
                    Attempt::For(waiting) => return waiting.push(wake),
                    Attempt::Refused(_) if self.runs_soon(vm) => drop(entry.insert(Attempt::For(vec![wake]))),
                    Attempt::Refused(_) => return wake.answer(Woken::No),
                },
                Entry::Vacant(entry) => drop(entry.insert(Attempt::For(vec![wake]))),
            }
        }
        let turn = Turn { shared: Arc::clone(self), vm, result: Err(Error::Canceled) };
        tokio::spawn(async move {
            let result = Engine { shared: Arc::clone(&turn.shared) }.wake_used(vm, cause).await;
            turn.end(result);
        });
    }

    fn runs_soon(&self, vm: VmId) -> bool {
        self.inventory.vm(vm).is_some_and(|view| matches!(view.vm.state, State::Running | State::Resuming))
    }
}

impl Engine {
    /// Resumes a VM that sleeps, and waits until it runs. Does nothing if it runs.
    async fn wake_used(&self, vm: VmId, cause: Cause) -> Result<Woken> {
        self.until_written(vm).await;
        let Some(view) = self.vm(vm) else { return Ok(Woken::No) };
        match view.vm.state {
            State::Running => return Ok(Woken::Yes),
            State::Resuming => {}
            _ if view.vm.wakes() => {}
            _ => return Ok(Woken::No),
        }
        let (wait_for, cause) = (WaitFor::Running, StartCause::Wake(cause));
        let job = self.resume_vm(vm, Start { wait_for, cause, ..Start::default() }).await?;
        match &self.wait_job(job, None).await?.outcome {
            Some(Outcome::Done) => Ok(Woken::Yes),
            Some(Outcome::Failed(why)) => Err(Error::Dependency { why: Arc::clone(why) }),
            Some(Outcome::Canceled) | None => Err(Error::Canceled),
        }
    }
}

impl Waking {
    fn lock(&self) -> MutexGuard<'_, HashMap<VmId, Attempt>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An attempt to wake a sandbox. Its end answers all who wait, however it comes.
struct Turn {
    shared: Arc<Shared>,
    vm: VmId,
    result: Result<Woken>,
}

impl Turn {
    fn end(mut self, result: Result<Woken>) {
        self.result = result;
        drop(self);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut all = self.shared.waking.lock();
        let waiting = match all.remove(&self.vm) {
            Some(Attempt::For(waiting)) => waiting,
            Some(Attempt::Refused(_)) | None => Vec::new(),
        };
        let woken = match &self.result {
            Ok(woken) => *woken,
            Err(error) => {
                tracing::warn!(vm = %self.vm, error = %one_line(error), "cannot wake a sandbox");
                all.insert(self.vm, Attempt::Refused(Instant::now()));
                Woken::No
            }
        };
        drop(all);
        waiting.into_iter().for_each(|wake| wake.answer(woken));
    }
}
