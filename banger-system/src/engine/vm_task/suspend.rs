//! Suspends a VM: its memory goes to disk, then its VMM ends.
//!
//! ```text
//!   running ──► suspending: the guest stands still, and a capture is written beside the task
//!                 │ it failed ─────────────► the guest runs on: running
//!                 │ complete: its VMM is killed
//!                 │ the VMM has ended ─────► suspended
//!                 └ the VMM ended too early ► stopped or failed, without a capture
//! ```
//!
//! The state is stored as `suspending` before the guest is stopped, and as `suspended` after its VMM has ended. A service
//! that was killed in between finds one of two things. If the VMM is there, its guest stands still: the capture is removed
//! first, and then the guest runs on. If it is gone, nothing has run since the capture, which is used if it is complete.
//!
//! A capture is loaded at most once, because the disks change as soon as its guest runs: see `resume.rs`.

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use banger_domain::{
    id::{JobId, Timestamp, VmId},
    lifecycle::{Event, Reason, State, Transition, step},
    resource::Resource,
    vm::Vm,
};
use banger_proto::size::Bytes;
use rustix::pipe::{PipeFlags, pipe_with};

use super::{Goal, TaskEvent, VmTask};
use crate::{
    engine::{
        error::{Error, Result, one_line},
        job::Stages,
        now,
        view::{JobKind, VmView},
    },
    ports::{
        FromHost as _, HostError, Ports,
        captures::{HostFacts, Stored},
    },
};

const SUSPEND: Stages = &["save", "power-off"];
/// How often a guest is made to run on, and the pause in between. A busy VMM may answer too late once.
const GO_ON_TRIES: u32 = 3;
const GO_ON_PAUSE: Duration = Duration::from_millis(500);

/// Returns the most that a capture can take: a VMM writes a header for each page, and the state of its devices.
pub(super) fn most_of(memory: Bytes) -> Bytes {
    Bytes(memory.0.saturating_add(memory.0 / 64).saturating_add(Bytes::mib(32).0))
}

impl VmTask {
    /// Starts to suspend a VM whose guest answers.
    pub(super) async fn suspend(&mut self) -> Result<JobId> {
        let name = || self.vm.name.to_string();
        if self.vm.state == State::Paused {
            return Err(Error::Paused { name: name() });
        }
        self.require_not_forked()?;
        let transition = step(self.vm.state, Event::Suspend)?;
        if transition != Transition::Unchanged && !self.vm.is_ready() {
            return Err(Error::NotReady { name: name() });
        }
        let job = self.begin_job(JobKind::VmSuspend, SUSPEND)?;
        let id = job.id();
        job.stage("save", "writing the memory to disk");
        match self.vm.state {
            State::Suspended => job.finish(Ok(())),
            State::Suspending => self.wait_for(job, Goal::Suspended),
            _ => match self.begin_to_suspend().await {
                Ok(()) => self.wait_for(job, Goal::Suspended),
                Err(error) => job.finish(Err(error)),
            },
        }
        Ok(id)
    }

    async fn begin_to_suspend(&mut self) -> Result<()> {
        let ports = self.shared.ports.clone();
        // A VMM that cannot do this says so before anything is changed.
        let facts = ports.vmm.facts(self.vm.id).await?;
        let most = most_of(self.vm.spec.memory);
        let at = now(&*ports.clock);
        let suspending = Vm { state: State::Suspending, reason: Reason::UserRequest, ..self.vm.clone() };
        let captured = Some(Stored { size: most, at, file: None });
        let view = VmView { captured, ..self.view_of(suspending) };
        self.shared.inventory.publish_suspend(view, &self.shared.settings.limits)?;
        let before = self.vm.reason.clone();
        self.enter(Event::Suspend)?;
        (self.vm.reason, self.captured) = (Reason::UserRequest, captured);
        let saved = match self.save().await {
            Ok(()) => self.lease.hold(Resource::Capture, async { Ok::<_, Error>(()) }).await,
            Err(error) => Err(error),
        };
        if let Err(error) = saved {
            self.vm.reason = before;
            self.run_on().await;
            return Err(error);
        }
        let vm = self.vm.id;
        self.background.spawn(async move {
            TaskEvent::Captured(Box::new(match capture(&ports, vm, facts, most, at).await {
                Ok(stored) => Ok(stored),
                Err(error) => Err((error, go_on(&ports, vm).await.err())),
            }))
        });
        Ok(())
    }

    /// Handles the end of the writing.
    pub(super) async fn captured(&mut self, result: Result<Stored, (Error, Option<Error>)>) {
        if self.vm.state != State::Suspending {
            // It was stopped meanwhile, and its end removes the capture.
            return;
        }
        match result {
            Ok(stored) => {
                self.captured = Some(stored);
                self.is_captured = true;
                self.publish();
                for waiter in &self.waiters {
                    waiter.job.stage("power-off", "the memory is on disk");
                }
                self.kill_vmm();
            }
            Err((error, stuck)) => {
                tracing::warn!(vm = %self.vm.id, error = %one_line(&error), "cannot suspend a sandbox");
                self.run_on().await;
                if let Some(stuck) = stuck {
                    tracing::error!(vm = %self.vm.id, error = %one_line(&stuck), "a guest does not go on");
                    self.suspect();
                }
                self.fail_waiters(&Arc::new(error), |goal| goal == Goal::Suspended);
            }
        }
    }

    /// Makes a VM a running one whose suspension has failed.
    async fn run_on(&mut self) {
        self.discard_capture().await;
        self.apply(Event::SuspendFailed);
        self.save_or_log().await;
        self.correct_clock();
    }

    /// Removes the memory on disk, if there is any. What cannot be removed is a problem, and tried again; it is not
    /// loaded by a VM in another state.
    pub(super) async fn discard_capture(&mut self) {
        self.captured = None;
        self.is_captured = false;
        self.lease.release_one(Resource::Capture).await;
    }
}

/// Stops a guest, and stores its memory.
async fn capture(
    ports: &Ports,
    vm: VmId,
    mut facts: HostFacts,
    most: Bytes,
    at: Timestamp,
) -> Result<Stored> {
    let (from, to) = pipe()?;
    let receive = async { ports.captures.receive(vm, from, most).await.map_err(Error::from) };
    let save = async { ports.vmm.save(vm, to).await.map_err(Error::from) };
    // A full disk closes the pipe, and then the VMM fails, too: the first failure is the cause.
    let (unfinished, ()) = tokio::try_join!(receive, save)?;
    // A layer grows for as long as the guest runs.
    facts.extend(ports.disks.identity(vm).await?);
    Ok(unfinished.finish(&facts, at, None).await?)
}

/// Makes a guest run on, whatever was the matter with its capture.
pub(super) async fn go_on(ports: &Ports, vm: VmId) -> Result<()> {
    for _ in 1..GO_ON_TRIES {
        match ports.vmm.go_on(vm).await {
            Ok(()) => return Ok(()),
            Err(error) => tracing::warn!(%vm, %error, "a guest does not run on yet"),
        }
        tokio::time::sleep(GO_ON_PAUSE).await;
    }
    Ok(ports.vmm.go_on(vm).await?)
}

/// Returns both ends of a pipe.
pub(super) fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let made = pipe_with(PipeFlags::CLOEXEC);
    Ok(made.map_err(|error| HostError::os("make a pipe", error))?)
}
