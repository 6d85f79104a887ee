//! Streams to the agents of guests, and the queues for them, on a host in memory.

use std::{
    os::fd::OwnedFd,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use banger_domain::{id::VmId, stream::Purpose};
use banger_system::{
    engine::{
        Engine,
        error::{Error, Result},
        request::{Stop, StopMode},
    },
    sim::guests::STREAMS,
};
use tokio::task::JoinSet;

use crate::engine_lab::{ALICE, EngineLab, TIMEOUT};

/// How many commands can run at once: two streams are reserved for questions.
const COMMANDS: usize = STREAMS - 2;
const CONNECTIONS: usize = STREAMS - 10;

async fn open(engine: &Engine, vm: VmId, purpose: Purpose) -> Result<OwnedFd> {
    engine.open_agent(vm, ALICE, purpose, TIMEOUT).await
}

/// Opens all streams for this purpose. One more is refused to a request that does not wait.
async fn open_all(engine: &Engine, vm: VmId, purpose: Purpose) -> Vec<OwnedFd> {
    let mut held = Vec::new();
    loop {
        match engine.open_agent(vm, ALICE, purpose, Duration::ZERO).await {
            Ok(stream) => held.push(stream),
            Err(Error::NoFreeStream { .. }) => return held,
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// Returns whether the request has to wait. From then on it is queued.
async fn waits<T>(future: &mut (impl Future<Output = T> + Unpin)) -> bool {
    std::future::poll_fn(|context| Poll::Ready(std::pin::Pin::new(&mut *future).poll(context).is_pending()))
        .await
}

async fn lab() -> (EngineLab, VmId) {
    let lab = EngineLab::new().await;
    lab.sim.enable_agents();
    let vm = lab.running().await;
    (lab, vm)
}

#[tokio::test(start_paused = true)]
async fn thirty_commands_at_once_all_run() {
    let (lab, vm) = lab().await;
    let running = Arc::new(AtomicUsize::new(0));
    let mut commands = JoinSet::new();
    for _ in 0..30 {
        let (engine, running) = (lab.engine.clone(), Arc::clone(&running));
        commands.spawn(async move {
            let stream = open(&engine, vm, Purpose::Command).await.unwrap();
            let at_once = running.fetch_add(1, Ordering::SeqCst) + 1;
            tokio::task::yield_now().await;
            running.fetch_sub(1, Ordering::SeqCst);
            drop(stream);
            at_once
        });
    }
    let at_once = commands.join_all().await;
    assert_eq!(at_once.len(), 30);
    assert!(at_once.iter().all(|count| *count <= COMMANDS), "{at_once:?}");
}

#[tokio::test(start_paused = true)]
async fn connections_leave_room_for_commands_and_commands_for_questions() {
    let (lab, vm) = lab().await;
    let connections = open_all(&lab.engine, vm, Purpose::Connection).await;
    let commands = open_all(&lab.engine, vm, Purpose::Command).await;
    let questions = open_all(&lab.engine, vm, Purpose::Question).await;
    assert_eq!((connections.len(), commands.len(), questions.len()), (CONNECTIONS, 8, 2));
    // A closed connection frees its stream for the next request.
    let mut connections = connections.into_iter();
    drop(connections.next());
    open(&lab.engine, vm, Purpose::Connection).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn waiting_requests_are_served_in_order() {
    let (lab, vm) = lab().await;
    let mut held = open_all(&lab.engine, vm, Purpose::Command).await;
    assert_eq!(held.len(), COMMANDS);
    let mut first = pin!(open(&lab.engine, vm, Purpose::Command));
    let mut second = pin!(open(&lab.engine, vm, Purpose::Command));
    assert!(waits(&mut first).await && waits(&mut second).await);
    held.pop();
    let served = tokio::select! {
        biased;
        _ = &mut second => "second",
        _ = &mut first => "first",
    };
    assert_eq!(served, "first");
    held.pop();
    tokio::time::timeout(TIMEOUT, second).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded_and_leaving_it_makes_room() {
    const PLACES: usize = 64;
    let (lab, vm) = lab().await;
    let _held = open_all(&lab.engine, vm, Purpose::Command).await;
    let mut line: Vec<_> = (0..PLACES).map(|_| Box::pin(open(&lab.engine, vm, Purpose::Command))).collect();
    for waiter in &mut line {
        assert!(waits(waiter).await);
    }
    let refused = open(&lab.engine, vm, Purpose::Command).await.unwrap_err();
    assert!(matches!(refused, Error::QueueFull { waiting: PLACES, .. }), "{refused:?}");
    // Each purpose has its own queue.
    let other = open(&lab.engine, vm, Purpose::Question).await;
    other.unwrap();
    line.pop();
    assert!(waits(&mut pin!(open(&lab.engine, vm, Purpose::Command))).await);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_guest_that_has_stopped() {
    let (lab, vm) = lab().await;
    let _held = open_all(&lab.engine, vm, Purpose::Command).await;
    let mut waiting = pin!(open(&lab.engine, vm, Purpose::Command));
    assert!(waits(&mut waiting).await);
    let stop = Stop { mode: StopMode::Forced, ..Stop::default() };
    lab.done(lab.engine.stop_vm(vm, stop).await.unwrap()).await;
    let ended = tokio::time::timeout(TIMEOUT, waiting).await.unwrap();
    assert!(matches!(ended, Err(Error::NotRunning { .. })), "{ended:?}");
}
