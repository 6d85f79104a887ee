//! Restart policies, and sandboxes that start with the host, on a host in memory.

use std::time::Duration;

use banger_domain::{
    guest_end::GuestEnd,
    id::VmId,
    lifecycle::{Reason, State},
    restart::RestartPolicy,
    vm::Lifetime,
};
use banger_system::{
    engine::{
        error::Error,
        request::{Configure, CreateVm, ForkVm, Start, Stop, StopMode},
    },
    ports::supervisor::Ended,
};

use crate::engine_lab::{ALICE, EngineLab, request};

const FORCED: Stop = Stop { timeout: None, mode: StopMode::Forced };

async fn with(lab: &EngineLab, restart: RestartPolicy) -> VmId {
    let (vm, job) = lab.engine.create_vm(CreateVm { restart, ..request() }).await.unwrap();
    lab.done(job).await;
    vm
}

fn killed() -> Ended {
    Ended::Failed("killed:9".into())
}

fn reason(lab: &EngineLab, vm: VmId) -> Reason {
    lab.engine.vm(vm).unwrap().vm.reason.clone()
}

fn restarted(end: Reason) -> Reason {
    Reason::Restarted(Box::new(end))
}

/// Waits until the guest of a boot for this reason is ready.
async fn until_up(lab: &EngineLab, vm: VmId, why: Reason) {
    lab.wait_until("a start", |lab| {
        let view = lab.engine.vm(vm).unwrap();
        view.is_ready() && view.vm.reason == why
    })
    .await;
}

/// Lets more time pass than any pause takes, and checks that the VM stays down.
async fn stays_down(lab: &EngineLab, vm: VmId) {
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(!lab.state(vm).is_up(), "{:?}", reason(lab, vm));
}

