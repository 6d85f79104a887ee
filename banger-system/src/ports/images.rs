//! What an image is made of, and who is told how far that is.

use std::os::fd::OwnedFd;

use banger_proto::size::Bytes;

use crate::domain::digest::Digest;
pub use crate::domain::oci::Packing;

/// What an image is made of.
#[derive(Debug)]
pub enum Content {
    /// One regular file of a user: a raw ext4 file system, or a tar of a root file system, packed or not.
    File(OwnedFd),
    /// The layers of an OCI image, the lowest first.
    Layers(Vec<Layer>),
}

/// A layer of an OCI image: a tar with the changes to the layers below it (OCI image specification, "Layer
/// Filesystem Changeset").
#[derive(Debug)]
pub struct Layer {
    /// Its bytes as the registry has them: a regular file, or the reading end of a pipe into which they are
    /// still being written.
    pub blob: OwnedFd,
    /// How they are packed.
    pub packing: Packing,
    /// How many there are. More or fewer are refused.
    pub size: Bytes,
    /// Their digest. Other bytes are refused.
    pub digest: Digest,
    /// The digest of the tar in them. Another tar is refused.
    pub diff_id: Digest,
}

/// Who is told how far a long step is, and knows whether anybody still wants it.
pub trait Progress: Send + Sync {
    /// So many bytes are done, of so many if that is known.
    fn advanced(&self, done: Bytes, total: Option<Bytes>);
    /// Whether the step is to end as soon as it can, with whatever error.
    fn is_canceled(&self) -> bool;
}

/// Nobody is told, and nobody gives it up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl Progress for Unwatched {
    fn advanced(&self, _done: Bytes, _total: Option<Bytes>) {}

    fn is_canceled(&self) -> bool {
        false
    }
}
