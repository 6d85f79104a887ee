//! The streams that users have open.

use std::{collections::BTreeMap, os::fd::OwnedFd};

use banger_domain::{id::Uid, limits::Exceeded};

use super::HostError;

/// Counts the streams of each user.
pub trait Streams: Send + Sync {
    /// Counts a stream as its user's until its last descriptor is closed. Fails with [`Error::TooMany`] if the user has
    /// `limit` streams.
    fn hand_out(&self, user: Uid, stream: &OwnedFd, limit: usize) -> Result<()>;
    /// Returns how many streams each user has, without those who have none.
    fn open(&self) -> BTreeMap<Uid, usize>;
}

/// Why a stream is not handed out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user has too many.
    #[error(transparent)]
    TooMany(#[from] Exceeded),
    /// The call to the host failed.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// The result of this port.
pub type Result<T, E = Error> = std::result::Result<T, E>;
