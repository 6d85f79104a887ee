//! Spare TAPs for the next guests, since making one is most of the work of plugging a guest in. Their names match no
//! rule, they are down, and they go away with the process.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use banger_domain::net::nic::TapName;

use super::{links::Links, tap::NewTap};
use crate::{host::blocking::blocking, ports::network::Result};

/// A TAP that belongs to no guest yet.
pub(super) struct WarmTap {
    pub(super) tap: NewTap,
    /// Its link index.
    pub(super) index: u32,
}

/// A pool of spare TAPs.
#[derive(Clone)]
pub(super) struct TapPool {
    size: usize,
    ready: Arc<Mutex<VecDeque<WarmTap>>>,
    made: Arc<AtomicU32>,
    links: Links,
}

impl TapPool {
    /// Returns an empty pool of this size.
    pub(super) fn new(size: usize, links: Links) -> Self {
        Self { size, ready: Arc::default(), made: Arc::default(), links }
    }

    /// Takes a spare TAP, if there is one.
    pub(super) fn take(&self) -> Option<WarmTap> {
        self.lock().pop_front()
    }

    /// Fills the pool in the background. A start without a spare TAP is only slower.
    pub(super) fn fill(&self) {
        if self.lock().len() >= self.size {
            return;
        }
        let pool = self.clone();
        tokio::spawn(async move {
            while pool.lock().len() < pool.size {
                match pool.make().await {
                    Ok(tap) => pool.put(tap),
                    Err(error) => return tracing::debug!(%error, "cannot keep interfaces ready"),
                }
            }
        });
    }

    /// Makes a spare TAP.
    pub(super) async fn make(&self) -> Result<WarmTap> {
        let name = TapName::warm(self.made.fetch_add(1, Ordering::Relaxed));
        let of_kernel = name.clone();
        let tap = blocking("create a TAP", move || {
            NewTap::make(&of_kernel).map_err(|source| super::cannot("create", &of_kernel, source))
        })
        .await?;
        let link = self.links.find(name.as_str()).await?;
        let index = link.ok_or_else(|| super::cannot("find", &name, io::ErrorKind::NotFound.into()))?.index;
        Ok(WarmTap { tap, index })
    }

    /// Two concurrent fills may make one too many, which is closed.
    fn put(&self, tap: WarmTap) {
        let mut ready = self.lock();
        if ready.len() < self.size {
            ready.push_back(tap);
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<WarmTap>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
