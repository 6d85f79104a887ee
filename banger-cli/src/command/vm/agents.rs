//! Queries the agents of several sandboxes.

use banger_proto::bus::names::VM_INTERFACE;

use crate::{
    client::{bus::Bus, object::Object, service::Kind},
    error::{Error, FAILURE, Result},
    guest::agent::Guest,
    ui::signals::Signals,
};

/// The sandboxes to query, and the exit status so far.
pub struct Agents<'a> {
    bus: Bus,
    signals: Signals,
    references: &'a [String],
    status: u8,
}

impl<'a> Agents<'a> {
    /// Connects for these references.
    pub async fn new(references: &'a [String]) -> Result<Self> {
        Ok(Self { bus: Bus::connect().await?, signals: Signals::catch()?, references, status: 0 })
    }

    /// Returns the name of a sandbox, and its agent.
    pub async fn open(&self, reference: &str) -> Result<(String, Guest)> {
        open(&self.bus, &self.signals, reference).await
    }

    /// Returns a sandbox, and its agent.
    pub async fn open_with_properties(&self, reference: &str) -> Result<(Object, Guest)> {
        open_with_properties(&self.bus, &self.signals, reference).await
    }

    /// Prints the failure of one of them. The others continue.
    pub fn failed(&mut self, reference: &str, error: Error) {
        self.status = error.status(FAILURE);
        error.about(reference).print((self.references.len() > 1).then_some(reference));
    }

    /// Records that one of them has problems.
    pub fn mark_unhealthy(&mut self) {
        self.status = FAILURE;
    }

    /// Returns the exit status.
    pub fn status(&self) -> u8 {
        self.status
    }
}

/// Returns the name of a sandbox, and its agent.
pub async fn open(bus: &Bus, signals: &Signals, reference: &str) -> Result<(String, Guest)> {
    let (sandbox, guest) = open_with_properties(bus, signals, reference).await?;
    Ok((sandbox.name().to_owned(), guest))
}

async fn open_with_properties(bus: &Bus, signals: &Signals, reference: &str) -> Result<(Object, Guest)> {
    let vm = bus.find(Kind::Vm, reference).await?;
    let sandbox = bus.properties(&vm, VM_INTERFACE).await?;
    Ok((sandbox, Guest::new(bus.clone(), vm, signals.listen())))
}
