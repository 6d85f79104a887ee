//! Copies of files and directories between a host and a sandbox, as tar archives. The agent and the command use the
//! same code, so that a copy keeps the same things in both directions (the table is in `docs/copies.md`).
//!
//! ```text
//!   files ──► Packer ──► tar ──► (the guest protocol) ──► tar ──► receive ──► files
//!             notes                                               notes
//! ```
//!
//! [`Packer`] reads a tree. It announces a length before it reads a file, and then sends exactly that many bytes,
//! whatever happens to the file meanwhile. A length that cannot be trusted (`/proc`, `/sys`, FUSE, or 0) is found out by
//! reading. Holes are sent as holes, and a second name of a file as a hard link.
//!
//! [`receive`] writes a tree, and trusts nothing in the archive: every name is resolved beneath the destination by
//! `openat2`, nothing is written through a symbolic link of the archive, and only files, directories and links are
//! made. A file or directory that is new appears under its name when all of it has arrived; what goes into a directory
//! that exists arrives file by file, each of them whole.
//!
//! What is left out or changed on the way is collected in [`Notes`].

mod content;
mod entries;
mod exact;
mod fill;
mod land;
mod notes;
mod pack;
mod pax_sparse;
mod rules;
mod tap;
mod walk;
mod write;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use exact::append_entry;
pub use fill::unpack;
pub use land::{Target, receive};
pub use notes::Notes;
pub use pack::{Numbers, Packer};
pub use rules::{Access, Owner, Rules};

/// The beginning of the names of unfinished files and directories.
pub const UNFINISHED: &str = ".banger-";

/// Why a copy failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of the source cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file or directory of the destination cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The source is nothing that can be copied.
    #[error("{} is a {kind}: only files, directories and symbolic links are copied", path.display())]
    Special {
        /// Which.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// A file is in the way of a directory, or the reverse.
    #[error("{} is {kind}", path.display())]
    InTheWay {
        /// Which.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The archive breaks the rules of its format, or of what was asked for.
    #[error("the archive is damaged: {0}")]
    Damaged(String),
    /// The stream of the archive failed.
    #[error("cannot transfer the archive")]
    Stream(#[source] io::Error),
}

/// The result of a copy.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    fn read(path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Read { path: path.to_owned(), source: source.into() }
    }

    fn write(path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Write { path: path.to_owned(), source: source.into() }
    }

    /// The kind of the failure of the system, where there was one.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Read { source, .. } | Self::Write { source, .. } | Self::Stream(source) => source.kind(),
            Self::Special { .. } | Self::InTheWay { .. } => io::ErrorKind::InvalidInput,
            Self::Damaged(_) => io::ErrorKind::InvalidData,
        }
    }
}
