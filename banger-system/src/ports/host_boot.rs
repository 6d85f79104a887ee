//! The boot of the host: what starts with it.

use async_trait::async_trait;

use super::HostError;

/// The boot of the host.
#[async_trait]
pub trait HostBoot: Send + Sync {
    /// Returns whether the service has not run since the host booted.
    fn is_first_run(&self) -> bool;
    /// Notes that everything that starts with the host has been started. May be repeated.
    async fn note_run(&self) -> Result<()>;
    /// Makes the host start the service at its next boot, or not. May be repeated.
    async fn want_service(&self, wanted: bool) -> Result<()>;
}

/// Why this port failed. It has no failures of its own.
pub type Error = HostError;

/// The result of this port.
pub type Result<T, E = Error> = std::result::Result<T, E>;
