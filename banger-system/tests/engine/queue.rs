//! What one user can start, and what is left for others: counted, never timed.

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
        request::{ImportImage, ImportSource, OnConflict, PullImage, PullKernel, PullSource, Stop, StopMode},
        view::Outcome,
    },
    ports::registry::Source,
    sim::Sim,
};

use crate::engine_lab::{ALICE, BOB, EngineLab, TIMEOUT, request};

fn import(lab: &EngineLab, owner: Uid, name: &str) -> Result<JobId> {
    let content = ImportSource::Rootfs(File::open("/dev/null").unwrap().into());
    let name = name.parse().unwrap();
    lab.engine.import_image(ImportImage { owner, name, shared: false, kernel: None, content })
}

async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, wait).await.unwrap();
}

fn is_refused<T>(result: &Result<T>) -> bool {
    matches!(result, Err(Error::Limit(Exceeded::Requests { .. })))
}

#[tokio::test(start_paused = true)]
async fn one_users_many_imports_wait_and_another_users_first_does_not() {
    let lab = EngineLab::new().await;
    lab.sim.block_workers(true);
    let jobs: Vec<_> = (0..120).map(|n| import(&lab, ALICE, &format!("n{n}"))).collect();
    assert!(jobs[..40].iter().all(Result::is_ok) && jobs[40..].iter().all(is_refused));
    // The names of refused requests are free again.
    assert!(is_refused(&import(&lab, ALICE, "n77")));
    // This host has four workers, and one of them is for other users.
    until(|| lab.sim.working(ALICE) == 3).await;
    let bobs = import(&lab, BOB, "one").unwrap();
    until(|| lab.sim.working(BOB) == 1).await;
    let (vm, made) = lab.engine.create_vm(request()).await.unwrap();
    lab.done(made).await;

    // A waiting job can be cancelled, which makes room.
    let waiting = *jobs[39].as_ref().unwrap();
    assert_eq!(lab.engine.job(waiting).unwrap().stage_index, 0);
    lab.engine.cancel_job(waiting).unwrap();
    assert!(matches!(lab.outcome(waiting).await, Outcome::Canceled));
    let last = import(&lab, ALICE, "last").unwrap();
    assert!(is_refused(&import(&lab, ALICE, "one-more")));
    assert_eq!(lab.sim.working(ALICE), 3);

    lab.sim.block_workers(false);
    for job in jobs[..39].iter().flatten().chain([&bobs, &last]) {
        lab.done(*job).await;
    }
    let job = lab.engine.delete_vm(vm, StopMode::Forced).await.unwrap();
    lab.done(job).await;
}

#[tokio::test(start_paused = true)]
async fn exports_wait_in_the_same_line() {
    let lab = EngineLab::new().await;
    lab.sim.block_workers(true);
    let image = lab.engine.images()[0].id;
    let export = |user| lab.engine.export_image(user, image, File::open("/dev/null").unwrap().into());
    let jobs: Vec<_> = (0..120).map(|_| export(ALICE)).collect();
    assert_eq!(jobs.iter().filter(|job| job.is_ok()).count(), 40);
    let bobs = export(BOB).unwrap();
    until(|| lab.sim.working(ALICE) == 3 && lab.sim.working(BOB) == 1).await;
    lab.sim.block_workers(false);
    for job in jobs.into_iter().flatten().chain([bobs]) {
        lab.done(job).await;
    }
    assert_eq!((lab.sim.working(ALICE), lab.sim.working(BOB)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_job_does_not_wait_in_line_for_its_own_dependency() {
    let limits = Limits { jobs_running: 1, ..Limits::of_host(1, Bytes::gib(8)) };
    let lab = EngineLab::on_with(Sim::new(), |settings| settings.limits = limits);
    lab.engine.recover().await.unwrap();
    let name = "debian-bookworm";
    let source = Source {
        reference: name.parse().unwrap(),
        platform: Platform::of_host("x86_64"),
        credentials: Credentials::Anonymous,
    };
    let from = PullSource::CatalogElseRegistry(name.parse().unwrap());
    let on_conflict = OnConflict::Fail;
    let image =
        PullImage { owner: ALICE, source, from, name: None, shared: false, kernel: None, on_conflict };
    let pulling = lab.engine.pull_image(image).unwrap();
    // Queued behind it, and identical to the pull that it needs.
    let kernel =
        PullKernel { owner: ALICE, entry: "debian".parse().unwrap(), name: None, shared: false, on_conflict };
    let kernel = lab.engine.pull_kernel(kernel).unwrap();
    lab.done(pulling).await;
    lab.done(kernel).await;
    assert_eq!((lab.engine.images().len(), lab.engine.kernels().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn of_many_jobs_that_have_ended_the_last_ones_are_kept() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    for _ in 0..600 {
        let job = lab.engine.stop_vm(vm, Stop::default()).await.unwrap();
        lab.done(job).await;
    }
    let of_alice = lab.engine.jobs().iter().filter(|job| job.owner == ALICE).count();
    assert_eq!(of_alice, 64);
    assert!(lab.engine.jobs().iter().any(|job| job.owner == Uid::ROOT), "others keep theirs");
}

#[tokio::test(start_paused = true)]
async fn a_user_at_the_limit_can_still_stop_and_delete() {
    let limits = Limits { jobs_running: 1, jobs_queued: 1, ..Limits::of_host(4, Bytes::gib(32)) };
    let sim = Sim::new();
    EngineLab::prepare(&sim).await;
    let lab = EngineLab::on_with(sim, |settings| settings.limits = limits);
    lab.engine.recover().await.unwrap();
    lab.sim.silence_guests(true);
    let made = [lab.engine.create_vm(request()).await, lab.engine.create_vm(request()).await];
    let refused = lab.engine.create_vm(request()).await;
    assert!(is_refused(&refused), "{refused:?}");
    assert_eq!(lab.engine.vms().len(), 2);
    for made in made {
        let (vm, _) = made.unwrap();
        let job = lab.engine.delete_vm(vm, StopMode::Forced).await.unwrap();
        lab.done(job).await;
    }
}
