//! The engine on a host in memory: everything works, each step fails once, and the service may crash between any two
//! steps. The ledger always knows everything that exists.

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use banger_domain::{
    clock::Occasion,
    dns::{
        question::{Answer, Data, Kind},
        table::Client,
    },
    guest_end::GuestEnd,
    id::{Uid, VmId},
    lifecycle::{Reason, State},
    resource::Resource,
    vm::Lifetime,
};
use banger_proto::size::Bytes;
use banger_system::{
    engine::{
        error::Error,
        request::{CreateVm, Start, Stop, StopMode},
        stream::Service,
        view::Outcome,
    },
    ports::{
        FromHost as _, Ports,
        logs::{self, Log, LogRange, Logs, ReaderGuard},
        store::Store as _,
        supervisor::Ended,
    },
};

use crate::engine_lab::{ALICE, BOB, EngineLab, TIMEOUT, request};

#[tokio::test(start_paused = true)]
async fn a_sandbox_is_created_stopped_started_and_deleted() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    let view = lab.engine.vm(vm).unwrap();
    assert_eq!((view.vm.state, view.vm.is_ready()), (State::Running, true));
    assert_eq!(view.image_name, "debian-bookworm");
    let first_boot = view.vm.boot_id.clone();

    lab.done(lab.engine.stop_vm(vm, Stop::default()).await.unwrap()).await;
    assert_eq!(lab.state(vm), State::Stopped);
    assert!(
        !lab.sim.alive().iter().any(|thing| thing.starts_with("process") || thing.starts_with("sockets"))
    );

    lab.done(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    assert_ne!(lab.engine.vm(vm).unwrap().vm.boot_id, first_boot);

    let refused = lab.engine.delete_vm(vm, StopMode::Graceful).await.unwrap_err();
    assert_eq!(refused.to_string(), "a sandbox that is running cannot be deleted");
    lab.done(lab.engine.delete_vm(vm, StopMode::Forced).await.unwrap()).await;
    assert!(lab.engine.vm(vm).is_none());
    assert_eq!(lab.sim.alive(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn the_clocks_of_guests_that_answer_are_kept_right() {
    let lab = EngineLab::new().await;
    let up = lab.running().await;
    // Before the guest counts as ready.
    assert_eq!(lab.sim.clock_syncs(up, Occasion::Boot), 1);
    let (down, job) = lab.engine.create_vm(CreateVm { start: None, ..request() }).await.unwrap();
    lab.done(job).await;
    for occasion in [Occasion::Jump, Occasion::Regular] {
        match occasion {
            Occasion::Jump => lab.sim.set_clock(),
            _ => lab.sim.pass_minute(),
        }
        let mended = async {
            while lab.sim.clock_syncs(up, occasion) == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(TIMEOUT, mended).await.unwrap();
        assert_eq!((lab.sim.clock_syncs(down, occasion), lab.state(down)), (0, State::Created));
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_stops_answering_is_not_ready_until_it_answers_again() {
    let mut lab = EngineLab::new().await;
    let vm = lab.running().await;
    let until = async |lab: &mut EngineLab, ready: bool| {
        while lab.engine.vm(vm).unwrap().is_ready() != ready {
            lab.events.recv().await.expect("the engine lives");
        }
    };
    lab.sim.silence_guests(true);
    lab.sim.pass_minute();
    until(&mut lab, false).await;
    let view = lab.engine.vm(vm).unwrap();
    assert_eq!((view.vm.state, view.vm.boot_id.is_empty()), (State::Running, false));
    lab.sim.silence_guests(false);
    until(&mut lab, true).await;
    // Its silence counts for that boot only.
    lab.sim.silence_guests(true);
    lab.sim.pass_minute();
    until(&mut lab, false).await;
    lab.sim.silence_guests(false);
    lab.done(lab.engine.stop_vm(vm, Stop::default()).await.unwrap()).await;
    lab.done(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    assert!(lab.engine.vm(vm).unwrap().is_ready());
}

#[tokio::test(start_paused = true)]
async fn repeated_requests_change_nothing() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    lab.done(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    for _ in 0..2 {
        lab.done(lab.engine.stop_vm(vm, Stop::default()).await.unwrap()).await;
    }
    assert_eq!(lab.state(vm), State::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_creation_that_fails_at_any_step_leaves_nothing() {
    let lab = EngineLab::new().await;
    let (mut step, mut failures) = (0, 0);
    loop {
        lab.sim.fail_at(Some(step));
        let (vm, job) = lab.engine.create_vm(request()).await.unwrap();
        let outcome = lab.outcome(job).await;
        let has_failed = lab.sim.steps() > step;
        lab.sim.fail_at(None);
        match outcome {
            Outcome::Failed(_) => {
                failures += 1;
                assert!(lab.engine.vm(vm).is_none(), "step {step} left a sandbox");
            }
            // Only its row could not be stored while it ran. It stays, and is deleted like any other.
            Outcome::Done => lab.done(lab.engine.delete_vm(vm, StopMode::Forced).await.unwrap()).await,
            Outcome::Canceled => panic!("nobody canceled"),
        }
        assert_eq!(lab.sim.alive(), Vec::<String>::new(), "step {step}");
        if !has_failed {
            break;
        }
        step += 1;
    }
    assert!(failures > 5, "only {failures} of {step} steps could fail");
}

#[tokio::test(start_paused = true)]
async fn a_start_that_fails_at_any_step_leaves_only_the_disks() {
    let lab = EngineLab::new().await;
    let (vm, job) = lab.engine.create_vm(CreateVm { start: None, ..request() }).await.unwrap();
    lab.done(job).await;
    let at_rest = lab.sim.alive();
    let (mut step, mut failures) = (0, 0);
    loop {
        lab.sim.fail_at(Some(step));
        let outcome = lab.outcome(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
        let has_failed = lab.sim.steps() > step;
        lab.sim.fail_at(None);
        if matches!(outcome, Outcome::Done) {
            lab.done(lab.engine.stop_vm(vm, Stop::default()).await.unwrap()).await;
        } else {
            failures += 1;
        }
        assert!(!lab.state(vm).is_up(), "step {step}");
        assert_eq!(lab.sim.alive(), at_rest, "step {step}");
        if !has_failed {
            break;
        }
        step += 1;
    }
    assert!(failures > 5, "only {failures} of {step} steps could fail");
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_the_service_reattaches_what_runs_and_removes_orphans() {
    let lab = EngineLab::new().await;
    let (up, down) = (lab.running().await, lab.running().await);
    lab.done(lab.engine.stop_vm(down, Stop::default()).await.unwrap()).await;
    let before = lab.sim.alive();

    let mut lab = lab.restart().await;
    let is_up = |state| state == Some(State::Running);
    lab.until(up, is_up).await;
    assert_eq!(lab.state(down), State::Stopped);
    assert_eq!(lab.sim.alive(), before);

    // A sandbox that only the host knows: its row was lost.
    use banger_system::ports::store::Store;
    lab.sim.delete_vm(up).await.unwrap();
    let lab = lab.restart().await;
    assert!(lab.engine.vm(up).is_none());
    assert!(!lab.sim.alive().iter().any(|thing| thing.contains(&up.to_string())), "{:?}", lab.sim.alive());
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_ended_while_the_service_was_down_is_found_stopped() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    use banger_system::ports::supervisor::Supervisor;
    // The first engine gets the event too; only what the next one makes of the row counts.
    let row = lab.engine.vm(vm).unwrap().vm.clone();
    let sim = lab.sim.clone();
    drop(lab);
    sim.remove(vm).await.unwrap();
    use banger_system::ports::store::Store;
    sim.put_vm(&row).await.unwrap();

    let mut lab = EngineLab::on(sim);
    lab.engine.recover().await.unwrap();
    lab.until(vm, |state| state == Some(State::Stopped)).await;
    assert_eq!(lab.engine.vm(vm).unwrap().vm.reason, Reason::Lost);
    assert!(!lab.sim.alive().iter().any(|thing| thing.starts_with("sockets")));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_never_answers_stays_up_and_is_kept() {
    let mut lab = EngineLab::new().await;
    lab.sim.silence_guests(true);
    let lifetime = Lifetime::Caller { connection: ":1.7".into(), bus: "bus".into() };
    let (vm, job) = lab.engine.create_vm(CreateVm { lifetime, ..request() }).await.unwrap();
    let message = lab.failed(job).await;
    assert!(message.contains("did not become ready"), "{message}");
    assert_eq!(lab.state(vm), State::Running);
    lab.engine.client_disconnected(":1.7", "bus").await;
    lab.done(lab.engine.stop_vm(vm, Stop::default()).await.unwrap()).await;
    lab.until(vm, |state| state == Some(State::Stopped)).await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_bound_to_a_caller_is_deleted_with_it() {
    let mut lab = EngineLab::new().await;
    let lifetime = Lifetime::Caller { connection: ":1.7".into(), bus: "bus".into() };
    let (vm, job) = lab.engine.create_vm(CreateVm { lifetime, ..request() }).await.unwrap();
    lab.done(job).await;
    // Another connection on this bus, and a connection of the same name on another bus.
    lab.engine.client_disconnected(":1.8", "bus").await;
    lab.engine.client_disconnected(":1.7", "another bus").await;
    assert_eq!(lab.state(vm), State::Running);
    lab.engine.client_disconnected(":1.7", "bus").await;
    lab.until(vm, |state| state.is_none()).await;
    assert_eq!(lab.sim.alive(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_vmm_that_dies_or_a_guest_that_powers_off_is_noticed() {
    let mut lab = EngineLab::new().await;
    let (died, off) = (lab.running().await, lab.running().await);
    lab.sim.end_process(died, Ended::Failed("killed:9".into()));
    lab.until(died, |state| state == Some(State::Failed)).await;
    assert_eq!(lab.engine.vm(died).unwrap().vm.reason, Reason::VmmExit("killed:9".into()));
    lab.sim.end_process(off, Ended::Clean);
    lab.until(off, |state| state == Some(State::Stopped)).await;
    assert_eq!(lab.engine.vm(off).unwrap().vm.reason, Reason::GuestShutdown);
}

#[tokio::test(start_paused = true)]
async fn a_stop_clears_a_failure_and_only_that() {
    let mut lab = EngineLab::new().await;
    let vm = lab.running().await;
    lab.sim.end_process(vm, Ended::Failed("killed:9".into()));
    lab.until(vm, |state| state == Some(State::Failed)).await;
    for _ in 0..2 {
        lab.done(lab.engine.stop_vm(vm, Stop::default()).await.unwrap()).await;
        assert_eq!(lab.state(vm), State::Stopped);
        assert_eq!(lab.engine.vm(vm).unwrap().vm.reason, Reason::UserRequest);
    }
    let lab = lab.restart().await;
    assert_eq!(lab.state(vm), State::Stopped);
    lab.done(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    assert_eq!(lab.state(vm), State::Running);
}

#[tokio::test(start_paused = true)]
async fn the_log_of_a_vmm_says_what_ended_it() {
    let mut lab = EngineLab::new().await;
    let (killed, asked, off) = (lab.running().await, lab.running().await, lab.running().await);
    lab.sim.end_process(killed, Ended::Failed("oom-kill".into()));
    lab.until(killed, |state| state == Some(State::Failed)).await;
    lab.engine.kill_vm(asked, 9).await.unwrap();
    lab.until(asked, |state| state == Some(State::Stopped)).await;
    lab.sim.end_process(off, Ended::Clean);
    lab.until(off, |state| state == Some(State::Stopped)).await;
    for (vm, expect) in [
        (killed, "banger: memory ran out, and the kernel killed the VMM.\n"),
        (asked, "banger: signal 9 (KILL) ended the VMM, as a user asked.\n"),
        (off, ""),
    ] {
        let log = lab.engine.open_log(vm, Log::Vmm, LogRange::default(), Box::new(())).await.unwrap();
        assert_eq!(std::io::read_to_string(std::fs::File::from(log)).unwrap(), expect);
    }
}

#[tokio::test(start_paused = true)]
async fn a_kill_leaves_the_sandbox_stopped_and_not_failed() {
    let mut lab = EngineLab::new().await;
    let vm = lab.running().await;
    assert!(matches!(lab.engine.kill_vm(vm, 19).await, Err(Error::InvalidOption { .. })));
    assert_eq!(lab.state(vm), State::Running);
    lab.engine.kill_vm(vm, 9).await.unwrap();
    lab.until(vm, |state| state == Some(State::Stopped)).await;
    let error = lab.engine.kill_vm(vm, 9).await.unwrap_err();
    assert!(matches!(error, Error::NotRunning { .. }));
}

#[tokio::test(start_paused = true)]
async fn resources_left_by_a_crash_are_released_before_the_next_start() {
    let mut lab = EngineLab::new().await;
    let vm = lab.running().await;
    lab.sim.block_removal(Resource::Unit, true);
    lab.sim.end_process(vm, Ended::Failed("oom-kill".into()));
    lab.until(vm, |state| state == Some(State::Failed)).await;
    assert!(lab.sim.alive().iter().any(|thing| thing.starts_with("ledger unit")));
    // While it cannot be released, a start fails and creates nothing.
    let error = lab.failed(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    assert!(error.starts_with("cannot remove the VMM process of "), "{error}");
    assert!(!lab.sim.alive().iter().any(|thing| thing.starts_with("nic")));
    lab.sim.block_removal(Resource::Unit, false);
    lab.done(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    assert_eq!(lab.state(vm), State::Running);
}

#[tokio::test(start_paused = true)]
async fn a_restart_is_a_new_boot() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    let boot = lab.engine.vm(vm).unwrap().vm.boot_id.clone();
    lab.done(lab.engine.restart_vm(vm, Stop::default(), Start::default()).await.unwrap()).await;
    let view = lab.engine.vm(vm).unwrap();
    assert_eq!(view.vm.state, State::Running);
    assert_ne!(view.vm.boot_id, boot);
}

#[tokio::test(start_paused = true)]
async fn a_canceled_creation_leaves_nothing() {
    let mut lab = EngineLab::new().await;
    lab.sim.silence_guests(true);
    let (vm, job) = lab.engine.create_vm(request()).await.unwrap();
    lab.until(vm, |state| state == Some(State::Running)).await;
    lab.engine.cancel_job(job).unwrap();
    assert!(matches!(lab.outcome(job).await, Outcome::Canceled));
    lab.until(vm, |state| state.is_none()).await;
    assert_eq!(lab.sim.alive(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn impossible_requests_change_nothing() {
    let lab = EngineLab::new().await;
    let refused = async |change: fn(&mut CreateVm)| {
        let mut request = request();
        change(&mut request);
        lab.engine.create_vm(request).await.unwrap_err().to_string()
    };
    assert!(refused(|r| r.vcpus = Some(0)).await.contains("between 1 and 8, not 0"));
    assert!(refused(|r| r.memory = Some(Bytes::gib(10 << 10))).await.starts_with("memory must be between"));
    assert_eq!(refused(|r| r.image = Some("nope".parse().unwrap())).await, "there is no image nope");
    assert_eq!(lab.sim.alive(), Vec::<String>::new());
    assert!(lab.engine.vms().is_empty());
}

#[tokio::test(start_paused = true)]
async fn names_belong_to_their_owner() {
    let lab = EngineLab::new().await;
    let named = |owner| CreateVm { owner, name: Some("box".parse().unwrap()), start: None, ..request() };
    let (hers, job) = lab.engine.create_vm(named(ALICE)).await.unwrap();
    lab.done(job).await;
    assert_eq!(
        lab.engine.create_vm(named(ALICE)).await.unwrap_err().to_string(),
        "you already have a sandbox box"
    );
    let (his, _) = lab.engine.create_vm(named(BOB)).await.unwrap();
    let find = async |caller, text: &str| {
        lab.engine.find_vm(caller, &text.parse().unwrap()).await.map(|view| view.vm.id).ok()
    };
    assert_eq!(find(ALICE, "box").await, Some(hers));
    assert_eq!(find(BOB, "box").await, Some(his));
    assert_eq!(find(BOB, "user1000/box").await, Some(hers));
    assert_eq!(find(Uid(7), "box").await, None);
    assert_eq!(find(BOB, &hers.to_string()[..8]).await, Some(hers));
}

#[tokio::test(start_paused = true)]
async fn images_and_kernels_that_are_used_are_not_deleted() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    let view = lab.engine.vm(vm).unwrap();
    let (image, kernel) = (view.vm.image, view.vm.kernel);
    let error = lab.engine.delete_image(image).await.unwrap_err();
    assert_eq!(error.to_string(), format!("the image debian-bookworm is used by {}", view.vm.name));
    assert!(lab.engine.delete_kernel(kernel).await.is_err());
    lab.done(lab.engine.delete_vm(vm, StopMode::Forced).await.unwrap()).await;
    lab.engine.delete_image(image).await.unwrap();
    lab.engine.delete_kernel(kernel).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn concurrent_requests_to_one_sandbox_end_in_a_state_of_the_table() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    let mut asked = tokio::task::JoinSet::new();
    for n in 0..40 {
        let engine = lab.engine.clone();
        asked.spawn(async move {
            let job = match n % 4 {
                0 => engine.start_vm(vm, Start::default()).await,
                1 => engine.stop_vm(vm, Stop::default()).await,
                2 => engine.restart_vm(vm, Stop::default(), Start::default()).await,
                _ => engine.stop_vm(vm, Stop { mode: StopMode::Forced, ..Stop::default() }).await,
            };
            // It may be refused or end in any way, but it ends.
            if let Ok(job) = job {
                engine.wait_job(job, None).await.unwrap();
            }
        });
    }
    tokio::time::timeout(TIMEOUT, asked.join_all()).await.unwrap();
    lab.done(lab.engine.delete_vm(vm, StopMode::Forced).await.unwrap()).await;
    assert_eq!(lab.sim.alive(), Vec::<String>::new());
}

/// Returns the host's answer for the addresses of a name.
fn resolve(lab: &EngineLab, name: &str) -> Option<Vec<Data>> {
    let names = lab.sim.names()?;
    let labels: Vec<&[u8]> = name.split('.').map(str::as_bytes).collect();
    match names.answer(Client::Host, &labels, Kind::A) {
        Answer::Records(records) => Some(records),
        _ => None,
    }
}

/// Waits until a name exists, or no longer does.
async fn until_resolved(lab: &EngineLab, name: &str, there: bool) {
    let wait = async {
        while resolve(lab, name).is_some() != there {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(TIMEOUT, wait).await.is_ok(), "{name} is not {there}");
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_has_its_names_exactly_while_it_runs() {
    let mut lab = EngineLab::new().await;
    let named = |name: &str, owner| CreateVm { name: name.parse().ok(), owner, ..request() };
    let (vm, job) = lab.engine.create_vm(named("web", ALICE)).await.unwrap();
    lab.done(job).await;
    until_resolved(&lab, "web.user1000.vm", true).await;
    let first = resolve(&lab, "web.vm");
    assert_eq!(first, resolve(&lab, "web.user1000.vm"));

    // The name belongs to the first VM, and is free for the second once the first is deleted.
    let (bobs, job) = lab.engine.create_vm(named("web", BOB)).await.unwrap();
    lab.done(job).await;
    until_resolved(&lab, "web.user1001.vm", true).await;
    assert_eq!(resolve(&lab, "web.vm"), first);
    lab.sim.end_process(vm, Ended::Failed("killed:9".to_owned()));
    lab.until(vm, |state| state == Some(State::Failed)).await;
    until_resolved(&lab, "web.user1000.vm", false).await;
    assert_eq!(resolve(&lab, "web.vm"), resolve(&lab, "web.user1001.vm"));

    lab.engine.rename_vm(bobs, "shop".parse().unwrap()).await.unwrap();
    until_resolved(&lab, "shop.vm", true).await;
    assert_eq!(resolve(&lab, "web.vm"), None);

    let lab = lab.restart().await;
    until_resolved(&lab, "shop.user1001.vm", true).await;
    lab.done(lab.engine.stop_vm(bobs, Stop::default()).await.unwrap()).await;
    until_resolved(&lab, "shop.vm", false).await;
    lab.done(lab.engine.start_vm(bobs, Start::default()).await.unwrap()).await;
    until_resolved(&lab, "shop.vm", true).await;
    lab.done(lab.engine.delete_vm(bobs, StopMode::Forced).await.unwrap()).await;
    until_resolved(&lab, "shop.vm", false).await;
    assert!(lab.sim.names().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_name_service_that_does_not_answer_delays_names_and_nothing_else() {
    let lab = EngineLab::new().await;
    lab.sim.lose_accounts(true);
    let create = CreateVm { name: "web".parse().ok(), ..request() };
    let (_, job) = lab.engine.create_vm(create).await.unwrap();
    lab.done(job).await;
    until_published(&lab).await;
    assert_eq!(resolve(&lab, "web.user1000.vm"), None);
    lab.sim.lose_accounts(false);
    until_resolved(&lab, "web.user1000.vm", true).await;
}

/// Waits until a table of names is published.
async fn until_published(lab: &EngineLab) {
    while lab.sim.names().is_none() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_waits_for_a_guest_that_has_just_booted() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    lab.sim.refuse_connections(3);
    lab.engine.open_stream(vm, ALICE, Service::Ssh).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_waiting_stream_request_ends_with_its_sandbox() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    lab.sim.refuse_connections(u32::MAX);
    let waiting = lab.engine.open_stream(vm, ALICE, Service::Ssh);
    let stop = async {
        let job = lab.engine.stop_vm(vm, Stop::default()).await.unwrap();
        lab.done(job).await;
    };
    let (stream, ()) = tokio::join!(waiting, stop);
    assert_eq!(
        stream.unwrap_err().to_string().split(' ').skip(1).collect::<Vec<_>>(),
        ["is", "not", "running"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_has_its_own_host_key_and_keeps_it() {
    let lab = EngineLab::new().await;
    let (one, other) = (lab.running().await, lab.running().await);
    let key = |lab: &EngineLab, vm| lab.engine.vm(vm).unwrap().vm.host_key.clone();
    let before = key(&lab, one);
    assert_ne!(before, key(&lab, other));
    let lab = lab.restart().await;
    assert_eq!(key(&lab, one), before);
}

#[tokio::test(start_paused = true)]
async fn the_host_name_follows_the_name_unless_it_was_chosen() {
    let lab = EngineLab::new().await;
    let make = async |hostname: Option<&str>| {
        let hostname = hostname.map(|name| name.parse().unwrap());
        let (vm, job) = lab.engine.create_vm(CreateVm { hostname, ..request() }).await.unwrap();
        lab.done(job).await;
        vm
    };
    let (follows, chosen) = (make(None).await, make(Some("db")).await);
    for (vm, name, hostname) in [(follows, "web", "web"), (chosen, "shop", "db")] {
        lab.engine.rename_vm(vm, name.parse().unwrap()).await.unwrap();
        let vm = lab.engine.vm(vm).unwrap().vm.clone();
        assert_eq!((vm.name.to_string(), vm.spec.hostname.to_string()), (name.into(), hostname.into()));
        let stored = lab.sim.vms().await.unwrap().into_iter().find(|row| row.id == vm.id).unwrap();
        assert_eq!(stored.spec.hostname.to_string(), hostname);
    }
}

/// Logs that a bug keeps anybody from watching.
struct BrokenLogs;

#[async_trait::async_trait]
impl Logs for BrokenLogs {
    async fn open(&self, _: VmId, _: Log, _: LogRange, _: ReaderGuard) -> logs::Result<OwnedFd> {
        Err(logs::Error::other("open a log", "this host has none"))
    }

    async fn append(&self, _: VmId, _: Log, _: String) -> logs::Result<()> {
        Err(logs::Error::other("append to a log", "this host has none"))
    }

    async fn guest_end(&self, _: VmId) -> logs::Result<Option<GuestEnd>> {
        Ok(None)
    }

    async fn wait_for_halt(&self, _: VmId) -> logs::Result<GuestEnd> {
        panic!("a bug")
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_work_for_a_sandbox_is_reported_by_its_name() {
    let lab = EngineLab::new().await;
    let ports = Ports { logs: Arc::new(BrokenLogs), ..lab.sim.ports() };
    let settings = lab.engine.settings().clone();
    lab.tasks.abort_all().await;
    let lab = EngineLab::of(lab.sim, ports, settings);
    lab.engine.recover().await.unwrap();
    let (vm, _) = lab.engine.create_vm(request()).await.unwrap();
    let ended = tokio::time::timeout(TIMEOUT, lab.tasks.ended()).await.unwrap();
    assert_eq!(ended.to_string(), format!("the task \"sandbox {vm}\" has panicked: a bug"));
    // The next service finds it as it is.
    let mut lab = EngineLab::on(lab.sim).restart().await;
    lab.until(vm, |state| state == Some(State::Running)).await;
}
