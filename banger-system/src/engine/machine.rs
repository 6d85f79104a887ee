//! The task of one machine. It alone changes the machine, what the host holds for it, and its row in the
//! store. It never waits long for one thing: what takes time goes on beside it and reports back.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::Instant,
};
use tracing::Instrument;

use super::{
    Shared,
    capability::Plan,
    error::{Error, Result, one_line},
    guest_archive,
    job::{JobHandle, Stages},
    lease::Lease,
    now,
    request::{Configure, Manner, Start, Stop, WaitFor},
    view::{JobKind, Object, VmView},
};
use crate::{
    domain::{
        id::{JobId, Timestamp, Uid},
        lifecycle::{Event, Reason, Refused, State, Transition, step},
        machine::{self, Machine},
        name::Name,
        net::port::Port,
        resource::{Resource, Span},
        vm::{Lifetime, Token, Vm},
    },
    ports::{self, Ended, GuestFacts, NetworkOf, Started},
};

/// How many requests to one machine may wait.
pub(super) const INBOX: usize = 64;
/// HUP, INT, QUIT, ABRT, KILL and TERM. A monitor that was only stopped, or ignores the signal, would stay
/// in a state that says that it is going.
const ENDING_SIGNALS: [i32; 6] = [1, 2, 3, 6, 9, 15];
/// How long to wait before the supervisor is asked again, when it could not tell how a process ended.
const WATCH_AGAIN: Duration = Duration::from_secs(1);

pub(super) type Reply<T> = oneshot::Sender<Result<T>>;

/// A request to a machine.
pub(super) enum Command {
    Start { start: Start, reply: Reply<JobId> },
    Stop { stop: Stop, reply: Reply<JobId> },
    Restart { stop: Stop, start: Start, reply: Reply<JobId> },
    Delete { manner: Manner, reply: Reply<JobId> },
    Kill { signal: i32, reply: Reply<()> },
    Rename { name: Name, reply: Reply<()> },
    SetLifetime { lifetime: Lifetime, reply: Reply<()> },
    Configure { change: Configure, reply: Reply<()> },
    Publish { port: Port, reply: Reply<Port> },
    Unpublish { port: Port, reply: Reply<()> },
    CallerVanished,
}

/// Something that went on beside the task has come to an end.
enum Happening {
    /// The monitor's process has ended.
    Ended(Ended),
    /// The guest answers, or did not in time.
    Guest(ports::Result<GuestFacts>),
    /// The guest's data is on its disks and it is powering off; or it could not be asked.
    Asked(ports::Result<()>),
    /// A stop has taken too long.
    Overdue,
    /// The process was killed; the watch on its end will report.
    Killed(ports::Result<()>),
    /// Somebody gave a job up.
    Canceled(JobId),
}

/// A job that waits for the machine to get somewhere.
struct Waiter {
    job: JobHandle,
    goal: Goal,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Goal {
    /// The monitor runs.
    Running,
    /// The guest answers.
    Ready,
    /// The monitor has ended.
    Down,
    /// The monitor has ended, and runs again.
    Again(Start),
    /// The machine is removed.
    Gone,
}

/// Whether the task goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Continue,
    Leave,
}

pub(super) struct Task {
    pub(super) shared: Arc<Shared>,
    pub(super) vm: Vm,
    unit: String,
    pid: u32,
    lease: Lease,
    inbox: mpsc::Receiver<Command>,
    beside: JoinSet<Happening>,
    waiters: Vec<Waiter>,
    /// The machine is not to outlive a first start that fails.
    is_new: bool,
}

const CREATE: Stages = &["disk", "start", "boot"];
const START: Stages = &["start", "boot"];
const STOP: Stages = &["shutdown", "power-off"];
const RESTART: Stages = &["shutdown", "power-off", "start", "boot"];
const DELETE: Stages = &["power-off", "remove"];

impl Task {
    /// Begins the life of a machine that was admitted a moment ago. Returns the job that makes it.
    pub(super) fn create(
        shared: Arc<Shared>,
        vm: Vm,
        inbox: mpsc::Receiver<Command>,
        start: Option<Start>,
    ) -> JobId {
        let job = shared.jobs.begin(JobKind::VmCreate, vm.owner, vec![Object::Vm(vm.id)], CREATE);
        let id = job.id();
        let lease = Lease::new(vm.id, shared.ports.clone());
        let mut task = Self::of(shared, vm, lease, inbox);
        task.is_new = true;
        tokio::spawn(async move {
            if task.provision(job, start).await == Next::Continue {
                task.run().await;
            }
        });
        id
    }

