//! Timeouts and retries for registries.

use std::time::Duration;

use crate::ports::{Error, Result};

/// The longest wait that a registry may ask for.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// How long a registry is waited for. All of it is for one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Until it is connected, encryption included.
    pub connect: Duration,
    /// Until an answer begins.
    pub answer: Duration,
    /// Between two pieces of an answer.
    pub silence: Duration,
    /// Until a document, which is small, is here.
    pub document: Duration,
    /// In this time at least [`Patience::slowest`] bytes of a layer must come.
    pub window: Duration,
    /// See [`Patience::window`].
    pub slowest: u64,
    /// How often something is tried that brings nothing forward.
    pub attempts: u32,
    /// The first pause between two tries; each one after it is twice as long.
    pub pause: Duration,
}

impl Default for Patience {
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

/// Why a try failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may work the next time; not before so long, if the registry says so.
    Passing { message: String, after: Option<Duration> },
    /// It will not.
    Final(Error),
}

impl Failure {
    pub(super) fn passing(message: impl Into<String>) -> Self {
        Self::Passing { message: message.into(), after: None }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// Tries of one thing.
pub(super) struct Tries {
    patience: Patience,
    failed: u32,
}

impl Tries {
    pub(super) fn new(patience: Patience) -> Self {
        Self { patience, failed: 0 }
    }

    /// It went forward: what failed before counts no longer.
    pub(super) fn forget(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next try, or says that there is none.
    pub(super) async fn again(&mut self, failure: Failure) -> Result<()> {
        let (message, after) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Passing { message, after } => (message, after),
        };
        self.failed += 1;
        let asked = after.unwrap_or_default();
        if self.failed >= self.patience.attempts || asked > MAX_PAUSE {
            return Err(Error::Unreachable { message });
        }
        let pause = self.patience.pause * 2u32.pow(self.failed - 1);
        // A half more at most, so that many who failed together do not come back together.
        let spread = pause.mul_f64(f64::from(uuid::Uuid::new_v4().as_bytes()[0]) / 512.0);
        tracing::debug!(message, failed = self.failed, "retrying a registry");
        tokio::time::sleep((pause + spread).max(asked)).await;
        Ok(())
    }
}
