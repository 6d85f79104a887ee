//! Resumes a suspended VM: a new VMM loads its memory, and its guest continues.
//!
//! The disks change as soon as the guest runs, and then the capture must never be loaded again. So the row says `running`
//! before the guest does:
//!
//! ```text
//!   suspended ──► resuming: set up, launch, load, verify     a crash: the VMM is ended, suspended again
//!                 the row says `running`                     a crash: the same, if the guest has not run
//!                 the guest runs
//!                 the capture is removed                     a crash: it is removed by recovery
//! ```
//!
//! The VMM loads beside the task, so that a sandbox can be stopped or deleted meanwhile. A cancellation before the guest
//! runs ends the VMM, and the sandbox is suspended as before. What cannot be loaded stays on disk. Its owner may try again,
//! or boot without it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Background, Goal, TaskEvent, VmTask,
    fork_memory::continue_guest,
    start::{GuestWait, KnownBoot, SetUp},
    suspend::{go_on, pipe},
};
use crate::{
    engine::{
        error::{Error, Result, one_line},
        history::Phase,
        job::{JobHandle, Stages},
        lease::{Left, not_released},
        now,
        problems::Subject,
        request::{Start, StartCause},
        view::JobKind,
    },
    ports::{Ports, captures::Origin, supervisor::Started},
};
use banger_domain::{
    id::{JobId, Timestamp, VmId},
    lifecycle::{Event, Reason, State, Transition, step},
    resource::{Resource, Scope},
    vm::{BootedFrom, Vm},
};

const RESUME: Stages = &["load", "continue"];

/// A VMM that loads the memory of its guest.
pub(super) struct Loading {
    started: Started,
    begun: Instant,
    /// How long the guest may take to answer.
    timeout: Duration,
    /// Whose memory it is, if this VM is a copy.
    origin: Option<Origin>,
}

impl VmTask {
    /// Starts to resume a suspended VM. Waits for the guest of one that runs, or that is being resumed.
    pub(super) async fn resume(&mut self, start: Start) -> Result<JobId> {
        if self.vm.state == State::Paused {
            return Err(Error::Paused { name: self.vm.name.to_string() });
        }
        if matches!(start.cause, StartCause::Wake(_)) && self.vm.state == State::Suspended && !self.vm.wakes()
        {
            // It was suspended again meanwhile, and not because it idled.
            return Err(Error::Suspended { name: self.vm.name.to_string() });
        }
        if step(self.vm.state, Event::Resume)? == Transition::Unchanged {
            return Box::pin(self.start(start)).await;
        }
        // A resumption that fails ends all background work, and the job of a fork must not end without a result.
        self.require_not_forked()?;
        let job = self.begin_job(JobKind::VmResume, RESUME)?;
        let id = job.id();
        match self.begin_to_load(&job, start).await {
            Ok(()) => self.await_start(job, start),
            Err(error) => job.finish(Err(error)),
        }
        Ok(id)
    }

    async fn begin_to_load(&mut self, job: &JobHandle, start: Start) -> Result<()> {
        let reason = match start.cause {
            StartCause::Wake(cause) => Reason::Woken(cause.to_string()),
            _ => Reason::UserRequest,
        };
        let state = State::Resuming;
        let admitted = Vm { state, reason, ready_at: Timestamp::default(), ..self.vm.clone() };
        let view = self.view_of(admitted.clone());
        self.shared.inventory.publish_start(view, &self.shared.settings.limits)?;
        self.vm = admitted;
        self.vm.started_at = now(&*self.shared.ports.clock);
        job.stage("load", "loading the memory");
        let begun = Instant::now();
        self.begin_phases();
        let (started, origin) = match self.launch_suspended().await {
            Ok(launched) => launched,
            Err(error) => {
                self.stay_suspended(&error).await;
                return Err(error);
            }
        };
        (self.unit, self.pid) = (started.unit.clone(), started.pid);
        self.end_phase(Phase::Vmm);
        self.publish();
        let timeout = start.ready_timeout.unwrap_or(self.shared.settings.ready_timeout);
        self.loading = Some(Loading { started, begun, timeout, origin });
        let (ports, vm) = (self.shared.ports.clone(), self.vm.id);
        self.background.spawn(async move { TaskEvent::Loaded(load(&ports, vm).await) });
        Ok(())
    }

