//! Images of registries: what a reference means, and what the documents of a registry say. All of it comes from
//! outside, so that everything has a limit, and what is not understood is refused.
//!
//! The formats are those of the OCI image specification 1.1 (<https://github.com/opencontainers/image-spec>) and of
//! Docker's version 2, schema 2, which differs in the names of its media types alone.

pub mod config;
pub mod credentials;
pub mod layout;
pub mod manifest;
pub mod platform;
pub mod reference;

use banger_domain::digest::Digest;
use banger_proto::size::Bytes;

use self::config::ImageConfig;

/// Some content of a registry, by its name and its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Descriptor {
    /// What its bytes must come to.
    pub digest: Digest,
    /// How many there must be.
    pub size: Bytes,
}

/// How a tar is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Packing {
    /// Not at all.
    Plain,
    /// RFC 1952, of one member or more.
    Gzip,
    /// RFC 8878, of one frame or more.
    Zstd,
}

/// A layer of an image, as its manifest and its configuration describe it together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerFacts {
    /// The packed tar.
    pub blob: Descriptor,
    /// How it is packed.
    pub packing: Packing,
    /// The digest of the tar itself.
    pub diff_id: Digest,
}

/// An image of a registry for one platform: all that is known of it before its layers are fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteImage {
    /// The digest of its manifest, which names the image for good.
    pub manifest: Digest,
    /// Its layers, the lowest first.
    pub layers: Vec<LayerFacts>,
    /// How its programs want to be run.
    pub config: ImageConfig,
}

impl RemoteImage {
    /// The bytes of all layers as the registry has them.
    pub fn size(&self) -> Bytes {
        Bytes(self.layers.iter().fold(0, |sum: u64, layer| sum.saturating_add(layer.blob.size.0)))
    }
}

/// Why a document of a registry cannot be used. The text is ours: what the registry wrote stands in it only as
/// far as it was checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(pub String);

impl Unusable {
    fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// The parser's own words tell the place, and quote at most a key.
    fn json(what: &str, error: &serde_json::Error) -> Self {
        Self(format!("{what} is malformed: {}", printable(&error.to_string())))
    }
}

/// A text of a registry, shortened and without what could confuse a terminal.
fn printable(text: &str) -> String {
    text.chars().take(120).collect::<String>().escape_debug().to_string()
}
