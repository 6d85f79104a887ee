//! Catalogs: signed lists of images and kernels that somebody publishes, with what each is made of. Nothing of an
//! index is looked at before its signature was compared ([`signature::Signed`]), and everything in it has a limit
//! even then (`docs/decisions/0015-catalogs.md`).

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
use crate::oci::Descriptor;

/// A catalog that the configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// What it is called here.
    pub name: Name,
    /// Where its index is; the signature is beside it.
    pub location: Location,
    /// Keys that may sign it, beside those in the directories of keys.
    pub keys: signature::Keys,
}

/// A file of a catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Where it is, as seen from the index.
    pub location: Joined,
    /// What its bytes must come to, and how many there must be.
    pub content: Descriptor,
}

impl RemoteFile {
    /// Its digest.
    pub fn digest(&self) -> Digest {
        self.content.digest
    }

    /// Its size.
    pub fn size(&self) -> Bytes {
        self.content.size
    }
}

/// What is noted down as the source of what came from a file of a catalog. In words:
/// `catalog:CATALOG/ENTRY@sha256:…`, which is no reference to an image of a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Provenance {
    /// The catalog.
    pub catalog: Name,
    /// The entry in it.
    pub entry: Name,
    /// The digest of the file; of a kernel, of the file with the kernel itself.
    pub digest: Digest,
}

const SCHEME: &str = "catalog:";

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}@{}", self.catalog, self.entry, self.digest)
    }
}

/// The text does not name a catalog.
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

/// Why something of a catalog cannot be used. The text is ours: what stands in the index is quoted only as far as
/// it was checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(pub String);

impl Unusable {
    fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// A text of somebody else's, shortened and without what could confuse a terminal.
fn printable(text: &str) -> String {
    text.chars().take(80).collect::<String>().escape_debug().to_string()
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
