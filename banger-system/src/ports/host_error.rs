//! What can go wrong in any call to the host.

use std::{io, time::Duration};

/// A failed call to the host. The error of every port includes it.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The host lacks a program, a device or a feature.
    #[error("{message}")]
    NotReady {
        /// What is missing, and what to do about it.
        message: String,
    },
    /// The file system is full.
    #[error("cannot {doing}: no space is left")]
    NoSpace {
        /// What was being done, and to what.
        doing: String,
    },
    /// The timeout expired.
    #[error("{what} took longer than {} s", .after.as_secs())]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
    },
    /// The operating system refused.
    #[error("cannot {doing}")]
    Os {
        /// What was being done, and to what.
        doing: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// An unexpected failure.
    #[error("cannot {doing}")]
    Other {
        /// What was being done, and to what.
        doing: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The result of a call to the host.
pub type Result<T, E = HostError> = std::result::Result<T, E>;

/// Lets an adapter write `Error::os(…)` for a [`HostError`] in the error of its port.
pub trait FromHost: From<HostError> {
    /// Returns the error of a system call that was made for `doing`. A full file system becomes
    /// [`HostError::NoSpace`].
    fn os(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let (doing, source) = (doing.into(), source.into());
        let is_full = matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        Self::from(if is_full { HostError::NoSpace { doing } } else { HostError::Os { doing, source } })
    }

    /// Returns the error of a library call that was made for `doing`.
    fn other(doing: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        HostError::Other { doing: doing.into(), source: source.into() }.into()
    }

    /// Returns the error of a host that lacks something.
    fn not_ready(message: impl Into<String>) -> Self {
        HostError::NotReady { message: message.into() }.into()
    }

    /// Returns the error of a write to a full file system.
    fn no_space(doing: impl Into<String>) -> Self {
        HostError::NoSpace { doing: doing.into() }.into()
    }

    /// Returns the error of a wait for `what` that was given up.
    fn timeout(what: impl Into<String>, after: Duration) -> Self {
        HostError::Timeout { what: what.into(), after }.into()
    }
}

impl<E: From<HostError>> FromHost for E {}
