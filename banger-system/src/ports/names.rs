//! The DNS names of guests, for the host and for guests.

use std::sync::Arc;

use async_trait::async_trait;
use banger_domain::{dns::table::Table, id::VmId};

use super::{Check, wake::Wake};

/// Serves names.
#[async_trait]
pub trait Names: Send + Sync {
    /// Replaces all names. Cannot fail: the server starts with the first table, and is restarted as long as the
    /// service runs.
    fn publish(&self, names: Arc<Table>);
    /// Returns how many look-ups of names beyond this host were refused to a sandbox without NAT since it started.
    fn refused(&self, vm: VmId) -> u64;
    /// Returns how many look-ups there were since the service started.
    fn lookups(&self) -> Lookups;
    /// Waits for the next look-up of a name whose sandbox sleeps. The client gets the address once it runs, and a failure
    /// if it is refused.
    async fn wanted(&self) -> Wake;
    /// Stops the server and removes the host's reference to it. Must be called when the service ends.
    async fn withdraw(&self);
    /// Checks what this needs from the host.
    async fn checks(&self) -> Vec<Check>;
}

/// Numbers of look-ups, by what came of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lookups {
    /// Answered from the names of sandboxes.
    pub answered: u64,
    /// Forwarded to the resolvers of the host.
    pub forwarded: u64,
    /// Refused to a guest that may not reach the name.
    pub refused: u64,
    /// Dropped or failed, because the client has too many.
    pub limited: u64,
}
