//! Catalogs: signed lists of images and kernels and their files. An index is parsed only after its signature was
//! verified ([`signature::Signed`]), and everything in it is limited even then (`docs/decisions/0015-catalogs.md`).

pub mod index;
pub mod location;
pub mod signature;

use std::{fmt, str::FromStr};

use banger_domain::{
    digest::{Digest, NotADigest},
    name::{self, Name},
};
use banger_proto::size::Bytes;

use self::location::{Joined, Location};
pub use crate::unusable::Unusable;
use crate::{oci::Descriptor, unusable::printable};

/// A configured catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its name on this host.
    pub name: Name,
    /// The location of its index. The signature is beside it.
    pub location: Location,
    /// Keys that may sign it, in addition to those in the directories of keys.
    pub keys: signature::Keys,
}

/// A file of a catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its location, relative to the index.
    pub location: Joined,
    /// Its digest and size.
    pub content: Descriptor,
}

impl RemoteFile {
    /// Returns its digest.
    pub fn digest(&self) -> Digest {
        self.content.digest
    }

    /// Returns its size.
    pub fn size(&self) -> Bytes {
        self.content.size
    }
}

/// The recorded source of an object that came from a catalog, written as `catalog:CATALOG/ENTRY@sha256:…`. This
/// cannot be mistaken for a reference to a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Provenance {
    /// The catalog.
    pub catalog: Name,
    /// Its entry.
    pub entry: Name,
    /// The digest of its file; for a kernel, of the file with the kernel itself.
    pub digest: Digest,
}

const SCHEME: &str = "catalog:";

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}@{}", self.catalog, self.entry, self.digest)
    }
}

/// The text is not a source in a catalog.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this did not come from a catalog")]
pub struct NotFromACatalog;

impl From<name::Error> for NotFromACatalog {
    fn from(_: name::Error) -> Self {
        Self
    }
}

impl From<NotADigest> for NotFromACatalog {
    fn from(_: NotADigest) -> Self {
        Self
    }
}

impl FromStr for Provenance {
    type Err = NotFromACatalog;

    fn from_str(text: &str) -> Result<Self, NotFromACatalog> {
        let rest = text.strip_prefix(SCHEME).ok_or(NotFromACatalog)?;
        let (names, digest) = rest.split_once('@').ok_or(NotFromACatalog)?;
        let (catalog, entry) = names.split_once('/').ok_or(NotFromACatalog)?;
        Ok(Self { catalog: catalog.parse()?, entry: entry.parse()?, digest: digest.parse()? })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::oci::reference::ImageRef;

    #[test]
    fn a_provenance_reads_back_and_is_no_reference_to_a_registry() {
        let provenance = Provenance {
            catalog: "banger".parse().unwrap(),
            entry: "debian-bookworm".parse().unwrap(),
            digest: Digest::from_bytes([7; 32]),
        };
        let text = provenance.to_string();
        assert_eq!(text.parse::<Provenance>().unwrap(), provenance);
        assert!(text.parse::<ImageRef>().is_err(), "{text}");
        for text in ["file", "docker.io/library/alpine:latest", "catalog:a@sha256:0", "catalog:a/b"] {
            assert!(text.parse::<Provenance>().is_err(), "{text}");
        }
    }
}
