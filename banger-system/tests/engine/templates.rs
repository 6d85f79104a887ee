//! Kernel templates: when they are made, when they are used, and what happens when that fails.

use std::time::Duration;

use crate::engine_lab::{ALICE, BOB, EngineLab, TIMEOUT, request};
use banger_domain::{
    id::{Uid, VmId},
    lifecycle::State,
    vm::BootedFrom,
};
use banger_proto::size::Bytes;
use banger_system::{
    engine::{
        request::{CreateVm, Start, Stop, StopMode},
        view::Outcome,
    },
    sim::Sim,
};

async fn lab() -> EngineLab {
    EngineLab::with(|settings| settings.templates = true).await
}

impl EngineLab {
    async fn create(&self, request: CreateVm) -> VmId {
        let (vm, job) = self.engine.create_vm(request).await.unwrap();
        self.done(job).await;
        vm
    }

    async fn started_by(&self, owner: Uid) -> VmId {
        self.create(CreateVm { owner, ..request() }).await
    }

    fn booted_from(&self, vm: VmId) -> Option<BootedFrom> {
        self.engine.vm(vm).unwrap().vm.booted_from
    }

    async fn restart_vm(&self, vm: VmId) {
        self.done(self.engine.restart_vm(vm, Stop::default(), Start::default()).await.unwrap()).await;
    }

    /// Returns what exists on the host for VMs that the engine does not have: those in which templates are made.
    fn strangers(&self) -> Vec<String> {
        let known: Vec<String> = self.engine.vms().iter().map(|view| view.vm.id.to_string()).collect();
        let alive = self.sim.alive().into_iter();
        alive.filter(|thing| !known.iter().any(|vm| thing.contains(vm))).collect()
    }

