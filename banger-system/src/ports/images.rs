//! The content of an image, and progress reports.

use std::os::fd::OwnedFd;

use banger_domain::digest::Digest;
use banger_image::oci::RemoteImage;
use banger_proto::size::Bytes;

/// The content of an image.
#[derive(Debug)]
pub enum Content {
    /// A user's regular file: a raw ext4 file system, or a tar of a root file system, maybe compressed.
    File(OwnedFd),
    /// The layers of an OCI image, the lowest first.
    Layers(Vec<Layer>),
}

/// A layer of an OCI image: a tar with the changes to the layers below it (OCI image specification, "Layer
/// Filesystem Changeset").
#[derive(Debug)]
pub struct Layer {
    /// Its compressed bytes: a regular file, or the reading end of a pipe that is still being written.
    pub blob: OwnedFd,
    /// Where the bytes start in the file; at its start if absent.
    pub offset: Option<u64>,
    /// Their number. Any other number is refused.
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

/// A range of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRange {
    /// Its start, in bytes.
    pub offset: u64,
    /// Its length.
    pub length: Bytes,
}

/// Receives the progress of a long step, and can cancel it.
pub trait Progress: Send + Sync {
    /// Reports how many bytes are done, and of how many if that is known.
    fn advanced(&self, done: Bytes, total: Option<Bytes>);
    /// Returns whether the step must end as soon as possible, with any error.
    fn is_canceled(&self) -> bool;
}

/// Ignores progress, and never cancels.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn advanced(&self, _done: Bytes, _total: Option<Bytes>) {}

    fn is_canceled(&self) -> bool {
        false
    }
}
