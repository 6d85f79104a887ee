//! Runs blocking work beside the async tasks.

use crate::ports::FromHost;

/// Runs `work` on a thread that may block. It runs to its end even if the caller stops waiting.
pub(super) async fn blocking<T: Send + 'static, E: FromHost + Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work))
        .await
        .unwrap_or_else(|ended| Err(E::other(doing, ended)))
}
