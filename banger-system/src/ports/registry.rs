//! OCI registries, and the cache of what they sent.

use std::{fmt, future::Future, os::fd::OwnedFd, pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use banger_domain::net::subnet::Subnet;
use banger_image::oci::{
    LayerFacts, RemoteImage, credentials::Credentials, platform::Platform, reference::ImageRef,
};
use banger_proto::size::Bytes;

use super::{HostError, Progress};

/// The address of an image, and the credentials to use.
#[derive(Debug, Clone)]
pub struct Source {
    /// The reference.
    pub reference: ImageRef,
    /// The wanted platform.
    pub platform: Platform,
    /// The user's credentials at the registry.
    pub credentials: Credentials,
}

/// Layers that are being fetched.
pub struct Fetch {
    /// The bytes of each layer, in the requested order: a file if it is cached, else a pipe that ends early if the
    /// layer cannot be fetched.
    pub blobs: Vec<OwnedFd>,
    /// Fetches the missing layers. Ends when all of them have arrived and their digests match. Dropping it cancels;
    /// the cache keeps what has arrived.
    pub work: Pin<Box<dyn Future<Output = Result<()>> + Send>>,
}

impl fmt::Debug for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetch").field("blobs", &self.blobs).finish_non_exhaustive()
    }
}

/// What to remove from the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Prune {
    /// Only what was not used for this long; everything if absent.
    pub older_than: Option<Duration>,
    /// Only report what would be removed.
    pub dry_run: bool,
}

/// What was removed from the cache, or would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// How many blobs.
    pub blobs: u64,
    /// How many bytes they take.
    pub bytes: Bytes,
}

/// Registries, and the cache that all users share.
#[async_trait]
pub trait Registry: Send + Sync {
    /// Forbids requests to guests, whichever name leads there. They would come from the host, which a guest's own
    /// rules may trust.
    fn forbid_guests(&self, guests: Subnet);
    /// Reads credentials from a client's file. It must be sealed: nobody may change it, and reading must not block.
    fn credentials(&self, file: OwnedFd) -> Result<Credentials>;
    /// Resolves a reference to a manifest. Always asks the registry: its answer authorises this user to use the
    /// cached layers. A repeat is safe.
    async fn resolve(&self, source: &Source) -> Result<RemoteImage>;
    /// Starts to fetch layers. Progress counts the bytes of all of them, including cached ones.
    async fn fetch(
        &self,
        source: &Source,
        layers: &[LayerFacts],
        progress: Arc<dyn Progress>,
    ) -> Result<Fetch>;
    /// Removes wrong layers from the cache, so that they are fetched again. A repeat is safe.
    async fn forget(&self, source: &Source, layers: &[LayerFacts]) -> Result<()>;
    /// Removes layers from the cache that are not being fetched. Does not disturb readers.
    async fn prune(&self, prune: Prune) -> Result<Pruned>;
}

/// Why a registry's image is not available.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A server cannot be reached, or does not answer in time.
    #[error("{message}")]
    Unreachable {
        /// Which one, and why.
        message: String,
    },
    /// A registry requires a login, or refuses this one.
    #[error("{message}")]
    AuthRequired {
        /// Which one, for what.
        message: String,
    },
    /// A server refuses a request, or sends an invalid response.
    #[error("{message}")]
    Refused {
        /// Which one, and what it said.
        message: String,
    },
    /// Content does not have the expected digest or size.
    #[error("{message}")]
    Mismatch {
        /// What was compared.
        message: String,
    },
    /// The image is of a kind that is not supported.
    #[error("{message}")]
    Unsupported {
        /// What is wrong with it.
        message: String,
    },
    /// A file is of the wrong kind, mode or size.
    #[error("{message}")]
    BadFile {
        /// What is wrong with it.
        message: String,
    },
    /// The call to the host failed.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// The result of this port.
pub type Result<T, E = Error> = std::result::Result<T, E>;
