//! The task of one machine. It alone changes the machine, what the host holds for it, and its row in the
//! store. It never waits long for one thing: what takes time goes on beside it and reports back.

mod happening;
mod reboot;
mod remove;
mod silence;
mod start;
mod stop;
mod take_over;
mod waiting;

use std::{collections::BTreeSet, sync::Arc};

use banger_domain::{
    guest_end::Reboots,
    id::{JobId, Timestamp},
    lifecycle::{Event, Transition, step},
    name::Name,
    net::port::Port,
    vm::{Lifetime, Vm},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use self::{
    happening::Happening,
    silence::Answers,
    stop::FORCED,
    waiting::{Goal, Waiter},
};
use super::{
    Shared,
    error::Result,
    job::{JobHandle, Stages},
    lease::Lease,
    request::{Configure, Manner, Start, Stop},
    view::{JobKind, Object, VmView},
};
use crate::ports::Started;

/// How many requests to one machine may wait.
pub(super) const INBOX: usize = 64;

pub(super) type Reply<T> = oneshot::Sender<Result<T>>;

/// A request to a machine.
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
        manner: Manner,
        reply: Reply<JobId>,
    },
    Kill {
        signal: i32,
        reply: Reply<()>,
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
        change: Configure,
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
    CallerVanished,
    /// The guest did not answer somebody in time.
    Doubt,
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
    /// Published ports that something else on the host has taken: they do not lead to the guest.
    pub(super) blocked_ports: BTreeSet<Port>,
    answers: Answers,
    /// When the guest rebooted lately.
    reboots: Reboots,
    /// The machine is not to outlive a first start that fails.
    is_new: bool,
}

const CREATE: Stages = &["disk", "start", "boot"];

impl Task {
    /// Begins the life of a machine that was admitted a moment ago. Returns the job that makes it.
    pub(super) fn create(
        shared: Arc<Shared>,
        vm: Vm,
        inbox: mpsc::Receiver<Command>,
        start: Option<Start>,
    ) -> Result<JobId> {
        let job = shared.jobs.begin(JobKind::VmCreate, vm.owner, vec![Object::Vm(vm.id)], CREATE);
        let job = job.inspect_err(|_| shared.registry.remove_vm(vm.id))?;
        let id = job.id();
        let lease = Lease::new(vm.id, shared.ports.clone());
        let mut task = Self::of(shared, vm, lease, inbox);
        task.is_new = true;
        tokio::spawn(async move {
            if task.provision(job, start).await == Next::Continue {
                task.run().await;
            }
        });
        Ok(id)
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
            blocked_ports: BTreeSet::new(),
            answers: Answers::default(),
            reboots: Reboots::default(),
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
            Command::Doubt => self.doubt(),
        }
        Next::Continue
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
        // One that was chosen for itself stays.
        if self.vm.spec.hostname == old {
            self.vm.spec.hostname = self.vm.name.clone();
        }
        self.save().await
    }

    fn begin_job(&self, kind: JobKind, stages: Stages) -> Result<JobHandle> {
        self.shared.jobs.begin(kind, self.vm.owner, vec![Object::Vm(self.vm.id)], stages)
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
        self.blocked_ports.clear();
        self.answers = Answers::default();
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

    pub(super) fn publish(&self) {
        self.shared.registry.publish(self.view());
    }

    fn view(&self) -> VmView {
        let blocked_ports = self.blocked_ports.clone();
        let silent = self.answers == Answers::No;
        VmView { blocked_ports, silent, ..self.shared.view(self.vm.clone(), self.unit.clone(), self.pid) }
    }
}

/// The caller may have gone; then nobody waits for the answer.
fn answer<T>(reply: Reply<T>, result: Result<T>) {
    let _ = reply.send(result);
}
