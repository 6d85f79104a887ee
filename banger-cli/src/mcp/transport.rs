//! Bounds what a client can make the server keep: requests that are not answered yet, and messages that the client does
//! not read.

use std::{collections::HashSet, future::pending, sync::Arc};

use rmcp::{
    RoleServer,
    model::{ClientNotification, JsonRpcMessage, RequestId},
    service::{RxJsonRpcMessage, TxJsonRpcMessage},
    transport::Transport,
};

/// Limit on requests without a reply. Beyond it, nothing is read. The server refuses calls long before.
const MAX_REQUESTS: usize = 256;
/// Limit on messages that wait to be written.
const MAX_UNREAD: usize = 64;

/// A transport that stops reading while too much is pending.
pub struct Bounded<T> {
    inner: T,
    requests: HashSet<RequestId>,
    /// One clone for each message that is being written.
    unread: Arc<()>,
}

impl<T> Bounded<T> {
    /// Wraps a transport.
    pub fn new(inner: T) -> Self {
        Self { inner, requests: HashSet::new(), unread: Arc::new(()) }
    }

    fn is_full(&self) -> bool {
        self.requests.len() >= MAX_REQUESTS || Arc::strong_count(&self.unread) > MAX_UNREAD
    }
}

impl<T: Transport<RoleServer>> Transport<RoleServer> for Bounded<T> {
    type Error = T::Error;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<RoleServer>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        match &item {
            JsonRpcMessage::Response(reply) => drop(self.requests.remove(&reply.id)),
            JsonRpcMessage::Error(error) => drop(error.id.as_ref().map(|id| self.requests.remove(id))),
            _ => {}
        }
        let unread = Arc::clone(&self.unread);
        let sent = self.inner.send(item);
        async move {
            let result = sent.await;
            drop(unread);
            result
        }
    }

    /// Receives the next message. While too much is pending, waits until the caller has something else to do and calls
    /// again.
    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleServer>> {
        if self.is_full() {
            pending::<()>().await;
        }
        let message = self.inner.receive().await;
        match &message {
            Some(JsonRpcMessage::Request(request)) => {
                self.requests.insert(request.id.clone());
            }
            // A cancelled request gets no reply.
            Some(JsonRpcMessage::Notification(notification)) => {
                if let ClientNotification::CancelledNotification(cancelled) = &notification.notification
                    && let Some(id) = &cancelled.params.request_id
                {
                    self.requests.remove(id);
                }
            }
            _ => {}
        }
        message
    }

    async fn close(&mut self) -> Result<(), Self::Error> {
        self.inner.close().await
    }
}
