//! Captures a running guest for its children. It continues after a pause.
//!
//! ```text
//!   prepare      new layers are made, without names
//!   freeze       the agent freezes all processes and writes their data to the disks    a failure: it thaws them
//!   halt         the VMM stops the guest
//!   layers       what was written becomes frozen layers, and the VMM writes to new ones
//!   save         the VMM writes the memory into a pipe, and the service a capture of the first child; meanwhile, the names
//!                of the layers are written to the storage
//!   go on, thaw  whatever has failed
//! ```
//!
//! After that the disks of the children are made, and each gets the capture by a hard link. All of them come of one pause.
//! The steps change nothing that the guest could notice. A guest that does not continue is tried again in the background
//! (`let_continue`), also by the next service if this one ends in between. That removes what belongs to children without a
//! row, too.

use std::{
    future::pending,
    os::fd::OwnedFd,
    pin::{Pin, pin},
    time::{Duration, Instant},
};

use banger_domain::{
    id::VmId,
    lifecycle::{Reason, State},
    net::nic::Mac,
    resource::Resource,
    vm::Vm,
};

use super::{
    TaskEvent, VmTask,
    fork::Child,
    pause::correct_clock,
    suspend::{most_of, pipe},
};
use crate::{
    engine::{
        Shared,
        error::{Error, Result, one_line},
        job::JobHandle,
        now,
        view::Fact,
    },
    ports::{
        HostError, Ports,
        captures::{HostFacts, Origin, Stored, Unfinished},
        disks::NewLayers,
        guest_link, vmm,
    },
};

/// How long the agent may take to freeze the guest: its own limit of 15 s, and the time for its answer.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(20);
const THAW_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a guest is made to continue before that is an error. A busy VMM or guest may answer too late once.
const TRIES: u32 = 3;
const TRY_PAUSE: Duration = Duration::from_millis(500);
/// Pause between two tries in the background.
const BACKGROUND_PAUSE: Duration = Duration::from_secs(2);

/// The memory of a guest that continues, without a name.
pub(super) struct Captured {
    memory: Box<dyn Unfinished>,
    /// What it depends on, without the disks.
    facts: HostFacts,
}

impl VmTask {
    /// Checks that the guest of this VM can be captured while it runs, and returns what its state depends on.
    pub(super) async fn capturable(&self) -> Result<HostFacts> {
        let name = || self.vm.name.to_string();
        if !self.vm.is_ready() || self.is_thawing {
            return Err(Error::NotReady { name: name() });
        }
        match self.facts().await {
            // It must be stopped first, as with all VMMs that cannot do this.
            Err(vmm::Error::Host(HostError::NotReady { .. })) => Err(Error::StillWriting { name: name() }),
            facts => Ok(facts?),
        }
    }

    /// Makes a guest continue that a fork may have left standing still or frozen, in the background and until it does or
    /// its VMM ends.
    pub(super) fn let_continue(&mut self) {
        let (ports, vm) = (self.shared.ports.clone(), self.vm.clone());
        self.is_thawing = true;
        self.background.spawn(async move {
            // A service that ended in a pause may have named layers without that.
            if let Err(error) = ports.disks.sync_layers(vm.id).await {
                tracing::error!(vm = %vm.id, %error, "new layers are not on the storage yet");
            }
            until_continued(&ports, &vm).await;
            TaskEvent::Thawed
        });
    }
}

/// Captures a guest. It continues, whatever fails; if it does not, that is the error.
pub(super) async fn capture(
    shared: &Shared,
    job: &JobHandle,
    parent: &Vm,
    facts: HostFacts,
    first: &mut Child,
) -> Result<Captured> {
    let ports = &shared.ports;
    job.stage("save", format!("capturing {}", parent.name));
    // This is not given up half-way: the next fork would use the same names.
    let layers = ports.disks.prepare_layers(parent.id).await?;
    if job.is_canceled() {
        return Err(Error::Canceled);
    }
    let (from, to) = pipe()?;
    let receive = ports.captures.receive(first.vm.id, from, most_of(parent.spec.memory));
    let receive = first.lease.hold(Resource::Capture, receive);
    let mut pause = Pause { stands: Stands::Unknown, is_synced: true };
    let captured = stand_still(ports, job, parent, &mut pause, layers, pin!(receive), to).await;
    let captured = captured.map(|memory| Captured { memory, facts });
    if let Stands::Never = pause.stands {
        return captured;
    }
    // The guest should not write to layers whose names may be lost. If the storage fails, it continues all the same.
    if !pause.is_synced
        && let Err(error) = ports.disks.sync_layers(parent.id).await
    {
        tracing::error!(vm = %parent.id, %error, "new layers are not on the storage yet");
    }
    let continues = tokio::select! {
        continues = continue_guest(ports, parent) => continues,
        () = vmm_ended(ports, parent) => return captured.and(Err(not_running(parent))),
    };
    if let Err(error) = continues {
        let (name, message) = (parent.name.to_string(), one_line(&error));
        tracing::error!(vm = %parent.id, error = message, "a guest does not go on after a fork");
        return Err(Error::DoesNotContinue { name, message });
    }
    correct_clock(ports, parent);
    if let Stands::Since(begun) = pause.stands {
        let pause = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        job.add_result("pause", Fact::Number(pause));
    }
    captured
}

/// Waits for a step of a capture, unless the VMM ends or the job is cancelled.
async fn unless_over<T>(
    ports: &Ports,
    job: &JobHandle,
    parent: &Vm,
    step: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        done = step => done,
        () = vmm_ended(ports, parent) => Err(not_running(parent)),
        _ = job.canceled() => Err(Error::Canceled),
    }
}

