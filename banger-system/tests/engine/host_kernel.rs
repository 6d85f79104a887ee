//! The host's own kernel: imported on first use, once for all, and again after an upgrade of its package.

use std::sync::Arc;

use banger_domain::{
    id::{Uid, VmId},
    lifecycle::State,
    vm::Lifetime,
};
use banger_image::record::Kernel;
use banger_system::{
    engine::{
        request::{CreateVm, ForkVm, KeepMemory, Start, Stop, StopMode},
        view::Outcome,
    },
    ports::Status,
};

use crate::engine_lab::{ALICE, BOB, EngineLab, TIMEOUT, request};

const OLD: &str = "6.1.0-41-amd64";
const NEW: &str = "6.1.0-42-amd64";
const FORCED: Stop = Stop { timeout: None, mode: StopMode::Forced };

/// Returns a host whose configuration names no kernel.
async fn lab() -> EngineLab {
    let lab = EngineLab::with(|settings| settings.default_kernel = "host".parse().unwrap()).await;
    lab.sim.install_kernel(Some(OLD));
    lab
}

fn release_of(lab: &EngineLab, vm: VmId) -> String {
    let kernel = lab.engine.vm(vm).unwrap().vm.kernel;
    lab.engine.kernel(kernel).unwrap().facts.release.clone()
}

/// Returns the names and releases of the imports of the host's kernel.
fn imports(lab: &EngineLab) -> Vec<(String, String)> {
    let of_host = |kernel: &Arc<Kernel>| kernel.source.starts_with("host:");
    let kernels = lab.engine.kernels().into_iter().filter(of_host);
    let mut all: Vec<_> =
        kernels.map(|kernel| (kernel.name.to_string(), kernel.facts.release.clone())).collect();
    all.sort();
    all
}

async fn stop(lab: &EngineLab, vm: VmId) {
    let job = lab.engine.stop_vm(vm, FORCED).await.unwrap();
    lab.done(job).await;
}

async fn start(lab: &EngineLab, vm: VmId) {
    let job = lab.engine.start_vm(vm, Start::default()).await.unwrap();
    lab.done(job).await;
}

