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
//! What cannot be loaded stays on disk. Its owner may try again, or boot without it.

use std::time::Instant;

use banger_domain::{
    id::{JobId, Timestamp},
    lifecycle::{Event, Reason, State, Transition, step},
    resource::{Resource, Scope},
    vm::Vm,
};

use super::{
    VmTask,
    start::{GuestWait, SetUp},
    suspend::{go_on, pipe},
};
use crate::{
    engine::{
        error::{Error, Result, one_line},
        job::{JobHandle, Stages},
        now,
        request::Start,
        view::{BootedFrom, JobKind},
    },
    ports::supervisor::Started,
};

const RESUME: Stages = &["load", "continue"];

impl VmTask {
    /// Starts to resume a suspended VM. Waits for the guest of one that runs.
    pub(super) async fn resume(&mut self, start: Start) -> Result<JobId> {
        if self.vm.state == State::Paused {
            return Err(Error::Paused { name: self.vm.name.to_string() });
        }
        if step(self.vm.state, Event::Resume)? == Transition::Unchanged {
            return Box::pin(self.start(start)).await;
        }
        let job = self.begin_job(JobKind::VmResume, RESUME)?;
        let id = job.id();
        match self.load(&job, start).await {
            Ok(()) => self.await_start(job, start),
            Err(error) => job.finish(Err(error)),
        }
        Ok(id)
    }

    async fn load(&mut self, job: &JobHandle, start: Start) -> Result<()> {
        let (state, reason) = (State::Resuming, Reason::UserRequest);
        let admitted = Vm { state, reason, ready_at: Timestamp::default(), ..self.vm.clone() };
        let view = self.view_of(admitted.clone());
        self.shared.inventory.publish_start(view, &self.shared.settings.limits)?;
        self.vm = admitted;
        self.vm.started_at = now(&*self.shared.ports.clock);
        job.stage("load", "loading the memory");
        let begun = Instant::now();
        match self.launch_suspended().await {
            Ok(started) => {
                self.launched(started, BootedFrom::Suspension, begun).await;
                let timeout = start.ready_timeout.unwrap_or(self.shared.settings.ready_timeout);
                self.watch_configured(GuestWait::after_a_jump(timeout));
                job.stage("continue", "waiting for the guest");
                Ok(())
            }
            Err(error) => {
                self.lease.release(Scope::Boot).await;
                let has_memory = self.lease.holds(Resource::Capture);
                self.apply(if has_memory { Event::LaunchFailed } else { Event::Crashed });
                self.vm.reason = Reason::StartFailed(one_line(&error));
                self.save_or_log().await;
                Err(error)
            }
        }
    }

    /// Launches a VMM that continues from the capture, and removes that.
    async fn launch_suspended(&mut self) -> Result<Started> {
        self.release_boot().await?;
        let (ports, vm) = (self.shared.ports.clone(), self.vm.id);
        let origin = ports.captures.origin(vm).await?;
        if origin.is_some() {
            ports.disks.empty(vm).await?;
        }
        let SetUp { spec, jail, .. } = self.set_up().await?;
        let started = jail.run(ports.vmm.prepare_resume(&spec).await?).await?;
        let mut facts = ports.vmm.facts(vm).await?;
        facts.extend(ports.disks.identity(vm).await?);
        ports.captures.check(vm, &facts).await?;

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
        loaded?;

        match origin {
            Some(origin) => self.continue_copy(&origin).await?,
            None => self.continue_suspended().await?,
        }
        self.discard_capture().await;
        Ok(started)
    }

    /// Lets the guest run, which changes the disks.
    async fn continue_suspended(&mut self) -> Result<()> {
        let (ports, vm) = (self.shared.ports.clone(), self.vm.id);
        ports.store.put_vm(&Vm { state: State::Running, ..self.vm.clone() }).await?;
        if let Err(error) = go_on(&ports, vm).await {
            match ports.vmm.has_begun(vm).await {
                // A crash before the boot is released must not find a VM that runs.
                Ok(false) => ports.store.put_vm(&self.vm).await?,
                // Its disks may have changed, so its memory does not fit to them.
                _ => self.discard_capture().await,
            }
            return Err(error);
        }
        Ok(())
    }
}
