//! The task of one VM.
//!
//! Each VM has one task, and only this task changes the VM: its state, its row in the store, and its resources on
//! the host. All other code sends it a [`Command`] and reads the published [`VmView`]. So a VM needs no lock, and
//! no two of its steps can race.
//!
//! The task never waits long. What takes time (the VMM's end, the guest's answer, a clean shutdown) runs in the
//! background and reports a [`TaskEvent`]. So a VM can be stopped or deleted at any time, whatever its guest does.
//!
//! ```text
//!    Command (start, stop, delete, …)        TaskEvent (VMM ended, guest ready, …)
//!             │                                          ▲
//!             ▼                                          │
//!    handle_command ──► lifecycle::step ◄── handle_event │
//!             │               │                          │
//!             ▼               ▼                          │
//!    lease: create or    save, publish            background work
//!    release resources   (view, then row)         (watch, wait, probe)
//! ```
//!
//! A job that has to wait (for the guest, for the end of the VMM) becomes a [`Waiter`] with a [`Goal`]; the event
//! that reaches the goal finishes the job.
//!
//! # From a request to a ready guest
//!
//! The steps have these names, in this order:
//!
//! 1. **create** (`start.rs`, `create_and_start`): clone the image, create the work disk, store the row.
//! 2. **admit** (`admit_and_boot`): check the lifecycle table and the owner's quota; the state becomes `starting`.
//! 3. **boot** (`boot`): make a new token, then launch. A failed launch releases everything that it created.
//! 4. **launch** (`launch`), each resource by way of the lease:
//!    attach the disks, write the launch description, start the jail, plug the network interface, prepare the command,
//!    run it in the jail, and configure the VMM, which boots the guest. The state becomes `running`.
//! 5. **watch** (`watch_vmm`, `watch_for_halt`, `watch_guest`): background work for the end of the VMM and for the agent.
//! 6. **ready** (`event.rs`, `guest_ready`): the agent has answered; waiting jobs finish.
//!
//! # The end
//!
//! Every end goes through `vmm_ended` in `event.rs`, whatever caused it: `stop.rs` asks the guest or kills the VMM,
//! `reboot.rs` distinguishes a reboot from a halt, and `reattach.rs` finds out what happened while no service ran. Then
//! the resources of the boot are released, and the next waiting start begins, or the one that the restart policy plans
//! (`restart.rs`). `commit.rs` makes an image of a VM that is down, `fork.rs` makes others with its disks, and those of one
//! that runs continue with its memory (`fork_memory.rs`, `copy.rs`). `snapshot.rs` keeps such a child instead. `remove.rs` deletes it. `suspend.rs` writes the memory
//! of a VM to disk before it ends the VMM, and `resume.rs` starts another one that continues with it. `idle.rs` does that
//! to a VM that nobody uses.

mod background;
mod commit;
mod copy;
mod event;
mod fork;
mod fork_memory;
mod idle;
mod kernel;
mod liveness;
mod pause;
mod reattach;
mod reboot;
mod remove;
mod restart;
mod restore;
mod resume;
mod snapshot;
mod start;
mod stop;
mod suspend;
mod waiter;

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use banger_domain::{
    guest_end::Reboots,
    id::{JobId, Timestamp, VmId},
    idle::Use,
    launch_spec::LaunchSpec,
    lifecycle::{Event, Refused, State, Transition, step},
    name::Name,
    net::port::Port,
    resource::Resource,
    vm::{Lifetime, Vm},
};
use banger_proto::size::Bytes;
use tokio::sync::{mpsc, oneshot};
use tracing::{Instrument, Span};

use self::{
    background::Background,
    commit::Commit,
    event::TaskEvent,
    idle::Idle,
    liveness::Liveness,
    restart::Restarts,
    resume::Loading,
    stop::FORCED,
    waiter::{Goal, Waiter},
};
use super::{
    Shared,
    error::Result,
    history::Phase,
    job::{JobHandle, Stages},
    lease::Lease,
    request::{CommitVm, Configure, ForkVm, Start, Stop, StopMode},
    view::{JobKind, Object, VmView},
};
use crate::{
    ports::{
        captures::Stored,
        disks::FrozenLayer,
        supervisor::{Ended, Started},
        templates::TemplateKey,
    },
    tasks::Task,
};

