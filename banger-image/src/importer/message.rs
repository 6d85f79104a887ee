//! Messages between the service and the worker: an order with files, any number of progress messages, and a result.

use std::io;

use banger_jail::jail::Jail;
use banger_proto::size::Bytes;
use serde::{Deserialize, Serialize};

use crate::{oci::config::ImageConfig, rootfs};

/// The order to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The jail that the worker has to build, if there is no systemd.
    #[serde(rename = "walls")]
    pub jail: Option<Jail>,
    /// What to do in it.
    pub task: Task,
}

/// What a worker can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Make an image. The files are a new one for the image, a new one for moved content, and the archives.
    Import(Import),
    /// Write an image to an archive. The files are the image and a new one for the archive.
    Export(Export),
    /// Copy a user's file. The files are the user's and an empty one for the copy.
    #[serde(rename = "Take")]
    CopyFile(CopyFile),
    /// Copy the system disk of a sandbox. The files are a new one for the copy, the disk, and what is below it if it is
    /// an overlay, the image last.
    Flatten(Flatten),
    /// Write the file system of a kernel's modules. The files are an archive of them and a new one for the file system.
    ModuleTree(ModuleTree),
    /// Try what the worker must not be able to do.
    Probe,
}

/// An image to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// The archives, the lowest first.
    pub archives: Vec<Archive>,
    /// The size of the file system.
    pub size: Bytes,
}

/// An image to write to an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// The image's name for the programs that read the archive.
    pub name: String,
    /// How to run its programs.
    pub config: ImageConfig,
    /// Their architecture.
    pub architecture: String,
}

/// A kernel's modules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleTree {
    /// What `uname -r` prints.
    pub release: String,
}

/// A system disk to copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flatten {
    /// The largest accepted size of the disk.
    pub max: Bytes,
    /// How much of it may be written.
    pub room: Bytes,
}

/// A user's file to copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyFile {
    /// What it is, for messages: `the kernel`.
    pub what: String,
    /// The largest accepted size.
    pub max: Bytes,
    /// Which part to copy.
    pub extent: Extent,
}

/// The part of a file to copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Extent {
    /// All of it.
    Whole,
    /// The first bytes, or all of a shorter file.
    Head(u64),
    /// Several ranges, by offset and length, one after the other. A range beyond the end is refused.
    Parts(Vec<(u64, u64)>),
}

/// An archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archive {
    /// The claim about a layer; `None` for a whole root file system.
    pub claim: Option<Claim>,
    /// The offset of a layer in a file with other content; `None` if it is the whole file or pipe.
    pub offset: Option<u64>,
}

/// A claim about a layer. A layer that does not match is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Its compressed size.
    pub size: Bytes,
    /// Its compressed digest.
    pub digest: String,
    /// The digest of the decompressed tar.
    pub diff_id: String,
}

/// The worker's answers. All but the first kind are final.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The progress so far.
    Works {
        /// Bytes read from the archives.
        read: u64,
        /// Bytes written.
        written: u64,
    },
    /// The image was made.
    Made(Made),
    /// The archive was written.
    Exported(Exported),
    /// A file of this size was copied.
    #[serde(rename = "Taken")]
    Copied(u64),
    /// The file system of modules was written.
    MadeTree(MadeTree),
    /// The task failed.
    Failed(Failure),
    /// The results of the attempts.
    Probed(Vec<Attempt>),
}

/// A new image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The digest of everything that determines its bytes: the archives, the size and the layout.
    pub digest: String,
    /// The bytes of its files.
    pub content: Bytes,
}

/// A new file system of modules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeTree {
    /// Its size.
    pub size: Bytes,
    /// How many modules are in it.
    pub modules: u32,
    /// The number of skipped files: those named like a module that are none.
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

/// An attempt to do something forbidden.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// What it was.
    pub what: String,
    /// Whether it succeeded.
    pub done: bool,
    /// The kernel's answer.
    pub how: String,
}

/// Why a task failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Failure {
    /// An archive is invalid.
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
    /// There is more to write than the order allows.
    #[error("there is more to write than allowed")]
    NoRoom,
    /// There is no space for it.
    #[error("cannot {doing}: no space is left")]
    NoSpace {
        /// What was being done.
        doing: String,
    },
    /// An unexpected error.
    #[error("cannot {doing}: {why}")]
    Broken {
        /// What was being done.
        doing: String,
        /// The cause.
        why: String,
    },
}

impl Failure {
    pub(super) fn refused(message: impl Into<String>) -> Self {
        Self::Refused { message: message.into() }
    }

    /// Returns the failure of a system call made for `doing`.
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
            other => Self::refused(format!("cannot use the image: {other}")),
        }
    }
}
