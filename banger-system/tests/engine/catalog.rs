//! Catalogs on a host in memory: pulls, precedence, and failures.

use std::{sync::Arc, time::Duration};

use banger_domain::id::{JobId, Uid};
use banger_image::{
    catalog::index::Index,
    oci::{credentials::Credentials, platform::Platform},
    record::DefaultImage,
};
use banger_system::{
    engine::{
        Offer,
        error::Kind,
        request::{CreateVm, OnConflict, PullImage, PullKernel, PullSource},
        view::{Fact, ImageView, JobKind, KernelView, Object, Outcome},
    },
    ports::registry::Source,
};

use crate::engine_lab::{ALICE, BOB, EngineLab, request};

fn pull(owner: Uid, name: &str) -> PullImage {
    let source = Source {
        reference: name.parse().unwrap(),
        platform: Platform::of_host("x86_64"),
        credentials: Credentials::Anonymous,
    };
    let from = PullSource::CatalogElseRegistry(name.parse().unwrap());
    PullImage { owner, source, from, name: None, shared: false, kernel: None, on_conflict: OnConflict::Fail }
}

fn kernel(owner: Uid) -> PullKernel {
    PullKernel {
        owner,
        entry: "debian".parse().unwrap(),
        name: None,
        shared: false,
        on_conflict: OnConflict::Fail,
    }
}