/// Waits until an import is at work.
async fn importing(lab: &EngineLab) {
    let wait = async {
        while lab.sim.working(Uid::ROOT) == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, wait).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_first_sandbox_imports_the_kernel_of_the_host_for_all_users() {
    let lab = lab().await;
    let vm = lab.running().await;
    let view = lab.engine.vm(vm).unwrap();
    assert_eq!((view.kernel_name.as_str(), release_of(&lab, vm).as_str()), ("host", OLD));
    let kernel = lab.engine.kernel(view.vm.kernel).unwrap();
    assert_eq!((kernel.owner, kernel.shared), (Uid::ROOT, true));
    assert_eq!(kernel.source, format!("host:/boot/vmlinuz-{OLD}@0"));
    let (other, job) = lab.engine.create_vm(CreateVm { owner: BOB, start: None, ..request() }).await.unwrap();
    lab.done(job).await;
    assert_eq!(lab.engine.vm(other).unwrap().vm.kernel, view.vm.kernel);
    let named = CreateVm { kernel: Some("host".parse().unwrap()), ..request() };
    let (named, job) = lab.engine.create_vm(named).await.unwrap();
    lab.done(job).await;
    assert_eq!(lab.engine.vm(named).unwrap().vm.kernel, view.vm.kernel);
    assert_eq!(lab.sim.host_imports(), 1);
}

#[tokio::test(start_paused = true)]
async fn two_users_at_the_same_time_import_once() {
    let lab = lab().await;
    lab.sim.block_workers(true);
    let mut created = Vec::new();
    for owner in [ALICE, BOB] {
        created.push(lab.engine.create_vm(CreateVm { owner, ..request() }).await.unwrap());
    }
    importing(&lab).await;
    lab.sim.block_workers(false);
    for (_, job) in &created {
        lab.done(*job).await;
    }
    assert_eq!(lab.sim.host_imports(), 1);
    assert_eq!(imports(&lab), [("host".to_owned(), OLD.to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn an_old_kernel_stays_for_a_snapshot_and_goes_with_it() {
    let lab = lab().await;
    let vm = lab.running().await;
    let (old, ready) = (lab.engine.vm(vm).unwrap().vm.kernel, || "ready".parse().unwrap());
    lab.done(lab.engine.create_snapshot(vm, ready()).await.unwrap()).await;
    lab.sim.install_kernel(Some(NEW));
    stop(&lab, vm).await;
    start(&lab, vm).await;
    assert_eq!((release_of(&lab, vm), imports(&lab).len()), (NEW.to_owned(), 2));
    let fork =
        ForkVm { count: 1, names: Vec::new(), snapshot: Some(ready()), lifetime: Lifetime::Persistent };
    let (children, job) = lab.engine.fork_vm(vm, fork).await.unwrap();
    lab.done(job).await;
    start(&lab, children[0]).await;
    assert_eq!(lab.engine.vm(children[0]).unwrap().vm.kernel, old);
    lab.done(lab.engine.delete_vm(children[0], StopMode::Forced).await.unwrap()).await;
    assert_eq!(imports(&lab).len(), 2);
    lab.engine.delete_snapshot(vm, ready()).await.unwrap();
    assert_eq!(imports(&lab), [("host".to_owned(), NEW.to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn after_an_upgrade_each_start_takes_the_new_kernel_and_the_last_one_removes_the_old() {
    let lab = lab().await;
    let (first, second) = (lab.running().await, lab.running().await);
    let old = lab.engine.vm(first).unwrap().vm.kernel;
    lab.sim.install_kernel(Some(NEW));
    let fresh = lab.running().await;
    assert_eq!((release_of(&lab, fresh), release_of(&lab, first)), (NEW.to_owned(), OLD.to_owned()));
    let [newest, aside] = &imports(&lab)[..] else { panic!("{:?}", imports(&lab)) };
    assert_eq!((newest.0.as_str(), newest.1.as_str()), ("host", NEW));
    assert!(aside.0.starts_with("host-") && aside.1 == OLD, "{aside:?}");

    stop(&lab, first).await;
    assert_eq!(release_of(&lab, first), OLD);
    start(&lab, first).await;
    assert_eq!(release_of(&lab, first), NEW);
    assert_eq!(imports(&lab).len(), 2, "another sandbox runs with the old one");
    let job = lab.engine.delete_vm(second, StopMode::Forced).await.unwrap();
    lab.done(job).await;
    assert_eq!(imports(&lab), [("host".to_owned(), NEW.to_owned())]);
    assert!(!lab.sim.kernel_files().contains(&old));
    assert_eq!(lab.sim.host_imports(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_suspended_sandbox_keeps_the_kernel_of_its_memory() {
    let lab = lab().await;
    let vm = lab.running().await;
    lab.done(lab.engine.suspend_vm(vm).await.unwrap()).await;
    lab.sim.install_kernel(Some(NEW));
    start(&lab, vm).await;
    assert_eq!(release_of(&lab, vm), OLD);
    lab.done(lab.engine.suspend_vm(vm).await.unwrap()).await;
    let cold = Start { memory: KeepMemory::No, ..Start::default() };
    lab.done(lab.engine.start_vm(vm, cold).await.unwrap()).await;
    assert_eq!(release_of(&lab, vm), OLD);
    stop(&lab, vm).await;
    start(&lab, vm).await;
    assert_eq!(release_of(&lab, vm), NEW);
}

#[tokio::test(start_paused = true)]
async fn a_start_waits_for_the_import_and_can_be_cancelled_or_overtaken() {
    let lab = lab().await;
    let vm = lab.running().await;
    stop(&lab, vm).await;
    lab.sim.install_kernel(Some(NEW));
    lab.sim.block_workers(true);
    let (canceled, waiting) = (
        lab.engine.start_vm(vm, Start::default()).await.unwrap(),
        lab.engine.start_vm(vm, Start::default()).await.unwrap(),
    );
    importing(&lab).await;
    lab.engine.cancel_job(canceled).unwrap();
    assert!(matches!(lab.outcome(canceled).await, Outcome::Canceled));
    assert_eq!(lab.state(vm), State::Stopped);
    lab.sim.block_workers(false);
    lab.done(waiting).await;
    assert_eq!(release_of(&lab, vm), NEW);

    stop(&lab, vm).await;
    lab.sim.install_kernel(Some(OLD));
    lab.sim.block_workers(true);
    let waiting = lab.engine.start_vm(vm, Start::default()).await.unwrap();
    importing(&lab).await;
    let job = lab.engine.delete_vm(vm, StopMode::Graceful).await.unwrap();
    lab.done(job).await;
    assert!(matches!(lab.outcome(waiting).await, Outcome::Canceled));
    lab.sim.block_workers(false);
}

#[tokio::test(start_paused = true)]
async fn a_new_kernel_that_guests_cannot_boot_is_tried_once_and_the_old_one_stays() {
    let lab = lab().await;
    let vm = lab.running().await;
    stop(&lab, vm).await;
    lab.sim.install_kernel(Some(NEW));
    lab.sim.break_host_kernel(true);
    for _ in 0..2 {
        start(&lab, vm).await;
        assert_eq!(release_of(&lab, vm), OLD);
        stop(&lab, vm).await;
    }
    let other = lab.running().await;
    assert_eq!(release_of(&lab, other), OLD);
    assert_eq!(lab.sim.host_imports(), 2);
    let check = doctor(&lab).await;
    assert!(check.contains("sandboxes keep 6.1.0-41-amd64") && check.contains("no virtio_blk"), "{check}");
    // The next upgrade is another kernel.
    lab.sim.break_host_kernel(false);
    lab.sim.install_kernel(Some("6.1.0-43-amd64"));
    start(&lab, vm).await;
    assert_eq!(release_of(&lab, vm), "6.1.0-43-amd64");
}

/// Returns what `doctor` says about the default kernel.
async fn doctor(lab: &EngineLab) -> String {
    let checks = lab.engine.diagnose(ALICE).await;
    let check = checks.into_iter().find(|check| check.name == "default kernel").unwrap();
    assert_eq!(check.status == Status::Pass, check.hint.is_empty());
    check.message
}

#[tokio::test(start_paused = true)]
async fn a_host_without_a_kernel_refuses_before_anything_is_created() {
    let lab = lab().await;
    lab.sim.install_kernel(None);
    let error = lab.engine.create_vm(request()).await.unwrap_err();
    assert!(error.to_string().contains("no kernel that guests can boot"), "{error}");
    assert!(lab.engine.vms().is_empty() && imports(&lab).is_empty());
    assert!(doctor(&lab).await.contains("no kernel"));

    lab.sim.install_kernel(Some(OLD));
    assert!(doctor(&lab).await.contains("which the first sandbox imports"));
    let vm = lab.running().await;
    assert!(doctor(&lab).await.contains("the host's own 6.1.0-41-amd64 (imported "));
    // Arch removes the files of the running kernel during an upgrade.
    lab.sim.install_kernel(None);
    stop(&lab, vm).await;
    start(&lab, vm).await;
    assert_eq!(release_of(&lab, vm), OLD);
    assert!(doctor(&lab).await.contains("no kernel"));
}

#[tokio::test(start_paused = true)]
async fn an_import_that_fails_at_any_step_leaves_nothing() {
    for step in 0.. {
        let lab = lab().await;
        let before = lab.sim.kernel_files();
        lab.sim.fail_at(Some(step));
        let (_, job) = lab.engine.create_vm(CreateVm { start: None, ..request() }).await.unwrap();
        if matches!(lab.outcome(job).await, Outcome::Done) {
            assert!(step > 2, "nothing has failed");
            return;
        }
        lab.sim.fail_at(None);
        let imported = imports(&lab).len();
        assert_eq!(lab.sim.kernel_files().len(), before.len() + imported, "step {step}");
        assert!(lab.engine.vms().is_empty(), "step {step}");
        lab.running().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_before_an_import_is_stored_leaves_nothing() {
    let lab = lab().await;
    let (_, job) = lab.engine.create_vm(CreateVm { start: None, ..request() }).await.unwrap();
    lab.done(job).await;
    let vm = lab.engine.vms()[0].vm.id;
    lab.done(lab.engine.delete_vm(vm, StopMode::Graceful).await.unwrap()).await;
    // The files are there, and the row is not.
    lab.sim.lose_library();
    let next = lab.restart().await;
    assert!(next.sim.kernel_files().is_empty());
}
