//! What an image is made of, and who is told how far that is.

use std::os::fd::OwnedFd;

use banger_domain::digest::Digest;
use banger_image::oci::{Packing, RemoteImage};
use banger_proto::size::Bytes;

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
    /// Where they begin in a file that has other things as well; the whole file or pipe when absent.
    pub offset: Option<u64>,
    /// How they are packed.
    pub packing: Packing,
    /// How many there are. More or fewer are refused.
    pub size: Bytes,
    /// Their digest. Other bytes are refused.
    pub digest: Digest,
    /// The digest of the tar in them. Another tar is refused.
    pub diff_id: Digest,
}

/// An OCI image in a file of a user's.
#[derive(Debug)]
pub struct Layout {
    /// What its manifest and its configuration say.
    pub image: RemoteImage,
    /// Its layers in the file.
    pub layers: Vec<Layer>,
}

/// An image that was written into an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exported {
    /// The digest of its manifest there.
    pub manifest: Digest,
    /// The size of the archive.
    pub bytes: Bytes,
}

/// Where something is in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub length: Bytes,
}

/// Receives the progress of a long step, and knows whether the step is still wanted.
pub trait Progress: Send + Sync {
    /// Reports how many bytes are done, and of how many if that is known.
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