#[tokio::test(start_paused = true)]
async fn each_policy_starts_a_sandbox_again_after_its_ends() {
    let failure = Reason::VmmExit("killed:9".into());
    for (policy, after_a_failure, after_a_shutdown) in [
        (RestartPolicy::No, false, false),
        (RestartPolicy::OnFailure, true, false),
        (RestartPolicy::Always, true, true),
    ] {
        let lab = EngineLab::new().await;
        let vm = with(&lab, policy).await;
        let before = lab.sim.alive();
        lab.sim.end_process(vm, killed());
        match after_a_failure {
            true => until_up(&lab, vm, restarted(failure.clone())).await,
            false => stays_down(&lab, vm).await,
        }
        if after_a_failure {
            assert_eq!(lab.sim.alive(), before);
            lab.sim.end_guest(vm, GuestEnd::PowerOff);
            match after_a_shutdown {
                true => until_up(&lab, vm, restarted(Reason::GuestShutdown)).await,
                false => stays_down(&lab, vm).await,
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_user_asks_for_is_not_undone() {
    let mut lab = EngineLab::new().await;
    let vm = with(&lab, RestartPolicy::Always).await;
    lab.done(lab.engine.stop_vm(vm, FORCED).await.unwrap()).await;
    stays_down(&lab, vm).await;
    lab.done(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    lab.engine.kill_vm(vm, 9).await.unwrap();
    lab.until(vm, |state| state == Some(State::Stopped)).await;
    stays_down(&lab, vm).await;

    // A stop, or another policy, in the pause before a restart.
    for end in ["stop", "policy"] {
        lab.done(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
        lab.sim.end_guest(vm, GuestEnd::PowerOff);
        lab.until(vm, |state| state == Some(State::Stopped)).await;
        match end {
            "stop" => lab.done(lab.engine.stop_vm(vm, Stop::default()).await.unwrap()).await,
            _ => {
                let change = Configure { restart: Some(RestartPolicy::No), ..Configure::default() };
                lab.engine.configure_vm(vm, change).await.unwrap();
            }
        }
        stays_down(&lab, vm).await;
        let expect = if end == "stop" { Reason::UserRequest } else { Reason::GuestShutdown };
        assert_eq!(reason(&lab, vm), expect);
    }
    lab.done(lab.engine.delete_vm(vm, StopMode::Graceful).await.unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_fails_at_every_start_is_tried_less_and_less_often() {
    let lab = EngineLab::new().await;
    let vm = with(&lab, RestartPolicy::OnFailure).await;
    // Nothing can be launched while the first step fails.
    let mut starts = Vec::new();
    lab.sim.end_process(vm, killed());
    let begun = tokio::time::Instant::now();
    while starts.len() < 12 {
        lab.sim.fail_at(Some(0));
        let before = lab.sim.steps();
        while lab.sim.steps() == before {
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(begun.elapsed() < Duration::from_secs(600), "{starts:?}");
        }
        starts.push(begun.elapsed().as_secs());
    }
    let last = starts[11] - starts[10];
    assert!((55..=65).contains(&last), "{starts:?}");
    lab.sim.fail_at(None);
    lab.wait_until("a start", |lab| lab.engine.vm(vm).unwrap().is_ready()).await;
    assert!(matches!(reason(&lab, vm), Reason::Restarted(_)), "{:?}", reason(&lab, vm));
}

#[tokio::test(start_paused = true)]
async fn a_restart_waits_for_the_quota() {
    let mut lab = EngineLab::with(|settings| settings.limits.running = 1).await;
    let vm = with(&lab, RestartPolicy::Always).await;
    lab.sim.end_process(vm, killed());
    lab.until(vm, |state| state == Some(State::Failed)).await;
    let other = lab.running().await;
    stays_down(&lab, vm).await;
    assert!(matches!(reason(&lab, vm), Reason::StartFailed(_)), "{:?}", reason(&lab, vm));
    assert_eq!(lab.state(other), State::Running);
    lab.done(lab.engine.stop_vm(other, FORCED).await.unwrap()).await;
    lab.wait_until("a start", |lab| lab.engine.vm(vm).unwrap().is_ready()).await;
}

#[tokio::test(start_paused = true)]
async fn an_end_that_no_service_saw_counts_for_the_policy() {
    let lab = EngineLab::new().await;
    let (always, never) = (with(&lab, RestartPolicy::Always).await, with(&lab, RestartPolicy::No).await);
    lab.tasks.abort_all().await;
    for vm in [always, never] {
        lab.sim.end_process(vm, killed());
    }
    let lab = lab.restart().await;
    until_up(&lab, always, restarted(Reason::Lost)).await;
    stays_down(&lab, never).await;
    assert_eq!(reason(&lab, never), Reason::Lost);
}

#[tokio::test(start_paused = true)]
async fn sandboxes_start_with_the_host_in_the_order_of_their_creation() {
    let lab = EngineLab::new().await;
    let mut wanted = Vec::new();
    for number in 0..6 {
        // Those with an even number start with the host; of all, one is up.
        let autostart = number % 2 == 0;
        let create = CreateVm { autostart, start: (number == 1).then(Start::default), ..request() };
        let (vm, job) = lab.engine.create_vm(create).await.unwrap();
        lab.done(job).await;
        wanted.push((vm, autostart));
    }
    let up = lab.running().await;
    lab.tasks.abort_all().await;
    lab.sim.reboot_host();
    let lab = lab.restart().await;
    lab.engine.start_with_host().await;
    let mut begun = Vec::new();
    for (vm, autostart) in wanted {
        if autostart {
            until_up(&lab, vm, Reason::HostBoot).await;
            begun.push(lab.engine.vm(vm).unwrap().vm.started_at);
        } else {
            assert!(!lab.state(vm).is_up());
        }
    }
    assert!(begun.is_sorted(), "{begun:?}");
    assert_eq!((lab.state(up), reason(&lab, up)), (State::Stopped, Reason::HostRestart));

    // Only once: a service that is started again leaves down what a user has stopped.
    let first = lab.engine.vms().iter().find(|view| view.vm.spec.autostart).unwrap().vm.id;
    lab.done(lab.engine.stop_vm(first, FORCED).await.unwrap()).await;
    let lab = lab.restart().await;
    lab.engine.start_with_host().await;
    stays_down(&lab, first).await;
}

#[tokio::test(start_paused = true)]
async fn the_host_starts_the_service_only_for_sandboxes_that_start_with_it() {
    let lab = EngineLab::new().await;
    let wants = || lab.sim.wants_service_at_boot();
    let down = || CreateVm { start: None, ..request() };
    let create = async |request| {
        let (vm, job) = lab.engine.create_vm(request).await.unwrap();
        lab.done(job).await;
        vm
    };
    let plain = create(down()).await;
    assert!(!wants());
    let first = create(CreateVm { autostart: true, ..down() }).await;
    let second = create(CreateVm { restart: RestartPolicy::Always, ..down() }).await;
    assert!(wants());
    let off = Configure { autostart: Some(false), ..Configure::default() };
    lab.engine.configure_vm(first, off).await.unwrap();
    assert!(wants());
    let fork = ForkVm { count: 1, names: Vec::new(), snapshot: None, lifetime: Lifetime::Persistent };
    let (children, job) = lab.engine.fork_vm(second, fork).await.unwrap();
    lab.done(job).await;
    lab.done(lab.engine.delete_vm(second, StopMode::Graceful).await.unwrap()).await;
    assert!(lab.engine.vm(children[0]).is_some() && !wants(), "a fork takes over neither");
    let on = Configure { restart: Some(RestartPolicy::Always), ..Configure::default() };
    lab.engine.configure_vm(plain, on).await.unwrap();
    assert!(wants());
    // The mark was lost in a crash.
    let sim = lab.sim.clone();
    banger_system::ports::host_boot::HostBoot::want_service(&sim, false).await.unwrap();
    let lab = lab.restart().await;
    assert!(lab.sim.wants_service_at_boot());
    assert_eq!(lab.engine.vm(plain).unwrap().vm.owner, ALICE);
}

#[tokio::test(start_paused = true)]
async fn a_user_who_starts_a_sandbox_in_a_pause_between_restarts_takes_their_place() {
    let mut lab = EngineLab::new().await;
    let vm = with(&lab, RestartPolicy::Always).await;
    lab.sim.end_process(vm, killed());
    lab.until(vm, |state| state == Some(State::Failed)).await;
    lab.done(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    assert_eq!(reason(&lab, vm), Reason::UserRequest);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!((lab.state(vm), reason(&lab, vm)), (State::Running, Reason::UserRequest));
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_is_deleted_when_it_stops_gets_no_policy() {
    let lab = EngineLab::new().await;
    let vm = with(&lab, RestartPolicy::No).await;
    let policies = [
        Configure { restart: Some(RestartPolicy::OnFailure), ..Configure::default() },
        Configure { autostart: Some(true), ..Configure::default() },
    ];
    lab.engine.set_lifetime(vm, Lifetime::UntilStopped).await.unwrap();
    for policy in policies.clone() {
        let refused = lab.engine.configure_vm(vm, policy).await;
        assert!(matches!(refused, Err(Error::InvalidOption { .. })), "{refused:?}");
    }
    lab.engine.set_lifetime(vm, Lifetime::Persistent).await.unwrap();
    for policy in policies {
        lab.engine.configure_vm(vm, policy).await.unwrap();
    }
    let refused = lab.engine.set_lifetime(vm, Lifetime::UntilStopped).await;
    assert!(matches!(refused, Err(Error::InvalidOption { .. })), "{refused:?}");
}
