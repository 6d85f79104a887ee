//! What an attacker with an account can use up over a real bus: what is counted and refused, while other users are
//! served.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Read,
};

use banger_domain::id::{Uid, VmId};
use banger_jail::ring::Writer;
use banger_proto::bus::{
    ErrorName,
    names::{MANAGER_PATH, action},
    record::{JobRow, VmRow},
};
use banger_system::engine::request::Stop;
use zbus::{OwnedObjectPath, OwnedVariant};

use crate::private_bus::{
    ALICE, Answer, BOB, CAROL, Client, Failure, Service, Signal, SignalRecorder, is_possible, null, options,
    refused, require, until, within_timeout,
};

fn id(path: &str) -> VmId {
    path.rsplit('/').next().unwrap().parse().unwrap()
}

async fn export(client: &Client, image: &str) -> Result<OwnedObjectPath, Failure> {
    client.call(image, "Export", &(zbus::Fd::from(null()), options([]))).await
}

/// Checks that a user's everyday calls still work.
async fn is_served(client: &Client, vm: &str) {
    let rows: Vec<VmRow> = client.call(MANAGER_PATH, "ListVMs", &(options([]),)).await.unwrap();
    assert_eq!(rows.len(), 1);
    for member in ["Stop", "Start"] {
        let job: OwnedObjectPath = client.call(vm, member, &(options([]),)).await.unwrap();
        client.done(&job).await;
    }
}