impl EngineLab {
    async fn image(&self, request: PullImage) -> Arc<ImageView> {
        let job = self.engine.pull_image(request).unwrap();
        self.done(job).await;
        match self.object(job) {
            Object::Image(id) => self.engine.image(id).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    async fn kernel(&self, request: PullKernel) -> Arc<KernelView> {
        let job = self.engine.pull_kernel(request).unwrap();
        self.done(job).await;
        match self.object(job) {
            Object::Kernel(id) => self.engine.kernel(id).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn object(&self, job: JobId) -> Object {
        self.engine.job(job).unwrap().objects[0]
    }

    async fn refresh_problems(&self, older_than: Duration) -> String {
        let job = self.engine.refresh_catalogs(ALICE, older_than).unwrap();
        self.done(job).await;
        let facts = self.engine.job(job).unwrap().facts.clone();
        match facts.iter().find(|(key, _)| *key == "problems") {
            Some((_, Fact::Text(text))) => text.clone(),
            other => panic!("{other:?}"),
        }
    }

    /// Changes the catalog, and fetches it.
    async fn change_catalog(&self, change: impl FnOnce(&mut Index)) {
        self.refresh_problems(Duration::ZERO).await;
        let mut index = Index::clone(&self.sim.stored_catalog().unwrap().index);
        change(&mut index);
        self.sim.publish(index);
        assert_eq!(self.refresh_problems(Duration::ZERO).await, "");
    }

    fn offer(&self, caller: Uid, kind: Kind, name: &str) -> Option<Offer> {
        let offers = self.engine.offers(caller).offers;
        offers.into_iter().find(|offer| offer.kind == kind && offer.name.as_str() == name)
    }
}

/// A host without images and kernels.
fn bare() -> EngineLab {
    EngineLab::on(banger_system::sim::Sim::new())
}

async fn ready() -> EngineLab {
    let lab = bare();
    lab.engine.recover().await.unwrap();
    lab
}

#[tokio::test(start_paused = true)]
async fn an_image_of_a_catalog_is_fetched_once_and_shared() {
    let lab = ready().await;
    let first = lab.image(pull(ALICE, "debian-bookworm")).await;
    assert_eq!(first.name.as_str(), "debian-bookworm");
    assert!(first.source.starts_with("catalog:sim/debian-bookworm@sha256:"), "{}", first.source);
    let fetched = lab.sim.fetched();
    assert_eq!(lab.image(pull(ALICE, "debian-bookworm")).await.id, first.id);
    let other = lab.image(pull(BOB, "debian-bookworm")).await;
    assert_ne!(other.id, first.id);
    assert_eq!((lab.sim.fetched(), &other.facts), (fetched, &first.facts));
    assert!(lab.offer(ALICE, Kind::Image, "debian-bookworm").unwrap().is_here);
    lab.engine.delete_image(first.id).await.unwrap();
    assert!(!lab.offer(ALICE, Kind::Image, "debian-bookworm").unwrap().is_here);
    assert!(lab.offer(BOB, Kind::Image, "debian-bookworm").unwrap().is_here);
}

#[tokio::test(start_paused = true)]
async fn a_catalog_is_asked_before_the_registry_and_not_for_what_is_written_as_a_reference() {
    let lab = ready().await;
    let tool = lab.image(pull(ALICE, "tool")).await;
    assert!(tool.source.starts_with("registry.test/org/tool:1@sha256:"), "{}", tool.source);
    assert_eq!(tool.name.as_str(), "tool");
    assert!(lab.offer(ALICE, Kind::Image, "tool").unwrap().is_here);
    let elsewhere = lab.image(pull(ALICE, "alpine")).await;
    assert_eq!(elsewhere.source, "docker.io/library/alpine:latest");
    let reference = PullImage { from: PullSource::Registry, ..pull(BOB, "tool") };
    assert_eq!(lab.image(reference).await.source, "docker.io/library/tool:latest");
    let only = PullImage { from: PullSource::Catalog("alpine".parse().unwrap()), ..pull(BOB, "alpine") };
    let job = lab.engine.pull_image(only).unwrap();
    assert_eq!(lab.failed(job).await, "alpine is in no catalog");
}

#[tokio::test(start_paused = true)]
async fn an_unpublished_entry_is_reported_as_such() {
    let lab = ready().await;
    let job = lab.engine.pull_image(pull(ALICE, "later")).unwrap();
    assert_eq!(
        lab.failed(job).await,
        "later is in the catalog sim and is not published for this host yet: `banger image build later` builds it"
    );
    let offer = lab.offer(ALICE, Kind::Image, "later").unwrap();
    assert_eq!((offer.source.as_str(), offer.is_here), ("", false));
}

#[tokio::test(start_paused = true)]
async fn something_else_of_the_name_stays_unless_it_is_to_go() {
    let lab = ready().await;
    let reference = PullImage { from: PullSource::Registry, ..pull(ALICE, "debian-bookworm") };
    let old = lab.image(reference).await;
    let job = lab.engine.pull_image(pull(ALICE, "debian-bookworm")).unwrap();
    assert_eq!(lab.failed(job).await, "you already have an image debian-bookworm");
    assert!(lab.engine.image(old.id).is_some());
    let forced = PullImage { on_conflict: OnConflict::Replace, ..pull(ALICE, "debian-bookworm") };
    assert!(lab.image(forced).await.source.starts_with("catalog:"));
    assert!(lab.engine.image(old.id).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_catalog_kernel_replaces_another_only_by_force_and_while_that_is_unused() {
    let lab = EngineLab::new().await;
    lab.engine.recover().await.unwrap();
    let shared = lab.engine.kernels()[0].clone();
    assert_eq!(shared.owner, Uid::ROOT);
    let own = lab.kernel(kernel(ALICE)).await;
    assert!(own.source.starts_with("catalog:sim/debian@sha256:"), "{}", own.source);
    assert_eq!(lab.kernel(kernel(ALICE)).await.id, own.id);
    assert!(lab.offer(ALICE, Kind::Kernel, "debian").unwrap().is_here);

    let root = PullKernel { shared: true, ..kernel(Uid::ROOT) };
    let job = lab.engine.pull_kernel(root.clone()).unwrap();
    assert_eq!(lab.failed(job).await, "you already have a kernel debian");
    let vm = CreateVm { owner: BOB, ..request() };
    let (vm, job) = lab.engine.create_vm(vm).await.unwrap();
    lab.done(job).await;
    let forced = PullKernel { on_conflict: OnConflict::Replace, ..root };
    let job = lab.engine.pull_kernel(forced.clone()).unwrap();
    let used = lab.failed(job).await;
    assert!(used.starts_with("the kernel debian is used by "), "{used}");
    let job = lab.engine.delete_vm(vm, banger_system::engine::request::StopMode::Forced).await.unwrap();
    lab.done(job).await;
    let new = lab.kernel(forced).await;
    assert!(new.shared && lab.engine.kernel(shared.id).is_none());
    let lab = lab.restart().await;
    assert_eq!(*lab.engine.kernel(new.id).unwrap(), *new);
}

#[tokio::test(start_paused = true)]
async fn a_catalog_that_cannot_be_fetched_is_used_as_it_is_kept() {
    let lab = ready().await;
    lab.sim.set_catalog_unreachable(true);
    let lost = lab.refresh_problems(Duration::ZERO).await;
    assert_eq!(lost, "catalog.test cannot be reached");
    let only = || PullImage { from: PullSource::Catalog("tool".parse().unwrap()), ..pull(ALICE, "tool") };
    let job = lab.engine.pull_image(only()).unwrap();
    assert_eq!(lab.failed(job).await, "catalog.test cannot be reached");

    lab.sim.set_catalog_unreachable(false);
    assert_eq!(lab.refresh_problems(Duration::ZERO).await, "");
    lab.sim.set_catalog_unreachable(true);
    let problems = lab.refresh_problems(Duration::ZERO).await;
    assert_eq!(problems, "using the stored copy of the catalog sim: catalog.test cannot be reached");
    lab.image(only()).await;
    // A restarted service does not fetch what it has stored.
    let lab = lab.restart().await;
    assert_eq!(lab.offer(ALICE, Kind::Image, "tool").unwrap().catalog.as_str(), "sim");
}

#[tokio::test(start_paused = true)]
async fn a_catalog_that_has_expired_offers_nothing_and_hides_nothing() {
    let lab = ready().await;
    let mut index = {
        lab.refresh_problems(Duration::ZERO).await;
        let edition = lab.sim.stored_catalog().unwrap();
        Index::clone(&edition.index)
    };
    index.expires = banger_image::catalog::index::Date::parse("1970-01-01").unwrap();
    lab.sim.publish(index);
    assert_eq!(
        lab.refresh_problems(Duration::ZERO).await,
        "the catalog sim cannot be used: it expired on 1970-01-01"
    );
    assert!(lab.engine.offers(ALICE).offers.is_empty());
    let job = lab.engine.pull_image(pull(ALICE, "tool")).unwrap();
    // Docker's image of that name is not the intended one.
    assert_eq!(lab.failed(job).await, "the catalog sim cannot be used: it expired on 1970-01-01");
    lab.image(pull(ALICE, "alpine")).await;
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_fails_at_any_step_leaves_nothing() {
    for is_kernel in [false, true] {
        let mut step = 0;
        loop {
            let lab = ready().await;
            lab.sim.fail_at(Some(step));
            let job = match is_kernel {
                true => lab.engine.pull_kernel(kernel(ALICE)).unwrap(),
                false => lab.engine.pull_image(pull(ALICE, "debian-bookworm")).unwrap(),
            };
            let outcome = lab.outcome(job).await;
            if lab.sim.steps() <= step {
                assert!(step >= 3, "only {step} steps");
                break;
            }
            // If the catalog cannot be fetched, the image is pulled from its registry.
            if !matches!(outcome, Outcome::Done) {
                assert!(lab.engine.images().is_empty() && lab.engine.kernels().is_empty());
                assert!(lab.sim.image_files().is_empty() && lab.sim.kernel_files().is_empty());
            }
            lab.sim.fail_at(None);
            let job = match is_kernel {
                true => lab.engine.pull_kernel(kernel(ALICE)).unwrap(),
                false => lab.engine.pull_image(pull(BOB, "debian-bookworm")).unwrap(),
            };
            // After a failure, the catalog is not fetched again at once.
            if step > 0 {
                lab.done(job).await;
            }
            step += 1;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_kernel_that_an_image_needs_is_pulled_by_a_job_that_its_owner_sees() {
    let lab = ready().await;
    lab.change_catalog(|index| index.images[0].kernel = Some("debian".parse().unwrap())).await;
    let image = lab.image(pull(ALICE, "debian-bookworm")).await;
    let kernel = lab.engine.kernels()[0].clone();
    assert_eq!((image.kernel, kernel.owner, kernel.shared), (Some(kernel.id), ALICE, false));
    let jobs = lab.engine.jobs();
    let jobs: Vec<_> = jobs.iter().filter(|job| job.kind == JobKind::KernelPull).collect();
    assert!(
        matches!(jobs.as_slice(), [job] if job.owner == ALICE && matches!(job.outcome, Some(Outcome::Done))),
        "{jobs:?}"
    );
    // Another image of hers gets the same one.
    let other = PullImage { name: Some("other".parse().unwrap()), ..pull(ALICE, "debian-bookworm") };
    assert_eq!(lab.image(other).await.kernel, image.kernel);
    assert_eq!(lab.engine.kernels().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_image_whose_kernel_cannot_be_pulled_fails_for_the_same_reason() {
    let lab = ready().await;
    let change = |index: &mut Index| {
        index.images[0].kernel = Some("debian".parse().unwrap());
        index.kernels[0].target = None;
    };
    lab.change_catalog(change).await;
    let job = lab.engine.pull_image(pull(ALICE, "debian-bookworm")).unwrap();
    let why = lab.failed(job).await;
    assert_eq!(why, "debian is in the catalog sim and is not published for this host yet");
    assert!(lab.engine.images().is_empty() && lab.sim.image_files().is_empty());
}

#[tokio::test(start_paused = true)]
async fn requests_for_one_kernel_at_once_are_one_job() {
    let lab = ready().await;
    let first = lab.engine.pull_kernel(kernel(ALICE)).unwrap();
    assert_eq!(lab.engine.pull_kernel(kernel(ALICE)).unwrap(), first);
    lab.done(first).await;
    assert_eq!(lab.engine.kernels().len(), 1);
}

#[test]
fn the_default_image_is_a_name_or_a_reference() {
    let default = |text: &str| text.parse::<DefaultImage>().unwrap();
    assert!(matches!(default("debian-bookworm"), DefaultImage::Named(_)));
    assert!(matches!(default("docker.io/library/debian:12"), DefaultImage::Pulled(_)));
    assert!("No such".parse::<DefaultImage>().is_err());
}
