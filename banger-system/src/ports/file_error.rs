//! What can be wrong with a user's file.

use super::HostError;

/// Why the work on a user's file, or on what was fetched for a user, failed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The content is not supported.
    #[error("{message}")]
    Unsupported {
        /// What is wrong with it.
        message: String,
    },
    /// A user's file is of the wrong kind, mode or size.
    #[error("{message}")]
    BadFile {
        /// What is wrong with it.
        message: String,
    },
    /// The call to the host failed.
    #[error(transparent)]
    Host(#[from] HostError),
}
