//! Runs blocking work beside the async tasks.

use crate::ports::{Error, Result};

/// Runs `work` on a thread that may block. It runs to its end even if the caller stops waiting.
pub(super) async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|ended| Err(Error::other(doing, ended)))
}