    /// Launches a VMM that the memory can be loaded into.
    async fn launch_suspended(&mut self) -> Result<(Started, Option<Origin>)> {
        match self.dozes {
            // The clients that have woken it wait at its ports.
            true => {
                let left = self.lease.release_but(Scope::Boot, Resource::Nic).await;
                not_released(self.vm.name.as_str(), left).map_or(Ok(()), Err)?;
            }
            false => self.release_boot().await?,
        }
        let (ports, vm) = (self.shared.ports.clone(), self.vm.id);
        let origin = ports.captures.origin(vm).await?;
        if origin.is_some() {
            ports.disks.empty(vm).await?;
        }
        let SetUp { spec, jail, .. } = self.set_up().await?;
        let started = jail.run(ports.vmm.prepare_resume(&spec).await?).await?;
        let mut facts = self.facts().await?;
        facts.extend(ports.disks.identity(vm).await?);
        ports.captures.check(vm, &facts).await?;
        Ok((started, origin))
    }

    /// Handles the end of the loading: lets the guest run, once the row says so.
    pub(super) async fn loaded(&mut self, result: Result<()>) {
        if self.vm.state != State::Resuming {
            // It is being stopped.
            return;
        }
        let origin = self.loading.as_ref().and_then(|loading| loading.origin.clone());
        match (result, origin) {
            (Ok(()), Some(origin)) => self.renew(origin),
            (result, _) => self.renewed(result).await,
        }
    }

