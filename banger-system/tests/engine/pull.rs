//! Pulls of images, on a host in memory. Images are fetched once and shared, replaced by newer versions, and refused
//! beyond a quota. A failed or cancelled pull leaves nothing.

use std::{fs::File, sync::Arc, time::Duration};

use banger_domain::{
    id::{ImageId, JobId, Uid},
    limits::Limits,
};
use banger_image::oci::{credentials::Credentials, platform::Platform};
use banger_proto::size::Bytes;
use banger_system::{
    engine::{
        Engine, Settings,
        error::{Error, Kind},
        request::{CreateVm, ImportImage, ImportSource, OnConflict, PullImage, PullSource},
        view::{Event, Fact, ImageView, Object, Outcome},
    },
    ports::registry::{Prune, Source},
    sim::Sim,
    tasks::Tasks,
};

use crate::engine_lab::{self, ALICE, BOB, EngineLab, request};

const ALPINE: &str = "registry.test/library/alpine:3";

fn pull(owner: Uid, reference: &str) -> PullImage {
    let source = Source {
        reference: reference.parse().unwrap(),
        platform: Platform::of_host("x86_64"),
        credentials: Credentials::Anonymous,
    };
    PullImage {
        owner,
        source,
        from: PullSource::Registry,
        name: None,
        shared: false,
        kernel: None,
        on_conflict: OnConflict::Fail,
    }
}

impl EngineLab {
    async fn pulled(&self, request: PullImage) -> Arc<ImageView> {
        let job = self.engine.pull_image(request).unwrap();
        self.done(job).await;
        self.image_of(job)
    }

