//! Opens streams to the agents of guests, and queues requests for them.
//!
//! A guest has a fixed number of streams. When all are in use, requests wait in a queue for each VM and purpose,
//! first come, first served. The service does not learn that a stream was closed, because the client holds a socket
//! to the VMM itself. So the first request in each queue polls; an empty queue costs nothing.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use banger_domain::{
    id::{Uid, VmId},
    lifecycle::{Reason, State},
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
    inventory::no_such,
    request::Start,
    view::{Outcome, VmView},
};
use crate::ports::guest_link::{self, Channel};

/// How many requests may wait in one queue.
const MAX_WAITING: usize = 64;
/// How long a request waits unless it says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause between two tries for a free stream, at first and at most.
const MIN_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_millis(250);

/// The queues that are not empty.
#[derive(Default)]
pub(super) struct StreamQueues(Mutex<HashMap<(VmId, Purpose), Weak<StreamQueue>>>);

struct StreamQueue {
    places: Semaphore,
    /// Held by the first request. Tokio's mutex is fair, so it is passed on in the order of arrival.
    first: tokio::sync::Mutex<()>,
}

impl StreamQueues {
    fn of(&self, vm: VmId, purpose: Purpose) -> Arc<StreamQueue> {
        let mut stream_queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = stream_queues.get(&(vm, purpose)).and_then(Weak::upgrade) {
            return queue;
        }
        stream_queues.retain(|_, queue| queue.strong_count() > 0);
        let queue = StreamQueue { places: Semaphore::new(MAX_WAITING), first: tokio::sync::Mutex::default() };
        let queue = Arc::new(queue);
        stream_queues.insert((vm, purpose), Arc::downgrade(&queue));
        queue
    }
}

impl Engine {
    /// Returns a stream to the agent of a VM, after the greeting. Waits at most `timeout` until one is free; dropping
    /// the future leaves the queue. Bypasses the VM's task, so that a slow guest does not block it.
    pub async fn open_agent(
        &self,
        id: VmId,
        user: Uid,
        purpose: Purpose,
        timeout: Duration,
    ) -> Result<OwnedFd> {
        let deadline = Instant::now() + timeout;
        // A user who looks at a sandbox again and again neither wakes it nor keeps it up.
        if purpose != Purpose::Question {
            self.wake(id, timeout).await?;
            self.note_use(id).await;
        }
        let queue = self.shared.stream_queues.of(id, purpose);
        let Ok(_place) = queue.places.try_acquire() else {
            let (_, name) = self.token(id)?;
            return Err(Error::QueueFull { name, waiting: MAX_WAITING });
        };
        let late = || match self.token(id) {
            Ok((_, name)) => Error::NoFreeStream { name, seconds: timeout.as_secs() },
            Err(error) => error,
        };
        let (mut pause, mut is_repeated) = (MIN_PAUSE, false);
        let ports = &self.shared.ports;
        loop {
            let first = timeout_at(deadline, queue.first.lock()).await.map_err(|_| late())?;
            let stream = loop {
                // Checked each time, because the VM may stop.
                self.token(id)?;
                match ports.vmm.connect(id, Channel::Stream(purpose)).await {
                    Err(guest_link::Error::NoFreeStream) if Instant::now() >= deadline => return Err(late()),
                    Err(guest_link::Error::NoFreeStream) => {}
                    connected => break connected?,
                }
                sleep_until(deadline.min(Instant::now() + pause)).await;
                pause = (pause * 2).min(MAX_PAUSE);
            };
            // A slow greeting must not block the next request in the queue.
            drop(first);
            let (token, _) = self.token(id)?;
            match ports.guest.open(stream, &token).await {
                // The agent has fewer streams than the VMM.
                Err(guest_link::Error::NoFreeStream) if Instant::now() >= deadline => return Err(late()),
                Err(guest_link::Error::NoFreeStream) => {
                    sleep_until(deadline.min(Instant::now() + pause)).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
                // The greeting may be lost.
                Err(guest_link::Error::Timeout { .. }) if !is_repeated && Instant::now() < deadline => {
                    is_repeated = true;
                }
                opened => {
                    if matches!(opened, Err(guest_link::Error::Timeout { .. })) {
                        self.shared.suspect_silent(id);
                    }
                    return self.hand_out(user, opened?);
                }
            }
        }
    }

    /// Resumes a VM that is suspended, and waits until its guest answers, but at most for this time.
    pub(super) async fn wake(&self, id: VmId, timeout: Duration) -> Result<()> {
        if tokio::time::timeout(timeout, self.until_written(id)).await.is_err() {
            return Ok(());
        }
        let is_asleep = |state| matches!(state, State::Suspended | State::Resuming);
        if !self.vm(id).is_some_and(|view| is_asleep(view.vm.state)) {
            return Ok(());
        }
        let resumed = async { self.wait_job(self.resume_vm(id, Start::default()).await?, None).await };
        // Without an answer in time, the state says why there is no guest.
        let Ok(job) = tokio::time::timeout(timeout, resumed).await else { return Ok(()) };
        match &job?.outcome {
            Some(Outcome::Failed(why)) => Err(Error::Dependency { why: Arc::clone(why) }),
            Some(Outcome::Canceled) => Err(Error::Canceled),
            Some(Outcome::Done) | None => Ok(()),
        }
    }

    /// Waits while the memory of a VM that idled is written. Nobody asked for that, so a request is no error.
    pub(super) async fn until_written(&self, id: VmId) {
        let mut changes = self.shared.inventory.changes();
        let is_written =
            |view: &VmView| view.vm.state == State::Suspending && matches!(view.vm.reason, Reason::Idle(_));
        while self.vm(id).is_some_and(|view| is_written(&view)) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Returns the token and the name of a running VM.
    fn token(&self, id: VmId) -> Result<(Token, String)> {
        let view = self.vm(id).ok_or_else(|| no_such(Kind::Vm, &id.to_string()))?;
        let name = view.vm.name.to_string();
        match view.vm.state {
            State::Paused => Err(Error::Paused { name }),
            State::Suspending | State::Suspended | State::Resuming => Err(Error::Suspended { name }),
            state if state.is_up() => Ok((view.vm.token.clone(), name)),
            _ => Err(Error::NotRunning { name }),
        }
    }
}
