//! Images that other programs saved in files: OCI image layouts, and what `docker save` writes. Either may be a directory
//! or a tar archive, plain or packed.
//!
//! ```text
//!   index.json ──► index::choose ──► manifest ──► configuration, layers      an OCI layout (skopeo, buildah, Docker 25)
//!   manifest.json ──► index::choose ────────────► configuration, layers      a Docker archive (Docker, podman, nix, crane)
//! ```
//!
//! The files are read with the rights of the user who has them, and they are as hostile as any image: documents have
//! limits, and a name leads to files of the same archive or directory alone. What comes out is one file, and where the
//! manifest, the configuration and the layers of one image are in it. The service reads those again, and trusts nothing
//! that was found here.

mod docker;
mod oci;
mod source;

use std::{fs::File, io};

pub use source::{Source, is_image};

use crate::{
    oci::{
        Unusable,
        index::{Candidate, Index, Selector},
    },
    rootfs,
};

/// The list of images in an OCI layout.
const INDEX: &str = "index.json";
/// The list of images in a Docker archive.
const DOCKER_INDEX: &str = "manifest.json";
/// All that Docker wrote before version 1.10.
const DOCKER_V1: &str = "repositories";

/// An image in a file.
#[derive(Debug)]
pub struct Image {
    /// The file: the archive itself, or an unnamed copy.
    pub file: File,
    /// The offset and length of its manifest, its configuration, and its layers.
    pub parts: Vec<(u64, u64)>,
    /// The name that it gets.
    pub name: String,
    /// The kernel that it boots, of a bundle.
    pub kernel: Option<String>,
}

/// Why no image can be taken from files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot {doing}")]
    Io {
        /// What was being done.
        doing: String,
        /// The cause.
        source: io::Error,
    },
    /// There is no image in it.
    #[error(
        "it is not an image: it has neither index.json (an OCI layout) nor manifest.json (`docker save`)"
    )]
    NotAnImage,
    /// The archive is too old.
    #[error("it is in the format of Docker before 1.10; a newer `docker load` and `docker save` convert it")]
    TooOld,
    /// A document or the archive is invalid, or for another platform.
    #[error("{0}")]
    Unusable(String),
    /// It has several images that fit.
    #[error("it has several images that fit: {}", .names.join(", "))]
    Several {
        /// The tags or digests of two of them.
        names: Vec<String>,
    },
    /// Neither the user nor the image says a name.
    #[error("the image has no name")]
    Unnamed,
}

impl Error {
    fn io(doing: impl Into<String>, source: io::Error) -> Self {
        Self::Io { doing: doing.into(), source }
    }

    fn unusable(why: impl Into<String>) -> Self {
        Self::Unusable(why.into())
    }

    fn too_many() -> Self {
        Self::unusable("it lists too many artifacts")
    }

    fn missing(name: &str) -> Self {
        Self::Unusable(format!("{} is missing in it", rootfs::error::Shown::of(name.as_bytes())))
    }
}

impl From<Unusable> for Error {
    fn from(unusable: Unusable) -> Self {
        Self::Unusable(unusable.to_string())
    }
}

impl From<rootfs::Error> for Error {
    fn from(error: rootfs::Error) -> Self {
        match error {
            rootfs::Error::Read(source) => Self::io("read the archive", source),
            other => Self::Unusable(other.to_string()),
        }
    }
}

/// Makes an unnamed file that may become large.
pub type Temporary<'a> = &'a dyn Fn() -> io::Result<File>;

/// Finds the wanted image, which gets this name. Without one it must be a bundle, which has a name.
///
/// Of several images for the platform, none is taken unless a tag says which. Images for other platforms, signatures and
/// other artifacts do not count.
pub fn find(
    mut source: Source,
    wanted: Selector<'_>,
    name: Option<&str>,
    temporary: Temporary<'_>,
) -> Result<Image, Error> {
    // Docker 25 and later write both lists, and the first one says more. `docker save` of an image without a tag
    // leaves it empty.
    if let Some(index) = source.document(INDEX)? {
        match Index::of_layout(&index) {
            Ok(Some(index)) => return oci::find(source, &index, wanted, name, temporary),
            Ok(None) if source.has(DOCKER_INDEX)? => {}
            Ok(None) => return Err(Error::unusable("its index.json lists no image")),
            Err(error) => return Err(error.into()),
        }
    }
    match source.document(DOCKER_INDEX)? {
        Some(list) => docker::find(source, &list, wanted, name, temporary),
        None if source.has(DOCKER_V1)? => Err(Error::TooOld),
        None => Err(Error::NotAnImage),
    }
}

/// An image that was looked at.
enum Look<T> {
    Image(T),
    /// It is not an image, or it is an image for another platform.
    Other(Unusable),
    /// It was not looked at, because enough was.
    Spent,
}

/// Looks at candidates, the best one first, and returns the first image. If there may be only one, another image that
/// fits as well is an error.
fn first<T>(
    candidates: &[Candidate],
    several: Several,
    names: impl Fn(Candidate) -> String,
    mut look: impl FnMut(Candidate) -> Result<Look<T>, Error>,
) -> Result<Look<T>, Error> {
    let mut found: Option<(Candidate, T)> = None;
    let mut other = None;
    for &candidate in candidates {
        let is_worse = |(first, _): &(Candidate, T)| several == Several::Fine || first.fit != candidate.fit;
        if found.as_ref().is_some_and(is_worse) {
            break;
        }
        match (look(candidate)?, &found) {
            (Look::Image(image), None) => found = Some((candidate, image)),
            (Look::Image(_), Some((first, _))) => {
                return Err(Error::Several { names: vec![names(*first), names(candidate)] });
            }
            (Look::Other(why), _) => drop(other.get_or_insert(why)),
            (Look::Spent, None) => return Ok(Look::Spent),
            (Look::Spent, Some(_)) => break,
        }
    }
    match (found, other) {
        (Some((_, image)), _) => Ok(Look::Image(image)),
        (None, Some(why)) => Ok(Look::Other(why)),
        // There is always a candidate.
        (None, None) => Err(Error::NotAnImage),
    }
}

/// Whether several images may fit equally well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Several {
    /// The first one is taken: the list has one image for several platforms.
    Fine,
    /// They are different images.
    Refused,
}
