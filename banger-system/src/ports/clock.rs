//! The host's clock.

use std::time::SystemTime;

use async_trait::async_trait;
use banger_domain::clock::Occasion;

use super::HostError;

/// The host's clock.
#[async_trait]
pub trait Clock: Send + Sync {
    /// Returns the current time.
    fn now(&self) -> SystemTime;
    /// Waits until guest clocks have to be compared with the host's, and returns why: the clock was set or the host
    /// slept (also before this call, since the last one), or a minute has passed.
    async fn due(&self) -> Result<Occasion>;
}

/// Why this port failed. It has no failures of its own.
pub type Error = HostError;

/// The result of this port.
pub type Result<T, E = Error> = std::result::Result<T, E>;
