//! What is kept of a sandbox's past.

use banger_domain::lifecycle::{Reason, State};
use banger_system::engine::{
    history::Phase,
    request::{Start, Stop, StopMode},
};

use super::engine_lab::{ALICE, BOB, EngineLab, request};

/// Returns the states of a history, with an asterisk for a guest that answers.
fn states(lab: &EngineLab, vm: banger_domain::id::VmId) -> Vec<String> {
    let history = lab.engine.history(vm).unwrap();
    history
        .changes()
        .map(|(_, condition)| format!("{}{}", condition.state, if condition.ready { "*" } else { "" }))
        .collect()
}

fn phases(lab: &EngineLab, vm: banger_domain::id::VmId) -> Vec<Phase> {
    lab.engine.history(vm).unwrap().phases().iter().map(|(phase, _)| *phase).collect()
}

const BOOT: [Phase; 7] =
    [Phase::Prepare, Phase::Disks, Phase::Jail, Phase::Network, Phase::Vmm, Phase::Agent, Phase::Guest];

#[tokio::test]
async fn a_start_and_a_stop_are_in_the_history_with_their_reasons() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    assert_eq!(states(&lab, vm), ["created", "starting", "running", "running*"]);
    assert_eq!(phases(&lab, vm), BOOT);
    lab.done(lab.engine.stop_vm(vm, Stop::default()).await.unwrap()).await;
    assert_eq!(states(&lab, vm)[4..], ["stopping*", "stopped"].map(str::to_owned));
    let history = lab.engine.history(vm).unwrap();
    let (_, last) = history.changes().last().unwrap();
    assert_eq!((last.state, &last.reason), (State::Stopped, &Reason::UserRequest));
    let times: Vec<_> = history.changes().map(|(at, _)| *at).collect();
    assert!(times.is_sorted(), "{times:?}");
    // The phases are those of the last boot.
    assert_eq!(phases(&lab, vm), BOOT);
}

#[tokio::test]
async fn a_start_that_fails_or_is_not_answered_has_the_phases_that_ended() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    lab.done(lab.engine.stop_vm(vm, Stop::default()).await.unwrap()).await;
    // Its disks cannot be attached.
    lab.sim.fail_at(Some(0));
    lab.failed(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    lab.sim.fail_at(None);
    assert_eq!(phases(&lab, vm), BOOT[..1]);
    lab.sim.silence_guests(true);
    lab.failed(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    let reached = phases(&lab, vm);
    assert_eq!(reached[..5], BOOT[..5]);
    assert!(!reached.contains(&Phase::Guest), "{reached:?}");
    let history = lab.engine.history(vm).unwrap();
    assert_eq!(history.changes().last().unwrap().1.reason, Reason::BootTimeout);
}

#[tokio::test]
async fn a_resumption_has_a_phase_that_loads_the_memory() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    lab.done(lab.engine.suspend_vm(vm).await.unwrap()).await;
    lab.done(lab.engine.resume_vm(vm, Start::default()).await.unwrap()).await;
    let expect =
        [Phase::Prepare, Phase::Disks, Phase::Jail, Phase::Network, Phase::Vmm, Phase::Load, Phase::Guest];
    assert_eq!(phases(&lab, vm), expect);
}

#[tokio::test]
async fn a_history_has_a_bounded_length_and_ends_with_its_sandbox() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    for _ in 0..40 {
        lab.engine.pause_vm(vm).await.unwrap();
        lab.engine.unpause_vm(vm).await.unwrap();
    }
    assert_eq!(states(&lab, vm).len(), 64);
    assert_eq!(states(&lab, vm)[62..], ["paused", "running*"].map(str::to_owned));
    lab.done(lab.engine.delete_vm(vm, StopMode::Forced).await.unwrap()).await;
    assert!(lab.engine.history(vm).is_none());
}

#[tokio::test]
async fn a_new_service_begins_with_what_it_finds() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    let mut lab = lab.restart().await;
    let is_ready = |lab: &EngineLab| lab.engine.vm(vm).is_some_and(|view| view.is_ready());
    while !is_ready(&lab) {
        lab.events.recv().await.unwrap();
    }
    let states = states(&lab, vm);
    assert!(states.iter().all(|state| state.starts_with("running")), "{states:?}");
    assert_eq!(phases(&lab, vm), []);
}

#[tokio::test]
async fn each_sandbox_has_a_history_of_its_own() {
    let lab = EngineLab::new().await;
    let mut all = Vec::new();
    for owner in [ALICE, BOB] {
        let request = banger_system::engine::request::CreateVm { owner, ..request() };
        let (vm, job) = lab.engine.create_vm(request).await.unwrap();
        lab.done(job).await;
        all.push(vm);
    }
    lab.engine.pause_vm(all[0]).await.unwrap();
    assert_eq!(states(&lab, all[1]), ["created", "starting", "running", "running*"]);
}
