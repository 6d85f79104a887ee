//! The engine on a host in memory: everything works, everything fails at every step, and the service may
//! go away between any two steps. Whatever happens, nothing stays that the ledger does not know.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod house;

use std::time::Duration;

use banger_domain::{
    clock::Occasion,
    dns::{
        question::{Answer, Data, Kind},
        table::Client,
    },
    id::Uid,
    lifecycle::{Reason, State},
    vm::Lifetime,
};
use banger_proto::size::Bytes;
use banger_system::{
    engine::{
        error::Error,
        request::{CreateVm, Manner, Start, Stop},
        stream::Service,
        view::Outcome,
    },
    ports::{Ended, Store as _},
};

use crate::house::{ALICE, BOB, House, PATIENCE, request};

#[tokio::test]
async fn a_machine_is_made_runs_stops_starts_again_and_goes() {
    let house = House::new().await;
    let vm = house.running().await;
    let view = house.engine.vm(vm).unwrap();
    assert_eq!((view.vm.state, view.vm.is_ready()), (State::Running, true));
    assert_eq!(view.image_name, "debian-bookworm");
    let first_boot = view.vm.boot_id.clone();

    house.done(house.engine.stop_vm(vm, Stop::default()).await.unwrap()).await;
    assert_eq!(house.state(vm), State::Stopped);
    assert!(
        !house.sim.alive().iter().any(|thing| thing.starts_with("process") || thing.starts_with("sockets"))
    );

    house.done(house.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    assert_ne!(house.engine.vm(vm).unwrap().vm.boot_id, first_boot);

    let refused = house.engine.delete_vm(vm, Manner::Clean).await.unwrap_err();
    assert_eq!(refused.to_string(), "a sandbox that is running cannot be deleted");
    house.done(house.engine.delete_vm(vm, Manner::Forced).await.unwrap()).await;
    assert!(house.engine.vm(vm).is_none());
    assert_eq!(house.sim.alive(), Vec::<String>::new());
}

#[tokio::test]
async fn the_clocks_of_guests_that_answer_are_kept_right() {
    let house = House::new().await;
    let up = house.running().await;
    // Before anybody is told that it is ready.
    assert_eq!(house.sim.clock_mended(up, Occasion::Boot), 1);
    let (down, job) = house.engine.create_vm(CreateVm { start: None, ..request() }).await.unwrap();
    house.done(job).await;
    for occasion in [Occasion::Jump, Occasion::Regular] {
        match occasion {
            Occasion::Jump => house.sim.set_clock(),
            _ => house.sim.pass_minute(),
        }
        let mended = async {
            while house.sim.clock_mended(up, occasion) == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, mended).await.unwrap();
        assert_eq!((house.sim.clock_mended(down, occasion), house.state(down)), (0, State::Created));
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_stops_answering_is_not_ready_until_it_answers_again() {
    let mut house = House::new().await;
    let vm = house.running().await;
    let until = async |house: &mut House, ready: bool| {
        while house.engine.vm(vm).unwrap().is_ready() != ready {
            house.events.recv().await.expect("the engine lives");
        }
    };
    house.sim.deafen_guests(true);
    house.sim.pass_minute();
    until(&mut house, false).await;
    let view = house.engine.vm(vm).unwrap();
    assert_eq!((view.vm.state, view.vm.boot_id.is_empty()), (State::Running, false));
    house.sim.deafen_guests(false);
    until(&mut house, true).await;
    // What it did not answer before counts for that boot alone.
    house.sim.deafen_guests(true);
    house.sim.pass_minute();
    until(&mut house, false).await;
    house.sim.deafen_guests(false);
    house.done(house.engine.stop_vm(vm, Stop::default()).await.unwrap()).await;
    house.done(house.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    assert!(house.engine.vm(vm).unwrap().is_ready());
}

#[tokio::test]
async fn repeated_requests_change_nothing() {
    let house = House::new().await;
    let vm = house.running().await;
    house.done(house.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    for _ in 0..2 {
        house.done(house.engine.stop_vm(vm, Stop::default()).await.unwrap()).await;
    }
    assert_eq!(house.state(vm), State::Stopped);
}

#[tokio::test]
async fn a_creation_that_fails_at_any_step_leaves_nothing() {
    let house = House::new().await;
    house.sim.fail_at(None);
    let vm = house.running().await;
    let steps = house.sim.steps();
    house.done(house.engine.delete_vm(vm, Manner::Forced).await.unwrap()).await;
    assert!(steps > 6, "only {steps} steps were seen");

    let mut failures = 0;
    for step in 0..steps {
        house.sim.fail_at(Some(step));
        let (vm, job) = house.engine.create_vm(request()).await.unwrap();
        let outcome = house.outcome(job).await;
        house.sim.fail_at(None);
        match outcome {
            Outcome::Failed(_) => {
                failures += 1;
                assert!(house.engine.vm(vm).is_none(), "step {step} left a machine");
            }
            // Only its row could not be written once it ran: it stays, and is removed like any other.
            Outcome::Done => house.done(house.engine.delete_vm(vm, Manner::Forced).await.unwrap()).await,
            Outcome::Canceled => panic!("nobody canceled"),
        }
        assert_eq!(house.sim.alive(), Vec::<String>::new(), "step {step}");
    }
    assert!(failures > 5, "only {failures} of {steps} steps could fail");
}

#[tokio::test]
async fn a_start_that_fails_at_any_step_leaves_only_the_disks() {
    let house = House::new().await;
    let (vm, job) = house.engine.create_vm(CreateVm { start: None, ..request() }).await.unwrap();
    house.done(job).await;
    let at_rest = house.sim.alive();
    for step in 0..6 {
        house.sim.fail_at(Some(step));
        let outcome = house.outcome(house.engine.start_vm(vm, Start::default()).await.unwrap()).await;
        house.sim.fail_at(None);
        if matches!(outcome, Outcome::Done) {
            house.done(house.engine.stop_vm(vm, Stop::default()).await.unwrap()).await;
            continue;
        }
        assert!(!house.state(vm).is_up(), "step {step}");
        assert_eq!(house.sim.alive(), at_rest, "step {step}");
    }
}

#[tokio::test]
async fn a_restart_of_the_service_takes_over_what_runs_and_removes_what_belongs_to_nothing() {
    let house = House::new().await;
    let (up, down) = (house.running().await, house.running().await);
    house.done(house.engine.stop_vm(down, Stop::default()).await.unwrap()).await;
    let before = house.sim.alive();

    let mut house = house.restarted().await;
    let is_up = |state| state == Some(State::Running);
    house.until(up, is_up).await;
    assert_eq!(house.state(down), State::Stopped);
    assert_eq!(house.sim.alive(), before);

    // A machine of which only the host knows: its row was lost.
    use banger_system::ports::Store;
    house.sim.delete_vm(up).await.unwrap();
    let house = house.restarted().await;
    assert!(house.engine.vm(up).is_none());
    assert!(
        !house.sim.alive().iter().any(|thing| thing.contains(&up.to_string())),
        "{:?}",
        house.sim.alive()
    );
}

#[tokio::test]
async fn a_machine_that_ended_while_the_service_was_away_is_found_stopped() {
    let house = House::new().await;
    let vm = house.running().await;
    use banger_system::ports::Supervisor;
    // The first engine hears of it too; what counts is what the next one makes of the row.
    let row = house.engine.vm(vm).unwrap().vm.clone();
    let sim = house.sim.clone();
    drop(house);
    sim.remove(vm).await.unwrap();
    use banger_system::ports::Store;
    sim.put_vm(&row).await.unwrap();

    let mut house = House::on(sim);
    house.engine.recover().await.unwrap();
    house.until(vm, |state| state == Some(State::Stopped)).await;
    assert_eq!(house.engine.vm(vm).unwrap().vm.reason, Reason::Lost);
    assert!(!house.sim.alive().iter().any(|thing| thing.starts_with("sockets")));
}

#[tokio::test]
async fn a_guest_that_never_answers_stays_up_and_is_kept() {
    let mut house = House::new().await;
    house.sim.deafen_guests(true);
    let lifetime = Lifetime::Caller { connection: ":1.7".into(), bus: "bus".into() };
    let (vm, job) = house.engine.create_vm(CreateVm { lifetime, ..request() }).await.unwrap();
    let message = house.failed(job).await;
    assert!(message.contains("did not become ready"), "{message}");
    assert_eq!(house.state(vm), State::Running);
    house.engine.caller_vanished(":1.7", "bus").await;
    house.done(house.engine.stop_vm(vm, Stop::default()).await.unwrap()).await;
    house.until(vm, |state| state == Some(State::Stopped)).await;
}

#[tokio::test]
async fn a_machine_bound_to_a_caller_goes_with_it() {
    let mut house = House::new().await;
    let lifetime = Lifetime::Caller { connection: ":1.7".into(), bus: "bus".into() };
    let (vm, job) = house.engine.create_vm(CreateVm { lifetime, ..request() }).await.unwrap();
    house.done(job).await;
    // Another connection of this bus, and one of the same name on another.
    house.engine.caller_vanished(":1.8", "bus").await;
    house.engine.caller_vanished(":1.7", "another bus").await;
    assert_eq!(house.state(vm), State::Running);
    house.engine.caller_vanished(":1.7", "bus").await;
    house.until(vm, |state| state.is_none()).await;
    assert_eq!(house.sim.alive(), Vec::<String>::new());
}

#[tokio::test]
async fn a_monitor_that_dies_or_a_guest_that_powers_off_is_noticed() {
    let mut house = House::new().await;
    let (died, off) = (house.running().await, house.running().await);
    house.sim.end_process(died, Ended::Failed("killed:9".into()));
    house.until(died, |state| state == Some(State::Failed)).await;
    assert_eq!(house.engine.vm(died).unwrap().vm.reason, Reason::VmmExit("killed:9".into()));
    house.sim.end_process(off, Ended::Clean);
    house.until(off, |state| state == Some(State::Stopped)).await;
    assert_eq!(house.engine.vm(off).unwrap().vm.reason, Reason::GuestShutdown);
}

#[tokio::test]
async fn a_kill_leaves_the_machine_stopped_and_not_failed() {
    let mut house = House::new().await;
    let vm = house.running().await;
    assert!(matches!(house.engine.kill_vm(vm, 19).await, Err(Error::InvalidOption { .. })));
    assert_eq!(house.state(vm), State::Running);
    house.engine.kill_vm(vm, 9).await.unwrap();
    house.until(vm, |state| state == Some(State::Stopped)).await;
    let error = house.engine.kill_vm(vm, 9).await.unwrap_err();
    assert!(matches!(error, Error::NotRunning { .. }));
}

#[tokio::test]
async fn what_could_not_be_released_after_a_crash_is_released_before_the_next_start() {
    let mut house = House::new().await;
    let vm = house.running().await;
    house.sim.keep_processes(true);
    house.sim.end_process(vm, Ended::Failed("oom-kill".into()));
    house.until(vm, |state| state == Some(State::Failed)).await;
    assert!(house.sim.alive().iter().any(|thing| thing.starts_with("ledger unit")));
    // While it cannot be released, a start says so and makes nothing else.
    let error = house.failed(house.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    assert!(error.contains("does not go away"), "{error}");
    assert!(!house.sim.alive().iter().any(|thing| thing.starts_with("nic")));
    house.sim.keep_processes(false);
    house.done(house.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    assert_eq!(house.state(vm), State::Running);
}

#[tokio::test]
async fn a_restart_is_a_new_boot() {
    let house = House::new().await;
    let vm = house.running().await;
    let boot = house.engine.vm(vm).unwrap().vm.boot_id.clone();
    house.done(house.engine.restart_vm(vm, Stop::default(), Start::default()).await.unwrap()).await;
    let view = house.engine.vm(vm).unwrap();
    assert_eq!(view.vm.state, State::Running);
    assert_ne!(view.vm.boot_id, boot);
}

#[tokio::test]
async fn a_canceled_creation_leaves_nothing() {
    let mut house = House::new().await;
    house.sim.deafen_guests(true);
    let (vm, job) = house.engine.create_vm(request()).await.unwrap();
    house.until(vm, |state| state == Some(State::Running)).await;
    house.engine.cancel_job(job).unwrap();
    assert!(matches!(house.outcome(job).await, Outcome::Canceled));
    house.until(vm, |state| state.is_none()).await;
    assert_eq!(house.sim.alive(), Vec::<String>::new());
}

#[tokio::test]
async fn impossible_requests_change_nothing() {
    let house = House::new().await;
    let refused = async |change: fn(&mut CreateVm)| {
        let mut request = request();
        change(&mut request);
        house.engine.create_vm(request).await.unwrap_err().to_string()
    };
    assert!(refused(|r| r.vcpus = Some(0)).await.contains("between 1 and 8, not 0"));
    assert!(refused(|r| r.memory = Some(Bytes::gib(10 << 10))).await.starts_with("memory must be between"));
    assert_eq!(refused(|r| r.image = Some("nope".parse().unwrap())).await, "there is no image nope");
    assert_eq!(house.sim.alive(), Vec::<String>::new());
    assert!(house.engine.vms().is_empty());
}

#[tokio::test]
async fn names_belong_to_their_owner() {
    let house = House::new().await;
    let named = |owner| CreateVm { owner, name: Some("box".parse().unwrap()), start: None, ..request() };
    let (hers, job) = house.engine.create_vm(named(ALICE)).await.unwrap();
    house.done(job).await;
    assert_eq!(
        house.engine.create_vm(named(ALICE)).await.unwrap_err().to_string(),
        "you already have a sandbox box"
    );
    let (his, _) = house.engine.create_vm(named(BOB)).await.unwrap();
    let find =
        |caller, text: &str| house.engine.find_vm(caller, &text.parse().unwrap()).map(|v| v.vm.id).ok();
    assert_eq!(find(ALICE, "box"), Some(hers));
    assert_eq!(find(BOB, "box"), Some(his));
    assert_eq!(find(BOB, "user1000/box"), Some(hers));
    assert_eq!(find(Uid(7), "box"), None);
    assert_eq!(find(BOB, &hers.to_string()[..8]), Some(hers));
}

#[tokio::test]
async fn images_and_kernels_that_are_used_are_not_deleted() {
    let house = House::new().await;
    let vm = house.running().await;
    let view = house.engine.vm(vm).unwrap();
    let (image, kernel) = (view.vm.image, view.vm.kernel);
    let error = house.engine.delete_image(image).await.unwrap_err();
    assert_eq!(error.to_string(), format!("the image debian-bookworm is used by {}", view.vm.name));
    assert!(house.engine.delete_kernel(kernel).await.is_err());
    house.done(house.engine.delete_vm(vm, Manner::Forced).await.unwrap()).await;
    house.engine.delete_image(image).await.unwrap();
    house.engine.delete_kernel(kernel).await.unwrap();
}

#[tokio::test]
async fn many_requests_to_one_machine_at_once_end_in_a_state_of_the_table() {
    let house = House::new().await;
    let vm = house.running().await;
    let mut asked = tokio::task::JoinSet::new();
    for n in 0..40 {
        let engine = house.engine.clone();
        asked.spawn(async move {
            let job = match n % 4 {
                0 => engine.start_vm(vm, Start::default()).await,
                1 => engine.stop_vm(vm, Stop::default()).await,
                2 => engine.restart_vm(vm, Stop::default(), Start::default()).await,
                _ => engine.stop_vm(vm, Stop { manner: Manner::Forced, ..Stop::default() }).await,
            };
            // Refused, or ended in whatever way: but it ends.
            if let Ok(job) = job {
                engine.wait_job(job, None).await.unwrap();
            }
        });
    }
    tokio::time::timeout(PATIENCE, asked.join_all()).await.unwrap();
    house.done(house.engine.delete_vm(vm, Manner::Forced).await.unwrap()).await;
    assert_eq!(house.sim.alive(), Vec::<String>::new());
}

/// What the host hears when it asks for the addresses of a name.
fn resolve(house: &House, name: &str) -> Option<Vec<Data>> {
    let names = house.sim.names()?;
    let labels: Vec<&[u8]> = name.split('.').map(str::as_bytes).collect();
    match names.answer(Client::Host, &labels, Kind::A) {
        Answer::Records(records) => Some(records),
        _ => None,
    }
}

/// Waits until a name is there, or is gone.
async fn until_resolved(house: &House, name: &str, there: bool) {
    let wait = async {
        while resolve(house, name).is_some() != there {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "{name} is not {there}");
}

#[tokio::test]
async fn a_machine_has_its_names_exactly_while_it_runs() {
    let mut house = House::new().await;
    let named = |name: &str, owner| CreateVm { name: name.parse().ok(), owner, ..request() };
    let (vm, job) = house.engine.create_vm(named("web", ALICE)).await.unwrap();
    house.done(job).await;
    until_resolved(&house, "web.user1000.vm", true).await;
    let first = resolve(&house, "web.vm");
    assert_eq!(first, resolve(&house, "web.user1000.vm"));

    // The name is taken by the first, and free for the second when that goes.
    let (bobs, job) = house.engine.create_vm(named("web", BOB)).await.unwrap();
    house.done(job).await;
    until_resolved(&house, "web.user1001.vm", true).await;
    assert_eq!(resolve(&house, "web.vm"), first);
    house.sim.end_process(vm, Ended::Failed("killed:9".to_owned()));
    house.until(vm, |state| state == Some(State::Failed)).await;
    until_resolved(&house, "web.user1000.vm", false).await;
    assert_eq!(resolve(&house, "web.vm"), resolve(&house, "web.user1001.vm"));

    house.engine.rename_vm(bobs, "shop".parse().unwrap()).await.unwrap();
    until_resolved(&house, "shop.vm", true).await;
    assert_eq!(resolve(&house, "web.vm"), None);

    let house = house.restarted().await;
    until_resolved(&house, "shop.user1001.vm", true).await;
    house.done(house.engine.stop_vm(bobs, Stop::default()).await.unwrap()).await;
    until_resolved(&house, "shop.vm", false).await;
    house.done(house.engine.start_vm(bobs, Start::default()).await.unwrap()).await;
    until_resolved(&house, "shop.vm", true).await;
    house.done(house.engine.delete_vm(bobs, Manner::Forced).await.unwrap()).await;
    until_resolved(&house, "shop.vm", false).await;
    assert!(house.sim.names().unwrap().is_empty());
}

#[tokio::test]
async fn a_stream_waits_for_a_guest_that_has_just_booted() {
    let house = House::new().await;
    let vm = house.running().await;
    house.sim.refuse_connections(3);
    house.engine.open_stream(vm, ALICE, Service::Ssh).await.unwrap();
}

#[tokio::test]
async fn a_stream_that_waits_ends_with_its_machine() {
    let house = House::new().await;
    let vm = house.running().await;
    house.sim.refuse_connections(u32::MAX);
    let waiting = house.engine.open_stream(vm, ALICE, Service::Ssh);
    let stop = async {
        let job = house.engine.stop_vm(vm, Stop::default()).await.unwrap();
        house.done(job).await;
    };
    let (stream, ()) = tokio::join!(waiting, stop);
    assert_eq!(
        stream.unwrap_err().to_string().split(' ').skip(1).collect::<Vec<_>>(),
        ["is", "not", "running"]
    );
}

#[tokio::test]
async fn a_machine_has_a_host_key_of_its_own_and_keeps_it() {
    let house = House::new().await;
    let (one, other) = (house.running().await, house.running().await);
    let key = |house: &House, vm| house.engine.vm(vm).unwrap().vm.host_key.clone();
    let before = key(&house, one);
    assert_ne!(before, key(&house, other));
    let house = house.restarted().await;
    assert_eq!(key(&house, one), before);
}

#[tokio::test]
async fn the_host_name_follows_the_name_unless_it_was_chosen() {
    let house = House::new().await;
    let make = async |hostname: Option<&str>| {
        let hostname = hostname.map(|name| name.parse().unwrap());
        let (vm, job) = house.engine.create_vm(CreateVm { hostname, ..request() }).await.unwrap();
        house.done(job).await;
        vm
    };
    let (follows, chosen) = (make(None).await, make(Some("db")).await);
    for (vm, name, hostname) in [(follows, "web", "web"), (chosen, "shop", "db")] {
        house.engine.rename_vm(vm, name.parse().unwrap()).await.unwrap();
        let vm = house.engine.vm(vm).unwrap().vm.clone();
        assert_eq!((vm.name.to_string(), vm.spec.hostname.to_string()), (name.into(), hostname.into()));
        let kept = house.sim.vms().await.unwrap().into_iter().find(|row| row.id == vm.id).unwrap();
        assert_eq!(kept.spec.hostname.to_string(), hostname);
    }
}
