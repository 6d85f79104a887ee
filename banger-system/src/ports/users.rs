//! The accounts of the host.

use async_trait::async_trait;
use banger_domain::id::Uid;

use super::HostError;

/// The accounts of the host. Fails with [`HostError::NotReady`] if the name service does not answer in time.
#[async_trait]
pub trait Users: Send + Sync {
    /// Returns the user with this login name or number; none if there is no such name.
    async fn uid_of(&self, login: &str) -> Result<Option<Uid>>;
    /// Returns the login name of a user; none if the user has no account.
    async fn login_of(&self, uid: Uid) -> Result<Option<String>>;
}

/// Why this port failed. It has no failures of its own.
pub type Error = HostError;

/// The result of this port.
pub type Result<T, E = Error> = std::result::Result<T, E>;