/// How many commands to one VM may be queued.
pub(super) const INBOX: usize = 64;

pub(super) use self::snapshot::Snapshot;

pub(super) type Reply<T> = oneshot::Sender<Result<T>>;

/// A command to a VM's task.
pub(super) enum Command {
    Start {
        start: Start,
        reply: Reply<JobId>,
    },
    Stop {
        stop: Stop,
        reply: Reply<JobId>,
    },
    Restart {
        stop: Stop,
        start: Start,
        reply: Reply<JobId>,
    },
    Delete {
        mode: StopMode,
        reply: Reply<JobId>,
    },
    Kill {
        signal: i32,
        reply: Reply<()>,
    },
    Pause {
        reply: Reply<()>,
    },
    Unpause {
        reply: Reply<()>,
    },
    Suspend {
        reply: Reply<JobId>,
    },
    Resume {
        start: Start,
        reply: Reply<JobId>,
    },
    Rename {
        name: Name,
        reply: Reply<()>,
    },
    SetLifetime {
        lifetime: Lifetime,
        reply: Reply<()>,
    },
    Configure {
        change: Box<Configure>,
        reply: Reply<()>,
    },
    Publish {
        port: Port,
        reply: Reply<Port>,
    },
    Unpublish {
        port: Port,
        reply: Reply<()>,
    },
    Commit {
        request: Box<CommitVm>,
        reply: Reply<JobId>,
    },
    Fork {
        request: ForkVm,
        reply: Reply<(Vec<VmId>, JobId)>,
    },
    CreateSnapshot {
        name: Name,
        reply: Reply<JobId>,
    },
    RestoreSnapshot {
        name: Name,
        reply: Reply<JobId>,
    },
    DeleteSnapshot {
        name: Name,
        reply: Reply<()>,
    },
    CallerVanished,
    /// A late look at the host has found these resources of the VM, or it is time to try again what could not be
    /// released. `process` is its process, if it has one.
    Found {
        resources: BTreeSet<Resource>,
        process: Option<Started>,
    },
    /// It is time to set up the network interface again, which failed when the service started.
    RetryNic,
    /// A look at the use of the guest, which fails without an answer; or the use by a client.
    Used(Option<Option<Use>>),
    /// Probe the guest, because a request to it timed out.
    Probe,
    /// Answer once all earlier commands are handled.
    Settle {
        reply: oneshot::Sender<()>,
    },
    /// A command of a request. Journal entries about it have the fields of the request's span.
    Traced {
        span: Span,
        command: Box<Command>,
    },
}

impl Command {
    /// Ties a command to the request that is served at the moment.
    pub(super) fn traced(self) -> Self {
        Command::Traced { span: Span::current(), command: Box::new(self) }
    }
}

/// Whether the task continues.
#[derive(PartialEq, Eq)]
enum Next {
    Continue,
    Leave,
}

