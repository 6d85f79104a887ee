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

use std::{os::fd::OwnedFd, pin::pin, sync::Arc, time::Duration};

use banger_domain::{
    id::{JobId, Timestamp, VmId},
    lifecycle::{Event, Reason, State, Transition, step},
    resource::Resource,
    vm::Vm,
};
use banger_proto::size::Bytes;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use tokio::sync::oneshot;

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
        captures::{HostFacts, Stored, Unfinished},
        vmm,
    },
};

pub(super) const SUSPEND: Stages = &["save", "power-off"];
/// How long the last bytes may take after the VMM has written them: a pipe holds little. One that a VMM keeps open, because
/// its guest has taken it over, has no end.
const LAST_BYTES: Duration = Duration::from_secs(60);
/// The fact for the kernel of the sandbox, whose modules are on one of its disks.
const KERNEL: &str = "the sandbox's kernel";
/// How often a guest is made to run on, and the pause in between. A busy VMM may answer too late once.
const GO_ON_TRIES: u32 = 3;
const GO_ON_PAUSE: Duration = Duration::from_millis(500);

/// How much a pipe holds that the memory of a guest goes through.
const PIPE: usize = 1 << 20;

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
            State::Suspending => {
                self.wait_for(job, Goal::Suspended);
                if self.is_captured {
                    // Its VMM may have withstood the first try.
                    self.kill_vmm();
                }
            }
            _ => match self.begin_to_suspend(Reason::UserRequest).await {
                Ok(()) => self.wait_for(job, Goal::Suspended),
                Err(error) => job.finish(Err(error)),
            },
        }
        Ok(id)
    }

    /// Returns what the state of this VM's guest depends on, except for its disks, which change while it runs.
    pub(super) async fn facts(&self) -> vmm::Result<HostFacts> {
        let mut facts = self.shared.ports.vmm.facts(self.vm.id).await?;
        facts.insert(KERNEL.to_owned(), self.vm.kernel.to_string());
        Ok(facts)
    }

    pub(super) async fn begin_to_suspend(&mut self, reason: Reason) -> Result<()> {
        if self.is_thawing {
            // It would be made to run while it is captured, or stay frozen.
            return Err(Error::NotReady { name: self.vm.name.to_string() });
        }
        let ports = self.shared.ports.clone();
        // A VMM that cannot do this says so before anything is changed.
        let facts = self.facts().await?;
        // One that is left would count twice, or be taken for the new one after a crash, also if the ledger lacks it.
        self.discard_capture().await;
        ports.captures.remove(self.vm.id).await?;
        self.publish();
        let most = most_of(self.vm.spec.memory);
        let at = now(&*ports.clock);
        let suspending = Vm { state: State::Suspending, reason: reason.clone(), ..self.vm.clone() };
        let captured = Some(Stored { size: most, at, file: None });
        let view = VmView { captured, ..self.view_of(suspending) };
        self.shared.inventory.publish_suspend(view, &self.shared.settings.limits)?;
        let before = self.vm.reason.clone();
        self.enter(Event::Suspend)?;
        (self.vm.reason, self.captured) = (reason, captured);
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
        let (cancel, canceled) = oneshot::channel();
        self.cancel_capture = Some(cancel);
        self.background.spawn(async move {
            TaskEvent::Captured(Box::new(match capture(&ports, vm, facts, most, at, canceled).await {
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
        self.cancel_capture = None;
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
                match error {
                    Error::Canceled => self
                        .take_waiters(|goal| goal == Goal::Suspended)
                        .into_iter()
                        .for_each(|job| job.finish(Err(Error::Canceled))),
                    error => self.fail_waiters(&Arc::new(error), |goal| goal == Goal::Suspended),
                }
            }
        }
    }

    /// Handles the cancellation of a waiter's suspension. The last one gives the suspension up; its job ends once the
    /// guest runs on. Memory that is complete stays, and the sandbox becomes suspended.
    pub(super) fn cancel_suspension(&mut self, index: usize) {
        let others = self.waiters.iter().filter(|waiter| waiter.goal == Goal::Suspended).count() > 1;
        if others {
            return self.waiters.swap_remove(index).job.finish(Err(Error::Canceled));
        }
        if let Some(cancel) = self.cancel_capture.take() {
            let _ = cancel.send(());
        }
    }

    /// Makes a VM a running one whose suspension has failed.
    async fn run_on(&mut self) {
        self.discard_capture().await;
        self.apply(Event::SuspendFailed);
        self.forget_use();
        self.save_or_log().await;
        self.correct_clock();
    }

    /// Removes the memory on disk, if there is any. What cannot be removed is a problem, and tried again; it is not
    /// loaded by a VM in another state, and counts against the quota until it is gone.
    pub(super) async fn discard_capture(&mut self) {
        self.is_captured = false;
        if self.lease.release_one(Resource::Capture).await.is_empty() {
            self.captured = None;
        }
    }
}

/// Stops a guest, and stores its memory.
async fn capture(
    ports: &Ports,
    vm: VmId,
    mut facts: HostFacts,
    most: Bytes,
    at: Timestamp,
    canceled: oneshot::Receiver<()>,
) -> Result<Stored> {
    let (from, to) = pipe()?;
    // What appears under its name is used or removed, so only the writing is given up.
    let unfinished = tokio::select! {
        biased;
        Ok(()) = canceled => return Err(Error::Canceled),
        written = write(ports, vm, (from, to), most) => written?,
    };
    // A layer grows for as long as the guest runs.
    facts.extend(ports.disks.identity(vm).await?);
    Ok(unfinished.finish(&facts, at, None).await?)
}

/// Has a VMM write the memory of its guest, and stores it under a temporary name. The VMM has time limits of its own, and
/// closes the pipe when it is done.
async fn write(
    ports: &Ports,
    vm: VmId,
    (from, to): (OwnedFd, OwnedFd),
    most: Bytes,
) -> Result<Box<dyn Unfinished>> {
    let mut receive = pin!(ports.captures.receive(vm, from, most));
    let mut save = pin!(ports.vmm.save(vm, to));
    tokio::select! {
        // A full disk closes the pipe, and then the VMM fails, too: the first failure is the cause.
        received = &mut receive => {
            let unfinished = received?;
            save.await?;
            Ok(unfinished)
        }
        saved = &mut save => {
            saved?;
            let late = |_| HostError::timeout("reading the memory of the guest", LAST_BYTES);
            Ok(tokio::time::timeout(LAST_BYTES, receive).await.map_err(late)??)
        }
    }
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
    let (from, to) = made.map_err(|error| HostError::os("make a pipe", error))?;
    // The default is 16 pages, and each time that it is full costs a switch to the other side.
    let _ = fcntl_setpipe_size(&to, PIPE);
    Ok((from, to))
}