    /// Stores that the guest runs, and lets it. A copy runs by now, except for its processes.
    pub(super) async fn renewed(&mut self, result: Result<()>) {
        if self.vm.state != State::Resuming {
            // It is being stopped.
            return;
        }
        let Some(Loading { started, begun, timeout, origin }) = self.loading.take() else { return };
        self.end_phase(Phase::Load);
        let is_copy = origin.is_some();
        let stored = match result {
            Ok(()) => {
                let running = Vm { state: State::Running, ..self.vm.clone() };
                self.shared.ports.store.put_vm(&running).await.map_err(Error::from)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = stored {
            return self.cannot_resume(error).await;
        }
        self.launched(started, BootedFrom::Suspension, begun).await;
        for waiter in &self.waiters {
            waiter.job.stage("continue", "waiting for the guest");
        }
        // A copy has the boot of another VM.
        let boot = if is_copy { KnownBoot::No } else { KnownBoot::Yes };
        let (ports, vm, wait) =
            (self.shared.ports.clone(), self.vm.clone(), GuestWait::after_a_jump(timeout, boot));
        self.background.spawn(async move {
            if is_copy {
                // Its programs may run already if this fails, so it is a running sandbox either way.
                return TaskEvent::Continued(Ok((wait, continue_guest(&ports, &vm).await.err())));
            }
            TaskEvent::Continued(match go_on(&ports, vm.id).await {
                Ok(()) => Ok((wait, None)),
                Err(error) => Err((error, ports.vmm.has_begun(vm.id).await.unwrap_or(true))),
            })
        });
    }

    async fn cannot_resume(&mut self, error: Error) {
        self.stay_suspended(&error).await;
        self.fail_waiters(&Arc::new(error), |goal| matches!(goal, Goal::Running | Goal::Ready));
    }

    /// Handles the first steps of a guest whose memory was loaded.
    pub(super) async fn continued(&mut self, result: Result<(GuestWait, Option<Error>), (Error, bool)>) {
        if self.vm.state != State::Running {
            // It is being stopped.
            return;
        }
        let (error, has_begun) = match result {
            Ok((wait, stuck)) => {
                if let Some(stuck) = stuck {
                    tracing::error!(vm = %self.vm.id, error = %one_line(&stuck), "a guest is not thawed");
                    self.let_continue();
                }
                // The guest answers while its capture is removed, which takes longer.
                self.watch_configured(wait);
                self.discard_capture().await;
                self.publish();
                for job in self.take_waiters(|goal| goal == Goal::Running) {
                    job.finish(Ok(()));
                }
                return;
            }
            Err(failed) => failed,
        };
        if has_begun || !self.lease.holds(Resource::Capture) {
            // Its disks may have changed, so its memory does not fit to them.
            self.discard_capture().await;
            self.kill_vmm();
        } else {
            // A crash from here on must not find a VM that runs.
            let resuming = Vm { state: State::Resuming, ..self.vm.clone() };
            if let Err(error) = self.shared.ports.store.put_vm(&resuming).await {
                tracing::error!(vm = %self.vm.id, %error, "cannot store a sandbox");
            }
            self.apply(Event::Suspend);
            self.stay_suspended(&error).await;
        }
        self.fail_waiters(&Arc::new(error), |goal| matches!(goal, Goal::Running | Goal::Ready));
    }

    /// Releases what a suspended VM does not need. One that wakes when it is used keeps its published ports.
    pub(in crate::engine) async fn rest(&mut self) -> Vec<Left> {
        self.dozes = false;
        if self.vm.state != State::Suspended || !self.vm.wakes() {
            return self.lease.release(Scope::Boot).await;
        }
        let mut left = self.lease.release_but(Scope::Boot, Resource::Nic).await;
        left.extend(self.doze().await);
        left
    }

    /// Holds the published ports of a suspended VM. What fails is a problem, and tried again.
    pub(super) async fn doze(&mut self) -> Vec<Left> {
        let dozes = match self.shared.nic(&self.vm).await {
            Ok(nic) => self.lease.hold(Resource::Nic, self.shared.ports.network.doze(&nic)).await,
            Err(error) => Err(error),
        };
        match dozes {
            Ok(()) => {
                self.dozes = true;
                self.shared.problems.clear(Subject::Resource(self.vm.id, Resource::Nic));
                self.shared.problems.clear(Subject::Interface(self.vm.id));
                Vec::new()
            }
            Err(error) => {
                // Its name wakes it, and so do its owner's commands.
                tracing::warn!(vm = %self.vm.id, error = %one_line(&error), "no port wakes a suspended sandbox");
                let left = self.lease.release_one(Resource::Nic).await;
                self.shared.problems.set(Subject::Interface(self.vm.id), &error);
                left
            }
        }
    }

    /// Makes a VM a suspended one again whose memory was not loaded, or whose guest has not run. One that was being woken
    /// wakes the next time, unless its memory or its VMM is what failed.
    pub(super) async fn stay_suspended(&mut self, error: &Error) {
        // All background work belongs to the VMM that ends.
        self.background = Background::default();
        self.dozes = false;
        self.lease.release_but(Scope::Boot, Resource::Nic).await;
        self.clear_boot();
        self.apply(match self.vm.state {
            State::Suspending => Event::Suspended,
            _ if self.lease.holds(Resource::Capture) => Event::LaunchFailed,
            _ => Event::Crashed,
        });
        let is_asleep = self.vm.state == State::Suspended && matches!(self.vm.reason, Reason::Woken(_));
        self.vm.reason = match (error, self.vm.spec.idle) {
            (Error::CannotResume { .. } | Error::Vmm { .. }, _) => Reason::StartFailed(one_line(error)),
            (_, Some(policy)) if is_asleep => Reason::Idle(policy.in_words()),
            (Error::Canceled, _) => Reason::UserRequest,
            (error, _) => Reason::StartFailed(one_line(error)),
        };
        // Failures are logged in the lease, and tried again.
        drop(self.rest().await);
        self.save_or_log().await;
    }
}

/// Has a VMM load the memory of its guest, which does not run yet.
async fn load(ports: &Ports, vm: VmId) -> Result<()> {
    let (from, to) = pipe()?;
    let load = async {
        let loaded = ports.vmm.load(vm, from).await;
        if loaded.is_err() {
            // It may still hold the pipe. If this fails, too, it is tried again with the rest of the boot.
            let _ = ports.supervisor.remove(vm).await;
        }
        loaded
    };
    let (sent, loaded) = tokio::join!(ports.captures.send(vm, to), load);
    sent?;
    Ok(loaded?)
}
