//! What the verbs have in common that ask the agents of several sandboxes.

use banger_proto::bus::names::VM_INTERFACE;

use crate::{
    bus::Bus,
    error::{Error, FAILURE, Result},
    guest::Guest,
    service::Kind,
    signals::Signals,
};

/// Those who are asked, and how.
pub struct Asked<'a> {
    bus: Bus,
    signals: Signals,
    references: &'a [String],
    status: u8,
}

impl<'a> Asked<'a> {
    /// Asks these.
    pub async fn new(references: &'a [String]) -> Result<Self> {
        Ok(Self { bus: Bus::connect().await?, signals: Signals::catch()?, references, status: 0 })
    }

    /// The name of a sandbox, and its agent.
    pub async fn open(&self, reference: &str) -> Result<(String, Guest)> {
        open(&self.bus, &self.signals, reference).await
    }

    /// Tells what went wrong with one of them. The others go on.
    pub fn failed(&mut self, reference: &str, error: Error) {
        self.status = error.status(FAILURE);
        error.about(reference).print((self.references.len() > 1).then_some(reference));
    }

    /// One of them is not as it should be.
    pub fn poor(&mut self) {
        self.status = FAILURE;
    }

    /// The exit status.
    pub fn status(&self) -> u8 {
        self.status
    }
}

/// The name of a sandbox, and its agent.
pub async fn open(bus: &Bus, signals: &Signals, reference: &str) -> Result<(String, Guest)> {
    let vm = bus.find(Kind::Vm, reference).await?;
    let name = bus.properties(&vm, VM_INTERFACE).await?.name().to_owned();
    Ok((name, Guest::new(bus.clone(), vm, signals.listen())))
}
