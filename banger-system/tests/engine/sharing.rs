//! Shared images on a host in memory: sharing, unsharing, and storing identical images once.

use std::{fs::File, sync::Arc};

use banger_domain::id::Uid;
use banger_image::oci::platform::Platform;
use banger_proto::size::Bytes;
use banger_system::{
    engine::{
        error::Error,
        request::{CreateVm, ImportImage, ImportSource, StopMode},
        view::{Fact, ImageView},
    },
    ports::image_files::FileRange,
};

use crate::engine_lab::{ALICE, BOB, EngineLab, request};

impl EngineLab {
    async fn registered(&self, owner: Uid, name: &str, content: ImportSource) -> Arc<ImageView> {
        let name = name.parse().unwrap();
        let request = ImportImage { owner, name, shared: false, kernel: None, content };
        self.done(self.engine.import_image(request).unwrap()).await;
        let images = self.engine.images();
        images.into_iter().max_by_key(|image| (image.owner == owner, image.created_at)).unwrap()
    }

    async fn sees(&self, caller: Uid, name: &str) -> bool {
        self.engine.find_image(caller, &name.parse().unwrap()).await.is_ok()
    }
}

fn rootfs() -> ImportSource {
    ImportSource::Rootfs(File::open("/dev/null").unwrap().into())
}

#[tokio::test(start_paused = true)]
async fn a_shared_image_is_everybodys_until_it_is_taken_back() {
    let lab = EngineLab::new().await;
    let image = lab.registered(ALICE, "mine", rootfs()).await;
    assert!(!lab.sees(BOB, "mine").await);
    for _ in 0..2 {
        lab.engine.share_image(image.id, true).await.unwrap();
        assert!(lab.sees(BOB, "mine").await);
    }
    let create = CreateVm { owner: BOB, image: Some("mine".parse().unwrap()), start: None, ..request() };
    let (vm, job) = lab.engine.create_vm(create).await.unwrap();
    lab.done(job).await;
    let used = lab.engine.share_image(image.id, false).await.unwrap_err();
    assert!(matches!(used, Error::InUse { .. }), "{used}");
    lab.done(lab.engine.delete_vm(vm, StopMode::Forced).await.unwrap()).await;
    lab.engine.share_image(image.id, false).await.unwrap();
    assert!(!lab.sees(BOB, "mine").await);
    // What is published is what is stored.
    lab.engine.share_image(image.id, true).await.unwrap();
    let lab = lab.restart().await;
    assert!(lab.engine.image(image.id).unwrap().shared);
}

#[tokio::test(start_paused = true)]
async fn a_change_that_cannot_be_kept_is_none() {
    let lab = EngineLab::new().await;
    let image = lab.registered(ALICE, "mine", rootfs()).await;
    lab.sim.fail_at(Some(0));
    lab.engine.share_image(image.id, true).await.unwrap_err();
    assert!(!lab.sees(BOB, "mine").await);
}

#[tokio::test(start_paused = true)]
async fn an_image_in_files_keeps_its_configuration_and_goes_out_again() {
    let lab = EngineLab::new().await;
    let parts = vec![FileRange { offset: 0, length: Bytes(1) }; 3];
    let layout =
        ImportSource::Layout(File::open("/dev/null").unwrap().into(), parts, Platform::of_host("x86_64"));
    let image = lab.registered(ALICE, "mine", layout).await;
    assert_eq!(image.config.cmd, ["/bin/sh"]);
    let fd = File::open("/dev/null").unwrap().into();
    let job = lab.engine.export_image(ALICE, image.id, fd).unwrap();
    lab.done(job).await;
    let facts = lab.engine.job(job).unwrap().facts.clone();
    assert!(facts.iter().any(|(key, fact)| *key == "bytes" && *fact == Fact::Number(400 << 20)), "{facts:?}");
    let none = ImportSource::Layout(
        File::open("/dev/null").unwrap().into(),
        Vec::new(),
        Platform::of_host("x86_64"),
    );
    let name = "none".parse().unwrap();
    let request = ImportImage { owner: ALICE, name, shared: false, kernel: None, content: none };
    let job = lab.engine.import_image(request).unwrap();
    assert_eq!(lab.failed(job).await, "the image has no layers");
    assert!(!lab.sees(ALICE, "none").await);
}

#[tokio::test(start_paused = true)]
async fn a_renamed_image_is_found_by_its_new_name_only_and_its_sandboxes_show_it() {
    let lab = EngineLab::new().await;
    let (image, other) =
        (lab.registered(ALICE, "mine", rootfs()).await, lab.registered(ALICE, "other", rootfs()).await);
    let create = CreateVm { image: Some("mine".parse().unwrap()), start: None, ..request() };
    let (vm, job) = lab.engine.create_vm(create).await.unwrap();
    lab.done(job).await;
    let rename =
        async |lab: &EngineLab, name: &str| lab.engine.rename_image(image.id, &name.parse().unwrap()).await;

    let taken = rename(&lab, "other").await.unwrap_err();
    assert!(matches!(taken, Error::NameTaken { .. }), "{taken}");
    lab.sim.fail_at(Some(0));
    rename(&lab, "unsaved").await.unwrap_err();
    lab.sim.fail_at(None);
    assert!(lab.sees(ALICE, "mine").await && !lab.sees(ALICE, "unsaved").await);
    assert_eq!(lab.engine.vm(vm).unwrap().image_name, "mine");

    // Twice, as after a lost reply.
    for _ in 0..2 {
        rename(&lab, "ours").await.unwrap();
        assert!(lab.sees(ALICE, "ours").await && !lab.sees(ALICE, "mine").await);
        assert_eq!(lab.engine.vm(vm).unwrap().image_name, "ours");
    }
    // The name is free, and another user's image may have it, too.
    lab.registered(BOB, "ours", rootfs()).await;
    lab.engine.rename_image(other.id, &"mine".parse().unwrap()).await.unwrap();
    let lab = lab.restart().await;
    assert_eq!(lab.engine.image(image.id).unwrap().name.as_str(), "ours");
    assert_eq!(lab.engine.vm(vm).unwrap().image_name, "ours");
}

#[tokio::test(start_paused = true)]
async fn a_kernel_is_renamed_as_well() {
    let lab = EngineLab::new().await;
    let kernel = lab.engine.kernels()[0].id;
    let (vm, job) = lab.engine.create_vm(CreateVm { start: None, ..request() }).await.unwrap();
    lab.done(job).await;
    lab.engine.rename_kernel(kernel, &"bookworm".parse().unwrap()).await.unwrap();
    assert_eq!(lab.engine.vm(vm).unwrap().kernel_name, "bookworm");
    let lab = lab.restart().await;
    assert_eq!(lab.engine.kernel(kernel).unwrap().name.as_str(), "bookworm");
}
