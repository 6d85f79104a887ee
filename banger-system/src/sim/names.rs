//! Names in memory.

use std::sync::Arc;

use async_trait::async_trait;
use banger_domain::dns::table::Table;

use super::Sim;
use crate::ports::{Check, names::Names};

impl Sim {
    /// The names that were published last.
    pub fn names(&self) -> Option<Arc<Table>> {
        self.lock().names.clone()
    }
}

#[async_trait]
impl Names for Sim {
    fn publish(&self, names: Arc<Table>) {
        self.lock().names = Some(names);
    }

    async fn withdraw(&self) {
        self.lock().names = None;
    }

    async fn checks(&self) -> Vec<Check> {
        Vec::new()
    }
}
