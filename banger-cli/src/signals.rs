//! Signals that reach the client, for whoever wants to forward or to obey them.

use std::{future::poll_fn, io, task::Poll};

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
    /// Begins to catch them.
    pub fn catch() -> Result<Self> {
        let mut caught = Vec::new();
        for kind in ENDING.iter().chain(&OTHERS) {
            let number = u8::try_from(kind().as_raw_value()).unwrap_or_default();
            caught.push((Event::Signal(number), install(kind())?));
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