    /// Waits until this many templates are kept or the making was given up, and nothing is left of it.
    async fn until_made(&self, templates: usize) {
        let made = async {
            while self.sim.templates().0 != templates || !self.strangers().is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let made = tokio::time::timeout(TIMEOUT, made).await;
        assert!(made.is_ok(), "{:?} {:?}", self.sim.templates(), self.strangers());
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_start_boots_and_later_ones_of_any_user_continue_from_a_template() {
    let lab = lab().await;
    let first = lab.started_by(ALICE).await;
    assert_eq!((lab.sim.children(), lab.booted_from(first)), (0, Some(BootedFrom::Cold)));
    lab.until_made(1).await;
    let second = lab.started_by(BOB).await;
    lab.restart_vm(first).await;
    assert_eq!([first, second].map(|vm| lab.booted_from(vm)), [Some(BootedFrom::Template); 2]);
    lab.done(lab.engine.stop_vm(first, Stop::default()).await.unwrap()).await;
    assert_eq!(lab.booted_from(first), None);
    assert_eq!((lab.sim.children(), lab.sim.templates()), (2, (1, 0)));
}

#[tokio::test(start_paused = true)]
async fn without_the_setting_nothing_is_made() {
    let lab = EngineLab::new().await;
    for _ in 0..2 {
        lab.started_by(ALICE).await;
    }
    assert_eq!((lab.sim.children(), lab.sim.templates()), (0, (0, 0)));
}

#[tokio::test(start_paused = true)]
async fn each_size_and_each_vmm_version_has_its_own_template() {
    let lab = lab().await;
    lab.started_by(ALICE).await;
    lab.until_made(1).await;
    lab.create(CreateVm { memory: Some(Bytes::gib(2)), ..request() }).await;
    lab.until_made(2).await;
    lab.create(CreateVm { vcpus: Some(1), ..request() }).await;
    lab.until_made(3).await;
    lab.sim.upgrade_vmm();
    lab.started_by(ALICE).await;
    assert_eq!(lab.sim.children(), 0);
    lab.until_made(4).await;
    lab.started_by(ALICE).await;
    assert_eq!(lab.sim.children(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_does_not_continue_boots_and_the_template_is_moved_aside() {
    let lab = lab().await;
    lab.started_by(ALICE).await;
    lab.until_made(1).await;
    lab.sim.break_templates(true);
    let vm = lab.started_by(ALICE).await;
    assert_eq!((lab.state(vm), lab.sim.children()), (State::Running, 0));
    assert_eq!(lab.booted_from(vm), Some(BootedFrom::Cold));
    // Another template would most likely fail too.
    lab.sim.break_templates(false);
    let vm = lab.started_by(ALICE).await;
    assert_eq!((lab.booted_from(vm), lab.sim.templates()), (Some(BootedFrom::Cold), (0, 1)));
    // The next run of the service tries again.
    lab.tasks.abort_all().await;
    let lab = EngineLab::on_with(lab.sim.clone(), |settings| settings.templates = true);
    lab.engine.recover().await.unwrap();
    lab.started_by(BOB).await;
    lab.until_made(1).await;
    let vm = lab.started_by(BOB).await;
    assert_eq!(lab.booted_from(vm), Some(BootedFrom::Template));
}

#[tokio::test(start_paused = true)]
async fn a_template_that_cannot_be_made_is_not_tried_again_and_disturbs_nothing() {
    let usual = EngineLab::new().await;
    usual.started_by(ALICE).await;
    usual.sim.fail_at(None);
    usual.started_by(ALICE).await;
    let steps = usual.sim.steps();
    for prevent in [Sim::build_in_drivers, Sim::fill_templates] {
        let lab = lab().await;
        prevent(&lab.sim);
        for _ in 0..3 {
            let vm = lab.started_by(ALICE).await;
            assert_eq!(lab.state(vm), State::Running);
            lab.until_made(0).await;
        }
        // A start has the steps of one without templates, so it has not tried.
        lab.sim.fail_at(None);
        lab.started_by(ALICE).await;
        lab.until_made(0).await;
        assert_eq!(lab.sim.steps(), steps);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_step_of_the_making_leaves_nothing() {
    let lab = lab().await;
    lab.sim.fail_at(None);
    lab.started_by(ALICE).await;
    lab.until_made(1).await;
    let steps = lab.sim.steps();
    for step in 0..steps {
        let lab = self::lab().await;
        lab.sim.fail_at(Some(step));
        let (_, job) = lab.engine.create_vm(request()).await.unwrap();
        lab.outcome(job).await;
        let settled = async {
            while lab.sim.steps() <= step || !lab.strangers().is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        assert!(tokio::time::timeout(TIMEOUT, settled).await.is_ok(), "{step}: {:?}", lab.strangers());
        lab.sim.fail_at(None);
        let vm = lab.started_by(ALICE).await;
        assert_eq!(lab.state(vm), State::Running, "{step}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_step_of_a_start_from_a_template_boots_or_leaves_nothing() {
    let ready = async || {
        let lab = lab().await;
        lab.started_by(ALICE).await;
        lab.until_made(1).await;
        lab.sim.fail_at(None);
        lab
    };
    let lab = ready().await;
    lab.started_by(ALICE).await;
    let mut cold = 0;
    for step in 0..lab.sim.steps() {
        let lab = ready().await;
        let before = lab.sim.alive().len();
        lab.sim.fail_at(Some(step));
        let (vm, job) = lab.engine.create_vm(request()).await.unwrap();
        if let Outcome::Done = lab.outcome(job).await {
            cold += u32::from(lab.booted_from(vm) == Some(BootedFrom::Cold));
            lab.sim.fail_at(None);
            lab.done(lab.engine.delete_vm(vm, StopMode::Forced).await.unwrap()).await;
        }
        assert_eq!(lab.sim.alive().len(), before, "{step}: {:?}", lab.sim.alive());
    }
    assert!(cold > 0, "no start fell back to a boot");
}

#[tokio::test(start_paused = true)]
async fn a_template_that_was_being_made_when_the_service_ended_leaves_nothing() {
    let lab = lab().await;
    let vm = lab.started_by(ALICE).await;
    lab.until_made(1).await;
    // As the crashed service left it: a unit and a directory without a row.
    lab.sim.lose_rows_of(vm);
    assert!(!lab.sim.alive().is_empty());
    let lab = lab.restart().await;
    assert_eq!(lab.sim.alive(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_never_gets_ready_from_a_template_is_the_last_one_of_it() {
    let lab = lab().await;
    lab.started_by(ALICE).await;
    lab.until_made(1).await;
    lab.sim.silence_guests(true);
    let (_, job) = lab.engine.create_vm(request()).await.unwrap();
    lab.failed(job).await;
    lab.sim.silence_guests(false);
    let vm = lab.started_by(ALICE).await;
    assert_eq!(lab.booted_from(vm), Some(BootedFrom::Cold));
}