    /// Goes on with a machine that was there before the service started. `process` is what the supervisor
    /// found of it.
    pub(super) fn adopt(
        shared: Arc<Shared>,
        vm: Vm,
        lease: Lease,
        process: Option<Started>,
        inbox: mpsc::Receiver<Command>,
    ) {
        let mut task = Self::of(shared, vm, lease, inbox);
        tokio::spawn(async move {
            if task.take_over(process).await == Next::Continue {
                task.run().await;
            }
        });
    }

    fn of(shared: Arc<Shared>, vm: Vm, lease: Lease, inbox: mpsc::Receiver<Command>) -> Self {
        Self {
            shared,
            vm,
            unit: String::new(),
            pid: 0,
            lease,
            inbox,
            beside: JoinSet::new(),
            waiters: Vec::new(),
            is_new: false,
        }
    }

    async fn run(mut self) {
        loop {
            let next = tokio::select! {
                biased;
                Some(happening) = self.beside.join_next() => match happening {
                    Ok(happening) => self.happened(happening).await,
                    // Aborted because it is no longer of interest.
                    Err(_) => Next::Continue,
                },
                command = self.inbox.recv() => match command {
                    Some(command) => self.commanded(command).await,
                    None => Next::Leave,
                },
            };
            if next == Next::Leave {
                return;
            }
        }
    }

    // Creation and recovery.

    async fn provision(&mut self, job: JobHandle, start: Option<Start>) -> Next {
        job.stage("disk", format!("cloning {}", self.view().image_name));
        if let Err(error) = self.make_disks(&job).instrument(job.span()).await {
            return self.abandon(job, error).await;
        }
        match start {
            None => {
                self.is_new = false;
                job.finish(Ok(()));
                Next::Continue
            }
            Some(start) => match self.begin_start(&job, start).instrument(job.span()).await {
                Err(error) => self.abandon(job, error).await,
                Ok(()) => {
                    self.await_start(job, start);
                    Next::Continue
                }
            },
        }
    }

    async fn make_disks(&mut self, job: &JobHandle) -> Result<()> {
        let (id, image, size) = (self.vm.id, self.vm.image, self.vm.spec.disk_size);
        let (wish, vcpus) = (self.vm.spec.vmm, self.vm.spec.vcpus);
        let ports = self.shared.ports.clone();
        let make = async {
            ports.disks.create_directory(id).await?;
            ports.disks.clone_image(id, image, ports.vmm.layers(wish, vcpus)).await?;
            ports.disks.create_work_disk(id, size).await
        };
        self.lease.hold(Resource::Disks, make).await?;
        if job.is_canceled() {
            return Err(Error::Canceled);
        }
        Ok(self.shared.ports.store.put_vm(&self.vm).await?)
    }

    /// Undoes a creation. Nothing stays: no row, no process, no file.
    async fn abandon(&mut self, job: JobHandle, error: Error) -> Next {
        self.lease.release_all().await;
        if let Err(error) = self.shared.ports.store.delete_vm(self.vm.id).await {
            tracing::error!(vm = %self.vm.id, %error, "cannot forget a machine");
        }
        self.shared.registry.remove_vm(self.vm.id);
        job.finish(Err(error));
        Next::Leave
    }

    async fn take_over(&mut self, process: Option<Started>) -> Next {
        match (self.vm.state, process) {
            (State::Deleting, _) => {
                let (error, next) = self.remove().await;
                if let Some(error) = error {
                    tracing::error!(vm = %self.vm.id, %error, "cannot finish a removal");
                }
                next
            }
            (state, Some(process)) if state.is_up() => {
                tracing::info!(vm = %self.vm.id, pid = process.pid, "found a running machine");
                self.unit = process.unit;
                self.pid = process.pid;
                if state == State::Starting {
                    self.vm.state = State::Running;
                }
                self.publish();
                self.plug_again().await;
                self.watch_end();
                if state == State::Stopping {
                    self.ask_to_shut_down(self.shared.settings.stop_timeout);
                } else {
                    self.watch_guest(self.shared.settings.ready_timeout);
                }
                Next::Continue
            }
            (state, process) if state.is_up() || process.is_some() => {
                self.lease.release(Span::Boot).await;
                self.vm.state = if state.is_up() { State::Stopped } else { state };
                self.vm.reason = Reason::Lost;
                self.forget_boot();
                self.log_failed_save().await;
                Next::Continue
            }
            _ => Next::Continue,
        }
    }

