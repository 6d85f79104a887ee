//! Catalogs of images and kernels, and the files that they name.

use std::{os::fd::OwnedFd, sync::Arc};

use async_trait::async_trait;
use banger_domain::{id::Timestamp, name::Name};
use banger_image::catalog::{RemoteFile, index::Index};

use super::{Result, images::Progress};

/// An index that was signed by one of its catalog's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edition {
    /// What it says.
    pub index: Arc<Index>,
    /// When it was fetched.
    pub fetched_at: Timestamp,
}

/// The catalogs that the configuration names.
#[async_trait]
pub trait Catalogs: Send + Sync {
    /// Their names. Of two that have an entry of the same name, the first one counts.
    fn names(&self) -> Vec<Name>;
    /// What is kept of a catalog, whatever its age. It must still be signed by a key that counts.
    async fn kept(&self, catalog: &Name) -> Result<Option<Edition>>;
    /// Fetches the index of a catalog and keeps it, unless it is signed by nobody who may, has expired at this
    /// time, or is older than what is kept: then that stays.
    async fn refresh(&self, catalog: &Name, now: Timestamp) -> Result<Edition>;
    /// A file that the index of a catalog names, with the right size and digest. It goes through the cache of
    /// registries: what came before an interruption is not fetched again.
    async fn fetch(&self, catalog: &Name, file: &RemoteFile, progress: Arc<dyn Progress>) -> Result<OwnedFd>;
}