    fn image_of(&self, job: JobId) -> Arc<ImageView> {
        match self.engine.job(job).unwrap().objects.as_slice() {
            [Object::Image(id)] => self.engine.image(*id).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn files(&self) -> Vec<ImageId> {
        let mut known: Vec<ImageId> = self.engine.images().iter().map(|image| image.id).collect();
        known.sort();
        assert_eq!(self.sim.image_files(), known, "files that belong to no image, or images without");
        known
    }

    async fn wait_for(&mut self, job: JobId, wanted: impl Fn(&banger_system::engine::view::JobView) -> bool) {
        while !self.engine.job(job).is_some_and(|view| wanted(&view)) {
            tokio::time::timeout(engine_lab::TIMEOUT, self.events.recv()).await.unwrap().unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pulled_image_keeps_its_configuration() {
    let lab = EngineLab::new().await;
    let image = lab.pulled(pull(ALICE, ALPINE)).await;
    assert_eq!((image.name.as_str(), image.source.as_str(), image.owner), ("alpine-3", ALPINE, ALICE));
    assert_eq!(image.origin.as_ref().unwrap().reference.to_string(), ALPINE);
    assert_eq!(
        (image.config.working_dir.as_str(), image.config.cmd.as_slice()),
        ("/srv", &["/bin/sh".to_owned()][..])
    );
    let found = |owner| lab.engine.find_pulled(owner, &ALPINE.parse().unwrap()).map(|image| image.id);
    assert_eq!((found(ALICE), found(BOB)), (Some(image.id), None));
    // It survives a restart of the service.
    let lab = lab.restart().await;
    assert_eq!(*lab.engine.image(image.id).unwrap(), *image);
    lab.files();
}

#[tokio::test(start_paused = true)]
async fn the_same_image_is_fetched_once_and_belongs_to_each_alone() {
    let lab = EngineLab::new().await;
    let first = lab.pulled(pull(ALICE, ALPINE)).await;
    let fetched = lab.sim.fetched();
    let again = lab.pulled(pull(ALICE, ALPINE)).await;
    assert_eq!(again.id, first.id);
    let other = lab.pulled(pull(BOB, ALPINE)).await;
    let named = lab.pulled(PullImage { name: Some("mine".parse().unwrap()), ..pull(ALICE, ALPINE) }).await;
    assert_eq!(lab.sim.fetched(), fetched);
    assert_eq!(other.facts, first.facts);
    assert_eq!(lab.files().len(), 4);
    // If one of them deletes the image, the others keep it.
    lab.engine.delete_image(first.id).await.unwrap();
    let create = CreateVm { image: Some("mine".parse().unwrap()), ..request() };
    let (_, job) = lab.engine.create_vm(create).await.unwrap();
    lab.done(job).await;
    assert_eq!(lab.engine.image(named.id).unwrap().facts, first.facts);
    lab.files();
}

#[tokio::test(start_paused = true)]
async fn the_same_image_of_another_registry_is_another_image() {
    let lab = EngineLab::new().await;
    lab.pulled(pull(ALICE, ALPINE)).await;
    let fetched = lab.sim.fetched();
    lab.pulled(pull(BOB, "evil.test/library/alpine:3")).await;
    assert!(lab.sim.fetched() > fetched);
}

#[tokio::test(start_paused = true)]
async fn requests_for_one_image_at_once_are_one_job_or_share_one_import() {
    let mut lab = EngineLab::new().await;
    lab.sim.block_registry(true);
    let first = lab.engine.pull_image(pull(ALICE, ALPINE)).unwrap();
    assert_eq!(lab.engine.pull_image(pull(ALICE, ALPINE)).unwrap(), first);
    let other = PullImage { name: Some("other".parse().unwrap()), ..pull(ALICE, ALPINE) };
    let others = [lab.engine.pull_image(other).unwrap(), lab.engine.pull_image(pull(BOB, ALPINE)).unwrap()];
    lab.wait_for(first, |job| job.bytes_total.0 > 0).await;
    let view = lab.engine.job(first).unwrap();
    assert_eq!((view.stage, view.bytes_done, view.bytes_total), ("pull", Bytes::mib(3), Bytes::mib(6)));
    lab.sim.block_registry(false);
    for job in others.into_iter().chain([first]) {
        lab.done(job).await;
    }
    assert_eq!(lab.sim.fetched(), 2);
    assert_eq!(lab.files().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_newer_image_takes_the_place_of_the_older_one_unless_that_is_used() {
    let lab = EngineLab::new().await;
    let old = lab.pulled(pull(ALICE, ALPINE)).await;
    lab.sim.move_tag(ALPINE);
    let new = lab.pulled(pull(ALICE, ALPINE)).await;
    assert_ne!(new.origin, old.origin);
    assert!(lab.engine.image(old.id).is_none());
    lab.files();

    let create = CreateVm { image: Some("alpine-3".parse().unwrap()), ..request() };
    let (vm, job) = lab.engine.create_vm(create).await.unwrap();
    lab.done(job).await;
    lab.sim.move_tag(ALPINE);
    let fetched = lab.sim.fetched();
    let refused = lab.engine.pull_image(pull(ALICE, ALPINE)).unwrap();
    let name = &lab.engine.vm(vm).unwrap().vm.name;
    assert_eq!(lab.failed(refused).await, format!("the image alpine-3 is used by {name}"));
    assert_eq!(lab.sim.fetched(), fetched, "nothing is fetched in vain");
    lab.files();
}

#[tokio::test(start_paused = true)]
async fn a_name_that_something_else_has_is_taken_by_force_alone() {
    let lab = EngineLab::new().await;
    let old = lab.pulled(pull(ALICE, ALPINE)).await;
    let other = |on_conflict| {
        let name = Some("alpine-3".parse().unwrap());
        PullImage { name, on_conflict, ..pull(ALICE, "registry.test/x/tool") }
    };
    let refused = lab.engine.pull_image(other(OnConflict::Fail)).unwrap_err();
    assert!(matches!(refused, Error::NameTaken { kind: Kind::Image, .. }), "{refused}");
    let new = lab.pulled(other(OnConflict::Replace)).await;
    assert!(lab.engine.image(old.id).is_none());
    assert_eq!(new.source, "registry.test/x/tool:latest");
    lab.files();
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_renamed_or_deleted_during_its_replacement_is_not_replaced() {
    for is_renamed in [true, false] {
        let mut lab = EngineLab::new().await;
        let old = lab.pulled(pull(ALICE, ALPINE)).await;
        lab.sim.move_tag(ALPINE);
        lab.sim.block_registry(true);
        let job = lab.engine.pull_image(pull(ALICE, ALPINE)).unwrap();
        lab.wait_for(job, |job| job.stage == "pull").await;
        match is_renamed {
            true => lab.engine.rename_image(old.id, &"kept".parse().unwrap()).await.unwrap(),
            false => lab.engine.delete_image(old.id).await.unwrap(),
        }
        // Its name is not free meanwhile.
        let taken = lab.engine.rename_image(old.id, &"alpine-3".parse().unwrap()).await;
        assert!(!is_renamed || matches!(taken, Err(Error::NameTaken { .. })), "{taken:?}");
        lab.sim.block_registry(false);
        lab.done(job).await;
        assert_eq!(lab.image_of(job).name.as_str(), "alpine-3");
        let kept = lab.engine.image(old.id).map(|image| image.name.to_string());
        assert_eq!(kept.as_deref(), is_renamed.then_some("kept"));
        lab.files();
    }
}

#[tokio::test(start_paused = true)]
async fn a_shared_image_is_only_replaced_by_a_shared_one() {
    let mut lab = EngineLab::new().await;
    let old = lab.pulled(pull(ALICE, ALPINE)).await;
    lab.engine.share_image(old.id, true).await.unwrap();
    lab.sim.move_tag(ALPINE);
    let force = |shared| PullImage { shared, on_conflict: OnConflict::Replace, ..pull(ALICE, ALPINE) };
    let refused = lab.engine.pull_image(force(false)).unwrap_err();
    assert!(matches!(refused, Error::NameTaken { .. }), "{refused}");
    let new = lab.pulled(force(true)).await;
    assert!(new.shared && lab.engine.image(old.id).is_none());
    // The same if it is shared while the pull runs.
    lab.engine.share_image(new.id, false).await.unwrap();
    lab.sim.move_tag(ALPINE);
    lab.sim.block_registry(true);
    let job = lab.engine.pull_image(force(false)).unwrap();
    lab.wait_for(job, |job| job.stage == "pull").await;
    lab.engine.share_image(new.id, true).await.unwrap();
    lab.sim.block_registry(false);
    assert_eq!(lab.failed(job).await, "you already have an image alpine-3");
    assert_eq!(lab.engine.image(new.id).map(|image| image.shared), Some(true));
    lab.files();
}

#[tokio::test(start_paused = true)]
async fn a_reference_that_cannot_be_pulled_is_refused_with_the_reason() {
    let lab = EngineLab::new().await;
    for (reference, why) in [
        ("unreachable.test/x", "cannot be reached"),
        ("registry.test/missing", "manifest unknown"),
        ("registry.test/private", "requires a login"),
        ("registry.test/broken", "another digest"),
    ] {
        let job = lab.engine.pull_image(pull(ALICE, reference)).unwrap();
        let message = lab.failed(job).await;
        assert!(message.contains(why), "{message}");
    }
    let mut known = pull(ALICE, "registry.test/private");
    known.source.credentials = Credentials::RefreshToken("t".to_owned());
    lab.pulled(known).await;
    lab.files();
}

#[tokio::test(start_paused = true)]
async fn a_guest_is_no_registry() {
    let lab = EngineLab::new().await.restart().await;
    for guest in ["172.30.0.2:5000", "172.30.0.1"] {
        let job = lab.engine.pull_image(pull(ALICE, &format!("{guest}/x"))).unwrap();
        let message = lab.failed(job).await;
        assert!(message.contains("the address of a guest"), "{message}");
    }
    lab.pulled(pull(ALICE, "172.29.0.2:5000/x")).await;
    lab.files();
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_fails_at_any_step_changes_nothing() {
    let lab = EngineLab::new().await;
    let old = lab.pulled(pull(ALICE, ALPINE)).await;
    lab.sim.move_tag(ALPINE);
    let (mut failures, mut step) = (0, 0);
    loop {
        lab.sim.fail_at(Some(step));
        let job = lab.engine.pull_image(pull(ALICE, ALPINE)).unwrap();
        let outcome = lab.outcome(job).await;
        lab.sim.fail_at(None);
        lab.files();
        match outcome {
            Outcome::Done => break,
            Outcome::Failed(_) => failures += 1,
            Outcome::Canceled => panic!("nobody canceled it"),
        }
        step += 1;
    }
    assert!(failures >= 5, "only {failures} steps could fail");
    assert!(lab.engine.image(old.id).is_none());
    assert_eq!(lab.engine.images().iter().filter(|image| image.owner == ALICE).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_is_given_up_leaves_nothing_and_can_be_asked_for_again() {
    let mut lab = EngineLab::new().await;
    lab.sim.block_registry(true);
    let job = lab.engine.pull_image(pull(ALICE, ALPINE)).unwrap();
    lab.wait_for(job, |job| job.stage == "pull").await;
    lab.engine.cancel_job(job).unwrap();
    let outcome = lab.outcome(job).await;
    assert!(matches!(outcome, Outcome::Canceled), "{outcome:?}");
    assert_eq!(lab.files().len(), 1);
    lab.sim.block_registry(false);
    lab.pulled(pull(ALICE, ALPINE)).await;
}

#[tokio::test(start_paused = true)]
async fn a_share_is_counted_before_anything_is_fetched() {
    let full = EngineLab::with_limits(|limits| limits.image_disk = Bytes::mib(5)).await;
    let job = full.engine.pull_image(pull(ALICE, ALPINE)).unwrap();
    assert!(full.failed(job).await.contains("of images"));
    assert_eq!(full.sim.fetched(), 0);
    // Each import of this host takes 400 MiB.
    let one = EngineLab::with_limits(|limits| limits.image_disk = Bytes::mib(500)).await;
    one.pulled(pull(ALICE, ALPINE)).await;
    let job = one.engine.pull_image(pull(ALICE, "registry.test/second")).unwrap();
    assert!(one.failed(job).await.contains("of images"));
    one.pulled(PullImage { shared: true, ..pull(ALICE, "registry.test/third") }).await;
    one.files();
    let few = EngineLab::with_limits(|limits| limits.images = 1).await;
    few.pulled(pull(ALICE, ALPINE)).await;
    assert!(few.engine.pull_image(pull(ALICE, "registry.test/second")).is_err());
}

impl EngineLab {
    async fn with_limits(change: impl Fn(&mut Limits)) -> Self {
        let lab = Self::on(Sim::new());
        let mut settings: Settings = lab.engine.settings().clone();
        change(&mut settings.limits);
        let (engine, events) = Engine::new(lab.sim.ports(), settings, &Tasks::default());
        Self { engine, events, ..lab }
    }
}

#[tokio::test(start_paused = true)]
async fn progress_is_told_at_most_four_times_a_second() {
    let mut lab = EngineLab::new().await;
    lab.sim.block_registry(true);
    let job = lab.engine.pull_image(pull(ALICE, ALPINE)).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    lab.sim.block_registry(false);
    lab.done(job).await;
    let mut told = 0;
    while let Some(event) = lab.events.try_recv() {
        if let Event::JobChanged { old, new } = event {
            told += u32::from(old.bytes_done != new.bytes_done && new.bytes_done.0 > 0);
        }
    }
    assert!((1..=2).contains(&told), "{told}");
}

#[tokio::test(start_paused = true)]
async fn an_import_of_a_file_tells_its_bytes() {
    let lab = EngineLab::new().await;
    let request = ImportImage {
        owner: ALICE,
        name: "mine".parse().unwrap(),
        shared: false,
        kernel: None,
        content: ImportSource::Rootfs(File::open("/dev/null").unwrap().into()),
    };
    let job = lab.engine.import_image(request).unwrap();
    lab.done(job).await;
    let view = lab.engine.job(job).unwrap();
    assert_eq!((view.stage, view.bytes_done, view.bytes_total), ("import", Bytes::mib(300), Bytes::mib(400)));
}

#[tokio::test(start_paused = true)]
async fn the_cache_is_pruned_and_says_of_how_much() {
    let lab = EngineLab::new().await;
    lab.pulled(pull(ALICE, ALPINE)).await;
    for (dry_run, blobs) in [(true, 2), (false, 2), (false, 0)] {
        let job = lab.engine.prune_cache(ALICE, Prune { dry_run, older_than: None }).unwrap();
        lab.done(job).await;
        let facts = &lab.engine.job(job).unwrap().facts;
        assert_eq!(facts[0], ("blobs", Fact::Number(blobs)));
    }
}
