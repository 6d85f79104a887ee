//! Which attempts are made again, and when.

use std::time::Duration;

use crate::error::{Error, Result};

/// How many attempts may fail without progress.
const ATTEMPTS: u32 = 5;
/// The first pause between two attempts. Each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest pause that a registry may ask for.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Why an attempt failed.
#[derive(Debug)]
pub enum Failure {
    /// Another attempt may succeed; not before `after`, if the registry says so.
    Transient {
        /// What happened.
        message: String,
        /// The pause that the registry asks for.
        after: Option<Duration>,
    },
    /// Another attempt would fail, too.
    Final(Error),
}

impl Failure {
    /// Returns the failure of an attempt that may be made again at once.
    pub fn transient(message: impl Into<String>) -> Self {
        Self::Transient { message: message.into(), after: None }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// Counts the attempts of one operation.
#[derive(Debug, Default)]
pub struct Retries {
    failed: u32,
}

impl Retries {
    /// Forgets earlier failures, after there was progress.
    pub fn reset(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next attempt, or returns the error if there is none.
    pub async fn wait_to_retry(&mut self, what: &str, failure: Failure) -> Result<()> {
        let (message, after) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Transient { message, after } => (message, after.unwrap_or_default()),
        };
        self.failed += 1;
        if self.failed >= ATTEMPTS || after > MAX_PAUSE {
            let error = Error::Refused(format!("cannot push {what}: {message}"));
            return Err(error.with_hint("push again: what the registry has already is not sent again."));
        }
        tokio::time::sleep((PAUSE * 2u32.pow(self.failed - 1)).max(after)).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn attempts_are_bounded_and_progress_allows_more() {
        let mut retries = Retries::default();
        for _ in 0..2 {
            for _ in 1..ATTEMPTS {
                retries.wait_to_retry("x", Failure::transient("broken")).await.unwrap();
            }
            retries.reset();
        }
        for _ in 1..ATTEMPTS {
            retries.wait_to_retry("x", Failure::transient("broken")).await.unwrap();
        }
        let error = retries.wait_to_retry("x", Failure::transient("broken")).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot push x: broken");
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_asks_for_a_long_pause_is_not_waited_for() {
        let busy = |seconds| Failure::Transient {
            message: "busy".to_owned(),
            after: Some(Duration::from_secs(seconds)),
        };
        assert!(Retries::default().wait_to_retry("x", busy(60)).await.is_ok());
        assert!(Retries::default().wait_to_retry("x", busy(61)).await.is_err());
    }
}
