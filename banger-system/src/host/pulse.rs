//! Work that reads a user's file. The file may lie on a file system that the user serves (FUSE) or that
//! is far away, and such a file system may never answer; a thread that waits for it cannot be ended.
//! So the work has a thread of its own, which nothing waits for any more once its pulse stops.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use crate::ports::{Error, Result};

/// The sign of life of work on another thread.
#[derive(Debug, Clone, Default)]
pub(super) struct Pulse(Arc<State>);

#[derive(Debug, Default)]
struct State {
    beats: AtomicU64,
    given_up: AtomicBool,
}

impl Pulse {
    /// To be called after each step. An error means that nobody wants the result any more.
    pub(super) fn beat(&self) -> io::Result<()> {
        self.0.beats.fetch_add(1, Relaxed);
        match self.0.given_up.load(Relaxed) {
            false => Ok(()),
            true => Err(io::Error::new(io::ErrorKind::TimedOut, "nobody waits for it any more")),
        }
    }
}

/// Gives up on the work when its future is dropped, too.
struct GiveUp(Pulse);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.0.given_up.store(true, Relaxed);
    }
}

/// Does `work`, and gives up on it when it shows no sign of life for so long.
pub(super) async fn watch<T: Send + 'static>(
    what: &'static str,
    patience: Duration,
    work: impl FnOnce(&Pulse) -> Result<T> + Send + 'static,
) -> Result<T> {
    let guard = GiveUp(Pulse::default());
    let pulse = guard.0.clone();
    let (sender, mut result) = oneshot::channel();
    thread::Builder::new()
        .name("user-file".to_owned())
        // The receiver is gone when we have given up.
        .spawn(move || drop(sender.send(work(&pulse))))
        .map_err(|source| Error::os(format!("start a thread to {what}"), source))?;
    let mut seen = 0;
    loop {
        match timeout_at(Instant::now() + patience, &mut result).await {
            Ok(Ok(result)) => return result,
            Ok(Err(panicked)) => return Err(Error::other(what, panicked)),
            Err(_) => {
                let beats = guard.0.0.beats.load(Relaxed);
                if beats == seen {
                    return Err(Error::Timeout { what: format!("to {what}"), after: patience });
                }
                seen = beats;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc;

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn work_that_beats_may_take_longer_than_the_patience() {
        // Long enough that a busy machine lets the thread beat meanwhile.
        let patience = Duration::from_secs(1);
        let started = Instant::now();
        let work = move |pulse: &Pulse| {
            while started.elapsed() < patience * 2 {
                pulse.beat().map_err(|e| Error::os("go on", e))?;
            }
            Ok(7)
        };
        assert_eq!(watch("count", patience, work).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn work_that_hangs_is_given_up_and_learns_of_it_when_it_goes_on() {
        let (go_on, hanging) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let work = move |pulse: &Pulse| {
            hanging.recv().unwrap();
            tell.send(pulse.beat().is_err()).unwrap();
            Ok(())
        };
        assert!(matches!(watch("wait", SHORT, work).await, Err(Error::Timeout { .. })));
        go_on.send(()).unwrap();
        assert!(told.recv().unwrap());
    }

    #[tokio::test]
    async fn work_whose_future_is_dropped_learns_of_it() {
        let (tell, told) = mpsc::channel();
        let work = move |pulse: &Pulse| {
            while pulse.beat().is_ok() {}
            tell.send(()).unwrap();
            Ok(())
        };
        let watched = tokio::time::timeout(SHORT, watch("wait", LONG, work)).await;
        assert!(watched.is_err());
        told.recv().unwrap();
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error() {
        let watched = watch("panic", LONG, |_| -> Result<()> { panic!("on purpose") });
        assert!(matches!(watched.await, Err(Error::Other { .. })));
    }
}
