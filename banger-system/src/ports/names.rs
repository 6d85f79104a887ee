//! The DNS names of guests, for the host and for guests.

use std::sync::Arc;

use async_trait::async_trait;
use banger_domain::{dns::table::Table, id::VmId};

use super::Check;

/// Serves names.
#[async_trait]
pub trait Names: Send + Sync {
    /// Replaces all names. Cannot fail: the server starts with the first table, and is restarted as long as the
    /// service runs.
    fn publish(&self, names: Arc<Table>);
    /// Returns how many look-ups of names beyond this host were refused to a sandbox without NAT since it started.
    fn refused(&self, vm: VmId) -> u64;
    /// Stops the server and removes the host's reference to it. Must be called when the service ends.
    async fn withdraw(&self);
    /// Checks what this needs from the host.
    async fn checks(&self) -> Vec<Check>;
}