    /// Takes over the interface of a machine that runs. Without it the machine runs on.
    async fn plug_again(&self) {
        let plugged = match self.shared.nic(&self.vm).await {
            Ok(nic) => self.shared.ports.network.plug(&nic).await,
            Err(error) => Err(error),
        };
        if let Err(error) = plugged {
            tracing::error!(vm = %self.vm.id, error = %one_line(&error), "cannot take over an interface");
        }
    }

    // Requests.

    async fn commanded(&mut self, command: Command) -> Next {
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
            Command::Delete { manner, reply } => return self.delete(manner, reply).await,
            Command::Kill { signal, reply } => {
                let result = self.kill(signal).await;
                answer(reply, result);
            }
            Command::Rename { name, reply } => {
                let result = self.rename(name).await;
                answer(reply, result);
            }
            Command::SetLifetime { lifetime, reply } => {
                self.vm.lifetime = lifetime;
                let saved = self.save().await;
                answer(reply, saved);
            }
            Command::Configure { change, reply } => {
                let result = self.configure(change).await;
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
            Command::CallerVanished => return self.caller_vanished().await,
        }
        Next::Continue
    }

    async fn start(&mut self, start: Start) -> Result<JobId> {
        let transition = step(self.vm.state, Event::Start)?;
        let job = self.begin_job(JobKind::VmStart, START);
        let id = job.id();
        if transition == Transition::Unchanged {
            self.await_start(job, start);
            return Ok(id);
        }
        match self.begin_start(&job, start).instrument(job.span()).await {
            Ok(()) => self.await_start(job, start),
            Err(error) => job.finish(Err(error)),
        }
        Ok(id)
    }

    /// Brings the monitor up. When this fails, all that it made is released.
    async fn begin_start(&mut self, job: &JobHandle, start: Start) -> Result<()> {
        let Transition::To(state) = step(self.vm.state, Event::Start)? else { return Ok(()) };
        let before = self.vm.clone();
        self.vm.state = state;
        self.vm.reason = Reason::UserRequest;
        self.vm.token = Token::random();
        self.vm.ready_at = Timestamp::default();
        self.vm.started_at = now(&*self.shared.ports.clock);
        if let Err(error) = self.shared.registry.publish_start(self.view(), &self.shared.settings.limits) {
            self.vm = before;
            return Err(error);
        }
        job.stage("start", "starting the machine monitor");
        match self.launch().await {
            Ok(started) => {
                self.unit = started.unit;
                self.pid = started.pid;
                self.happen(Event::Launched);
                // The row says `starting` if this fails, and a restart of the service makes the same of it.
                self.log_failed_save().await;
                self.watch_end();
                self.watch_guest(start.ready_timeout.unwrap_or(self.shared.settings.ready_timeout));
                job.stage("boot", "waiting for the guest");
                Ok(())
            }
            Err(error) => {
                self.lease.release(Span::Boot).await;
                self.happen(Event::LaunchFailed);
                self.vm.reason = Reason::StartFailed(one_line(&error));
                self.log_failed_save().await;
                Err(error)
            }
        }
    }

    async fn launch(&mut self) -> Result<Started> {
        // The token must be known before the guest is: a restart of the service in between finds it.
        self.shared.ports.store.put_vm(&self.vm).await?;
        let ports = self.shared.ports.clone();
        let boot = ports.kernel_files.boot_files(self.vm.kernel).await?;
        let Plan { nic, guest } = self.shared.plan(&self.vm).await?;
        let attach = ports.disks.attach(self.vm.id, self.vm.image);
        let drives = self.lease.hold(Resource::Mapper, attach).await?;
        let machine = Machine {
            vm: self.vm.id,
            owner: self.vm.owner,
            name: self.vm.name.to_string(),
            vmm: self.vm.spec.vmm,
            vcpus: self.vm.spec.vcpus,
            memory: self.vm.spec.memory,
            kernel: boot.kernel,
            initramfs: boot.initramfs,
            guest_archive: guest_archive::of(&guest)?,
            drives,
            nics: vec![machine::Nic { tap: nic.tap().to_string(), mac: nic.mac().to_string() }],
        };
        self.lease.hold(Resource::Nic, ports.network.plug(&nic)).await?;
        let launch = self.lease.hold(Resource::Sockets, ports.vmm.prepare(&machine)).await?;
        let opens_tap = launch.network == NetworkOf::Host;
        let started = self.lease.hold(Resource::Unit, ports.supervisor.start(launch)).await?;
        if opens_tap {
            ports.network.give_tap(self.vm.id, Uid(started.user)).await?;
        }
        ports.vmm.configure(&machine, &started).await?;
        Ok(started)
    }

