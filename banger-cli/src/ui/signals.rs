//! Receives signals, for code that forwards or obeys them.

use std::{fs, future::poll_fn, io, task::Poll};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::broadcast,
};

use crate::error::{Error, Result};

/// Length of the queue of signals.
const QUEUE: usize = 16;

/// An event from the user's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A signal with this number.
    Signal(u8),
    /// The terminal was resized.
    Resized,
}

impl Event {
    /// Returns the signal if it is one that asks the process to end.
    pub fn ends(self) -> Option<u8> {
        match self {
            Event::Signal(number)
                if TERMINATING.iter().any(|kind| kind().as_raw_value() == i32::from(number)) =>
            {
                Some(number)
            }
            _ => None,
        }
    }
}

/// Signals that end a program by default, and that people send.
const TERMINATING: [fn() -> SignalKind; 4] =
    [SignalKind::interrupt, SignalKind::terminate, SignalKind::hangup, SignalKind::quit];
const OTHERS: [fn() -> SignalKind; 2] = [SignalKind::user_defined1, SignalKind::user_defined2];

/// Turns signals into events until the process exits.
#[derive(Debug)]
pub struct Signals(broadcast::Sender<Event>);

/// A receiver of events.
pub type Listener = broadcast::Receiver<Event>;

impl Signals {
    /// Starts to catch signals. Ignored ones stay ignored: `nohup` relies on that.
    pub fn catch() -> Result<Self> {
        let ignored = ignored_signals(&fs::read_to_string("/proc/self/status").unwrap_or_default());
        let mut caught = Vec::new();
        for kind in TERMINATING.iter().chain(&OTHERS) {
            let number = u8::try_from(kind().as_raw_value()).unwrap_or_default();
            if ignored & (1 << (number - 1)) == 0 {
                caught.push((Event::Signal(number), install(kind())?));
            }
        }
        caught.push((Event::Resized, install(SignalKind::window_change())?));
        let (sender, _) = broadcast::channel(QUEUE);
        let to = sender.clone();
        tokio::spawn(async move {
            loop {
                // There may be no listener at the moment.
                let _ = to.send(next(&mut caught).await);
            }
        });
        Ok(Self(sender))
    }

    /// Returns a listener to all events from now on.
    pub fn listen(&self) -> Listener {
        self.0.subscribe()
    }
}

/// Returns the signals that this process ignores, one bit for each (proc_pid_status(5)).
fn ignored_signals(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

/// Returns the next event. Never returns if there can be none.
pub async fn next_event(listener: &mut Listener) -> Event {
    loop {
        match listener.recv().await {
            Ok(event) => return event,
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Runs a future, and drops it at the first signal that asks the process to end.
pub async fn unless_ended<T>(listener: &mut Listener, act: impl Future<Output = Result<T>>) -> Result<T> {
    let ended = async {
        loop {
            if let Some(signal) = next_event(listener).await.ends() {
                return signal;
            }
        }
    };
    tokio::select! {
        biased;
        result = act => result,
        signal = ended => Err(Error::Interrupted { signal }),
    }
}

fn install(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(|source: io::Error| Error::io("catch signals", source))
}

async fn next(caught: &mut [(Event, Signal)]) -> Event {
    poll_fn(|context| {
        for (event, signal) in caught.iter_mut() {
            if let Poll::Ready(Some(())) = signal.poll_recv(context) {
                return Poll::Ready(*event);
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_status() {
        assert_eq!(ignored_signals("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\tff\n"), 1 | (1 << 12));
        assert_eq!(ignored_signals(""), 0);
    }

    #[test]
    fn only_signals_that_end_programs_ask_us_to_end() {
        for (event, expect) in [
            (Event::Signal(2), Some(2)),
            (Event::Signal(1), Some(1)),
            (Event::Signal(10), None),
            (Event::Resized, None),
        ] {
            assert_eq!(event.ends(), expect, "{event:?}");
        }
    }
}
