//! Jobs that panic, on a host in memory: each fails with a typed error, and leaves neither a reserved name nor files.

use std::{fs::File, time::Duration};

use banger_domain::id::{ImageId, JobId, KernelId};
use banger_image::oci::{credentials::Credentials, platform::Platform};
use banger_system::{
    engine::{
        error::Error,
        request::{ImportImage, ImportKernel, ImportSource, OnConflict, PullImage, PullKernel, PullSource},
        view::Outcome,
    },
    ports::registry::Source,
};

use crate::engine_lab::{ALICE, BOB, EngineLab};

/// Longer than the pause between two tries of the recovery. The clock of these tests is virtual.
const LONG: Duration = Duration::from_secs(600);
const ALPINE: &str = "registry.test/library/alpine:3";

fn pull_image(lab: &EngineLab) -> JobId {
    let source = Source {
        reference: ALPINE.parse().unwrap(),
        platform: Platform::of_host("x86_64"),
        credentials: Credentials::Anonymous,
    };
    let request = PullImage {
        owner: ALICE,
        source,
        from: PullSource::Registry,
        name: None,
        shared: false,
        kernel: None,
        on_conflict: OnConflict::Fail,
    };
    lab.engine.pull_image(request).unwrap()
}

fn pull_kernel(lab: &EngineLab) -> JobId {
    let request = PullKernel {
        owner: ALICE,
        entry: "debian".parse().unwrap(),
        name: None,
        shared: false,
        on_conflict: OnConflict::Fail,
    };
    lab.engine.pull_kernel(request).unwrap()
}

fn import_image(lab: &EngineLab) -> JobId {
    let request = ImportImage {
        owner: ALICE,
        name: "mine".parse().unwrap(),
        shared: false,
        kernel: None,
        content: ImportSource::Rootfs(File::open("/dev/null").unwrap().into()),
    };
    lab.engine.import_image(request).unwrap()
}

fn import_kernel(lab: &EngineLab) -> JobId {
    let request = ImportKernel {
        owner: ALICE,
        name: "mine".parse().unwrap(),
        shared: false,
        vmlinuz: File::open("/dev/null").unwrap().into(),
        modules: None,
    };
    lab.engine.import_kernel(request).unwrap()
}

impl EngineLab {
    /// Returns whether `doctor` shows that a job may have left files.
    async fn has_leftovers(&self) -> bool {
        let checks = self.engine.diagnose(BOB).await;
        checks.iter().any(|check| check.name == "recovery" && check.message.contains("a bug in banger"))
    }

    fn library(&self) -> (Vec<ImageId>, Vec<KernelId>) {
        let mut images: Vec<_> = self.engine.images().iter().map(|image| image.id).collect();
        let mut kernels: Vec<_> = self.engine.kernels().iter().map(|kernel| kernel.id).collect();
        images.sort();
        kernels.sort();
        (images, kernels)
    }

    /// Runs a job once for each of its steps, which panics, until it gets through. Returns the number of panics.
    async fn panic_at_each_step(&self, start: fn(&Self) -> JobId) -> usize {
        let before = self.library();
        for step in 0.. {
            self.sim.panic_at(Some(step));
            let outcome = self.outcome(start(self)).await;
            self.sim.panic_at(None);
            let error = match outcome {
                Outcome::Done => return step,
                Outcome::Failed(error) => error,
                Outcome::Canceled => panic!("step {step}: nobody canceled it"),
            };
            assert!(matches!(*error, Error::Bug), "step {step}: {error}");
            assert!(self.has_leftovers().await, "step {step}");
            tokio::time::sleep(LONG).await;
            assert!(!self.has_leftovers().await, "step {step}");
            assert_eq!(self.library(), before, "step {step}");
            assert_eq!((self.sim.image_files(), self.sim.kernel_files()), before, "step {step}: orphans");
        }
        unreachable!("the steps are counted without end")
    }
}

#[tokio::test(start_paused = true)]
async fn a_pull_or_an_import_that_panics_fails_and_leaves_nothing() {
    for start in [pull_image, pull_kernel, import_image, import_kernel] {
        // Recovery reads the stored catalogs.
        let lab = EngineLab::new().await.restart().await;
        assert!(lab.panic_at_each_step(start).await >= 2);
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_that_was_about_to_be_replaced_outlives_a_panic() {
    let lab = EngineLab::new().await;
    lab.done(pull_image(&lab)).await;
    let old = lab.engine.images().into_iter().find(|image| image.owner == ALICE).unwrap();
    lab.sim.move_tag(ALPINE);
    assert!(lab.panic_at_each_step(pull_image).await >= 3);
    assert!(lab.engine.image(old.id).is_none(), "it was replaced in the end");
    let lab = lab.restart().await;
    assert_eq!(lab.engine.images().iter().filter(|image| image.owner == ALICE).count(), 1);
}
