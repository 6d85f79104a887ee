//! What the service and the worker say to each other: an order with the files, any number of answers about how
//! far it is, and a last one.

use std::io;

use banger_jail::walls::Walls;
use banger_proto::size::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    oci::{Packing, config::ImageConfig},
    rootfs,
};

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Set where no systemd has put walls around the worker.
    pub walls: Option<Walls>,
    /// What to do behind them.
    pub task: Task,
}

/// What the worker can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Make an image. The files are that of the image, one to put things aside, and the archives.
    Import(Import),
    /// Write an image into an archive. The files are the image's, and a new one for the archive.
    Export(Export),
    /// Copy a user's file. The files are the user's, and an empty one for the copy.
    Take(Take),
    /// Write the file system of a kernel's modules. The files are an archive of them, and a new one for the file system.
    ModuleTree(ModuleTree),
    /// Try what it must not be able to do.
    Probe,
}

/// An image to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// The archives, the lowest first.
    pub archives: Vec<Archive>,
    /// The size of the file system.
    pub size: Bytes,
}

/// An image to be written into an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// How its programs want to be run.
    pub config: ImageConfig,
    /// The processor that they are for.
    pub architecture: String,
}

/// A kernel's modules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleTree {
    /// What `uname -r` prints.
    pub release: String,
}

/// A user's file to be copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Take {
    /// What it is to be, for messages: `the kernel`.
    pub what: String,
    /// The largest size that is taken.
    pub max: Bytes,
    /// What of it is copied.
    pub extent: Extent,
}

/// What of a file is copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Extent {
    /// All of it.
    Whole,
    /// The first so many bytes, or all of a file that has fewer.
    Head(u64),
    /// Parts, one behind the other: where each begins, and how long it is. One beyond the end is refused.
    Parts(Vec<(u64, u64)>),
}

/// An archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archive {
    /// How it is packed.
    pub packing: Packing,
    /// What is said of it, if it is a layer; a whole root file system otherwise.
    pub claim: Option<Claim>,
    /// Where a layer begins in a file that has other things as well; it is the whole file or pipe when absent.
    pub offset: Option<u64>,
}

/// What is said of a layer. What turns out otherwise is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// How many bytes it has.
    pub size: Bytes,
    /// Their digest.
    pub digest: String,
    /// The digest of the tar in them.
    pub diff_id: String,
}

/// What the worker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It works.
    Works {
        /// So many bytes were read of the archives.
        read: u64,
        /// So many bytes were written.
        written: u64,
    },
    /// The image is there. Nothing follows.
    Made(Made),
    /// The archive is there. Nothing follows.
    Exported(Exported),
    /// The copy of a file of this size is there. Nothing follows.
    Taken(u64),
    /// The file system of modules is there. Nothing follows.
    MadeTree(MadeTree),
    /// It is not. Nothing follows.
    Failed(Failure),
    /// What it tried, and whether it could. Nothing follows.
    Probed(Vec<Attempt>),
}

/// An image that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The digest of all that its bytes follow from: the archives, the size, and how they are laid out.
    pub digest: String,
}

/// A file system of modules that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeTree {
    /// Its size.
    pub size: Bytes,
    /// How many modules are in it.
    pub modules: u32,
    /// How many files were left out, since they are called modules and are none.
    pub skipped: u32,
}

/// An archive of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// The digest of the manifest in it.
    pub manifest: String,
    /// Its size.
    pub bytes: Bytes,
}

/// Something that the worker tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// What it was.
    pub what: String,
    /// Whether the host let it.
    pub done: bool,
    /// How the kernel answered.
    pub how: String,
}

/// Why there is no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Failure {
    /// An archive is not what it has to be.
    #[error("{message}")]
    Refused {
        /// What is wrong with it.
        message: String,
    },
    /// A user's file is of the wrong kind, mode or size.
    #[error("{message}")]
    BadFile {
        /// What is wrong with it.
        message: String,
    },
    /// There is no room for it.
    #[error("cannot {doing}: no space is left")]
    NoSpace {
        /// What was being done.
        doing: String,
    },
    /// Something that should not be.
    #[error("cannot {doing}: {why}")]
    Broken {
        /// What was being done.
        doing: String,
        /// Why not.
        why: String,
    },
}

impl Failure {
    pub(super) fn refused(message: impl Into<String>) -> Self {
        Self::Refused { message: message.into() }
    }

    /// The error of a system call that was made for `doing`.
    pub(super) fn os(doing: &str, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace { doing: doing.to_owned() }
            }
            _ => Self::Broken { doing: doing.to_owned(), why: error.to_string() },
        }
    }
}

impl From<rootfs::Error> for Failure {
    fn from(error: rootfs::Error) -> Self {
        match error {
            rootfs::Error::Read(source) => Self::os("read an archive", source),
            other => Self::refused(format!("the image cannot be taken: {other}")),
        }
    }
}
