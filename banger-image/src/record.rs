//! Images and kernels: what is known of each.

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

/// An image: a root file system that machines clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// Unique per owner.
    pub name: Name,
    /// Who made it.
    pub owner: Uid,
    /// Whether every user sees it.
    pub shared: bool,
    /// Where it came from, in words for people.
    pub source: String,
    /// The kernel that its machines boot; none means the default kernel.
    pub kernel: Option<KernelId>,
    /// When it was made.
    pub created_at: Timestamp,
    /// What its file is.
    pub facts: ImageFacts,
    /// The image of a registry that it is; none for one that was made of files.
    pub origin: Option<Origin>,
    /// How its programs want to be run.
    pub config: ImageConfig,
}

/// The image of machines for which none is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DefaultImage {
    /// By its name here, or in a catalog.
    Named(Name),
    /// By what it is pulled as.
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

    /// A text that is both is a name.
    fn from_str(text: &str) -> Result<Self, NotAReference> {
        match text.parse() {
            Ok(name) => Ok(Self::Named(name)),
            Err(_) => text.parse().map(Self::Pulled),
        }
    }
}

/// The image of a registry that an image was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// What was asked for.
    pub reference: ImageRef,
    /// The digest of the manifest that it stood for at the time.
    pub manifest: Digest,
}

impl Origin {
    /// Whether both are the same image of the same registry.
    pub fn is_same(&self, other: &Origin) -> bool {
        self.manifest == other.manifest && self.reference.registry() == other.reference.registry()
    }
}

/// What was found out about an image's file while it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFacts {
    /// `sha256:` and 64 hexadecimal digits. Of an image that came as an ext4 file system, of the whole file: what
    /// `sha256sum` prints. Of one that was made of layers or of an archive, of all that its bytes follow from:
    /// the digests of their tars, the size, and the version of what wrote it (`importer::build`).
    pub digest: String,
    /// Size of the file system.
    pub virtual_size: Bytes,
    /// Bytes that the file takes.
    pub disk_usage: Bytes,
}

/// A kernel with the modules that a guest needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its id.
    pub id: KernelId,
    /// Unique per owner.
    pub name: Name,
    /// Who made it.
    pub owner: Uid,
    /// Whether every user sees it.
    pub shared: bool,
    /// Where it came from, in words for people.
    pub source: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// What its files are.
    pub facts: KernelFacts,
}

/// What was found out about a kernel while it was imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelFacts {
    /// `sha256:` and 64 hexadecimal digits, of the ELF file.
    pub digest: String,
    /// What `uname -r` prints in the guest.
    pub release: String,
    /// Number of modules in the initramfs.
    pub modules: u32,
    /// Size of the file system with all its modules; zero where there is none.
    pub module_tree: Bytes,
    /// Bytes that its files take.
    pub size: Bytes,
}
