//! Several names of one image, on a host in memory: they share a file, which counts once for their owner.

use std::fs::File;

use crate::engine_lab::{ALICE, BOB, EngineLab, request};
use banger_domain::id::{ImageId, Uid};
use banger_proto::size::Bytes;
use banger_system::engine::{
    error::Error,
    request::{CreateVm, ImportImage, ImportSource},
};

/// What each image of this host occupies.
const IMAGE: Bytes = Bytes::mib(400);

async fn with_room(room: Bytes) -> EngineLab {
    EngineLab::with(|settings| settings.limits.image_disk = room).await
}

/// Imports an image that is called `mine`.
async fn registered(lab: &EngineLab, owner: Uid) -> ImageId {
    let content = ImportSource::Rootfs(File::open("/dev/null").unwrap().into());
    let name = "mine".parse().unwrap();
    let request = ImportImage { owner, name, shared: false, kernel: None, content };
    lab.done(lab.engine.import_image(request).unwrap()).await;
    named(lab, owner, "mine").await
}

async fn named(lab: &EngineLab, caller: Uid, name: &str) -> ImageId {
    lab.engine.find_image(caller, &name.parse().unwrap()).await.unwrap().id
}

async fn tag_as(lab: &EngineLab, owner: Uid, image: ImageId, name: &str) -> Result<ImageId, Error> {
    lab.engine.tag_image(owner, image, &name.parse().unwrap()).await
}

/// Returns how many images there are, each of which has files.
fn count(lab: &EngineLab) -> usize {
    let mut known: Vec<ImageId> = lab.engine.images().iter().map(|image| image.id).collect();
    known.sort();
    assert_eq!(lab.sim.image_files(), known, "files that belong to no image, or images without");
    known.len()
}

#[tokio::test(start_paused = true)]
async fn a_tag_is_another_name_for_the_same_file() {
    let lab = EngineLab::new().await;
    let image = registered(&lab, ALICE).await;
    let tag = tag_as(&lab, ALICE, image, "best").await.unwrap();
    let (first, second) = (lab.engine.image(image).unwrap(), lab.engine.image(tag).unwrap());
    assert_eq!((&second.facts, second.created_at), (&first.facts, first.created_at));
    assert_eq!((second.name.as_str(), second.owner, second.shared), ("best", ALICE, false));
    let taken = tag_as(&lab, ALICE, image, "best").await.unwrap_err();
    assert!(matches!(taken, Error::NameTaken { .. }), "{taken}");
    assert_eq!(count(&lab), 3);

    // Each name is deleted alone, and the last one keeps the file.
    lab.engine.delete_image(image).await.unwrap();
    let gone = tag_as(&lab, ALICE, image, "other").await.unwrap_err();
    assert!(matches!(gone, Error::NoSuch { .. }), "{gone}");
    let lab = lab.restart().await;
    assert_eq!(*lab.engine.image(tag).unwrap(), *second);
    let create = CreateVm { image: Some("best".parse().unwrap()), ..request() };
    let (vm, job) = lab.engine.create_vm(create).await.unwrap();
    lab.done(job).await;
    assert_eq!(lab.engine.image_users(tag), [vm]);
    assert_eq!(count(&lab), 2);
}

#[tokio::test(start_paused = true)]
async fn a_tag_of_a_shared_image_is_private_and_stays_when_that_is_deleted() {
    let lab = EngineLab::new().await;
    let shared = named(&lab, BOB, "debian-bookworm").await;
    let tag = tag_as(&lab, BOB, shared, "mine").await.unwrap();
    let view = lab.engine.image(tag).unwrap();
    assert_eq!((view.owner, view.shared), (BOB, false));
    lab.engine.delete_image(shared).await.unwrap();
    assert_eq!(named(&lab, BOB, "mine").await, tag);
    assert!(lab.engine.find_image(ALICE, &"mine".parse().unwrap()).await.is_err());
    assert_eq!(count(&lab), 1);
}

#[tokio::test(start_paused = true)]
async fn the_names_of_a_file_count_once_against_the_quota_of_their_owner() {
    let lab = with_room(IMAGE).await;
    let shared = named(&lab, ALICE, "debian-bookworm").await;
    // The shared image counts against no quota, its tags against those of their owners.
    let first = tag_as(&lab, ALICE, shared, "a").await.unwrap();
    let second = tag_as(&lab, ALICE, shared, "b").await.unwrap();
    tag_as(&lab, BOB, first, "b").await.unwrap();
    // Without private names, it does not count, and with any of them it does, once.
    lab.engine.share_image(first, true).await.unwrap();
    lab.engine.share_image(first, false).await.unwrap();
    lab.engine.delete_image(first).await.unwrap();
    tag_as(&lab, ALICE, second, "a").await.unwrap();

    let small = with_room(Bytes(IMAGE.0 - 1)).await;
    let shared = named(&small, ALICE, "debian-bookworm").await;
    let refused = tag_as(&small, ALICE, shared, "mine").await.unwrap_err();
    assert!(matches!(refused, Error::Limit(_)), "{refused}");
    assert_eq!(count(&small), 1);
    let few = EngineLab::with(|settings| settings.limits.images = 1).await;
    let shared = named(&few, ALICE, "debian-bookworm").await;
    tag_as(&few, ALICE, shared, "a").await.unwrap();
    let refused = tag_as(&few, ALICE, shared, "b").await.unwrap_err();
    assert!(matches!(refused, Error::Limit(_)), "{refused}");
    assert_eq!(count(&few), 2);
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_fails_at_any_step_leaves_nothing() {
    let lab = EngineLab::new().await;
    let shared = named(&lab, ALICE, "debian-bookworm").await;
    let mut failures = 0;
    for step in 0.. {
        lab.sim.fail_at(Some(step));
        let tagged = tag_as(&lab, ALICE, shared, "mine").await;
        lab.sim.fail_at(None);
        if tagged.is_ok() {
            break;
        }
        assert_eq!(count(&lab), 1, "step {step}");
        failures += 1;
    }
    assert_eq!(failures, 2, "the file and the row");
    assert_eq!(count(&lab), 2);
}
