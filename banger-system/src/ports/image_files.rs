//! The files of images, and the content that they are made of.

use std::{os::fd::OwnedFd, sync::Arc};

use async_trait::async_trait;
use banger_domain::{
    digest::Digest,
    id::{ImageId, Uid},
    launch_spec::Drive,
    limits::Exceeded,
    name::Name,
};
use banger_image::{
    oci::{RemoteImage, config::ImageConfig, platform::Platform},
    record::ImageFacts,
};
use banger_proto::size::Bytes;

use super::{HostError, Progress};

/// The files of images.
#[async_trait]
pub trait ImageFiles: Send + Sync {
    /// Creates an image's file from its content. A failed import leaves no files. Progress counts the bytes of the
    /// content that were read. Fails with [`Error::Unsupported`], [`Error::Mismatch`],
    /// [`Error::NoRoom`] or [`HostError::NoSpace`].
    async fn import(
        &self,
        image: ImageId,
        owner: Uid,
        content: Content,
        progress: Arc<dyn Progress>,
    ) -> Result<ImageFacts>;
    /// Reads the manifest and the configuration of an OCI image in a user's file, which has to be for this platform.
    /// `parts` are the manifest, the configuration, and each layer. Layers are not read yet.
    async fn layout(
        &self,
        owner: Uid,
        file: OwnedFd,
        parts: &[FileRange],
        platform: &Platform,
    ) -> Result<Layout>;
    /// Writes an image into a user's empty file, as an OCI image layout in a tar archive that is a Docker archive as
    /// well. The same image gives the same bytes. A failed export leaves its bytes in the file.
    async fn export(
        &self,
        image: ImageId,
        for_whom: Uid,
        described: (Name, ImageConfig),
        archive: OwnedFd,
        progress: Arc<dyn Progress>,
    ) -> Result<Exported>;
    /// Makes an image share the files of another one. They exist until both images are removed.
    async fn share(&self, image: ImageId, of: ImageId) -> Result<()>;
    /// Removes an image's files. A repeat is safe.
    async fn remove(&self, image: ImageId) -> Result<()>;
    /// Returns the images that have files.
    async fn found(&self) -> Result<Vec<ImageId>>;
}

/// The content of an image.
#[derive(Debug)]
pub enum Content {
    /// A user's regular file: a raw ext4 file system, or a tar of a root file system, maybe compressed.
    File(OwnedFd),
    /// The layers of an OCI image, the lowest first.
    Layers(Vec<Layer>),
    /// The system disk of a sandbox that is down.
    Disk {
        /// As [`super::disks::Disks::attach`] returns it.
        drive: Drive,
        /// How much of it may be written into the image.
        room: Bytes,
    },
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

/// Why an operation on the files of images failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The content is not supported.
    #[error("{message}")]
    Unsupported {
        /// What is wrong with it.
        message: String,
    },
    /// Content does not have the expected digest or size.
    #[error("{message}")]
    Mismatch {
        /// What was compared.
        message: String,
    },
    /// A user's file is of the wrong kind, mode or size.
    #[error("{message}")]
    BadFile {
        /// What is wrong with it.
        message: String,
    },
    /// The content exceeds the room that it was given.
    #[error(transparent)]
    NoRoom(#[from] Exceeded),
    /// The call to the host failed.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// The result of this port.
pub type Result<T, E = Error> = std::result::Result<T, E>;
