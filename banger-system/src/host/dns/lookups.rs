//! Counts what came of the look-ups of all clients.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::ports::names;

/// The numbers since the service started. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Lookups(Arc<Counts>);

#[derive(Default)]
struct Counts {
    answered: AtomicU64,
    forwarded: AtomicU64,
    refused: AtomicU64,
    limited: AtomicU64,
}

impl Lookups {
    /// Counts an answer.
    pub(super) fn answered(&self) {
        self.0.answered.fetch_add(1, Relaxed);
    }

    /// Counts a question that is forwarded.
    pub(super) fn forwarded(&self) {
        self.0.forwarded.fetch_add(1, Relaxed);
    }

    /// Counts a question about a name that the guest may not reach.
    pub(super) fn refused(&self) {
        self.0.refused.fetch_add(1, Relaxed);
    }

    /// Counts a question of a client that has too many.
    pub(super) fn limited(&self) {
        self.0.limited.fetch_add(1, Relaxed);
    }

    /// Returns the numbers.
    pub(super) fn counts(&self) -> names::Lookups {
        let Counts { answered, forwarded, refused, limited } = &*self.0;
        names::Lookups {
            answered: answered.load(Relaxed),
            forwarded: forwarded.load(Relaxed),
            refused: refused.load(Relaxed),
            limited: limited.load(Relaxed),
        }
    }
}
