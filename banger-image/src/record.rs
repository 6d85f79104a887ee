//! Records of images and kernels.

use std::{fmt, str::FromStr};

use banger_domain::{
    digest::Digest,
    id::{ImageId, KernelId, Timestamp, Uid},
    name::Name,
};
use banger_proto::size::Bytes;

use crate::oci::{
    config::ImageConfig,
    reference::{ImageRef, NotAReference},
};

/// An image: a root file system that sandboxes clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// Unique per owner.
    pub name: Name,
    /// Its owner.
    pub owner: Uid,
    /// Whether every user sees it.
    pub shared: bool,
    /// Its source, for people.
    pub source: String,
    /// The kernel of its sandboxes; `None` means the default kernel.
    pub kernel: Option<KernelId>,
    /// When it was created.
    pub created_at: Timestamp,
    /// Facts about its file.
    pub facts: ImageFacts,
    /// The registry's image that it was made of, if any.
    pub origin: Option<Origin>,
    /// How to run its programs.
    pub config: ImageConfig,
}

/// The default image of sandboxes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DefaultImage {
    /// By its name on this host or in a catalog.
    Named(Name),
    /// By a reference to pull.
    Pulled(ImageRef),
}

impl fmt::Display for DefaultImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => name.fmt(f),
            Self::Pulled(reference) => reference.fmt(f),
        }
    }
}

impl FromStr for DefaultImage {
    type Err = NotAReference;

    /// Parses a name or a reference. A text that is both counts as a name.
    fn from_str(text: &str) -> Result<Self, NotAReference> {
        match text.parse() {
            Ok(name) => Ok(Self::Named(name)),
            Err(_) => text.parse().map(Self::Pulled),
        }
    }
}

/// The registry's image that an image was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The reference that was pulled.
    pub reference: ImageRef,
    /// The digest of the manifest at that time.
    pub manifest: Digest,
}

impl Origin {
    /// Returns whether both are the same image of the same registry.
    pub fn is_same(&self, other: &Origin) -> bool {
        self.manifest == other.manifest && self.reference.registry() == other.reference.registry()
    }
}

/// Facts about an image's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFacts {
    /// The image for which the file was made. All images that name the same one share the file.
    pub file: ImageId,
    /// `sha256:` and 64 hexadecimal digits. For an imported ext4 file system it is the digest of the whole file, as
    /// `sha256sum` prints it. For an image made of layers or an archive it covers everything that determines its
    /// bytes: the digests of the tars, the size, and the version of the writer (`importer::build`).
    pub digest: String,
    /// Size of the file system.
    pub virtual_size: Bytes,
    /// Bytes of the files in it.
    pub content_size: Bytes,
    /// Bytes that the file occupies.
    pub disk_usage: Bytes,
}

/// A kernel with the modules that a guest needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its id.
    pub id: KernelId,
    /// Unique per owner.
    pub name: Name,
    /// Its owner.
    pub owner: Uid,
    /// Whether every user sees it.
    pub shared: bool,
    /// Its source, for people.
    pub source: String,
    /// When it was created.
    pub created_at: Timestamp,
    /// Facts about its files.
    pub facts: KernelFacts,
}

/// Facts about a kernel's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelFacts {
    /// `sha256:` and 64 hexadecimal digits, of the ELF file.
    pub digest: String,
    /// What `uname -r` prints in the guest.
    pub release: String,
    /// Number of modules in the initramfs.
    pub modules: u32,
    /// Size of the file system with all modules; zero if there is none.
    pub module_tree: Bytes,
    /// Bytes that its files occupy.
    pub size: Bytes,
}