pub(super) struct VmTask {
    pub(super) shared: Arc<Shared>,
    pub(super) vm: Vm,
    unit: String,
    pid: u32,
    lease: Lease,
    inbox: mpsc::Receiver<Command>,
    background: Background,
    waiters: Vec<Waiter>,
    /// Published ports that another program on the host has taken. They do not reach the guest.
    pub(super) blocked_ports: BTreeSet<Port>,
    liveness: Liveness,
    /// The guest's recent reboots.
    reboots: Reboots,
    restarts: Restarts,
    /// The VM's first start is not over. If it is cancelled, the VM is deleted.
    is_new: bool,
    /// The job that makes an image of its system disk.
    commit: Option<Commit>,
    /// The job that makes sandboxes with its disks.
    forking: Option<JobId>,
    /// What that may add to its frozen layers.
    freezing: Bytes,
    /// How its VMM has ended while that job ran.
    ended: Option<Ended>,
    /// A fork may have left its guest standing still or frozen.
    is_thawing: bool,
    /// The frozen layers of its disks.
    frozen: Vec<FrozenLayer>,
    snapshots: Vec<Snapshot>,
    /// The template to make once the guest is ready. None if it exists already.
    missing_template: Option<(TemplateKey, LaunchSpec)>,
    /// The template that this boot continues from, until its guest is ready.
    template_in_use: Option<TemplateKey>,
    /// Its memory on disk. While it is written, the most that it can take.
    captured: Option<Stored>,
    /// Whether that is complete, so that its VMM ends.
    is_captured: bool,
    /// Whether it is suspended, and its published ports wake it.
    pub(super) dozes: bool,
    /// Gives up the writing of it.
    cancel_capture: Option<oneshot::Sender<()>>,
    /// The VMM that loads it, until its guest may run.
    loading: Option<Loading>,
    /// The boot that it was suspended in, if this run of the service knows it.
    suspended_boot: String,
    /// When the current phase of a start began. None unless a start of this run of the service is under way.
    phase_begun: Option<Instant>,
    /// What is known of its use.
    idle: Idle,
    /// The caller that it is bound to has disconnected, and a job still reads its disk.
    caller_is_gone: bool,
}

const CREATE: Stages = &["disk", "start", "boot"];

impl VmTask {
    /// Starts the task of a VM that was just admitted. Returns the job that creates it.
    pub(super) fn create(
        shared: Arc<Shared>,
        vm: Vm,
        inbox: mpsc::Receiver<Command>,
        start: Option<Start>,
    ) -> Result<JobId> {
        let job = shared.jobs.begin(JobKind::VmCreate, vm.owner, vec![Object::Vm(vm.id)], CREATE);
        let job = job.inspect_err(|_| shared.inventory.remove_vm(vm.id))?;
        let (id, vm_id) = (job.id(), vm.id);
        let lease = Lease::new(vm.id, shared.ports.clone(), shared.problems.clone());
        let mut task = Self::new(shared, vm, lease, inbox);
        task.is_new = true;
        let (tasks, span) = (task.shared.tasks.clone(), task.span());
        let life = async move {
            if task.create_and_start(job, start).await == Next::Continue {
                task.run().await;
            }
        };
        tasks.spawn_finite(Task::Vm(vm_id), life.instrument(span));
        Ok(id)
    }

    /// Starts the task of a VM from an earlier run of the service. `process` is what the supervisor found of it.
    pub(super) fn reattached(
        shared: Arc<Shared>,
        vm: Vm,
        lease: Lease,
        process: Option<Started>,
        (frozen, snapshots): (Vec<FrozenLayer>, Vec<Snapshot>),
        inbox: mpsc::Receiver<Command>,
    ) {
        let mut task = Self::new(shared, vm, lease, inbox);
        (task.frozen, task.snapshots) = (frozen, snapshots);
        let (tasks, span, vm) = (task.shared.tasks.clone(), task.span(), task.vm.id);
        let life = async move {
            if task.reattach(process).await == Next::Continue {
                task.run().await;
            }
        };
        tasks.spawn_finite(Task::Vm(vm), life.instrument(span));
    }

    fn new(shared: Arc<Shared>, vm: Vm, lease: Lease, inbox: mpsc::Receiver<Command>) -> Self {
        Self {
            shared,
            vm,
            unit: String::new(),
            pid: 0,
            lease,
            inbox,
            background: Background::default(),
            waiters: Vec::new(),
            blocked_ports: BTreeSet::new(),
            liveness: Liveness::default(),
            reboots: Reboots::default(),
            restarts: Restarts::default(),
            is_new: false,
            commit: None,
            forking: None,
            freezing: Bytes(0),
            ended: None,
            is_thawing: false,
            frozen: Vec::new(),
            snapshots: Vec::new(),
            missing_template: None,
            template_in_use: None,
            captured: None,
            is_captured: false,
            dozes: false,
            cancel_capture: None,
            loading: None,
            suspended_boot: String::new(),
            phase_begun: None,
            idle: Idle::default(),
            caller_is_gone: false,
        }
    }

