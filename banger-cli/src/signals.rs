//! Signals that reach the client, for whoever wants to forward or to obey them.

use std::{fs, future::poll_fn, io, task::Poll};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::broadcast,
};

use crate::error::{Error, Result};

/// More signals than anybody sends while we look away.
const QUEUE: usize = 16;

/// Something that the user's side tells us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A signal of this number.
    Signal(u8),
    /// The terminal has another size.
    Resized,
}

impl Event {
    /// The signal, if it is one that asks us to end.
    pub fn ends(self) -> Option<u8> {
        match self {
            Event::Signal(number) if ENDING.iter().any(|kind| kind().as_raw_value() == i32::from(number)) => {
                Some(number)
            }
            _ => None,
        }
    }
}

/// The signals that end a program which does not catch them, and that people send.
const ENDING: [fn() -> SignalKind; 4] =
    [SignalKind::interrupt, SignalKind::terminate, SignalKind::hangup, SignalKind::quit];
const OTHERS: [fn() -> SignalKind; 2] = [SignalKind::user_defined1, SignalKind::user_defined2];

/// From here to the end of the process, signals are events and nothing else.
#[derive(Debug)]
pub struct Signals(broadcast::Sender<Event>);

/// One who listens to them.
pub type Listener = broadcast::Receiver<Event>;

impl Signals {
    /// Begins to catch them. What is ignored stays so: whoever started us with `nohup` means it.
    pub fn catch() -> Result<Self> {
        let ignored = ignored_signals(&fs::read_to_string("/proc/self/status").unwrap_or_default());
        let mut caught = Vec::new();
        for kind in ENDING.iter().chain(&OTHERS) {
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
                // Nobody may be listening at the moment.
                let _ = to.send(next(&mut caught).await);
            }
        });
        Ok(Self(sender))
    }

    /// A listener to all that come from now on.
    pub fn listen(&self) -> Listener {
        self.0.subscribe()
    }
}

/// The signals that this process ignores, a bit for each (proc_pid_status(5)).
fn ignored_signals(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

/// The next event; waits for ever when there can be none.
pub async fn next_event(listener: &mut Listener) -> Event {
    loop {
        match listener.recv().await {
            Ok(event) => return event,
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Does something, and gives it up at the first signal that asks us to end.
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
