//! The processes of VMs.

use std::{collections::HashMap, time::Duration};

use async_trait::async_trait;
use banger_domain::id::{Uid, VmId};
use banger_proto::size::Bytes;

use super::{
    HostError,
    vmm::{JailSpec, VmmCommand},
};
pub use banger_domain::guest_end::Ended;

/// Starts VMMs in jails that outlive the service, and reports their ends.
#[async_trait]
pub trait Supervisor: Send + Sync {
    /// Starts a jail, and returns before it is ready. It exists until [`Supervisor::remove`], even if this or a later
    /// step fails. Must not be repeated before that.
    async fn start_jail(&self, spec: JailSpec) -> Result<Box<dyn EmptyJail>>;
    /// Sends a signal to a VM's process.
    async fn kill(&self, vm: VmId, signal: i32) -> Result<()>;
    /// Freezes a VM's process, and returns once it is frozen. A repeat is safe. Only
    /// [`Supervisor::thaw`], SIGKILL and [`Supervisor::remove`] have an effect on it then.
    async fn freeze(&self, vm: VmId) -> Result<()>;
    /// Lets a frozen process go on. A repeat is safe, and so is a process that was not frozen.
    async fn thaw(&self, vm: VmId) -> Result<()>;
    /// Kills a VM's process, and waits until nothing of the jail is left. A repeat is safe.
    async fn remove(&self, vm: VmId) -> Result<()>;
    /// Waits without limit until a VM's process has ended, and returns how. Also works for a process that an earlier
    /// run of the service started. Safe to cancel and call again.
    async fn ended(&self, vm: VmId) -> Result<Ended>;
    /// Returns the VMs that have a process.
    async fn found(&self) -> Result<Vec<(VmId, Started)>>;
    /// Returns what these VMs with their owners use of the host. Leaves out those for which the host does not say it.
    async fn usage(&self, vms: Vec<(VmId, Uid)>) -> HashMap<VmId, Usage>;
}

/// What all processes of a VM use of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Memory, with the page cache of the files that they read.
    pub memory: Bytes,
    /// Processor time since the start.
    pub cpu: Duration,
}

/// A started jail without a process in it. Dropping it ends the jail, and [`Supervisor::remove`] removes what is
/// left.
#[async_trait]
pub trait EmptyJail: Send {
    /// Starts a process in the jail. It runs when this returns. Fails with [`Error::Exited`] if it exits at once.
    async fn run(self: Box<Self>, command: VmmCommand) -> Result<Started>;
}

/// A process that was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// The name of its unit; empty without systemd.
    pub unit: String,
    /// Its process id.
    pub pid: u32,
    /// The user that it runs as.
    pub user: u32,
}

/// Why a process was not started or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process exited at once.
    #[error("{message}")]
    Exited {
        /// What it said.
        message: String,
    },
    /// The call to the host failed.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// The result of this port.
pub type Result<T, E = Error> = std::result::Result<T, E>;
