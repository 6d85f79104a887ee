//! Captures a running guest for its children. It continues after a pause.
//!
//! ```text
//!   freeze       the agent freezes all processes and writes their data to the disks    a failure: it thaws them
//!   halt         the VMM stops the guest
//!   layers       what was written becomes frozen layers, and the VMM writes to new ones
//!   save         the VMM writes the memory into a pipe, and the service a capture of the first child
//!   go on, thaw  whatever has failed
//! ```
//!
//! After that the disks of the children are made, and each gets the capture by a hard link. All of them come of one pause.
//! The steps change nothing that the guest could notice. If the service ends in between, the next one lets the guest
//! continue (`continue_after_fork`), and removes what belongs to children without a row.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use banger_domain::{
    lifecycle::{Reason, State},
    net::nic::Mac,
    resource::Resource,
    vm::Vm,
};

use super::{
    TaskEvent, VmTask,
    fork::Child,
    suspend::{go_on, most_of, pipe},
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
        captures::{HostFacts, Origin, Unfinished},
        guest_link, vmm,
    },
};

/// How long the agent may take to freeze the guest: its own limit, and the time to write most data before.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(20);
const THAW_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a guest is thawed. A busy guest may answer too late once.
const THAW_TRIES: u32 = 3;

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

    /// Lets a guest continue that a fork has stopped, if the service ended meanwhile.
    pub(super) async fn continue_after_fork(&mut self) {
        if !self.has_begun().await
            && let Err(error) = go_on(&self.shared.ports, self.vm.id).await
        {
            tracing::error!(vm = %self.vm.id, error = %one_line(&error), "a guest does not go on");
        }
        let (shared, vm) = (Arc::clone(&self.shared), self.vm.clone());
        self.is_thawing = true;
        self.background.spawn(async move {
            if let Err(error) = shared.ports.guest.thaw(vm.id, &vm.token, THAW_TIMEOUT).await {
                tracing::debug!(vm = %vm.id, %error, "a guest was not thawed");
            }
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
    let frozen = ports.guest.freeze(parent.id, &parent.token, FREEZE_TIMEOUT).await;
    if let Err(error @ (guest_link::Error::Refused { .. } | guest_link::Error::TooOld)) = frozen {
        return Err(error.into());
    }
    let begun = Instant::now();
    let captured = match frozen {
        Ok(()) => save(ports, job, parent, facts, first).await,
        Err(error) => Err(error.into()),
    };
    let continues = match go_on(ports, parent.id).await {
        Ok(()) => thaw(ports, parent).await,
        Err(error) => Err(error),
    };
    if let Err(stuck) = continues {
        tracing::error!(vm = %parent.id, error = %one_line(&stuck), "a guest does not go on after a fork");
        return captured.and(Err(stuck));
    }
    let pause = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    job.add_result("pause", Fact::Number(pause));
    captured
}

async fn save(
    ports: &Ports,
    job: &JobHandle,
    parent: &Vm,
    facts: HostFacts,
    first: &mut Child,
) -> Result<Captured> {
    ports.vmm.halt(parent.id).await?;
    let layers = ports.disks.freeze_running(parent.id).await?;
    ports.vmm.switch_layers(parent.id, layers).await?;
    let (from, to) = pipe()?;
    let receive = async {
        let most = most_of(parent.spec.memory);
        ports.captures.receive(first.vm.id, from, most).await.map_err(Error::from)
    };
    let receive = first.lease.hold(Resource::Capture, receive);
    let save = async { ports.vmm.save(parent.id, to).await.map_err(Error::from) };
    let moved = async { tokio::try_join!(receive, save) };
    tokio::select! {
        moved = moved => Ok(Captured { memory: moved?.0, facts }),
        _ = job.canceled() => Err(Error::Canceled),
    }
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
    let mut memory = Some(memory);
    let origin = Origin { token: parent.token.clone(), mac: Mac::of_guest(parent.id) };
    let first = children.first().map(|child| child.vm.id).unwrap_or(parent.id);
    let at = now(&*ports.clock);
    for child in children {
        let id = child.vm.id;
        let mut facts = facts.clone();
        facts.extend(ports.disks.identity(id).await?);
        let stored = match memory.take() {
            Some(memory) => memory.finish(&facts, at, Some(origin.clone())).await?,
            None => child.lease.hold(Resource::Capture, ports.captures.share(first, id, &facts)).await?,
        };
        (child.vm.state, child.vm.reason) = (State::Suspended, Reason::UserRequest);
        child.captured = Some(stored);
    }
    Ok(())
}

/// Thaws a guest whose VMM runs.
pub(super) async fn thaw(ports: &Ports, vm: &Vm) -> Result<()> {
    for _ in 1..THAW_TRIES {
        match ports.guest.thaw(vm.id, &vm.token, THAW_TIMEOUT).await {
            Ok(()) => return Ok(()),
            Err(error) => tracing::warn!(vm = %vm.id, %error, "a guest is not thawed yet"),
        }
    }
    Ok(ports.guest.thaw(vm.id, &vm.token, THAW_TIMEOUT).await?)
}