async fn vmm_ended(ports: &Ports, vm: &Vm) {
    if ports.supervisor.ended(vm.id).await.is_err() {
        // The task of the VM asks again.
        pending().await
    }
}

fn not_running(vm: &Vm) -> Error {
    Error::NotRunning { name: vm.name.to_string() }
}

/// How far a pause has come.
struct Pause {
    stands: Stands,
    /// Whether the names of all layers are on the storage.
    is_synced: bool,
}

/// Whether a guest stands still.
enum Stands {
    /// The agent has refused to freeze it.
    Never,
    /// The agent has not said.
    Unknown,
    /// Its processes are frozen.
    Since(Instant),
}

/// Freezes a guest, stops it, puts new layers over its disks, and has its memory written into a pipe, from which it is
/// received.
async fn stand_still(
    ports: &Ports,
    job: &JobHandle,
    parent: &Vm,
    pause: &mut Pause,
    layers: Box<dyn NewLayers>,
    mut receive: Pin<&mut (impl Future<Output = Result<Box<dyn Unfinished>>> + Send)>,
    to: OwnedFd,
) -> Result<Box<dyn Unfinished>> {
    let mut memory = None;
    let freeze = async {
        let mut freeze = pin!(ports.guest.freeze(parent.id, &parent.token, FREEZE_TIMEOUT));
        Ok(tokio::select! {
            frozen = &mut freeze => frozen,
            // The capture gets its place on the disk meanwhile. If it cannot, the guest is thawed again.
            received = &mut receive => {
                memory = Some(received?);
                freeze.await
            }
        })
    };
    let frozen = unless_over(ports, job, parent, freeze).await?;
    pause.stands = match &frozen {
        Ok(()) => Stands::Since(Instant::now()),
        Err(guest_link::Error::Refused { .. } | guest_link::Error::TooOld) => Stands::Never,
        Err(_) => Stands::Unknown,
    };
    frozen?;
    let halt = async { ports.vmm.halt(parent.id).await.map_err(Error::from) };
    unless_over(ports, job, parent, halt).await?;
    // These two steps are not given up half-way.
    pause.is_synced = false;
    let layers = layers.freeze().await?;
    ports.vmm.switch_layers(parent.id, layers).await?;
    let sync = async {
        ports.disks.sync_layers(parent.id).await?;
        pause.is_synced = true;
        Ok::<_, Error>(())
    };
    let save = async { ports.vmm.save(parent.id, to).await.map_err(Error::from) };
    let receive = async {
        match memory {
            Some(memory) => Ok(memory),
            None => receive.await,
        }
    };
    let moved = async { tokio::try_join!(receive, save, sync) };
    let (memory, (), ()) = unless_over(ports, job, parent, moved).await?;
    Ok(memory)
}

/// Gives a capture its name, and each child its own way to it. Their disks exist.
pub(super) async fn give(
    shared: &Shared,
    captured: Captured,
    parent: &Vm,
    children: &mut [Child],
) -> Result<()> {
    let ports = &shared.ports;
    let Captured { memory, facts } = captured;
    let Some((first, others)) = children.split_first_mut() else { return Ok(()) };
    let mut facts = facts;
    facts.extend(ports.disks.identity(first.vm.id).await?);
    let origin = Origin { token: parent.token.clone(), mac: Mac::of_guest(parent.id) };
    let stored = memory.finish(&facts, now(&*ports.clock), Some(origin)).await?;
    first.suspend(stored);
    share(shared, first.vm.id, others).await
}

/// Gives each VM the capture of another one, by a hard link. Their disks exist.
pub(super) async fn share(shared: &Shared, of: VmId, children: &mut [Child]) -> Result<()> {
    let ports = &shared.ports;
    for child in children {
        let id = child.vm.id;
        let disks = ports.disks.identity(id).await?;
        let stored = child.lease.hold(Resource::Capture, ports.captures.share(of, id, &disks)).await?;
        child.suspend(stored);
    }
    Ok(())
}

impl Child {
    fn suspend(&mut self, stored: Stored) {
        (self.vm.state, self.vm.reason) = (State::Suspended, Reason::UserRequest);
        self.captured = Some(stored);
    }
}

/// Makes a guest continue, with its processes.
pub(super) async fn continue_guest(ports: &Ports, vm: &Vm) -> Result<()> {
    for _ in 1..TRIES {
        match try_to_continue(ports, vm).await {
            Ok(()) => return Ok(()),
            Err(error) => {
                tracing::warn!(vm = %vm.id, error = %one_line(&error), "a guest does not go on yet")
            }
        }
        tokio::time::sleep(TRY_PAUSE).await;
    }
    try_to_continue(ports, vm).await
}

async fn until_continued(ports: &Ports, vm: &Vm) {
    let mut is_logged = false;
    while let Err(error) = try_to_continue(ports, vm).await {
        if !is_logged {
            tracing::error!(vm = %vm.id, error = %one_line(&error), "a guest may stand still; trying again");
            is_logged = true;
        }
        tokio::time::sleep(BACKGROUND_PAUSE).await;
    }
}

/// Makes the VMM let the guest run, and the agent thaw its processes. A guest that runs does not notice.
async fn try_to_continue(ports: &Ports, vm: &Vm) -> Result<()> {
    let goes_on = ports.vmm.go_on(vm.id).await;
    match ports.guest.thaw(vm.id, &vm.token, THAW_TIMEOUT).await {
        // The agent answers only if the guest runs. An agent that is too old has frozen nothing.
        Ok(()) | Err(guest_link::Error::TooOld) => Ok(()),
        Err(error) => Err(goes_on.err().map_or_else(|| error.into(), Error::from)),
    }
}
