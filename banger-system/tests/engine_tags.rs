//! Several names of one image, on a host in memory: they share a file, which counts once for their owner.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod engine_lab;

use std::fs::File;

use banger_domain::id::{ImageId, Uid};
use banger_proto::size::Bytes;
use banger_system::engine::{
    error::Error,
    request::{CreateVm, ImportImage, ImportSource},
};
use engine_lab::{ALICE, BOB, EngineLab, request};

/// What each image of this host occupies.
const IMAGE: Bytes = Bytes::mib(400);

impl EngineLab {
    async fn with_room(room: Bytes) -> Self {
        Self::with(|settings| settings.limits.image_disk = room).await
    }

    /// Imports an image that is called `mine`.
    async fn registered(&self, owner: Uid) -> ImageId {
        let content = ImportSource::Rootfs(File::open("/dev/null").unwrap().into());
        let name = "mine".parse().unwrap();
        let request = ImportImage { owner, name, shared: false, kernel: None, content };
        self.done(self.engine.import_image(request).unwrap()).await;
        self.id(owner, "mine").await
    }

    async fn id(&self, caller: Uid, name: &str) -> ImageId {
        self.engine.find_image(caller, &name.parse().unwrap()).await.unwrap().id
    }

    async fn tag(&self, owner: Uid, image: ImageId, name: &str) -> Result<ImageId, Error> {
        self.engine.tag_image(owner, image, &name.parse().unwrap()).await
    }

    /// Returns how many images there are, each of which has files.
    fn count(&self) -> usize {
        let mut known: Vec<ImageId> = self.engine.images().iter().map(|image| image.id).collect();
        known.sort();
        assert_eq!(self.sim.image_files(), known, "files that belong to no image, or images without");
        known.len()
    }
}

#[tokio::test]
async fn a_tag_is_another_name_for_the_same_file() {
    let lab = EngineLab::new().await;
    let image = lab.registered(ALICE).await;
    let tag = lab.tag(ALICE, image, "best").await.unwrap();
    let (first, second) = (lab.engine.image(image).unwrap(), lab.engine.image(tag).unwrap());
    assert_eq!((&second.facts, second.created_at), (&first.facts, first.created_at));
    assert_eq!((second.name.as_str(), second.owner, second.shared), ("best", ALICE, false));
    let taken = lab.tag(ALICE, image, "best").await.unwrap_err();
    assert!(matches!(taken, Error::NameTaken { .. }), "{taken}");
    assert_eq!(lab.count(), 3);

    // Each name is deleted alone, and the last one keeps the file.
    lab.engine.delete_image(image).await.unwrap();
    let gone = lab.tag(ALICE, image, "other").await.unwrap_err();
    assert!(matches!(gone, Error::NoSuch { .. }), "{gone}");
    let lab = lab.restart().await;
    assert_eq!(*lab.engine.image(tag).unwrap(), *second);
    let create = CreateVm { image: Some("best".parse().unwrap()), ..request() };
    let (vm, job) = lab.engine.create_vm(create).await.unwrap();
    lab.done(job).await;
    assert_eq!(lab.engine.image_users(tag), [vm]);
    assert_eq!(lab.count(), 2);
}

#[tokio::test]
async fn a_tag_of_a_shared_image_is_private_and_stays_when_that_is_deleted() {
    let lab = EngineLab::new().await;
    let shared = lab.id(BOB, "debian-bookworm").await;
    let tag = lab.tag(BOB, shared, "mine").await.unwrap();
    let view = lab.engine.image(tag).unwrap();
    assert_eq!((view.owner, view.shared), (BOB, false));
    lab.engine.delete_image(shared).await.unwrap();
    assert_eq!(lab.id(BOB, "mine").await, tag);
    assert!(lab.engine.find_image(ALICE, &"mine".parse().unwrap()).await.is_err());
    assert_eq!(lab.count(), 1);
}

#[tokio::test]
async fn the_names_of_a_file_count_once_against_the_quota_of_their_owner() {
    let lab = EngineLab::with_room(IMAGE).await;
    let shared = lab.id(ALICE, "debian-bookworm").await;
    // The shared image counts against no quota, its tags against those of their owners.
    let first = lab.tag(ALICE, shared, "a").await.unwrap();
    let second = lab.tag(ALICE, shared, "b").await.unwrap();
    lab.tag(BOB, first, "b").await.unwrap();
    // Without private names, it does not count, and with any of them it does, once.
    lab.engine.share_image(first, true).await.unwrap();
    lab.engine.share_image(first, false).await.unwrap();
    lab.engine.delete_image(first).await.unwrap();
    lab.tag(ALICE, second, "a").await.unwrap();

    let small = EngineLab::with_room(Bytes(IMAGE.0 - 1)).await;
    let shared = small.id(ALICE, "debian-bookworm").await;
    let refused = small.tag(ALICE, shared, "mine").await.unwrap_err();
    assert!(matches!(refused, Error::Limit(_)), "{refused}");
    assert_eq!(small.count(), 1);
    let few = EngineLab::with(|settings| settings.limits.images = 1).await;
    let shared = few.id(ALICE, "debian-bookworm").await;
    few.tag(ALICE, shared, "a").await.unwrap();
    let refused = few.tag(ALICE, shared, "b").await.unwrap_err();
    assert!(matches!(refused, Error::Limit(_)), "{refused}");
    assert_eq!(few.count(), 2);
}

#[tokio::test]
async fn a_tag_that_fails_at_any_step_leaves_nothing() {
    let lab = EngineLab::new().await;
    let shared = lab.id(ALICE, "debian-bookworm").await;
    let mut failures = 0;
    for step in 0.. {
        lab.sim.fail_at(Some(step));
        let tagged = lab.tag(ALICE, shared, "mine").await;
        lab.sim.fail_at(None);
        if tagged.is_ok() {
            break;
        }
        assert_eq!(lab.count(), 1, "step {step}");
        failures += 1;
    }
    assert_eq!(failures, 2, "the file and the row");
    assert_eq!(lab.count(), 2);
}
