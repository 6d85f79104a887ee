//! Streams to the agents of guests, and who waits for one.
//!
//! A guest has a fixed number of streams. Who wants one when all are held stands in a line, one for each sandbox and
//! purpose: first come, first served. Only the first of a line looks whether a stream was given back, which nobody
//! tells: a client holds a socket to the VMM, and the service is not in between. Nothing is looked at while nobody
//! waits.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use banger_domain::{
    id::{Uid, VmId},
    stream::Purpose,
    vm::Token,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    Engine,
    error::{Error, Kind, Result},
    registry::no_such,
};
use crate::ports::{self, Channel};

/// How many may wait in one line.
const MAX_WAITING: usize = 64;
/// How long to wait when nobody says.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks for a stream that was given back, at first and at last.
const LOOK: Duration = Duration::from_millis(20);
const MAX_LOOK: Duration = Duration::from_millis(250);

/// The lines in which somebody stands.
#[derive(Default)]
pub(super) struct Lines(Mutex<HashMap<(VmId, Purpose), Weak<Line>>>);

struct Line {
    places: Semaphore,
    /// Whoever holds it is the first. It is handed on in the order in which it was asked for.
    first: tokio::sync::Mutex<()>,
}

impl Lines {
    fn of(&self, vm: VmId, purpose: Purpose) -> Arc<Line> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.get(&(vm, purpose)).and_then(Weak::upgrade) {
            return line;
        }
        lines.retain(|_, line| line.strong_count() > 0);
        let line = Line { places: Semaphore::new(MAX_WAITING), first: tokio::sync::Mutex::default() };
        let line = Arc::new(line);
        lines.insert((vm, purpose), Arc::downgrade(&line));
        line
    }
}

impl Engine {
    /// A stream to the agent of a machine, with the greeting done. Waits until one is free, at most so long; whoever
    /// drops this leaves the line. It goes past the machine's task, so that a slow guest holds up nothing.
    pub async fn open_agent(
        &self,
        id: VmId,
        for_whom: Uid,
        purpose: Purpose,
        timeout: Duration,
    ) -> Result<OwnedFd> {
        let line = self.shared.lines.of(id, purpose);
        let Ok(_place) = line.places.try_acquire() else {
            let (_, name) = self.token(id)?;
            return Err(Error::LongLine { name, waiting: MAX_WAITING });
        };
        let late = || match self.token(id) {
            Ok((_, name)) => Error::NoFreeStream { name, seconds: timeout.as_secs() },
            Err(error) => error,
        };
        let (deadline, mut pause) = (Instant::now() + timeout, LOOK);
        let ports = &self.shared.ports;
        loop {
            let first = timeout_at(deadline, line.first.lock()).await.map_err(|_| late())?;
            let stream = loop {
                // Looked at each time: the machine may stop.
                self.token(id)?;
                match ports.vmm.connect(id, Channel::Stream(purpose)).await {
                    Err(ports::Error::NoFreeStream) if Instant::now() >= deadline => return Err(late()),
                    Err(ports::Error::NoFreeStream) => {}
                    connected => break connected?,
                }
                sleep_until(deadline.min(Instant::now() + pause)).await;
                pause = (pause * 2).min(MAX_LOOK);
            };
            // A guest that is slow to greet keeps nobody from the other streams.
            drop(first);
            let (token, _) = self.token(id)?;
            match ports.guest.open(stream, &token).await {
                // The agent's own bounds are narrower than those of the VMM.
                Err(ports::Error::NoFreeStream) if Instant::now() >= deadline => return Err(late()),
                Err(ports::Error::NoFreeStream) => {
                    sleep_until(deadline.min(Instant::now() + pause)).await;
                    pause = (pause * 2).min(MAX_LOOK);
                }
                opened => {
                    if matches!(opened, Err(ports::Error::Timeout { .. })) {
                        self.shared.doubt(id);
                    }
                    return self.hand_out(for_whom, opened?);
                }
            }
        }
    }

    /// The token and the name of a machine that is up.
    fn token(&self, id: VmId) -> Result<(Token, String)> {
        let view = self.vm(id).ok_or_else(|| no_such(Kind::Vm, &id.to_string()))?;
        let name = view.vm.name.to_string();
        match view.vm.state.is_up() {
            true => Ok((view.vm.token.clone(), name)),
            false => Err(Error::NotRunning { name }),
        }
    }
}