async fn jobs(client: &Client) -> Vec<JobRow> {
    client.call(MANAGER_PATH, "ListJobs", &(options([]),)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_of_a_shared_image_is_for_those_who_may_run_it() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, carol) = (service.client(ALICE).await, service.client(CAROL).await);
    let shared: OwnedObjectPath = carol.call(MANAGER_PATH, "GetImage", &("debian-bookworm",)).await.unwrap();
    refused(export(&carol, &shared).await, ErrorName::InteractiveAuthorizationRequired);
    assert!(service.engine.jobs().iter().all(|job| job.owner != Uid(CAROL)));
    alice.done(&export(&alice, &shared).await.unwrap()).await;
    // A former member can still export their own images, but no shared ones.
    let own = alice.import_image("own", options([])).await;
    service.polkit.answer(ALICE, action::VM_RUN, Answer::NoAgent);
    alice.done(&export(&alice, &own).await.unwrap()).await;
    refused(export(&alice, &shared).await, ErrorName::InteractiveAuthorizationRequired);
    refused(export(&carol, &own).await, ErrorName::InteractiveAuthorizationRequired);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_exports_leaves_the_service_to_others() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, bob) = (service.client(ALICE).await, service.client(BOB).await);
    let vm = bob.create("box", options([])).await;
    let image: OwnedObjectPath = alice.call(MANAGER_PATH, "GetImage", &("debian-bookworm",)).await.unwrap();
    service.sim.block_workers(true);
    let (mut begun, mut turned_away) = (0, 0);
    for _ in 0..120 {
        match export(&alice, &image).await {
            Ok(_) => begun += 1,
            failed => {
                refused(failed, ErrorName::TooManyRequests);
                turned_away += 1;
            }
        }
    }
    assert_eq!((begun, turned_away), (40, 80));
    assert_eq!(jobs(&alice).await.len(), 40);
    assert!(jobs(&bob).await.iter().all(|job| job.owner_uid == BOB));
    is_served(&bob, &vm).await;
    // His own export gets a worker at once.
    let his = export(&bob, &image).await.unwrap();
    until(|| async { service.sim.working(Uid(BOB)) == 1 }).await;
    assert!(service.sim.working(Uid(ALICE)) < 4);
    service.sim.block_workers(false);
    bob.done(&his).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_jobs_leaves_the_service_to_others() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, bob) = (service.client(ALICE).await, service.client(BOB).await);
    let (hers, his) = (
        alice.create("hers", options([("start", false.into())])).await,
        bob.create("box", options([])).await,
    );
    for _ in 0..600 {
        alice.call::<OwnedObjectPath>(&hers, "Stop", &(options([]),)).await.unwrap();
    }
    assert!(jobs(&alice).await.len() <= 64);
    let before = jobs(&bob).await.len();
    is_served(&bob, &his).await;
    assert_eq!(jobs(&bob).await.len(), before + 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_followed_logs_leaves_the_service_to_others() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, bob) = (service.client(ALICE).await, service.client(BOB).await);
    let (hers, his) = (alice.create("hers", options([])).await, bob.create("box", options([])).await);
    for vm in [&hers, &his] {
        let log = service.paths.console_log(id(vm));
        fs::create_dir_all(log.parent().unwrap()).unwrap();
        let file = File::options().read(true).write(true).create_new(true).open(log).unwrap();
        Writer::create(file, 1 << 20).unwrap().write(b"booted\n").unwrap();
    }
    let follow = async |client: &Client, vm: &str| {
        let options = options([("follow", true.into())]);
        client.call::<zbus::OwnedFd>(vm, "OpenLog", &("console", options)).await
    };
    let threads = || fs::read_dir("/proc/self/task").unwrap().count();
    let (before, mut open) = (threads(), Vec::new());
    for _ in 0..560 {
        match follow(&alice, &hers).await {
            Ok(pipe) => open.push(pipe),
            failed => assert!(refused(failed, ErrorName::TooManyRequests).contains("16 logs")),
        }
    }
    assert_eq!(open.len(), 16);
    // Some threads read files for a moment; a follower keeps none.
    assert!(threads() <= before + 16, "{before} threads became {}", threads());
    is_served(&bob, &his).await;
    let pipe = follow(&bob, &his).await.unwrap();
    let mut text = [0; 7];
    File::from(std::os::fd::OwnedFd::from(pipe)).read_exact(&mut text).unwrap();
    assert_eq!(&text, b"booted\n");
    // Closing one makes room for another.
    open.truncate(15);
    until(|| async { follow(&alice, &hers).await.is_ok() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_that_reads_nothing_holds_up_no_sandbox() {
    require!(is_possible(), "root and dbus-daemon");
    // More changes than the socket and the queue between engine and bus hold.
    const RENAMES: usize = 6000;
    let service = Service::start().await;
    let alice = service.client(ALICE).await;
    let vm = alice.create("box", options([])).await;
    alice.call::<()>(MANAGER_PATH, "Subscribe", &(options([]),)).await.unwrap();
    let mut heard = SignalRecorder::of(&alice).await;

    service.bus.pause();
    let rename = async |name: String| service.engine.rename_vm(id(&vm), name.parse().unwrap()).await.unwrap();
    within_timeout(async {
        for number in 0..RENAMES {
            rename(format!("box-{number}")).await;
        }
        let stopped = service.engine.stop_vm(id(&vm), Stop::default()).await.unwrap();
        service.engine.wait_job(stopped, None).await.unwrap();
        rename("last".to_owned()).await;
    })
    .await;
    service.bus.resume();

    // Clients get the last state of what changed too often.
    let has_last_name = |signal: &Signal| {
        let (_, values, _): (String, HashMap<String, OwnedVariant>, Vec<String>) =
            signal.message.body().deserialize().unwrap();
        values.get("Name").is_some_and(|name| name.downcast_ref::<&str>().unwrap() == "last")
    };
    let mut changes = 0;
    loop {
        let signals = heard.until(&vm, "PropertiesChanged").await;
        changes += 1;
        if signals.last().is_some_and(has_last_name) {
            break;
        }
    }
    assert!(changes < RENAMES, "the queue was never full, and this test shows nothing");
    assert_eq!(alice.text(&vm, "Name").await, "last");
    assert_eq!(alice.text(&vm, "State").await, "stopped");
}
