//! The names of guests, for the host and for guests.

use std::sync::Arc;

use async_trait::async_trait;
use banger_domain::dns::table::Table;

use super::Check;

/// Serves names.
#[async_trait]
pub trait Names: Send + Sync {
    /// From now on these are the names, and no others. It makes nothing that fails: what serves them begins
    /// with the first table, and is kept up from then on for as long as the service runs.
    fn publish(&self, names: Arc<Table>);
    /// Serves no longer, and sends nobody to where nobody answers: to be called when the service ends.
    async fn withdraw(&self);
    /// What this needs of the host, and whether that is there.
    async fn checks(&self) -> Vec<Check>;
}