    /// Returns the span of its life, which belongs to no request.
    fn span(&self) -> Span {
        tracing::error_span!(parent: None, "sandbox", vm = %self.vm.id, owner = %self.vm.owner)
    }

    async fn run(mut self) {
        loop {
            let next = tokio::select! {
                biased;
                Some(event) = self.background.next() => match event {
                    Ok(event) => self.handle_event(event).await,
                    // Without its result this task would never hear of the end.
                    Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                    // Aborted, because its result no longer matters.
                    Err(_) => Next::Continue,
                },
                command = self.inbox.recv() => match command {
                    Some(Command::Traced { span, command }) => {
                        self.handle_command(*command).instrument(span).await
                    }
                    Some(command) => self.handle_command(command).await,
                    None => Next::Leave,
                },
            };
            if next == Next::Leave {
                return;
            }
        }
    }

    async fn handle_command(&mut self, command: Command) -> Next {
        match command {
            Command::Start { start, reply } => {
                let result = self.start(start).await;
                answer(reply, result);
            }
            Command::Stop { stop, reply } => {
                let result = self.stop(stop).await;
                answer(reply, result);
            }
            Command::Restart { stop, start, reply } => {
                let result = self.restart(stop, start).await;
                answer(reply, result);
            }
            Command::Delete { mode, reply } => return self.delete(mode, reply).await,
            Command::Kill { signal, reply } => {
                let result = self.kill(signal).await;
                answer(reply, result);
            }
            Command::Pause { reply } => {
                let result = self.pause().await;
                answer(reply, result);
            }
            Command::Unpause { reply } => {
                let result = self.unpause().await;
                answer(reply, result);
            }
            Command::Suspend { reply } => {
                let result = self.suspend().await;
                answer(reply, result);
            }
            Command::Resume { start, reply } => {
                let result = self.resume(start).await;
                answer(reply, result);
            }
            Command::Rename { name, reply } => {
                let result = self.rename(name).await;
                answer(reply, result);
            }
            Command::SetLifetime { lifetime, reply } => {
                let result = self.set_lifetime(lifetime).await;
                answer(reply, result);
            }
            Command::Configure { change, reply } => {
                let result = self.configure(*change).await;
                answer(reply, result);
            }
            Command::Publish { port, reply } => {
                let result = self.publish_port(port).await;
                answer(reply, result);
            }
            Command::Unpublish { port, reply } => {
                let result = self.unpublish_port(port).await;
                answer(reply, result);
            }
            Command::Commit { request, reply } => {
                let result = self.commit(*request).await;
                answer(reply, result);
            }
            Command::Fork { request, reply } => {
                let result = self.fork(request).await;
                answer(reply, result);
            }
            Command::CreateSnapshot { name, reply } => {
                let result = self.create_snapshot(name).await;
                answer(reply, result);
            }
            Command::RestoreSnapshot { name, reply } => {
                let result = self.restore(&name).await;
                answer(reply, result);
            }
            Command::DeleteSnapshot { name, reply } => {
                let result = self.delete_snapshot(&name).await;
                answer(reply, result);
            }
            Command::CallerVanished => return self.client_disconnected().await,
            Command::Found { resources, process } => return self.found(resources, process).await,
            Command::RetryNic => self.retry_nic().await,
            Command::Used(used) => self.used(used).await,
            Command::Probe => self.suspect(),
            // Who has asked may have stopped waiting.
            Command::Settle { reply } => drop(reply.send(())),
            Command::Traced { command, .. } => return Box::pin(self.handle_command(*command)).await,
        }
        Next::Continue
    }

