//! The background work of a VM's task.

use tokio::task::{AbortHandle, JoinError, JoinSet};
use tracing::Instrument;

use super::event::TaskEvent;

/// Work beside the task, each piece of which ends with an event. Dropping it aborts the rest.
#[derive(Default)]
pub(super) struct Background(JoinSet<TaskEvent>);

impl Background {
    /// Starts a piece of work. Its journal entries have the fields of the request that it is done for.
    pub(super) fn spawn(&mut self, work: impl Future<Output = TaskEvent> + Send + 'static) -> AbortHandle {
        self.0.spawn(work.in_current_span())
    }

    /// Waits for the next event. None if nothing is under way.
    pub(super) async fn next(&mut self) -> Option<Result<TaskEvent, JoinError>> {
        self.0.join_next().await
    }
}
