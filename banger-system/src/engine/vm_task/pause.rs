//! Pauses a VM: its VMM keeps memory, disks and network, and gets no processor time until the pause ends.
//!
//! The state is stored after the process was frozen, and before it is thawed. So if the service is killed in between, the
//! stored state is `running`, and the next service thaws the process.

use banger_domain::{
    clock::Occasion,
    lifecycle::{Event, State, Transition, step},
    vm::Vm,
};

use super::{VmTask, liveness::Liveness};
use crate::{
    engine::error::{Error, Result},
    ports::Ports,
};

impl VmTask {
    /// Pauses a VM whose guest answers. Does nothing if it is paused.
    pub(super) async fn pause(&mut self) -> Result<()> {
        let Transition::To(_) = step(self.vm.state, Event::Pause)? else { return Ok(()) };
        self.require_not_forked()?;
        if !self.vm.is_ready() {
            return Err(Error::NotReady { name: self.vm.name.to_string() });
        }
        if let Err(error) = self.shared.ports.supervisor.freeze(self.vm.id).await {
            // It may stand still all the same, or in a moment.
            self.shared.ports.supervisor.thaw(self.vm.id).await?;
            return Err(error.into());
        }
        self.enter(Event::Pause)?;
        self.liveness = Liveness::default();
        self.forget_use();
        if let Err(error) = self.save().await {
            self.shared.ports.supervisor.thaw(self.vm.id).await?;
            self.enter(Event::Unpause)?;
            self.publish();
            return Err(error);
        }
        Ok(())
    }

    /// Ends a pause, and sets the guest's clock. Does nothing if the VM runs.
    pub(super) async fn unpause(&mut self) -> Result<()> {
        let Transition::To(_) = step(self.vm.state, Event::Unpause)? else { return Ok(()) };
        self.enter(Event::Unpause)?;
        self.forget_use();
        let thawed = match self.save().await {
            Ok(()) => self.shared.ports.supervisor.thaw(self.vm.id).await.map_err(Error::from),
            Err(error) => Err(error),
        };
        if let Err(error) = thawed {
            self.enter(Event::Pause)?;
            self.save_or_log().await;
            return Err(error);
        }
        self.correct_clock();
        Ok(())
    }

    /// Makes the end of a VMM possible, and known: a paused one goes on, and one that loads memory is watched from now on.
    /// A VMM that stays frozen is killed after the time of the stop.
    pub(super) async fn expect_end(&mut self) {
        if self.loading.take().is_some() {
            self.watch_vmm();
        }
        if self.vm.state == State::Paused
            && let Err(error) = self.shared.ports.supervisor.thaw(self.vm.id).await
        {
            tracing::warn!(vm = %self.vm.id, %error, "cannot let a paused sandbox go on");
        }
    }

    /// Brings a VM that an earlier run of the service has left into the state that is stored.
    pub(super) async fn freeze_as_stored(&self) {
        let supervisor = &self.shared.ports.supervisor;
        let done = match self.vm.state {
            State::Paused => supervisor.freeze(self.vm.id).await,
            _ => supervisor.thaw(self.vm.id).await,
        };
        if let Err(error) = done {
            tracing::warn!(vm = %self.vm.id, %error, "cannot freeze or thaw a sandbox");
        }
    }

    /// Sets the guest's clock in the background: it stood still.
    pub(super) fn correct_clock(&self) {
        correct_clock(&self.shared.ports, &self.vm);
    }
}

/// Sets the clock of a guest that stood still, in the background.
pub(super) fn correct_clock(ports: &Ports, vm: &Vm) {
    let (ports, vm, token) = (ports.clone(), vm.id, vm.token.clone());
    tokio::spawn(async move {
        if let Err(error) = ports.guest.sync_clock(vm, &token, Occasion::Jump).await {
            tracing::warn!(%vm, %error, "cannot set the clock of a guest");
        }
    });
}
