//! Commits on a host in memory: an image of the system disk of a sandbox that is down.

use std::time::Duration;

use banger_domain::{
    id::{JobId, VmId},
    lifecycle::State,
    vm::Lifetime,
};
use banger_image::oci::config::ConfigChange;
use banger_proto::size::Bytes;
use banger_system::{
    engine::{
        error::Error,
        request::{CommitVm, Configure, CreateVm, OnConflict, Start, StopMode},
        view::Outcome,
    },
    sim::Sim,
};

use crate::engine_lab::{ALICE, EngineLab, TIMEOUT, request};

fn commit(name: &str) -> CommitVm {
    let config = ConfigChange { user: Some("ann".to_owned()), ..ConfigChange::default() };
    CommitVm { owner: ALICE, name: name.parse().unwrap(), config, on_conflict: OnConflict::Fail }
}

/// Waits until no disk is attached.
async fn detached(sim: &Sim) {
    let wait = async {
        while !sim.attached_disks().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, wait).await.expect("the disk stays attached");
}

impl EngineLab {
    async fn down(&self, lifetime: Lifetime) -> VmId {
        let (vm, job) = self.engine.create_vm(CreateVm { start: None, lifetime, ..request() }).await.unwrap();
        self.done(job).await;
        vm
    }

    /// Starts a commit whose worker does not end.
    async fn stuck(&self, vm: VmId) -> JobId {
        self.sim.block_workers(true);
        self.engine.commit_vm(vm, commit("mine")).await.unwrap()
    }

    fn images(&self) -> Vec<String> {
        let mut names: Vec<_> = self.engine.images().iter().map(|image| image.name.to_string()).collect();
        names.sort();
        names
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_makes_an_image_that_says_what_it_is_made_of() {
    let lab = EngineLab::new().await;
    let vm = lab.down(Lifetime::Persistent).await;
    lab.done(lab.engine.commit_vm(vm, commit("mine")).await.unwrap()).await;
    let image = lab.engine.find_image(ALICE, &"mine".parse().unwrap()).await.unwrap();
    assert_eq!((image.owner, image.shared, image.source.as_str()), (ALICE, false, "commit"));
    assert_eq!(image.config.user, "ann");
    assert_eq!(image.config.labels["org.opencontainers.image.base.name"], "debian-bookworm");
    assert!(image.config.labels["org.opencontainers.image.base.digest"].starts_with("sha256:"));
    detached(&lab.sim).await;
    // The name is taken, unless the new image is to replace the old one.
    let taken = lab.engine.commit_vm(vm, commit("mine")).await.unwrap_err();
    assert!(matches!(taken, Error::NameTaken { .. }), "{taken}");
    let again = CommitVm { on_conflict: OnConflict::Replace, ..commit("mine") };
    lab.done(lab.engine.commit_vm(vm, again).await.unwrap()).await;
    assert_eq!(lab.images(), ["debian-bookworm", "mine"]);
    lab.done(lab.engine.delete_vm(vm, StopMode::Graceful).await.unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn a_running_sandbox_is_not_committed() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    let refused = lab.engine.commit_vm(vm, commit("mine")).await.unwrap_err();
    assert!(matches!(refused, Error::StillWriting { .. }), "{refused}");
    assert_eq!(lab.images(), ["debian-bookworm"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_uses_the_disks_while_they_are_read() {
    let lab = EngineLab::new().await;
    let vm = lab.down(Lifetime::Persistent).await;
    let job = lab.stuck(vm).await;
    assert_eq!(lab.engine.vm_jobs(vm), [job]);
    let busy = |error: Error| assert!(matches!(error, Error::BeingCommitted { .. }), "{error}");
    busy(lab.engine.start_vm(vm, Start::default()).await.unwrap_err());
    busy(lab.engine.delete_vm(vm, StopMode::Forced).await.unwrap_err());
    busy(lab.engine.commit_vm(vm, commit("other")).await.unwrap_err());
    let larger = Configure { root_size: Some(Bytes::gib(64)), ..Configure::default() };
    busy(lab.engine.configure_vm(vm, larger).await.unwrap_err());
    lab.engine.cancel_job(job).unwrap();
    assert!(matches!(lab.outcome(job).await, Outcome::Canceled));
    lab.sim.block_workers(false);
    // A cancelled commit leaves nothing, and the sandbox starts again.
    assert_eq!(lab.images(), ["debian-bookworm"]);
    assert_eq!(lab.sim.image_files().len(), 1);
    lab.done(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    assert_eq!(lab.state(vm), State::Running);
}

#[tokio::test(start_paused = true)]
async fn a_copy_gets_no_more_room_than_is_left_of_the_quota() {
    // Each image of this host takes 400 MiB.
    let lab = EngineLab::with(|settings| settings.limits.image_disk = Bytes::mib(500)).await;
    let vm = lab.down(Lifetime::Persistent).await;
    lab.done(lab.engine.commit_vm(vm, commit("first")).await.unwrap()).await;
    detached(&lab.sim).await;
    let refused = lab.failed(lab.engine.commit_vm(vm, commit("second")).await.unwrap()).await;
    assert!(refused.contains("more than the 100 MiB that are left of your quota"), "{refused}");
    assert_eq!(lab.images(), ["debian-bookworm", "first"]);
    assert_eq!(lab.sim.image_files().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_disconnects_cancels_the_commit_of_its_sandbox() {
    let mut lab = EngineLab::new().await;
    let lifetime = Lifetime::Caller { connection: ":1.7".to_owned(), bus: "bus".to_owned() };
    let vm = lab.down(lifetime).await;
    let job = lab.stuck(vm).await;
    lab.engine.client_disconnected(":1.7", "bus").await;
    assert!(matches!(lab.outcome(job).await, Outcome::Canceled));
    lab.until(vm, |state| state.is_none()).await;
    assert_eq!(lab.images(), ["debian-bookworm"]);
    assert_eq!(lab.sim.attached_disks(), [] as [VmId; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_fails_at_any_step_leaves_nothing() {
    let mut failures = 0;
    for step in 0.. {
        let lab = EngineLab::new().await;
        let vm = lab.down(Lifetime::Persistent).await;
        lab.sim.fail_at(Some(step));
        let ended = match lab.engine.commit_vm(vm, commit("mine")).await {
            Ok(job) => matches!(lab.outcome(job).await, Outcome::Done),
            Err(_) => false,
        };
        lab.sim.fail_at(None);
        if !ended {
            failures += 1;
            assert_eq!(lab.images(), ["debian-bookworm"], "step {step}");
            assert_eq!(lab.sim.image_files().len(), 1, "step {step}");
        }
        // Whatever has failed, a repeat works.
        let again = CommitVm { on_conflict: OnConflict::Replace, ..commit("mine") };
        lab.done(lab.engine.commit_vm(vm, again).await.unwrap()).await;
        detached(&lab.sim).await;
        if ended {
            break;
        }
    }
    assert!(failures > 2, "{failures}");
}

#[tokio::test(start_paused = true)]
async fn a_crash_during_a_commit_leaves_no_attached_disk() {
    let lab = EngineLab::new().await;
    let vm = lab.down(Lifetime::Persistent).await;
    lab.stuck(vm).await;
    let sim: Sim = lab.sim.clone();
    assert_eq!(sim.attached_disks(), [vm]);
    let lab = lab.restart().await;
    detached(&sim).await;
    assert_eq!(lab.images(), ["debian-bookworm"]);
}
