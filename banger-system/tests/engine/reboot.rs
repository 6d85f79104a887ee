//! Guests that end or reboot on their own, on a host in memory.

use banger_domain::{
    guest_end::GuestEnd,
    id::VmId,
    lifecycle::{Reason, State},
    vm::Lifetime,
};
use banger_system::{
    engine::{
        request::{CreateVm, OnReboot, Start, Stop},
        view::Outcome,
    },
    ports::supervisor::Ended,
};

use crate::engine_lab::{EngineLab, TIMEOUT, request};

fn boot_id(lab: &EngineLab, vm: VmId) -> String {
    lab.engine.vm(vm).unwrap().vm.boot_id.clone()
}

/// Waits until the guest of another boot is ready.
async fn booted_after(lab: &mut EngineLab, vm: VmId, boot: &str) {
    let wait = async {
        while !lab.engine.vm(vm).is_some_and(|v| v.vm.is_ready() && v.vm.boot_id != boot) {
            lab.events.recv().await.expect("the engine lives");
        }
    };
    tokio::time::timeout(TIMEOUT, wait).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_reboots_boots_again_and_leaves_nothing_of_its_first_boot() {
    let mut lab = EngineLab::new().await;
    let vm = lab.running().await;
    let (boot, before) = (boot_id(&lab, vm), lab.sim.alive());
    lab.sim.end_guest(vm, GuestEnd::Reboot);
    booted_after(&mut lab, vm, &boot).await;
    let view = lab.engine.vm(vm).unwrap();
    assert_eq!((view.vm.state, view.vm.reason.clone()), (State::Running, Reason::GuestReboot));
    assert_eq!(lab.sim.alive(), before);
    lab.done(lab.engine.stop_vm(vm, Stop::default()).await.unwrap()).await;
    assert_eq!(lab.engine.vm(vm).unwrap().vm.reason, Reason::UserRequest);
}

#[tokio::test(start_paused = true)]
async fn the_ends_of_guests_are_told_apart() {
    let mut lab = EngineLab::new().await;
    for (end, state, reason) in [
        (GuestEnd::PowerOff, State::Stopped, Reason::GuestShutdown),
        (GuestEnd::PowerOffByHalt, State::Stopped, Reason::GuestShutdown),
        (GuestEnd::Halt, State::Stopped, Reason::GuestHalt),
        (GuestEnd::Panic, State::Failed, Reason::GuestPanic),
    ] {
        let vm = lab.running().await;
        lab.sim.end_guest(vm, end);
        lab.until(vm, |now| now == Some(state)).await;
        assert_eq!(lab.engine.vm(vm).unwrap().vm.reason, reason, "{end:?}");
        assert!(!lab.sim.alive().iter().any(|thing| thing.starts_with("process")), "{end:?}");
    }
    let vm = lab.running().await;
    lab.sim.end_process(vm, Ended::Failed("oom-kill".into()));
    lab.until(vm, |now| now == Some(State::Failed)).await;
    assert_eq!(lab.engine.vm(vm).unwrap().vm.reason, Reason::VmmOutOfMemory);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_reboots_without_end_fails() {
    let mut lab = EngineLab::new().await;
    let vm = lab.running().await;
    for _ in 0..5 {
        let boot = boot_id(&lab, vm);
        lab.sim.end_guest(vm, GuestEnd::Reboot);
        booted_after(&mut lab, vm, &boot).await;
    }
    lab.sim.end_guest(vm, GuestEnd::Reboot);
    lab.until(vm, |state| state == Some(State::Failed)).await;
    assert_eq!(lab.engine.vm(vm).unwrap().vm.reason, Reason::RebootLoop);
    // A user may start it again.
    lab.done(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn a_reboot_stops_a_sandbox_where_the_configuration_says_so() {
    let mut lab = EngineLab::with(|settings| settings.on_reboot = OnReboot::Stop).await;
    let vm = lab.running().await;
    lab.sim.end_guest(vm, GuestEnd::Reboot);
    lab.until(vm, |state| state == Some(State::Stopped)).await;
    assert_eq!(lab.engine.vm(vm).unwrap().vm.reason, Reason::GuestReboot);
}

#[tokio::test(start_paused = true)]
async fn a_reboot_does_not_end_a_sandbox_that_goes_when_it_stops() {
    let mut lab = EngineLab::new().await;
    let lifetime = Lifetime::UntilStopped;
    let (vm, job) = lab.engine.create_vm(CreateVm { lifetime, ..request() }).await.unwrap();
    lab.done(job).await;
    let boot = boot_id(&lab, vm);
    lab.sim.end_guest(vm, GuestEnd::Reboot);
    booted_after(&mut lab, vm, &boot).await;
    lab.sim.end_guest(vm, GuestEnd::PowerOff);
    lab.until(vm, |state| state.is_none()).await;
    assert_eq!(lab.sim.alive(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_boot_after_a_reboot_that_fails_at_any_step_leaves_only_the_disks() {
    for step in 0.. {
        let mut lab = EngineLab::new().await;
        let vm = lab.running().await;
        let boot = boot_id(&lab, vm);
        lab.sim.fail_at(Some(step));
        lab.sim.end_guest(vm, GuestEnd::Reboot);
        let wait = async {
            loop {
                let view = lab.engine.vm(vm).unwrap();
                if view.vm.state == State::Failed || (view.vm.is_ready() && view.vm.boot_id != boot) {
                    return;
                }
                lab.events.recv().await.expect("the engine lives");
            }
        };
        tokio::time::timeout(TIMEOUT, wait).await.unwrap();
        if lab.state(vm) == State::Running {
            assert!(step > 5, "only {step} steps");
            return;
        }
        let reason = lab.engine.vm(vm).unwrap().vm.reason.clone();
        assert!(matches!(reason, Reason::StartFailed(_)), "{reason:?}");
        let left = lab.sim.alive();
        assert!(left.iter().all(|thing| thing.contains("disks") || thing.starts_with("row")), "{left:?}");
        lab.sim.fail_at(None);
        lab.done(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_while_the_guest_shuts_down_starts_it_once_it_is_off() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    let boot = boot_id(&lab, vm);
    lab.sim.begin_shutdown(vm);
    let job = lab.engine.start_vm(vm, Start::default()).await.unwrap();
    let waits = async {
        while lab.engine.job(job).unwrap().message != "waiting for the guest to power off" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TIMEOUT, waits).await.unwrap();
    lab.sim.end_guest(vm, GuestEnd::PowerOff);
    lab.done(job).await;
    let view = lab.engine.vm(vm).unwrap();
    assert_eq!((view.vm.state, view.vm.is_ready()), (State::Running, true));
    assert_ne!(view.vm.boot_id, boot);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_waits_for_a_shutdown_may_be_canceled_and_changes_nothing() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    lab.sim.begin_shutdown(vm);
    let job = lab.engine.start_vm(vm, Start::default()).await.unwrap();
    lab.engine.cancel_job(job).unwrap();
    assert!(matches!(lab.outcome(job).await, Outcome::Canceled));
    assert_eq!(lab.state(vm), State::Running);
}

#[tokio::test(start_paused = true)]
async fn a_start_while_the_guest_reboots_waits_for_its_next_boot() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    let boot = boot_id(&lab, vm);
    lab.sim.begin_shutdown(vm);
    let job = lab.engine.start_vm(vm, Start::default()).await.unwrap();
    lab.sim.end_guest(vm, GuestEnd::Reboot);
    lab.done(job).await;
    assert_ne!(boot_id(&lab, vm), boot);
}

#[test]
fn the_end_of_a_guest_while_the_service_was_down_is_read_from_its_console() {
    // An engine's tasks end with its runtime.
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (end, state, reason) in [
        (None, State::Stopped, Reason::Lost),
        (Some(GuestEnd::PowerOff), State::Stopped, Reason::GuestShutdown),
        (Some(GuestEnd::Panic), State::Failed, Reason::GuestPanic),
        (Some(GuestEnd::Reboot), State::Running, Reason::GuestReboot),
    ] {
        let (sim, vm) = runtime().block_on(async {
            let lab = EngineLab::new().await;
            (lab.sim.clone(), lab.running().await)
        });
        match end {
            Some(end) => sim.end_guest(vm, end),
            None => sim.end_process(vm, Ended::Clean),
        }
        runtime().block_on(async {
            let lab = EngineLab::on(sim);
            lab.engine.recover().await.unwrap();
            let settled = async {
                while lab.engine.vm(vm).is_none_or(|v| v.vm.reason != reason || v.vm.state != state) {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(TIMEOUT, settled).await.unwrap();
        });
    }
}
