//! The logs of VMs.

use std::{any::Any, os::fd::OwnedFd};

use async_trait::async_trait;
use banger_domain::{
    guest_end::GuestEnd,
    id::{Timestamp, VmId},
};

use super::HostError;

/// The logs of VMs.
#[async_trait]
pub trait Logs: Send + Sync {
    /// Returns the reading end of a pipe that gets the log. A VM that never ran has an empty log. The guard is
    /// dropped when the log is read or the reader has gone.
    async fn open(&self, vm: VmId, log: Log, reading: LogRange, hold: ReaderGuard) -> Result<OwnedFd>;
    /// Appends a line to a log of the last boot, whose VMM has ended. Does nothing if there was no boot.
    async fn append(&self, vm: VmId, log: Log, line: String) -> Result<()>;
    /// Returns how the guest of the last boot ended, by the end of its console log; none if that does not say.
    async fn guest_end(&self, vm: VmId) -> Result<Option<GuestEnd>>;
    /// Waits without limit until the console of the current boot says that the guest has halted. Safe to cancel and
    /// call again.
    async fn wait_for_halt(&self, vm: VmId) -> Result<GuestEnd>;
}

/// A value that is held while a log is being read, such as a permit of its user.
pub type ReaderGuard = Box<dyn Any + Send>;

/// A log of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// The serial console.
    Console,
    /// The VMM's standard error.
    Vmm,
}

/// The part of a log to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogRange {
    /// Start with this many lines from the end; with everything if absent.
    pub tail: Option<u32>,
    /// Start with what was written at this time or later.
    pub since: Option<Timestamp>,
    /// End with what was written before this time.
    pub until: Option<Timestamp>,
    /// Continue with new lines until the reader closes the pipe.
    pub follow: bool,
}

/// Why this port failed. It has no failures of its own.
pub type Error = HostError;

/// The result of this port.
pub type Result<T, E = Error> = std::result::Result<T, E>;
