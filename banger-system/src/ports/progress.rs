//! Progress of long steps, and their cancellation.

use banger_proto::size::Bytes;

/// Receives the progress of a long step, and can cancel it.
pub trait Progress: Send + Sync {
    /// Reports how many bytes are done, and of how many if that is known.
    fn advanced(&self, done: Bytes, total: Option<Bytes>);
    /// Returns whether the step must end as soon as possible, with any error.
    fn is_canceled(&self) -> bool;
}

/// Ignores progress, and never cancels.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn advanced(&self, _done: Bytes, _total: Option<Bytes>) {}

    fn is_canceled(&self) -> bool {
        false
    }
}
