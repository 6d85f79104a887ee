//! Templates: captures of guests that wait for their configuration.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Check, HostError, vmm::Capture};

/// The templates of this host. They belong to the service: a guest that waits for its configuration holds nothing of
/// any user.
#[async_trait]
pub trait Templates: Send + Sync {
    /// Removes what an interrupted [`Templates::keep`] left, and the templates that no start can use any more. Returns how
    /// many were removed. A repeat is safe.
    async fn tidy(&self) -> Result<usize>;
    /// Returns a template, or `None` if it does not exist. One that does not verify is moved aside.
    async fn load(&self, key: &TemplateKey) -> Result<Option<Arc<Capture>>>;
    /// Stores a template, which then exists whole or not at all. Removes those that were not used for longest if they
    /// take more room than the host allows. Returns whether there was room.
    async fn keep(&self, key: &TemplateKey, capture: &Capture) -> Result<Kept>;
    /// Moves a template aside that a start failed with. A repeat is safe.
    async fn quarantine(&self, key: &TemplateKey) -> Result<()>;
    /// Returns what `doctor` shows about them.
    async fn checks(&self) -> Vec<Check>;
}

/// Everything that a guest depends on until it is configured.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TemplateKey {
    /// The files that it boots from, and the VMM's own. Each has a stamp that changes with the content.
    pub files: BTreeMap<PathBuf, String>,
    /// The kernel and the processor of the host.
    pub host: Vec<String>,
    /// The VMM's arguments without identities: processors, memory, devices.
    pub arguments: Vec<String>,
}

/// What became of a new template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It can be loaded.
    Yes,
    /// It is larger than all templates may be.
    TooLarge,
}

/// The result of this port.
pub type Result<T, E = HostError> = std::result::Result<T, E>;
