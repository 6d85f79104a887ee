//! Who sees an image, on a host in memory: sharing it and taking it back, and storing what is the same once.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod house;

use std::{fs::File, sync::Arc};

use banger_domain::id::Uid;
use banger_proto::size::Bytes;
use banger_system::{
    engine::{
        error::Error,
        request::{CreateVm, ImportImage, Manner, Original},
        view::{Fact, ImageView},
    },
    ports::images::Part,
};
use house::{ALICE, BOB, House, request};

impl House {
    async fn registered(&self, owner: Uid, name: &str, content: Original) -> Arc<ImageView> {
        let name = name.parse().unwrap();
        let request = ImportImage { owner, name, shared: false, kernel: None, content };
        self.done(self.engine.import_image(request).unwrap()).await;
        let images = self.engine.images();
        images.into_iter().max_by_key(|image| (image.owner == owner, image.created_at)).unwrap()
    }

    fn sees(&self, caller: Uid, name: &str) -> bool {
        self.engine.find_image(caller, &name.parse().unwrap()).is_ok()
    }
}

fn rootfs() -> Original {
    Original::Rootfs(File::open("/dev/null").unwrap().into())
}

#[tokio::test]
async fn a_shared_image_is_everybodys_until_it_is_taken_back() {
    let house = House::new().await;
    let image = house.registered(ALICE, "mine", rootfs()).await;
    assert!(!house.sees(BOB, "mine"));
    for _ in 0..2 {
        house.engine.share_image(image.id, true).await.unwrap();
        assert!(house.sees(BOB, "mine"));
    }
    let create = CreateVm { owner: BOB, image: Some("mine".parse().unwrap()), start: None, ..request() };
    let (vm, job) = house.engine.create_vm(create).await.unwrap();
    house.done(job).await;
    let used = house.engine.share_image(image.id, false).await.unwrap_err();
    assert!(matches!(used, Error::InUse { .. }), "{used}");
    house.done(house.engine.delete_vm(vm, Manner::Forced).await.unwrap()).await;
    house.engine.share_image(image.id, false).await.unwrap();
    assert!(!house.sees(BOB, "mine"));
    // What is published is what is kept.
    house.engine.share_image(image.id, true).await.unwrap();
    let house = house.restarted().await;
    assert!(house.engine.image(image.id).unwrap().shared);
}

#[tokio::test]
async fn a_change_that_cannot_be_kept_is_none() {
    let house = House::new().await;
    let image = house.registered(ALICE, "mine", rootfs()).await;
    house.sim.fail_at(Some(0));
    house.engine.share_image(image.id, true).await.unwrap_err();
    assert!(!house.sees(BOB, "mine"));
}

#[tokio::test]
async fn an_image_in_files_keeps_its_configuration_and_goes_out_again() {
    let house = House::new().await;
    let parts = vec![Part { offset: 0, length: Bytes(1) }; 3];
    let layout = Original::Layout(File::open("/dev/null").unwrap().into(), parts);
    let image = house.registered(ALICE, "mine", layout).await;
    assert_eq!(image.config.cmd, ["/bin/sh"]);
    let fd = File::open("/dev/null").unwrap().into();
    let job = house.engine.export_image(ALICE, image.id, fd).unwrap();
    house.done(job).await;
    let facts = house.engine.job(job).unwrap().facts.clone();
    assert!(facts.iter().any(|(key, fact)| *key == "bytes" && *fact == Fact::Number(400 << 20)), "{facts:?}");
    let none = Original::Layout(File::open("/dev/null").unwrap().into(), Vec::new());
    let name = "none".parse().unwrap();
    let request = ImportImage { owner: ALICE, name, shared: false, kernel: None, content: none };
    let job = house.engine.import_image(request).unwrap();
    assert_eq!(house.failed(job).await, "the image has no layers");
    assert!(!house.sees(ALICE, "none"));
}