    /// Lets a job wait for a start that is under way, or finishes it when there is nothing to wait for.
    fn await_start(&mut self, job: JobHandle, start: Start) {
        let goal = match start.wait_for {
            WaitFor::Running => Goal::Running,
            WaitFor::Agent => Goal::Ready,
        };
        if self.vm.is_ready() || (goal == Goal::Running && self.vm.state == State::Running) {
            self.is_new = false;
            return job.finish(Ok(()));
        }
        self.wait_for(job, goal);
    }

    fn wait_for(&mut self, job: JobHandle, goal: Goal) {
        let canceled = job.canceled();
        self.beside.spawn(async move { Happening::Canceled(canceled.await) });
        self.waiters.push(Waiter { job, goal });
    }

    async fn stop(&mut self, stop: Stop) -> Result<JobId> {
        let transition = step(self.vm.state, Event::Stop)?;
        let job = self.begin_job(JobKind::VmStop, STOP);
        let id = job.id();
        if !self.vm.state.is_up() {
            job.finish(Ok(()));
            return Ok(id);
        }
        self.begin_stop(transition, stop, Reason::UserRequest).await?;
        job.stage("shutdown", "asking the guest to power off");
        self.wait_for(job, Goal::Down);
        Ok(id)
    }

    async fn restart(&mut self, stop: Stop, start: Start) -> Result<JobId> {
        if !self.vm.state.is_up() {
            return self.start(start).await;
        }
        let transition = step(self.vm.state, Event::Stop)?;
        let job = self.begin_job(JobKind::VmRestart, RESTART);
        let id = job.id();
        self.begin_stop(transition, stop, Reason::UserRequest).await?;
        job.stage("shutdown", "asking the guest to power off");
        self.wait_for(job, Goal::Again(start));
        Ok(id)
    }

    /// Begins to end the monitor. A forced stop hurries one that is under way.
    async fn begin_stop(&mut self, transition: Transition, stop: Stop, reason: Reason) -> Result<()> {
        let never_answered = self.vm.reason == Reason::BootTimeout;
        if let Transition::To(state) = transition {
            self.vm.state = state;
            self.vm.reason = reason;
            self.save().await?;
        }
        match stop.manner {
            Manner::Forced => self.kill_now(),
            Manner::Clean if transition == Transition::Unchanged => {}
            Manner::Clean if never_answered => self.kill_now(),
            Manner::Clean => self.ask_to_shut_down(stop.timeout.unwrap_or(self.shared.settings.stop_timeout)),
        }
        Ok(())
    }

    fn ask_to_shut_down(&mut self, timeout: Duration) {
        let (shared, vm, token) = (Arc::clone(&self.shared), self.vm.id, self.vm.token.clone());
        let deadline = Instant::now() + timeout;
        self.beside
            .spawn(async move { Happening::Asked(shared.ports.guest.shutdown(vm, &token, timeout).await) });
        self.beside.spawn(async move {
            tokio::time::sleep_until(deadline).await;
            Happening::Overdue
        });
    }

    fn kill_now(&mut self) {
        let (shared, vm) = (Arc::clone(&self.shared), self.vm.id);
        self.beside.spawn(async move { Happening::Killed(shared.ports.supervisor.remove(vm).await) });
    }

