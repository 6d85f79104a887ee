//! Work that blocks, beside the tasks that must not.

use crate::ports::{Error, Result};

/// Does `work` on a thread that may block. It is done to its end even when nobody waits for it any more.
pub(super) async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|ended| Err(Error::other(doing, ended)))
}
