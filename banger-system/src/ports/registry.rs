//! The registries that images come from, and the cache of what was fetched.

use std::{fmt, future::Future, os::fd::OwnedFd, pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use banger_domain::net::subnet::Subnet;
use banger_image::oci::{
    LayerFacts, RemoteImage, credentials::Credentials, platform::Platform, reference::ImageRef,
};
use banger_proto::size::Bytes;

use super::{Result, images::Progress};

/// Where an image is asked for, and by whom.
#[derive(Debug, Clone)]
pub struct Source {
    /// What is asked for.
    pub reference: ImageRef,
    /// The wanted platform.
    pub platform: Platform,
    /// How the user is known to the registry.
    pub credentials: Credentials,
}

/// Layers that are on their way.
pub struct Fetch {
    /// The bytes of each layer, in the order in which they were asked for: a file when it is there, else a pipe
    /// that ends early when the layer does not come.
    pub blobs: Vec<OwnedFd>,
    /// Fetches what is missing. It ends when all is there and has its digest, and gives up when it is dropped;
    /// what has come by then is kept for the next time.
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
    /// Only what nobody has used for so long; everything when absent.
    pub older_than: Option<Duration>,
    /// Only say what would be removed.
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
    /// Says where the guests are. Nobody is asked there from then on, whoever names the place: who asks is the
    /// host's superuser, whom a guest's own rules let in.
    fn keep_away_from(&self, guests: Subnet);
    /// The credentials in a file that a client handed over. It must be one that nobody can change any more, nor
    /// make a read of it wait.
    fn credentials(&self, file: OwnedFd) -> Result<Credentials>;
    /// Resolves a reference. The registry is asked each time: that it answers this user is
    /// what lets the user have what is in the cache.
    async fn resolve(&self, source: &Source) -> Result<RemoteImage>;
    /// Begins to fetch layers. The progress counts the bytes of all of them, those in the cache too.
    async fn fetch(
        &self,
        source: &Source,
        layers: &[LayerFacts],
        progress: Arc<dyn Progress>,
    ) -> Result<Fetch>;
    /// Removes wrong layers from the cache, so that the next fetch gets them again.
    async fn forget(&self, source: &Source, layers: &[LayerFacts]) -> Result<()>;
    /// Removes from the cache what is not being fetched. Readers are not disturbed.
    async fn prune(&self, prune: Prune) -> Result<Pruned>;
}
