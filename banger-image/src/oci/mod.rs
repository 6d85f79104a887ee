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

/// Why a document cannot be used. Its text is quoted only after it was checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Unusable {
    message: String,
    is_other: bool,
}

impl Unusable {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), is_other: false }
    }

    /// It is something else than a system image, or one for another platform.
    fn other(message: impl Into<String>) -> Self {
        Self { message: message.into(), is_other: true }
    }

    /// It is for the platform that it states, and not for the wanted one.
    pub(crate) fn is_for(stated: &platform::Stated, wanted: &platform::Platform) -> Self {
        Self::other(format!("it is for {stated}, not for {wanted}"))
    }

    /// Returns whether it is not what was wanted, rather than invalid: another entry of its index may be.
    pub fn is_other(&self) -> bool {
        self.is_other
    }

    /// Returns the error of the JSON parser, which has the position and quotes at most a key.
    fn json(what: &str, error: &serde_json::Error) -> Self {
        Self::new(format!("{what} is malformed: {}", printable(&error.to_string())))
    }
}

/// Returns a document's text, shortened and without characters that could confuse a terminal.
fn printable(text: &str) -> String {
    text.chars().take(120).collect::<String>().escape_debug().to_string()
}
