//! Catalogs on a host in memory: what is pulled of them, what is preferred to what, and what stays of failures.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod house;

use std::{sync::Arc, time::Duration};

use banger_domain::id::{JobId, Uid};
use banger_image::{
    oci::{credentials::Credentials, platform::Platform},
    record::DefaultImage,
};
use banger_system::{
    engine::{
        Offer,
        error::Kind,
        request::{CreateVm, Other, PullImage, PullKernel, Whence},
        view::{Fact, ImageView, KernelView, Object},
    },
    ports::registry::Source,
};

use crate::house::{ALICE, BOB, House, request};

fn pull(owner: Uid, name: &str) -> PullImage {
    let source = Source {
        reference: name.parse().unwrap(),
        platform: Platform::of_host("x86_64"),
        credentials: Credentials::Anonymous,
    };
    let whence = Whence::CatalogElseRegistry(name.parse().unwrap());
    PullImage { owner, source, whence, name: None, shared: false, kernel: None, other: Other::Stays }
}

fn kernel(owner: Uid) -> PullKernel {
    PullKernel { owner, entry: "debian".parse().unwrap(), name: None, shared: false, other: Other::Stays }
}

impl House {
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

    async fn problems(&self, older_than: Duration) -> String {
        let job = self.engine.refresh_catalogs(ALICE, older_than).unwrap();
        self.done(job).await;
        let facts = self.engine.job(job).unwrap().facts.clone();
        match facts.iter().find(|(key, _)| *key == "problems") {
            Some((_, Fact::Text(text))) => text.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn offer(&self, caller: Uid, kind: Kind, name: &str) -> Option<Offer> {
        let offers = self.engine.offers(caller).offers;
        offers.into_iter().find(|offer| offer.kind == kind && offer.name.as_str() == name)
    }
}

/// A host without images and kernels.
fn bare() -> House {
    House::on(banger_system::sim::Sim::new())
}

async fn ready() -> House {
    let house = bare();
    house.engine.recover().await.unwrap();
    house
}

#[tokio::test]
async fn an_image_of_a_catalog_is_fetched_once_and_shared() {
    let house = ready().await;
    let first = house.image(pull(ALICE, "debian-bookworm")).await;
    assert_eq!(first.name.as_str(), "debian-bookworm");
    assert!(first.source.starts_with("catalog:sim/debian-bookworm@sha256:"), "{}", first.source);
    let fetched = house.sim.fetched();
    assert_eq!(house.image(pull(ALICE, "debian-bookworm")).await.id, first.id);
    let other = house.image(pull(BOB, "debian-bookworm")).await;
    assert_ne!(other.id, first.id);
    assert_eq!((house.sim.fetched(), &other.facts), (fetched, &first.facts));
    assert!(house.offer(ALICE, Kind::Image, "debian-bookworm").unwrap().is_here);
    house.engine.delete_image(first.id).await.unwrap();
    assert!(!house.offer(ALICE, Kind::Image, "debian-bookworm").unwrap().is_here);
    assert!(house.offer(BOB, Kind::Image, "debian-bookworm").unwrap().is_here);
}

#[tokio::test]
async fn a_catalog_is_asked_before_the_registry_and_not_for_what_is_written_as_a_reference() {
    let house = ready().await;
    let tool = house.image(pull(ALICE, "tool")).await;
    assert!(tool.source.starts_with("registry.test/org/tool:1@sha256:"), "{}", tool.source);
    assert_eq!(tool.name.as_str(), "tool");
    assert!(house.offer(ALICE, Kind::Image, "tool").unwrap().is_here);
    let elsewhere = house.image(pull(ALICE, "alpine")).await;
    assert_eq!(elsewhere.source, "docker.io/library/alpine:latest");
    let reference = PullImage { whence: Whence::Registry, ..pull(BOB, "tool") };
    assert_eq!(house.image(reference).await.source, "docker.io/library/tool:latest");
    let only = PullImage { whence: Whence::Catalog("alpine".parse().unwrap()), ..pull(BOB, "alpine") };
    let job = house.engine.pull_image(only).unwrap();
    assert_eq!(house.failed(job).await, "alpine is in no catalog");
}

#[tokio::test]
async fn what_is_not_published_is_said_to_be_so() {
    let house = ready().await;
    let job = house.engine.pull_image(pull(ALICE, "later")).unwrap();
    assert_eq!(
        house.failed(job).await,
        "later is in the catalog sim and is not published for this host yet: `cargo xtask image later` makes it"
    );
    let offer = house.offer(ALICE, Kind::Image, "later").unwrap();
    assert_eq!((offer.source.as_str(), offer.is_here), ("", false));
}

#[tokio::test]
async fn something_else_of_the_name_stays_unless_it_is_to_go() {
    let house = ready().await;
    let reference = PullImage { whence: Whence::Registry, ..pull(ALICE, "debian-bookworm") };
    let old = house.image(reference).await;
    let job = house.engine.pull_image(pull(ALICE, "debian-bookworm")).unwrap();
    assert_eq!(house.failed(job).await, "you already have an image debian-bookworm");
    assert!(house.engine.image(old.id).is_some());
    let forced = PullImage { other: Other::Goes, ..pull(ALICE, "debian-bookworm") };
    assert!(house.image(forced).await.source.starts_with("catalog:"));
    assert!(house.engine.image(old.id).is_none());
}

#[tokio::test]
async fn a_kernel_of_a_catalog_replaces_another_one_only_by_force_and_while_nobody_uses_that() {
    let house = House::new().await;
    house.engine.recover().await.unwrap();
    let shared = house.engine.kernels()[0].clone();
    assert_eq!(shared.owner, Uid::ROOT);
    let own = house.kernel(kernel(ALICE)).await;
    assert!(own.source.starts_with("catalog:sim/debian@sha256:"), "{}", own.source);
    assert_eq!(house.kernel(kernel(ALICE)).await.id, own.id);
    assert!(house.offer(ALICE, Kind::Kernel, "debian").unwrap().is_here);

    let root = PullKernel { shared: true, ..kernel(Uid::ROOT) };
    let job = house.engine.pull_kernel(root.clone()).unwrap();
    assert_eq!(house.failed(job).await, "you already have a kernel debian");
    let vm = CreateVm { owner: BOB, ..request() };
    let (vm, job) = house.engine.create_vm(vm).await.unwrap();
    house.done(job).await;
    let forced = PullKernel { other: Other::Goes, ..root };
    let job = house.engine.pull_kernel(forced.clone()).unwrap();
    let used = house.failed(job).await;
    assert!(used.starts_with("the kernel debian is used by "), "{used}");
    let job = house.engine.delete_vm(vm, banger_system::engine::request::Manner::Forced).await.unwrap();
    house.done(job).await;
    let new = house.kernel(forced).await;
    assert!(new.shared && house.engine.kernel(shared.id).is_none());
    let house = house.restarted().await;
    assert_eq!(*house.engine.kernel(new.id).unwrap(), *new);
}

#[tokio::test]
async fn a_catalog_that_cannot_be_fetched_is_used_as_it_is_kept() {
    let house = ready().await;
    house.sim.lose_catalog(true);
    let lost = house.problems(Duration::ZERO).await;
    assert_eq!(lost, "catalog.test cannot be reached");
    let only = || PullImage { whence: Whence::Catalog("tool".parse().unwrap()), ..pull(ALICE, "tool") };
    let job = house.engine.pull_image(only()).unwrap();
    assert_eq!(house.failed(job).await, "catalog.test cannot be reached");

    house.sim.lose_catalog(false);
    assert_eq!(house.problems(Duration::ZERO).await, "");
    house.sim.lose_catalog(true);
    let kept = house.problems(Duration::ZERO).await;
    assert_eq!(kept, "using the stored copy of the catalog sim: catalog.test cannot be reached");
    house.image(only()).await;
    // Another run of the service asks nobody for what it has.
    let house = house.restarted().await;
    assert_eq!(house.offer(ALICE, Kind::Image, "tool").unwrap().catalog.as_str(), "sim");
}

#[tokio::test]
async fn a_catalog_that_has_expired_offers_nothing_and_hides_nothing() {
    let house = ready().await;
    let mut index = {
        house.problems(Duration::ZERO).await;
        let edition = house.sim.kept_catalog().unwrap();
        banger_image::catalog::index::Index::clone(&edition.index)
    };
    index.expires = banger_image::catalog::index::Date::parse("1970-01-01").unwrap();
    house.sim.publish(index);
    assert_eq!(
        house.problems(Duration::ZERO).await,
        "the catalog sim cannot be used: it expired on 1970-01-01"
    );
    assert!(house.engine.offers(ALICE).offers.is_empty());
    let job = house.engine.pull_image(pull(ALICE, "tool")).unwrap();
    // Docker's image of that name is another one than the one that was meant.
    assert_eq!(house.failed(job).await, "the catalog sim cannot be used: it expired on 1970-01-01");
    house.image(pull(ALICE, "alpine")).await;
}

#[tokio::test]
async fn a_pull_that_fails_at_any_step_leaves_nothing() {
    for is_kernel in [false, true] {
        let mut step = 0;
        loop {
            let house = ready().await;
            house.sim.fail_at(Some(step));
            let job = match is_kernel {
                true => house.engine.pull_kernel(kernel(ALICE)).unwrap(),
                false => house.engine.pull_image(pull(ALICE, "debian-bookworm")).unwrap(),
            };
            let outcome = house.outcome(job).await;
            if house.sim.steps() <= step {
                assert!(step >= 3, "only {step} steps");
                break;
            }
            // Where the catalog cannot be fetched, an image is looked for in its registry.
            if !matches!(outcome, banger_system::engine::view::Outcome::Done) {
                assert!(house.engine.images().is_empty() && house.engine.kernels().is_empty());
                assert!(house.sim.image_files().is_empty() && house.sim.kernel_files().is_empty());
            }
            house.sim.fail_at(None);
            let job = match is_kernel {
                true => house.engine.pull_kernel(kernel(ALICE)).unwrap(),
                false => house.engine.pull_image(pull(BOB, "debian-bookworm")).unwrap(),
            };
            // After a failure the catalog is not asked again at once.
            if step > 0 {
                house.done(job).await;
            }
            step += 1;
        }
    }
}

#[tokio::test]
async fn requests_for_one_kernel_at_once_are_one_job() {
    let house = ready().await;
    let first = house.engine.pull_kernel(kernel(ALICE)).unwrap();
    assert_eq!(house.engine.pull_kernel(kernel(ALICE)).unwrap(), first);
    house.done(first).await;
    assert_eq!(house.engine.kernels().len(), 1);
}

#[test]
fn the_default_image_is_a_name_or_a_reference() {
    let default = |text: &str| text.parse::<DefaultImage>().unwrap();
    assert!(matches!(default("debian-bookworm"), DefaultImage::Named(_)));
    assert!(matches!(default("docker.io/library/debian:12"), DefaultImage::Pulled(_)));
    assert!("No such".parse::<DefaultImage>().is_err());
}
