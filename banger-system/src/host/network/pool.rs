//! TAPs that are kept ready for the next guests: making one is most of the work of plugging a guest in. They
//! have names that no rule knows, are down, and go with the process.

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
use crate::{host::blocking::blocking, ports::Result};

/// A TAP that nobody has yet.
pub(super) struct WarmTap {
    pub(super) tap: NewTap,
    /// Its number among the links.
    pub(super) index: u32,
}

/// TAPs that nobody has yet.
#[derive(Clone)]
pub(super) struct TapPool {
    size: usize,
    ready: Arc<Mutex<VecDeque<WarmTap>>>,
    made: Arc<AtomicU32>,
    links: Links,
}

impl TapPool {
    /// An empty pool of this size.
    pub(super) fn new(size: usize, links: Links) -> Self {
        Self { size, ready: Arc::default(), made: Arc::default(), links }
    }

    /// One that is ready, if there is any.
    pub(super) fn take(&self) -> Option<WarmTap> {
        self.lock().pop_front()
    }

    /// Fills it up in the background. A start without a TAP from the pool is only slower.
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

    /// A new one.
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

    /// Two that fill it at once may make one too many, which goes with its file.
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