    async fn delete(&mut self, manner: Manner, reply: Reply<JobId>) -> Next {
        if self.vm.state.is_up() {
            if manner == Manner::Clean {
                answer(reply, Err(Refused { state: self.vm.state, event: Event::Delete }.into()));
                return Next::Continue;
            }
            let job = self.begin_job(JobKind::VmDelete, DELETE);
            let id = job.id();
            let stopped = match step(self.vm.state, Event::Stop) {
                Ok(transition) => self.begin_stop(transition, FORCED, Reason::UserRequest).await,
                Err(refused) => Err(refused.into()),
            };
            match stopped {
                Ok(()) => {
                    job.stage("power-off", "ending the machine");
                    self.wait_for(job, Goal::Gone);
                }
                Err(error) => job.finish(Err(error)),
            }
            answer(reply, Ok(id));
            return Next::Continue;
        }
        let job = self.begin_job(JobKind::VmDelete, DELETE);
        answer(reply, Ok(job.id()));
        job.stage("remove", "removing the disks");
        let (error, next) = self.remove().await;
        job.finish(error.map_or(Ok(()), Err));
        next
    }

    /// Removes the machine. What cannot be removed stays in the ledger, and the machine stays `deleting`,
    /// so that the removal can be asked for again.
    async fn remove(&mut self) -> (Option<Error>, Next) {
        if let Ok(Transition::To(state)) = step(self.vm.state, Event::Delete) {
            self.vm.state = state;
            if let Err(error) = self.save().await {
                return (Some(error), Next::Continue);
            }
        }
        if let Some(error) = self.lease.release_all().await.into_iter().next() {
            return (Some(error.into()), Next::Continue);
        }
        if let Err(error) = self.shared.ports.store.delete_vm(self.vm.id).await {
            return (Some(error.into()), Next::Continue);
        }
        self.shared.registry.remove_vm(self.vm.id);
        (None, Next::Leave)
    }

    async fn kill(&mut self, signal: i32) -> Result<()> {
        if !ENDING_SIGNALS.contains(&signal) {
            let why =
                format!("signal {signal} does not end a machine; use HUP, INT, QUIT, ABRT, KILL or TERM");
            return Err(Error::InvalidOption { why });
        }
        if !self.vm.state.is_up() {
            return Err(Error::NotRunning { name: self.vm.name.to_string() });
        }
        if let Ok(Transition::To(state)) = step(self.vm.state, Event::Stop) {
            self.vm.state = state;
            self.vm.reason = Reason::UserRequest;
            self.save().await?;
        }
        Ok(self.shared.ports.supervisor.kill(self.vm.id, signal).await?)
    }

    async fn rename(&mut self, name: Name) -> Result<()> {
        if name == self.vm.name {
            return Ok(());
        }
        let old = std::mem::replace(&mut self.vm.name, name);
        if let Err(error) = self.shared.registry.publish_rename(self.view()) {
            self.vm.name = old;
            return Err(error);
        }
        self.save().await
    }

    async fn caller_vanished(&mut self) -> Next {
        if !matches!(self.vm.lifetime, Lifetime::Caller { .. }) {
            return Next::Continue;
        }
        tracing::info!(vm = %self.vm.id, "the client that this machine was bound to is gone");
        self.delete_unasked(Reason::CallerVanished).await
    }

    /// Removes the machine because its lifetime says so.
    async fn delete_unasked(&mut self, reason: Reason) -> Next {
        let job = self.begin_job(JobKind::VmDelete, DELETE);
        if self.vm.state.is_up() {
            let stopped = match step(self.vm.state, Event::Stop) {
                Ok(transition) => self.begin_stop(transition, FORCED, reason).await,
                Err(refused) => Err(refused.into()),
            };
            match stopped {
                Ok(()) => self.wait_for(job, Goal::Gone),
                Err(error) => job.finish(Err(error)),
            }
            return Next::Continue;
        }
        let (error, next) = self.remove().await;
        job.finish(error.map_or(Ok(()), Err));
        next
    }

    // What happens beside.

    async fn happened(&mut self, happening: Happening) -> Next {
        match happening {
            Happening::Ended(ended) => return self.ended(ended).await,
            Happening::Guest(Ok(facts)) => self.guest_ready(facts).await,
            Happening::Guest(Err(error)) => self.guest_not_ready(error).await,
            Happening::Asked(Ok(())) => {
                for waiter in &self.waiters {
                    waiter.job.stage("power-off", "the guest's data is on its disks");
                }
            }
            Happening::Asked(Err(error)) => {
                tracing::warn!(vm = %self.vm.id, %error, "the guest cannot be asked to power off");
                self.kill_now();
            }
            Happening::Overdue => {
                tracing::warn!(vm = %self.vm.id, "the guest takes too long to power off");
                self.kill_now();
            }
            Happening::Killed(Ok(())) => {}
            Happening::Killed(Err(error)) => {
                tracing::error!(vm = %self.vm.id, %error, "cannot end a machine");
                self.fail_waiters(&Arc::new(error.into()), |goal| {
                    matches!(goal, Goal::Down | Goal::Gone | Goal::Again(_))
                });
            }
            Happening::Canceled(job) => return self.canceled(job).await,
        }
        Next::Continue
    }

