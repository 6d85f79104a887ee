//! Requests to wake suspended sandboxes. Adapters notice that a sandbox is used, and the engine decides.

use std::fmt;

use banger_domain::id::VmId;
use tokio::sync::{Mutex, mpsc, oneshot};

/// How many requests may wait for the engine, which takes them at once. Others wait in the adapter.
const QUEUE: usize = 64;

/// Something that uses a suspended sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A connection to this published port of the host.
    Port(u16),
    /// A look-up of its name.
    Name,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Port(number) => write!(f, "port {number}"),
            Cause::Name => f.write_str("name"),
        }
    }
}

/// Whether a sandbox runs that was to be woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// It runs.
    Yes,
    /// It stays as it is.
    No,
}

/// A request to wake a sandbox. Dropped without an answer, it is refused.
#[derive(Debug)]
pub struct Wake {
    /// The sandbox.
    pub vm: VmId,
    /// What uses it.
    pub cause: Cause,
    answer: oneshot::Sender<Woken>,
}

impl Wake {
    /// Answers the request. Who has made it may have stopped waiting.
    pub fn answer(self, woken: Woken) {
        let _ = self.answer.send(woken);
    }
}

/// The requests of one adapter.
#[derive(Debug)]
pub struct Wakes {
    requests: mpsc::Sender<Wake>,
    received: Mutex<mpsc::Receiver<Wake>>,
}

impl Default for Wakes {
    fn default() -> Self {
        let (requests, received) = mpsc::channel(QUEUE);
        Self { requests, received: Mutex::new(received) }
    }
}

impl Wakes {
    /// Asks for a sandbox, and waits until it runs or is refused. A resumption has time limits of its own.
    pub async fn wake(&self, vm: VmId, cause: Cause) -> Woken {
        let (answer, answered) = oneshot::channel();
        match self.requests.send(Wake { vm, cause, answer }).await {
            Ok(()) => answered.await.unwrap_or(Woken::No),
            Err(_) => Woken::No,
        }
    }

    /// Waits for the next request.
    pub async fn next(&self) -> Wake {
        match self.received.lock().await.recv().await {
            Some(wake) => wake,
            // The sender lives in `self`.
            None => std::future::pending().await,
        }
    }
}