    async fn rename(&mut self, name: Name) -> Result<()> {
        if name == self.vm.name {
            return Ok(());
        }
        let old = std::mem::replace(&mut self.vm.name, name);
        if let Err(error) = self.shared.inventory.publish_rename(self.view()) {
            self.vm.name = old;
            return Err(error);
        }
        // A host name that the user chose stays.
        if self.vm.spec.hostname == old {
            self.vm.spec.hostname = self.vm.name.clone();
        }
        self.save().await
    }

    fn begin_job(&self, kind: JobKind, stages: Stages) -> Result<JobHandle> {
        self.shared.jobs.begin(kind, self.vm.owner, vec![Object::Vm(self.vm.id)], stages)
    }

    /// Begins a job that does not count against the owner's limit.
    fn begin_internal_job(&self, kind: JobKind, stages: Stages) -> JobHandle {
        self.shared.jobs.begin_internal(kind, self.vm.owner, vec![Object::Vm(self.vm.id)], stages)
    }

    /// Takes a step of the lifecycle table. Nothing else changes the state.
    fn enter(&mut self, event: Event) -> Result<Transition, Refused> {
        let transition = step(self.vm.state, event)?;
        if let Transition::To(state) = transition {
            self.vm.state = state;
        }
        Ok(transition)
    }

    /// Takes the step of something that has happened, whatever the table says.
    fn apply(&mut self, event: Event) {
        if let Err(refused) = self.enter(event) {
            tracing::error!(vm = %self.vm.id, %refused, "the lifecycle table was not followed");
        }
    }

    /// Begins the first phase of a start.
    fn begin_phases(&mut self) {
        self.phase_begun = Some(Instant::now());
        self.shared.inventory.begin_boot(self.vm.id);
    }

    /// Ends a phase of a start, and begins the next.
    fn end_phase(&mut self, phase: Phase) {
        let now = Instant::now();
        if let Some(begun) = &mut self.phase_begun {
            let took = now.duration_since(std::mem::replace(begun, now));
            self.shared.inventory.end_phase(self.vm.id, phase, took);
        }
    }

    fn clear_boot(&mut self) {
        self.unit.clear();
        self.pid = 0;
        self.vm.booted_from = None;
        self.loading = None;
        self.phase_begun = None;
        self.is_thawing = false;
        self.idle = Idle::default();
        self.cancel_capture = None;
        self.blocked_ports.clear();
        self.liveness = Liveness::default();
        self.vm.ready_at = Timestamp::default();
        // A suspended guest continues its boot.
        let boot = std::mem::take(&mut self.vm.boot_id);
        if matches!(self.vm.state, State::Suspending | State::Suspended) && !boot.is_empty() {
            self.suspended_boot = boot;
        }
    }

    pub(super) async fn save(&mut self) -> Result<()> {
        self.publish();
        Ok(self.shared.ports.store.put_vm(&self.vm).await?)
    }

    async fn save_or_log(&mut self) {
        if let Err(error) = self.save().await {
            tracing::error!(vm = %self.vm.id, %error, "cannot store a sandbox");
        }
    }

    pub(super) fn publish(&self) {
        self.shared.inventory.publish(self.view());
    }

    fn view(&self) -> VmView {
        self.view_of(self.vm.clone())
    }

    fn view_of(&self, vm: Vm) -> VmView {
        let blocked_ports = self.blocked_ports.clone();
        let silent = self.liveness == Liveness::Silent;
        let (captured, frozen) = (self.captured, self.frozen.clone());
        let freezing = self.freezing;
        VmView {
            blocked_ports,
            silent,
            captured,
            idle_at: self.idle.at,
            busy: self.idle.busy,
            frozen,
            freezing,
            ..self.shared.view(vm, self.unit.clone(), self.pid)
        }
    }
}

/// Sends a reply. A caller that disconnected does not get it.
fn answer<T>(reply: Reply<T>, result: Result<T>) {
    let _ = reply.send(result);
}
