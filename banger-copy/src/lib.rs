//! Copies files and directories between a host and a sandbox as tar archives. The agent and the command use the same
//! code, so that both directions preserve the same attributes (see the table in `docs/copies.md`).
//!
//! ```text
//!   files ──► Packer ──► tar ──► (the guest protocol) ──► tar ──► receive ──► files
//!             notes                                               notes
//! ```
//!
//! [`Packer`] reads a tree. It announces a length before it reads a file, and then sends exactly that many bytes,
//! whatever happens to the file meanwhile. A file whose length cannot be trusted (`/proc`, `/sys`, FUSE, or 0) is
//! read first. Holes are sent as holes, and a second name of a file as a hard link.
//!
//! [`receive`] writes a tree, and does not trust the archive: `openat2` resolves every name beneath the destination,
//! nothing is written through a symbolic link of the archive, and only files, directories and links are created. A
//! new file or directory gets its name when it is complete. In a directory that exists, this holds for each file.
//!
//! [`Notes`] collects what was left out or changed.

mod content;
mod entries;
mod error_tap;
mod extract;
mod notes;
mod pack;
mod pax_sparse;
mod raw_names;
mod receive;
mod rules;
mod walk;
mod write;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use extract::unpack;
pub use notes::Notes;
pub use pack::{Ownership, Packer};
pub use raw_names::append_entry;
pub use receive::{Target, receive, receive_in};
pub use rules::{Access, Names, Owner, Rules};

/// Prefix of the names of unfinished files and directories.
pub const UNFINISHED: &str = ".banger-";

/// A failure of a copy.
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
    /// The source is of a kind that cannot be copied.
    #[error("{} is a {kind}: only files, directories and symbolic links are copied", path.display())]
    Special {
        /// Which.
        path: PathBuf,
        /// Its kind.
        kind: &'static str,
    },
    /// A file may not have this name.
    #[error("cannot copy {}: a copy from there may not contain the files of a git repository", path.display())]
    Git {
        /// Its path.
        path: PathBuf,
    },
    /// A file is in the way of a directory, or vice versa.
    #[error("{} is {kind}", path.display())]
    InTheWay {
        /// Which.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The archive is malformed, or does not match the request.
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

    /// Returns the kind of the system error, if there was one.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Read { source, .. } | Self::Write { source, .. } | Self::Stream(source) => source.kind(),
            Self::Special { .. } | Self::InTheWay { .. } | Self::Git { .. } => io::ErrorKind::InvalidInput,
            Self::Damaged(_) => io::ErrorKind::InvalidData,
        }
    }
}
