//! Sizes of disks, on a host in memory.

use banger_domain::{id::VmId, limits::Exceeded};
use banger_proto::size::Bytes;
use banger_system::engine::{
    error::Error,
    request::{Configure, CreateVm, Stop, StopMode},
};

use crate::engine_lab::{BOB, EngineLab, request};

/// The size of the default image.
const IMAGE: Bytes = Bytes::gib(8);

fn root(size: Bytes) -> CreateVm {
    CreateVm { root_size: Some(size), ..request() }
}

fn grow(root_size: Bytes) -> Configure {
    Configure { root_size: Some(root_size), ..Configure::default() }
}

async fn stopped(lab: &EngineLab, request: CreateVm) -> VmId {
    let (vm, job) = lab.engine.create_vm(request).await.unwrap();
    lab.done(job).await;
    let stop = Stop { timeout: None, mode: StopMode::Graceful };
    lab.done(lab.engine.stop_vm(vm, stop).await.unwrap()).await;
    vm
}

#[tokio::test(start_paused = true)]
async fn a_system_disk_has_the_size_that_was_asked_for_else_that_of_its_image() {
    let lab = EngineLab::new().await;
    for (request, expect) in
        [(request(), IMAGE), (root(IMAGE), IMAGE), (root(Bytes::gib(20)), Bytes::gib(20))]
    {
        let vm = stopped(&lab, request).await;
        assert_eq!(lab.engine.vm(vm).unwrap().vm.spec.root_size, expect);
        assert_eq!(lab.sim.disk_sizes(vm), (expect, Bytes::gib(8)));
    }
}

#[tokio::test(start_paused = true)]
async fn the_size_that_is_configured_is_the_least_of_a_system_disk() {
    for (configured, expect) in [(Bytes::gib(2), IMAGE), (Bytes::gib(20), Bytes::gib(20))] {
        let lab = EngineLab::with(|settings| settings.root_size = configured).await;
        let vm = stopped(&lab, request()).await;
        assert_eq!(lab.sim.disk_sizes(vm).0, expect);
        // An explicit size is used as it is.
        let vm = stopped(&lab, root(Bytes::gib(10))).await;
        assert_eq!(lab.sim.disk_sizes(vm).0, Bytes::gib(10));
    }
}

#[tokio::test(start_paused = true)]
async fn an_impossible_system_disk_is_refused_and_nothing_is_made() {
    let lab = EngineLab::new().await;
    for size in [Bytes(0), Bytes(IMAGE.0 - 1)] {
        let refused = lab.engine.create_vm(root(size)).await;
        assert!(matches!(refused, Err(Error::Limit(Exceeded::Smaller { .. }))), "{refused:?}");
    }
    let refused = lab.engine.create_vm(root(Bytes(u64::MAX))).await;
    assert!(matches!(refused, Err(Error::Limit(Exceeded::Impossible { .. }))), "{refused:?}");
    assert!(lab.engine.vms().is_empty() && lab.sim.alive().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_growth_of_system_disks_counts_against_their_owners_quota() {
    let lab = EngineLab::with(|settings| settings.limits.disk = Bytes::gib(30)).await;
    // 8 GiB of work disk, and 4 beyond the image.
    let vm = stopped(&lab, root(Bytes::gib(12))).await;
    let refused = lab.engine.create_vm(root(Bytes::gib(19))).await;
    assert!(matches!(refused, Err(Error::Limit(Exceeded::Quota { .. }))), "{refused:?}");
    let refused = lab.engine.configure_vm(vm, grow(Bytes::gib(31))).await;
    assert!(matches!(refused, Err(Error::Limit(Exceeded::Quota { .. }))), "{refused:?}");
    stopped(&lab, CreateVm { owner: BOB, ..root(Bytes::gib(19)) }).await;
    stopped(&lab, request()).await;
    lab.engine.configure_vm(vm, grow(Bytes::gib(22))).await.unwrap();
    let refused = lab.engine.configure_vm(vm, grow(Bytes(Bytes::gib(22).0 + 1))).await;
    assert!(matches!(refused, Err(Error::Limit(Exceeded::Quota { .. }))), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn disks_grow_while_their_sandbox_is_down_and_never_shrink() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    let refused = lab.engine.configure_vm(vm, grow(Bytes::gib(20))).await;
    assert!(matches!(refused, Err(Error::NotStopped { .. })), "{refused:?}");
    // A repeat changes nothing.
    lab.engine.configure_vm(vm, grow(IMAGE)).await.unwrap();
    lab.done(lab.engine.stop_vm(vm, Stop { timeout: None, mode: StopMode::Graceful }).await.unwrap()).await;
    for _ in 0..2 {
        lab.engine.configure_vm(vm, grow(Bytes::gib(20))).await.unwrap();
        assert_eq!(lab.sim.disk_sizes(vm), (Bytes::gib(20), Bytes::gib(8)));
    }
    for smaller in [
        grow(Bytes::gib(19)),
        grow(Bytes(0)),
        Configure { disk_size: Some(Bytes::gib(7)), ..grow(Bytes::gib(30)) },
    ] {
        let refused = lab.engine.configure_vm(vm, smaller).await;
        assert!(matches!(refused, Err(Error::Limit(Exceeded::Smaller { .. }))), "{refused:?}");
    }
    assert_eq!(lab.sim.disk_sizes(vm), (Bytes::gib(20), Bytes::gib(8)));
    let lab = lab.restart().await;
    assert_eq!(lab.engine.vm(vm).unwrap().vm.spec.root_size, Bytes::gib(20));
}

#[tokio::test(start_paused = true)]
async fn a_growth_that_fails_at_any_step_is_not_told_and_may_be_repeated() {
    let lab = EngineLab::new().await;
    let vm = stopped(&lab, request()).await;
    let before = lab.engine.vm(vm).unwrap().vm.clone();
    let both = Configure { disk_size: Some(Bytes::gib(16)), ..grow(Bytes::gib(20)) };
    let mut failed = 0;
    loop {
        lab.sim.fail_at(Some(failed));
        let changed = lab.engine.configure_vm(vm, both.clone()).await;
        lab.sim.fail_at(None);
        if changed.is_ok() {
            break;
        }
        assert_eq!(lab.engine.vm(vm).unwrap().vm, before, "step {failed}");
        failed += 1;
    }
    // Steps: each disk, and the row.
    assert_eq!(failed, 3);
    assert_eq!(lab.sim.disk_sizes(vm), (Bytes::gib(20), Bytes::gib(16)));
    let spec = lab.engine.vm(vm).unwrap().vm.spec.clone();
    assert_eq!((spec.root_size, spec.disk_size), (Bytes::gib(20), Bytes::gib(16)));
}
