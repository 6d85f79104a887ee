//! Images of registries and in files: parses references, and the documents of an image. All of them come from outside,
//! so everything is limited, and unknown input is refused.
//!
//! The formats are those of the OCI image specification 1.1 (<https://github.com/opencontainers/image-spec>) and of
//! Docker's version 2, schema 2, which differs in the names of its media types alone.

pub mod config;
pub mod credentials;
pub mod index;
pub mod layout;
pub mod manifest;
pub mod platform;
pub mod reach;
pub mod reference;

use banger_domain::digest::Digest;
use banger_proto::size::Bytes;

use self::config::ImageConfig;
pub use crate::unusable::Unusable;
use crate::unusable::printable;

/// A blob of a registry, by digest and size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Descriptor {
    /// Its digest.
    pub digest: Digest,
    /// Its size.
    pub size: Bytes,
}

/// A layer of an image, as described by its manifest and configuration together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerFacts {
    /// The compressed tar.
    pub blob: Descriptor,
    /// The digest of the uncompressed tar.
    pub diff_id: Digest,
}

/// A registry's image for one platform: what is known before its layers are fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteImage {
    /// The digest of its manifest, which identifies the image.
    pub manifest: Digest,
    /// Its layers, the lowest first.
    pub layers: Vec<LayerFacts>,
    /// How to run its programs.
    pub config: ImageConfig,
    /// What was assumed or left out, as sentences without a full stop.
    pub notes: Vec<String>,
}

impl RemoteImage {
    /// Returns the compressed size of all layers.
    pub fn size(&self) -> Bytes {
        Bytes(self.layers.iter().fold(0, |sum: u64, layer| sum.saturating_add(layer.blob.size.0)))
    }
}
