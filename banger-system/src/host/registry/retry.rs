//! Timeouts and retries for registries.

use std::time::Duration;

use crate::ports::registry::{Error, Result};

/// The longest pause that a registry may ask for.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Timeouts and retries of requests to a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Until a connection is established, encryption included.
    pub connect: Duration,
    /// Until a response begins.
    pub answer: Duration,
    /// Between two pieces of a response.
    pub silence: Duration,
    /// Until a small document is complete.
    pub document: Duration,
    /// In this time, at least [`Timeouts::slowest`] bytes of a layer must arrive.
    pub window: Duration,
    /// See [`Timeouts::window`].
    pub slowest: u64,
    /// How many attempts may fail without progress.
    pub attempts: u32,
    /// The first pause between two attempts. Each further one is twice as long.
    pub pause: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            silence: Duration::from_secs(30),
            document: Duration::from_secs(60),
            // Slower than a modem: nobody wants to wait for an image at that rate.
            window: Duration::from_secs(60),
            slowest: 64 << 10,
            attempts: 5,
            pause: Duration::from_millis(500),
        }
    }
}

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another attempt may succeed; not before `after`, if the registry says so.
    Transient { message: String, after: Option<Duration> },
    /// Another attempt would fail too.
    Final(Error),
}

impl Failure {
    pub(super) fn transient(message: impl Into<String>) -> Self {
        Self::Transient { message: message.into(), after: None }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// Counts the attempts of one operation.
pub(super) struct Retries {
    timeouts: Timeouts,
    failed: u32,
}

impl Retries {
    pub(super) fn new(timeouts: Timeouts) -> Self {
        Self { timeouts, failed: 0 }
    }

    /// Forgets earlier failures, after there was progress.
    pub(super) fn reset(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next attempt, or returns the error if there is none.
    pub(super) async fn wait_to_retry(&mut self, failure: Failure) -> Result<()> {
        let (message, after) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Transient { message, after } => (message, after),
        };
        self.failed += 1;
        let asked = after.unwrap_or_default();
        if self.failed >= self.timeouts.attempts || asked > MAX_PAUSE {
            return Err(Error::Unreachable { message });
        }
        let pause = self.timeouts.pause * 2u32.pow(self.failed - 1);
        // Up to a half more, so that clients that failed together do not return together.
        let spread = pause.mul_f64(f64::from(uuid::Uuid::new_v4().as_bytes()[0]) / 512.0);
        tracing::debug!(message, failed = self.failed, "retrying a registry");
        tokio::time::sleep((pause + spread).max(asked)).await;
        Ok(())
    }
}