    async fn guest_ready(&mut self, facts: GuestFacts) {
        self.vm.boot_id = facts.boot_id;
        if self.vm.ready_at == Timestamp::default() {
            self.vm.ready_at = now(&*self.shared.ports.clock);
        }
        self.is_new = false;
        self.log_failed_save().await;
        for job in self.take_waiters(|goal| matches!(goal, Goal::Running | Goal::Ready)) {
            job.finish(Ok(()));
        }
    }

    /// The guest stays up for its logs, and nothing removes it but its owner.
    async fn guest_not_ready(&mut self, error: ports::Error) {
        self.is_new = false;
        if self.vm.state == State::Running {
            self.vm.reason = Reason::BootTimeout;
            self.vm.lifetime = Lifetime::Persistent;
        }
        self.log_failed_save().await;
        let error = match error {
            ports::Error::Timeout { after, .. } => {
                Error::GuestTimeout { name: self.vm.name.to_string(), seconds: after.as_secs() }
            }
            other => other.into(),
        };
        self.fail_waiters(&Arc::new(error), |goal| goal == Goal::Ready);
    }

    async fn ended(&mut self, ended: Ended) -> Next {
        let was_asked = self.vm.state == State::Stopping;
        let (event, reason) = match &ended {
            Ended::Clean if was_asked => (Event::Exited, self.vm.reason.clone()),
            Ended::Clean => (Event::Exited, Reason::GuestShutdown),
            Ended::Failed(_) | Ended::Unknown if was_asked => (Event::Exited, self.vm.reason.clone()),
            Ended::Failed(how) => (Event::Crashed, Reason::VmmExit(how.clone())),
            Ended::Unknown => (Event::Crashed, Reason::Lost),
        };
        tracing::info!(vm = %self.vm.id, ?ended, "the machine has ended");
        // What is still under way belongs to this boot, and so does what has come and was not looked at.
        self.beside = JoinSet::new();
        self.happen(event);
        self.vm.reason = reason;
        self.forget_boot();
        let never_ready = std::mem::take(&mut self.is_new);
        if never_ready && matches!(self.vm.lifetime, Lifetime::Caller { .. }) {
            // Somebody will want to see its logs.
            self.vm.lifetime = Lifetime::Persistent;
        }
        // Each failure is logged where it happens; what is left stays in the ledger.
        self.lease.release(Span::Boot).await;
        self.log_failed_save().await;

        let name = self.vm.name.to_string();
        let how = match ended {
            Ended::Clean => "it powered off".to_owned(),
            Ended::Failed(how) => how,
            Ended::Unknown => "nobody knows how".to_owned(),
        };
        let early = Arc::new(Error::EndedEarly { name, how });
        self.fail_waiters(&early, |goal| matches!(goal, Goal::Running | Goal::Ready));
        for job in self.take_waiters(|goal| goal == Goal::Down) {
            job.finish(Ok(()));
        }
        if self.waiters.iter().any(|waiter| waiter.goal == Goal::Gone) {
            return self.remove_for_waiters().await;
        }
        if self.vm.lifetime == Lifetime::UntilStopped && !never_ready {
            return self.delete_unasked(Reason::UserRequest).await;
        }
        self.start_again().await;
        Next::Continue
    }

    async fn remove_for_waiters(&mut self) -> Next {
        let (error, next) = self.remove().await;
        let gone: Vec<JobHandle> = std::mem::take(&mut self.waiters).into_iter().map(|w| w.job).collect();
        match error {
            None => gone.into_iter().for_each(|job| job.finish(Ok(()))),
            Some(error) => {
                let error = Arc::new(error);
                gone.into_iter().for_each(|job| job.fail_shared(&error));
            }
        }
        next
    }

