//! Pauses of sandboxes: what works meanwhile, what is refused, and what a crash of the service leaves.

use std::time::Duration;

use banger_domain::{clock::Occasion, lifecycle::State, stream::Purpose};
use banger_system::engine::{
    error::Error,
    request::{Start, Stop, StopMode},
};

use super::engine_lab::{ALICE, EngineLab, TIMEOUT};

async fn soon(what: &str, is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(tokio::time::timeout(TIMEOUT, wait).await.is_ok(), "{what}");
}

#[tokio::test(start_paused = true)]
async fn a_paused_sandbox_stands_still_until_it_is_continued() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    for _ in 0..2 {
        lab.engine.pause_vm(vm).await.unwrap();
        assert_eq!(lab.state(vm), State::Paused);
        assert!(lab.sim.is_frozen(vm) && !lab.engine.vm(vm).unwrap().is_ready());
    }
    let opened = lab.engine.open_agent(vm, ALICE, Purpose::default(), Duration::from_secs(1)).await;
    assert!(matches!(opened, Err(Error::Paused { .. })), "{opened:?}");
    let started = lab.engine.start_vm(vm, Start::default()).await;
    assert!(matches!(started, Err(Error::Paused { .. })), "{started:?}");
    let deleted = lab.engine.delete_vm(vm, StopMode::Graceful).await;
    assert!(matches!(deleted, Err(Error::State(_))), "{deleted:?}");

    let before = lab.sim.clock_syncs(vm, Occasion::Jump);
    for _ in 0..2 {
        lab.engine.unpause_vm(vm).await.unwrap();
        assert_eq!(lab.state(vm), State::Running);
        assert!(!lab.sim.is_frozen(vm) && lab.engine.vm(vm).unwrap().is_ready());
    }
    soon("the clock is set", || lab.sim.clock_syncs(vm, Occasion::Jump) > before).await;
}

#[tokio::test(start_paused = true)]
async fn only_a_guest_that_answers_is_paused() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    lab.done(lab.engine.stop_vm(vm, Stop::default()).await.unwrap()).await;
    for refused in [lab.engine.pause_vm(vm).await, lab.engine.unpause_vm(vm).await] {
        assert!(matches!(refused, Err(Error::State(_))), "{refused:?}");
    }
    lab.sim.silence_guests(true);
    lab.failed(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    let refused = lab.engine.pause_vm(vm).await;
    assert!(matches!(refused, Err(Error::NotReady { .. })), "{refused:?}");
    assert!(!lab.sim.is_frozen(vm));
}

#[tokio::test(start_paused = true)]
async fn a_paused_sandbox_ends_like_a_running_one() {
    for mode in [StopMode::Graceful, StopMode::Forced] {
        let lab = EngineLab::new().await;
        let vm = lab.running().await;
        lab.engine.pause_vm(vm).await.unwrap();
        lab.done(lab.engine.stop_vm(vm, Stop { timeout: None, mode }).await.unwrap()).await;
        assert_eq!(lab.state(vm), State::Stopped);
        assert!(!lab.sim.is_frozen(vm));
    }
    let mut lab = EngineLab::new().await;
    let (killed, deleted) = (lab.running().await, lab.running().await);
    for vm in [killed, deleted] {
        lab.engine.pause_vm(vm).await.unwrap();
    }
    lab.engine.kill_vm(killed, 15).await.unwrap();
    lab.until(killed, |state| state == Some(State::Stopped)).await;
    for vm in [killed, deleted] {
        lab.done(lab.engine.delete_vm(vm, StopMode::Forced).await.unwrap()).await;
    }
    assert_eq!(lab.sim.alive(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_fails_at_any_step_changes_nothing() {
    for pauses in [true, false] {
        let lab = EngineLab::new().await;
        let vm = lab.running().await;
        let (before, after) = if pauses {
            (State::Running, State::Paused)
        } else {
            lab.engine.pause_vm(vm).await.unwrap();
            (State::Paused, State::Running)
        };
        let mut step = 0;
        loop {
            lab.sim.fail_at(Some(step));
            let done = if pauses { lab.engine.pause_vm(vm).await } else { lab.engine.unpause_vm(vm).await };
            lab.sim.fail_at(None);
            if done.is_ok() {
                break;
            }
            assert_eq!(lab.state(vm), before, "step {step}");
            assert_eq!(lab.sim.is_frozen(vm), before == State::Paused, "step {step}");
            step += 1;
        }
        assert!(step >= 2, "only {step} steps could fail");
        assert_eq!(lab.state(vm), after);
    }
}

#[tokio::test(start_paused = true)]
async fn a_restarted_service_keeps_what_is_paused_and_continues_what_is_not() {
    let lab = EngineLab::new().await;
    let (paused, running) = (lab.running().await, lab.running().await);
    lab.engine.pause_vm(paused).await.unwrap();
    // The service was killed before it could store this pause.
    lab.sim.freeze_process(running);

    let lab = lab.restart().await;
    soon("it goes on", || !lab.sim.is_frozen(running)).await;
    assert_eq!((lab.state(running), lab.state(paused)), (State::Running, State::Paused));
    assert!(lab.sim.is_frozen(paused));
    lab.engine.unpause_vm(paused).await.unwrap();
    assert!(!lab.sim.is_frozen(paused));
}
