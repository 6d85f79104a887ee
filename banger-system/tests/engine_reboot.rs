//! Guests that end or reboot on their own, on a host in memory.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod house;

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
    ports::Ended,
};

use crate::house::{House, PATIENCE, request};

fn boot_id(house: &House, vm: VmId) -> String {
    house.engine.vm(vm).unwrap().vm.boot_id.clone()
}

/// Waits until a guest is ready that is not the one of this boot.
async fn booted_after(house: &mut House, vm: VmId, boot: &str) {
    let wait = async {
        while !house.engine.vm(vm).is_some_and(|v| v.vm.is_ready() && v.vm.boot_id != boot) {
            house.events.recv().await.expect("the engine lives");
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
}

#[tokio::test]
async fn a_guest_that_reboots_boots_again_and_leaves_nothing_of_its_first_boot() {
    let mut house = House::new().await;
    let vm = house.running().await;
    let (boot, before) = (boot_id(&house, vm), house.sim.alive());
    house.sim.end_guest(vm, GuestEnd::Reboot);
    booted_after(&mut house, vm, &boot).await;
    let view = house.engine.vm(vm).unwrap();
    assert_eq!((view.vm.state, view.vm.reason.clone()), (State::Running, Reason::GuestReboot));
    assert_eq!(house.sim.alive(), before);
    house.done(house.engine.stop_vm(vm, Stop::default()).await.unwrap()).await;
    assert_eq!(house.engine.vm(vm).unwrap().vm.reason, Reason::UserRequest);
}

#[tokio::test]
async fn the_ends_of_guests_are_told_apart() {
    let mut house = House::new().await;
    for (end, state, reason) in [
        (GuestEnd::PowerOff, State::Stopped, Reason::GuestShutdown),
        (GuestEnd::PowerOffByHalt, State::Stopped, Reason::GuestShutdown),
        (GuestEnd::Halt, State::Stopped, Reason::GuestHalt),
        (GuestEnd::Panic, State::Failed, Reason::GuestPanic),
    ] {
        let vm = house.running().await;
        house.sim.end_guest(vm, end);
        house.until(vm, |now| now == Some(state)).await;
        assert_eq!(house.engine.vm(vm).unwrap().vm.reason, reason, "{end:?}");
        assert!(!house.sim.alive().iter().any(|thing| thing.starts_with("process")), "{end:?}");
    }
    let vm = house.running().await;
    house.sim.end_process(vm, Ended::Failed("oom-kill".into()));
    house.until(vm, |now| now == Some(State::Failed)).await;
    assert_eq!(house.engine.vm(vm).unwrap().vm.reason, Reason::VmmOutOfMemory);
}

#[tokio::test]
async fn a_guest_that_reboots_without_end_fails() {
    let mut house = House::new().await;
    let vm = house.running().await;
    for _ in 0..5 {
        let boot = boot_id(&house, vm);
        house.sim.end_guest(vm, GuestEnd::Reboot);
        booted_after(&mut house, vm, &boot).await;
    }
    house.sim.end_guest(vm, GuestEnd::Reboot);
    house.until(vm, |state| state == Some(State::Failed)).await;
    assert_eq!(house.engine.vm(vm).unwrap().vm.reason, Reason::RebootLoop);
    // A user may start it again.
    house.done(house.engine.start_vm(vm, Start::default()).await.unwrap()).await;
}

#[tokio::test]
async fn a_reboot_stops_a_sandbox_where_the_configuration_says_so() {
    let mut house = House::with(|settings| settings.on_reboot = OnReboot::Stop).await;
    let vm = house.running().await;
    house.sim.end_guest(vm, GuestEnd::Reboot);
    house.until(vm, |state| state == Some(State::Stopped)).await;
    assert_eq!(house.engine.vm(vm).unwrap().vm.reason, Reason::GuestReboot);
}

#[tokio::test]
async fn a_reboot_does_not_end_a_sandbox_that_goes_when_it_stops() {
    let mut house = House::new().await;
    let lifetime = Lifetime::UntilStopped;
    let (vm, job) = house.engine.create_vm(CreateVm { lifetime, ..request() }).await.unwrap();
    house.done(job).await;
    let boot = boot_id(&house, vm);
    house.sim.end_guest(vm, GuestEnd::Reboot);
    booted_after(&mut house, vm, &boot).await;
    house.sim.end_guest(vm, GuestEnd::PowerOff);
    house.until(vm, |state| state.is_none()).await;
    assert_eq!(house.sim.alive(), Vec::<String>::new());
}

#[tokio::test]
async fn a_boot_after_a_reboot_that_fails_at_any_step_leaves_only_the_disks() {
    for step in 0.. {
        let mut house = House::new().await;
        let vm = house.running().await;
        let boot = boot_id(&house, vm);
        house.sim.fail_at(Some(step));
        house.sim.end_guest(vm, GuestEnd::Reboot);
        let wait = async {
            loop {
                let view = house.engine.vm(vm).unwrap();
                if view.vm.state == State::Failed || (view.vm.is_ready() && view.vm.boot_id != boot) {
                    return;
                }
                house.events.recv().await.expect("the engine lives");
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap();
        if house.state(vm) == State::Running {
            assert!(step > 5, "only {step} steps");
            return;
        }
        let reason = house.engine.vm(vm).unwrap().vm.reason.clone();
        assert!(matches!(reason, Reason::StartFailed(_)), "{reason:?}");
        let left = house.sim.alive();
        assert!(left.iter().all(|thing| thing.contains("disks") || thing.starts_with("row")), "{left:?}");
        house.sim.fail_at(None);
        house.done(house.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    }
}

#[tokio::test]
async fn a_start_while_the_guest_shuts_down_starts_it_once_it_is_off() {
    let house = House::new().await;
    let vm = house.running().await;
    let boot = boot_id(&house, vm);
    house.sim.begin_shutdown(vm);
    let job = house.engine.start_vm(vm, Start::default()).await.unwrap();
    let waits = async {
        while house.engine.job(job).unwrap().message != "waiting for the guest to power off" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waits).await.unwrap();
    house.sim.end_guest(vm, GuestEnd::PowerOff);
    house.done(job).await;
    let view = house.engine.vm(vm).unwrap();
    assert_eq!((view.vm.state, view.vm.is_ready()), (State::Running, true));
    assert_ne!(view.vm.boot_id, boot);
}

#[tokio::test]
async fn a_start_that_waits_for_a_shutdown_may_be_canceled_and_changes_nothing() {
    let house = House::new().await;
    let vm = house.running().await;
    house.sim.begin_shutdown(vm);
    let job = house.engine.start_vm(vm, Start::default()).await.unwrap();
    house.engine.cancel_job(job).unwrap();
    assert!(matches!(house.outcome(job).await, Outcome::Canceled));
    assert_eq!(house.state(vm), State::Running);
}

#[tokio::test]
async fn a_start_while_the_guest_reboots_waits_for_its_next_boot() {
    let house = House::new().await;
    let vm = house.running().await;
    let boot = boot_id(&house, vm);
    house.sim.begin_shutdown(vm);
    let job = house.engine.start_vm(vm, Start::default()).await.unwrap();
    house.sim.end_guest(vm, GuestEnd::Reboot);
    house.done(job).await;
    assert_ne!(boot_id(&house, vm), boot);
}

#[test]
fn what_a_guest_did_while_the_service_was_away_is_read_from_its_console() {
    // The tasks of a run of the service end with its runtime.
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (end, state, reason) in [
        (None, State::Stopped, Reason::Lost),
        (Some(GuestEnd::PowerOff), State::Stopped, Reason::GuestShutdown),
        (Some(GuestEnd::Panic), State::Failed, Reason::GuestPanic),
        (Some(GuestEnd::Reboot), State::Running, Reason::GuestReboot),
    ] {
        let (sim, vm) = runtime().block_on(async {
            let house = House::new().await;
            (house.sim.clone(), house.running().await)
        });
        match end {
            Some(end) => sim.end_guest(vm, end),
            None => sim.end_process(vm, Ended::Clean),
        }
        runtime().block_on(async {
            let house = House::on(sim);
            house.engine.recover().await.unwrap();
            let settled = async {
                while house.engine.vm(vm).is_none_or(|v| v.vm.reason != reason || v.vm.state != state) {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(PATIENCE, settled).await.unwrap();
        });
    }
}