    /// The second half of a restart.
    async fn start_again(&mut self) {
        let waiters = std::mem::take(&mut self.waiters);
        for Waiter { job, goal } in waiters {
            let Goal::Again(start) = goal else {
                self.waiters.push(Waiter { job, goal });
                continue;
            };
            match self.begin_start(&job, start).instrument(job.span()).await {
                Ok(()) => self.await_start(job, start),
                Err(error) => job.finish(Err(error)),
            }
        }
    }

    async fn canceled(&mut self, id: JobId) -> Next {
        let Some(index) = self.waiters.iter().position(|waiter| waiter.job.id() == id) else {
            return Next::Continue;
        };
        let starts = |goal| matches!(goal, Goal::Running | Goal::Ready);
        if !starts(self.waiters[index].goal) {
            // A stop or a removal goes on: the guest may be half-way down.
            return Next::Continue;
        }
        let waiter = self.waiters.swap_remove(index);
        waiter.job.finish(Err(Error::Canceled));
        if self.waiters.iter().any(|waiter| starts(waiter.goal)) {
            return Next::Continue;
        }
        if self.is_new {
            return self.delete_unasked(Reason::UserRequest).await;
        }
        if let Ok(transition) = step(self.vm.state, Event::Stop)
            && let Err(error) = self.begin_stop(transition, FORCED, Reason::UserRequest).await
        {
            tracing::error!(vm = %self.vm.id, %error, "cannot stop after a cancellation");
        }
        Next::Continue
    }

    // Small things.

    fn watch_end(&mut self) {
        let (shared, vm) = (Arc::clone(&self.shared), self.vm.id);
        self.beside.spawn(async move {
            loop {
                match shared.ports.supervisor.ended(vm).await {
                    Ok(ended) => return Happening::Ended(ended),
                    Err(error) => {
                        tracing::warn!(%vm, %error, "cannot watch a machine");
                        tokio::time::sleep(WATCH_AGAIN).await;
                    }
                }
            }
        });
    }

    fn watch_guest(&mut self, timeout: Duration) {
        let (shared, vm, token) = (Arc::clone(&self.shared), self.vm.id, self.vm.token.clone());
        self.beside
            .spawn(async move { Happening::Guest(shared.ports.guest.wait_ready(vm, &token, timeout).await) });
    }

    fn begin_job(&self, kind: JobKind, stages: Stages) -> JobHandle {
        self.shared.jobs.begin(kind, self.vm.owner, vec![Object::Vm(self.vm.id)], stages)
    }

    fn take_waiters(&mut self, wanted: impl Fn(Goal) -> bool) -> Vec<JobHandle> {
        let (taken, kept) = std::mem::take(&mut self.waiters).into_iter().partition(|w| wanted(w.goal));
        self.waiters = kept;
        taken.into_iter().map(|waiter: Waiter| waiter.job).collect()
    }

    fn fail_waiters(&mut self, error: &Arc<Error>, wanted: impl Fn(Goal) -> bool) {
        for job in self.take_waiters(wanted) {
            job.fail_shared(error);
        }
    }

    fn happen(&mut self, event: Event) {
        match step(self.vm.state, event) {
            Ok(Transition::To(state)) => self.vm.state = state,
            Ok(Transition::Unchanged) => {}
            Err(refused) => {
                tracing::error!(vm = %self.vm.id, %refused, "the lifecycle table was not followed")
            }
        }
    }

    fn forget_boot(&mut self) {
        self.unit.clear();
        self.pid = 0;
        self.vm.ready_at = Timestamp::default();
        self.vm.boot_id.clear();
    }

    pub(super) async fn save(&mut self) -> Result<()> {
        self.publish();
        Ok(self.shared.ports.store.put_vm(&self.vm).await?)
    }

    async fn log_failed_save(&mut self) {
        if let Err(error) = self.save().await {
            tracing::error!(vm = %self.vm.id, %error, "cannot store a machine");
        }
    }

    fn publish(&self) {
        self.shared.registry.publish(self.view());
    }

    fn view(&self) -> VmView {
        self.shared.view(self.vm.clone(), self.unit.clone(), self.pid)
    }
}

const FORCED: Stop = Stop { timeout: None, manner: Manner::Forced };

/// The caller may have gone; then nobody waits for the answer.
fn answer<T>(reply: Reply<T>, result: Result<T>) {
    let _ = reply.send(result);
}
