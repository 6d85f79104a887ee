//! What one user can begin, and what that leaves to others: counted, never timed.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod house;

use std::{fs::File, time::Duration};

use banger_domain::{
    id::{JobId, Uid},
    limits::{Exceeded, Limits},
};
use banger_image::oci::{credentials::Credentials, platform::Platform};
use banger_proto::size::Bytes;
use banger_system::{
    engine::{
        error::{Error, Result},
        request::{ImportImage, Manner, Original, Other, PullImage, PullKernel, Stop, Whence},
        view::Outcome,
    },
    ports::registry::Source,
    sim::Sim,
};

use crate::house::{ALICE, BOB, House, PATIENCE, request};

fn import(house: &House, owner: Uid, name: &str) -> Result<JobId> {
    let content = Original::Rootfs(File::open("/dev/null").unwrap().into());
    let name = name.parse().unwrap();
    house.engine.import_image(ImportImage { owner, name, shared: false, kernel: None, content })
}

async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
}

fn is_refused<T>(result: &Result<T>) -> bool {
    matches!(result, Err(Error::Limit(Exceeded::Requests { .. })))
}

#[tokio::test]
async fn one_users_many_imports_wait_and_another_users_first_does_not() {
    let house = House::new().await;
    house.sim.hold_workers(true);
    let jobs: Vec<_> = (0..120).map(|n| import(&house, ALICE, &format!("n{n}"))).collect();
    assert!(jobs[..40].iter().all(Result::is_ok) && jobs[40..].iter().all(is_refused));
    // Names that were reserved for what was refused are free again.
    assert!(is_refused(&import(&house, ALICE, "n77")));
    // Four at once on this host, and one of them is for others.
    until(|| house.sim.working(ALICE) == 3).await;
    let bobs = import(&house, BOB, "one").unwrap();
    until(|| house.sim.working(BOB) == 1).await;
    let (vm, made) = house.engine.create_vm(request()).await.unwrap();
    house.done(made).await;

    // One that waits can be given up, and makes room.
    let waiting = *jobs[39].as_ref().unwrap();
    assert_eq!(house.engine.job(waiting).unwrap().stage_index, 0);
    house.engine.cancel_job(waiting).unwrap();
    assert!(matches!(house.outcome(waiting).await, Outcome::Canceled));
    let last = import(&house, ALICE, "last").unwrap();
    assert!(is_refused(&import(&house, ALICE, "one-more")));
    assert_eq!(house.sim.working(ALICE), 3);

    house.sim.hold_workers(false);
    for job in jobs[..39].iter().flatten().chain([&bobs, &last]) {
        house.done(*job).await;
    }
    let job = house.engine.delete_vm(vm, Manner::Forced).await.unwrap();
    house.done(job).await;
}

#[tokio::test]
async fn exports_wait_in_the_same_line() {
    let house = House::new().await;
    house.sim.hold_workers(true);
    let image = house.engine.images()[0].id;
    let export = |user| house.engine.export_image(user, image, File::open("/dev/null").unwrap().into());
    let jobs: Vec<_> = (0..120).map(|_| export(ALICE)).collect();
    assert_eq!(jobs.iter().filter(|job| job.is_ok()).count(), 40);
    let bobs = export(BOB).unwrap();
    until(|| house.sim.working(ALICE) == 3 && house.sim.working(BOB) == 1).await;
    house.sim.hold_workers(false);
    for job in jobs.into_iter().flatten().chain([bobs]) {
        house.done(job).await;
    }
    assert_eq!((house.sim.working(ALICE), house.sim.working(BOB)), (0, 0));
}

#[tokio::test]
async fn what_a_job_needs_does_not_wait_behind_it() {
    let limits = Limits { jobs_running: 1, ..Limits::of_host(1, Bytes::gib(8)) };
    let house = House::on_with(Sim::new(), |settings| settings.limits = limits);
    house.engine.recover().await.unwrap();
    let name = "debian-bookworm";
    let source = Source {
        reference: name.parse().unwrap(),
        platform: Platform::of_host("x86_64"),
        credentials: Credentials::Anonymous,
    };
    let whence = Whence::CatalogElseRegistry(name.parse().unwrap());
    let other = Other::Stays;
    let image = PullImage { owner: ALICE, source, whence, name: None, shared: false, kernel: None, other };
    let pulling = house.engine.pull_image(image).unwrap();
    // Behind it in line, and the same that it is about to ask for.
    let kernel =
        PullKernel { owner: ALICE, entry: "debian".parse().unwrap(), name: None, shared: false, other };
    let kernel = house.engine.pull_kernel(kernel).unwrap();
    house.done(pulling).await;
    house.done(kernel).await;
    assert_eq!((house.engine.images().len(), house.engine.kernels().len()), (1, 1));
}

#[tokio::test]
async fn of_many_jobs_that_have_ended_the_last_ones_are_kept() {
    let house = House::new().await;
    let vm = house.running().await;
    for _ in 0..600 {
        let job = house.engine.stop_vm(vm, Stop::default()).await.unwrap();
        house.done(job).await;
    }
    let of_alice = house.engine.jobs().iter().filter(|job| job.owner == ALICE).count();
    assert_eq!(of_alice, 64);
    assert!(house.engine.jobs().iter().any(|job| job.owner == Uid::ROOT), "others keep theirs");
}

#[tokio::test]
async fn who_may_begin_nothing_more_can_still_end_what_there_is() {
    let limits = Limits { jobs_running: 1, jobs_queued: 1, ..Limits::of_host(4, Bytes::gib(32)) };
    let sim = Sim::new();
    House::prepare(&sim).await;
    let house = House::on_with(sim, |settings| settings.limits = limits);
    house.engine.recover().await.unwrap();
    house.sim.deafen_guests(true);
    let made = [house.engine.create_vm(request()).await, house.engine.create_vm(request()).await];
    let refused = house.engine.create_vm(request()).await;
    assert!(is_refused(&refused), "{refused:?}");
    assert_eq!(house.engine.vms().len(), 2);
    for made in made {
        let (vm, _) = made.unwrap();
        let job = house.engine.delete_vm(vm, Manner::Forced).await.unwrap();
        house.done(job).await;
    }
}
