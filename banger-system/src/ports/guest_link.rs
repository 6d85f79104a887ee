//! The connections to the agents in guests.

use std::{os::fd::OwnedFd, time::Duration};

use async_trait::async_trait;
use banger_domain::{clock::Occasion, id::VmId, idle::Use, stream::Purpose, vm::Token};
use banger_proto::guest::{GuestConfig, rejuvenation::Identity};

use super::{HostError, vmm};

/// The connection to the agents in guests.
#[async_trait]
pub trait GuestLink: Send + Sync {
    /// Waits until the agent in the initramfs asks for the configuration of its boot, and leaves it without one. Fails
    /// with [`Error::Timeout`], and with [`Error::Unavailable`] if the agent has a configuration. Safe to cancel and
    /// to repeat.
    async fn wait_unconfigured(&self, vm: VmId, timeout: Duration) -> Result<UnconfiguredGuest>;
    /// Sends the agent the configuration of this boot when it asks for it, with entropy and the current time. Fails with
    /// [`Error::Timeout`]. An agent keeps the configuration that it has, so a repeat is safe.
    async fn configure(&self, vm: VmId, config: &GuestConfig, timeout: Duration) -> Result<()>;
    /// Waits until the agent answers. Fails with [`Error::Timeout`]. Safe to cancel and to repeat.
    async fn wait_ready(&self, vm: VmId, token: &Token, timeout: Duration) -> Result<GuestFacts>;
    /// Asks the agent to sync the disks and to power off. Returns once the agent confirms that all earlier writes are
    /// on the disks. A repeat is safe.
    async fn shutdown(&self, vm: VmId, token: &Token, timeout: Duration) -> Result<()>;
    /// Compares the clock of the guest with the host's, and corrects it. A repeat is safe.
    async fn sync_clock(&self, vm: VmId, token: &Token, occasion: Occasion) -> Result<()>;
    /// Returns what the agent says about the use of the guest. Fails with [`Error::Timeout`] after some seconds. A repeat is
    /// safe.
    async fn usage(&self, vm: VmId, token: &Token) -> Result<Use>;
    /// Freezes all processes of the guest but its agent and its first one, and writes its data to the disks. Fails with
    /// [`Error::Refused`] if a process or a disk takes too long, and with [`Error::TooOld`]; then nothing is frozen.
    /// After any other failure, [`GuestLink::thaw`] is needed. The guest stays frozen until then, also when the service
    /// ends. Safe to cancel and to repeat.
    async fn freeze(&self, vm: VmId, token: &Token, timeout: Duration) -> Result<()>;
    /// Lets a frozen guest continue. One that is not frozen is left alone. Safe to cancel and to repeat.
    async fn thaw(&self, vm: VmId, token: &Token, timeout: Duration) -> Result<()>;
    /// Gives a frozen guest that continues from a capture fresh entropy, the current time, and the token `new`; and to a
    /// copy its identity. `old` is the token of the capture. The guest stays frozen. Fails with [`Error::Refused`] and
    /// [`Error::Timeout`]; such a copy must not continue. Safe to cancel and to repeat.
    async fn rejuvenate(
        &self,
        vm: VmId,
        old: &Token,
        new: &Token,
        identity: Option<&Identity>,
        timeout: Duration,
    ) -> Result<()>;
    /// Greets the agent on a connection of [`Vmm::connect`](vmm::Vmm::connect). The returned stream takes one request.
    /// Fails with [`Error::Timeout`] after some seconds; the greeting may be lost then, so that another connection is worth
    /// a try.
    async fn open(&self, stream: tokio::net::UnixStream, token: &Token) -> Result<OwnedFd>;
}

/// What the agent reports about its guest. Untrusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFacts {
    /// The kernel's boot id.
    pub boot_id: String,
    /// Whether it is shutting down.
    pub stopping: bool,
}

/// What an agent without a configuration reports about its guest. Untrusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnconfiguredGuest {
    /// Whether the kernel has found a disk or a network interface already, because it has their drivers built in. Such
    /// a guest cannot become one with other disks.
    pub early_devices: bool,
}

/// Which connection to the agent to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// The service's own connection.
    Control,
    /// A stream for a client, for this purpose.
    Stream(Purpose),
}

/// Why the guest's agent cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The agent cannot be reached, or sends an invalid reply.
    #[error("{message}")]
    Unavailable {
        /// What went wrong.
        message: String,
    },
    /// The agent cannot do it. The message is the agent's, bounded and without control characters.
    #[error("{message}")]
    Refused {
        /// Why.
        message: String,
    },
    /// The agent is of an earlier version, in a guest that was started before an upgrade.
    #[error("the guest was started by an earlier version of banger; restart the sandbox")]
    TooOld,
    /// All streams to the agent are in use.
    #[error("all streams to the guest are in use")]
    NoFreeStream,
    /// The agent did not answer in time.
    #[error("{what} took longer than {} s", .after.as_secs())]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
    },
    /// The VMM does not open a channel.
    #[error(transparent)]
    Vmm(#[from] vmm::Error),
    /// The call to the host failed.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// The result of this port.
pub type Result<T, E = Error> = std::result::Result<T, E>;
