//! The host's own list of virtual machines, which other tools read.

use async_trait::async_trait;
use banger_domain::id::VmId;

use super::host_error::Result;

/// Lists sandboxes beside the other virtual machines of the host.
#[async_trait]
pub trait Machines: Send + Sync {
    /// Lists a sandbox whose VMM runs as process `pid` with the interface `tap`. It is listed until the unit of its VMM
    /// ends. A repeat is safe, and a host without such a list is no error.
    async fn register(&self, vm: VmId, pid: u32, tap: &str) -> Result<()>;
}
