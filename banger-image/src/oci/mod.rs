//! Images of registries: parses references and the documents of a registry. All of them come from outside, so
//! everything is limited, and unknown input is refused.
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

/// A blob of a registry, by digest and size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Descriptor {
    /// Its digest.
    pub digest: Digest,
    /// Its size.
    pub size: Bytes,
}

/// How a tar is compressed.
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

/// A layer of an image, as described by its manifest and configuration together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerFacts {
    /// The compressed tar.
    pub blob: Descriptor,
    /// How it is compressed.
    pub packing: Packing,
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
}

impl RemoteImage {
    /// Returns the compressed size of all layers.
    pub fn size(&self) -> Bytes {
        Bytes(self.layers.iter().fold(0, |sum: u64, layer| sum.saturating_add(layer.blob.size.0)))
    }
}

/// Why a registry's document cannot be used. The registry's text is quoted only after it was checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(pub String);

impl Unusable {
    fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// Returns the error of the JSON parser, which has the position and quotes at most a key.
    fn json(what: &str, error: &serde_json::Error) -> Self {
        Self(format!("{what} is malformed: {}", printable(&error.to_string())))
    }
}

/// Returns a registry's text, shortened and without characters that could confuse a terminal.
fn printable(text: &str) -> String {
    text.chars().take(120).collect::<String>().escape_debug().to_string()
}
