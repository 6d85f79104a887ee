//! Catalogs of images and kernels, and the files that they name.

use std::{os::fd::OwnedFd, sync::Arc};

use async_trait::async_trait;
use banger_domain::{id::Timestamp, name::Name};
use banger_image::catalog::{RemoteFile, index::Index};

use super::{HostError, Progress, registry};

/// A catalog's index with a valid signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedIndex {
    /// What it says.
    pub index: Arc<Index>,
    /// When it was fetched.
    pub fetched_at: Timestamp,
}

/// The catalogs that the configuration names.
#[async_trait]
pub trait Catalogs: Send + Sync {
    /// Returns the names of the configured catalogs. For entries of the same name, the first catalog counts.
    fn names(&self) -> Vec<Name>;
    /// Returns the stored copy of a catalog, whatever its age. Fails with [`Error::Refused`] if no valid
    /// key has signed it.
    async fn stored(&self, catalog: &Name) -> Result<Option<FetchedIndex>>;
    /// Fetches and stores the index of a catalog. Fails, and keeps the stored copy, if it is not signed by a valid
    /// key, has expired at `now`, or is older than the stored copy. A repeat is safe.
    async fn refresh(&self, catalog: &Name, now: Timestamp) -> Result<FetchedIndex>;
    /// Returns a file that the index names, after checking its size and digest. It is fetched through the cache of
    /// registries, so an interrupted download continues.
    async fn fetch(&self, catalog: &Name, file: &RemoteFile, progress: Arc<dyn Progress>) -> Result<OwnedFd>;
}

/// Why a catalog or a file of it is not available.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The catalog has a bad signature, is too old, or cannot be parsed.
    #[error("{message}")]
    Refused {
        /// Which one, and why.
        message: String,
    },
    /// It cannot be fetched.
    #[error(transparent)]
    Fetch(#[from] registry::Error),
    /// The call to the host failed.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// The result of this port.
pub type Result<T, E = Error> = std::result::Result<T, E>;
