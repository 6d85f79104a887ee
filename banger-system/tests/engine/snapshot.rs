//! Snapshots on a host in memory: children of a fork that are kept, and forked again.

use std::{collections::BTreeSet, time::Duration};

use banger_domain::{
    id::VmId,
    lifecycle::State,
    name::{Name, Reference},
    net::nic::Mac,
    resource::Resource,
    vm::Lifetime,
};
use banger_proto::size::Bytes;
use banger_system::{
    engine::{
        error::{Error, Kind},
        request::{Configure, CreateVm, ForkVm, Start, Stop, StopMode},
        view::Outcome,
    },
    ports::disks::FrozenLayer,
};

use crate::engine_lab::{ALICE, EngineLab, LONG, request};

fn clean() -> Name {
    "clean".parse().unwrap()
}

fn of_snapshot(name: &str, count: u32) -> ForkVm {
    ForkVm { count, names: Vec::new(), snapshot: Some(name.parse().unwrap()), lifetime: Lifetime::Persistent }
}

impl EngineLab {
    async fn snapshot(&self, vm: VmId, name: &str) -> VmId {
        self.done(self.engine.create_snapshot(vm, name.parse().unwrap()).await.unwrap()).await;
        let all = self.engine.snapshots(vm);
        all.iter().find(|snapshot| snapshot.vm.name.as_str() == name).unwrap().vm.id
    }

    /// Returns the names of the snapshots of a VM, with `+` if they have memory.
    fn snapshots(&self, vm: VmId) -> Vec<String> {
        let name = |snapshot: &banger_system::engine::view::SnapshotView| {
            format!("{}{}", snapshot.vm.name, if snapshot.has_memory() { "+" } else { "" })
        };
        self.engine.snapshots(vm).iter().map(|snapshot| name(snapshot)).collect()
    }

    /// Makes a snapshot, and returns whether that worked.
    async fn try_snapshot(&self, vm: VmId) -> bool {
        match self.engine.create_snapshot(vm, clean()).await {
            Ok(job) => matches!(self.outcome(job).await, Outcome::Done),
            Err(_) => false,
        }
    }
}

#[tokio::test]
async fn children_of_a_snapshot_continue_with_its_memory_as_often_as_it_is_forked() {
    let lab = EngineLab::new().await;
    let parent = lab.web().await;
    let before = lab.sim.alive();
    let snapshot = lab.snapshot(parent, "clean").await;
    assert!(lab.continues(parent));
    assert_eq!(lab.snapshots(parent), ["clean+"]);
    let layers = lab.engine.snapshots(parent)[0].frozen.clone();
    assert_eq!(layers, lab.engine.vm(parent).unwrap().frozen);

    // The original goes on, gets other settings, and is forked itself.
    lab.stop(parent).await;
    let memory = Some(Bytes::gib(2));
    lab.engine.configure_vm(parent, Configure { memory, ..Configure::default() }).await.unwrap();
    let other = lab.forked(parent, crate::fork::fork(1)).await[0];
    lab.delete(other).await;
    for _ in 0..2 {
        let children = lab.forked(parent, of_snapshot("clean", 2)).await;
        assert_eq!(lab.vm_names(), ["web", "web-1", "web-2"]);
        for child in &children {
            let view = lab.engine.vm(*child).unwrap();
            assert_eq!((view.vm.state, &view.frozen), (State::Suspended, &layers));
            assert_eq!((view.vm.snapshot_of, view.vm.owner), (None, ALICE));
            assert_eq!((&view.vm.spec.hostname, view.vm.spec.memory), (&view.vm.name, Bytes::gib(1)));
            lab.start(*child).await;
            assert!(lab.continues(*child));
            let [Some(identity)] = &lab.sim.rejuvenated(*child)[..] else { panic!("it has no identity") };
            assert_eq!(identity.hostname, view.vm.name.to_string());
            assert_eq!(identity.network.as_ref().unwrap().replaces, Mac::of_guest(parent).0);
        }
        let keys = children.iter().map(|vm| lab.engine.vm(*vm).unwrap().vm.host_key.public().to_owned());
        assert_eq!(keys.collect::<BTreeSet<_>>().len(), 2);
        assert!(lab.sim.is_captured(snapshot), "it is used as often as wanted");
        for child in children {
            lab.delete(child).await;
        }
    }
    let child = lab.forked(parent, of_snapshot("clean", 1)).await[0];
    lab.engine.delete_snapshot(parent, clean()).await.unwrap();
    lab.start(child).await;
    assert!(lab.continues(child), "a child keeps what it shares");
    lab.delete(child).await;
    lab.start(parent).await;
    assert_eq!((lab.snapshots(parent), lab.sim.alive()), (Vec::new(), before));
}

#[tokio::test]
async fn a_snapshot_of_a_stopped_sandbox_has_its_disks() {
    let lab = EngineLab::new().await;
    let parent = lab.stopped().await;
    let snapshot = lab.snapshot(parent, "clean").await;
    assert_eq!(
        (lab.snapshots(parent), lab.sim.disk_sizes(snapshot)),
        (vec!["clean".to_owned()], lab.sim.disk_sizes(parent))
    );
    let layers = lab.engine.snapshots(parent)[0].frozen.clone();
    lab.start(parent).await;
    let child = lab.forked(parent, of_snapshot("clean", 1)).await[0];
    let view = lab.engine.vm(child).unwrap();
    assert_eq!((view.vm.state, &view.frozen), (State::Created, &layers));
    lab.start(child).await;
    assert!(lab.continues(child) && lab.sim.rejuvenated(child).is_empty());

    // Whatever its sandbox does meanwhile.
    lab.done(lab.engine.suspend_vm(parent).await.unwrap()).await;
    lab.forked(parent, of_snapshot("clean", 1)).await;
    lab.start(parent).await;
    lab.engine.pause_vm(parent).await.unwrap();
    lab.forked(parent, of_snapshot("clean", 1)).await;
    assert_eq!(lab.state(parent), State::Paused);
}

impl EngineLab {
    async fn restore(&self, vm: VmId, name: &str) {
        self.done(self.engine.restore_snapshot(vm, name.parse().unwrap()).await.unwrap()).await;
    }

    fn layers_of(&self, vm: VmId, name: &str) -> Vec<FrozenLayer> {
        let all = self.engine.snapshots(vm);
        all.iter().find(|snapshot| snapshot.vm.name.as_str() == name).unwrap().frozen.clone()
    }
}

#[tokio::test]
async fn a_sandbox_is_put_back_to_a_snapshot_of_its_disks() {
    let lab = EngineLab::new().await;
    let vm = lab.stopped().await;
    lab.snapshot(vm, "clean").await;
    lab.start(vm).await;
    lab.stop(vm).await;
    let (disk_size, memory) = (Some(Bytes::gib(20)), Some(Bytes::gib(2)));
    lab.engine.configure_vm(vm, Configure { disk_size, memory, ..Configure::default() }).await.unwrap();
    let (sizes, before, usage) = (lab.sim.disk_sizes(vm), lab.sim.alive(), lab.engine.usage(ALICE));
    lab.restore(vm, "clean").await;
    let view = lab.engine.vm(vm).unwrap();
    assert_eq!((view.vm.state, &view.frozen), (State::Stopped, &lab.layers_of(vm, "clean")));
    // No size changes: the row is right at each step.
    assert_eq!(lab.sim.disk_sizes(vm), sizes);
    assert_eq!((view.vm.spec.disk_size, view.vm.spec.memory), (Bytes::gib(20), Bytes::gib(2)));
    assert_eq!((lab.sim.alive(), lab.engine.usage(ALICE)), (before, usage));
    lab.start(vm).await;
    assert!(lab.sim.rejuvenated(vm).is_empty());
}

#[tokio::test]
async fn a_sandbox_is_put_back_to_a_snapshot_of_its_guest_as_often_as_wanted() {
    let lab = EngineLab::new().await;
    let vm = lab.web().await;
    lab.snapshot(vm, "ready").await;
    lab.stop(vm).await;
    let memory = Some(Bytes::gib(2));
    lab.engine.configure_vm(vm, Configure { memory, ..Configure::default() }).await.unwrap();
    lab.engine.rename_vm(vm, "site".parse().unwrap()).await.unwrap();
    for _ in 0..2 {
        lab.restore(vm, "ready").await;
        let view = lab.engine.vm(vm).unwrap();
        assert_eq!((view.vm.state, &view.frozen), (State::Suspended, &lab.layers_of(vm, "ready")));
        assert_eq!(view.vm.spec.memory, Bytes::gib(1));
        lab.start(vm).await;
        assert!(lab.continues(vm));
        let [Some(identity)] = &lab.sim.rejuvenated(vm)[..] else { panic!("it has no identity") };
        // It has the identity that it has now.
        assert_eq!(identity.hostname, "site");
        assert_eq!(identity.network.as_ref().unwrap().replaces, Mac::of_guest(vm).0);
        lab.stop(vm).await;
    }
    assert_eq!(lab.snapshots(vm), ["ready+"]);
    lab.restore(vm, "ready").await;
    let lab = lab.restart().await;
    lab.start(vm).await;
    assert!(lab.continues(vm), "a restart of the service loses nothing");
    lab.stop(vm).await;
    let disk_size = Some(Bytes::gib(20));
    lab.engine.configure_vm(vm, Configure { disk_size, ..Configure::default() }).await.unwrap();
    let grown = lab.engine.restore_snapshot(vm, "ready".parse().unwrap()).await.unwrap_err();
    assert!(matches!(grown, Error::GrownSince { .. }), "{grown}");
}

#[tokio::test]
async fn a_restoration_that_fails_at_any_step_leaves_what_was_there() {
    let mut failures = 0;
    for step in 0.. {
        let lab = EngineLab::new().await;
        let vm = lab.web().await;
        lab.snapshot(vm, "clean").await;
        lab.start(vm).await;
        lab.stop(vm).await;
        let facts = || {
            let view = lab.engine.vm(vm).unwrap();
            (
                view.vm.state,
                view.vm.spec.clone(),
                view.frozen.clone(),
                lab.engine.usage(ALICE),
                lab.sim.alive(),
            )
        };
        let before = facts();
        lab.sim.fail_at(Some(step));
        let restored = match lab.engine.restore_snapshot(vm, clean()).await {
            Ok(job) => matches!(lab.outcome(job).await, Outcome::Done),
            Err(_) => false,
        };
        let is_over = lab.sim.steps() <= step;
        lab.sim.fail_at(None);
        if !restored {
            failures += 1;
            assert_eq!(facts(), before, "step {step}");
        }
        lab.start(vm).await;
        assert!(lab.continues(vm), "step {step}");
        assert_eq!(lab.sim.rejuvenated(vm).len(), usize::from(restored), "step {step}");
        if is_over {
            break;
        }
    }
    // Layers, the ledger, a directory, disks; the ledger, memory, the exchange, and the row.
    assert_eq!(failures, 8);
}

#[tokio::test]
async fn what_cannot_be_put_back_stays_as_it_is() {
    let lab = EngineLab::new().await;
    let vm = lab.web().await;
    lab.snapshot(vm, "clean").await;
    let refused = async |expect: &str| {
        let error = lab.engine.restore_snapshot(vm, clean()).await.unwrap_err();
        assert_eq!(error.to_string(), expect);
    };
    refused("a sandbox that is running cannot be restored").await;
    lab.engine.pause_vm(vm).await.unwrap();
    refused("a sandbox that is paused cannot be restored").await;
    lab.engine.unpause_vm(vm).await.unwrap();
    lab.done(lab.engine.suspend_vm(vm).await.unwrap()).await;
    refused("web is suspended").await;
    lab.start(vm).await;
    lab.stop(vm).await;
    lab.engine.set_lifetime(vm, Lifetime::UntilStopped).await.unwrap();
    refused("web is deleted when it stops, with its snapshots; fork the snapshot instead").await;
    lab.engine.set_lifetime(vm, Lifetime::Persistent).await.unwrap();
    let missing = lab.engine.restore_snapshot(vm, "nope".parse().unwrap()).await.unwrap_err();
    assert_eq!(missing.to_string(), "web has no snapshot nope");

    // While it is put back, nothing else happens to it; a cancellation changes nothing.
    let (before, view) = (lab.sim.alive(), lab.engine.vm(vm).unwrap());
    lab.sim.block_workers(true);
    let job = lab.engine.restore_snapshot(vm, clean()).await.unwrap();
    assert_eq!((lab.engine.vm_jobs(vm), lab.snapshots(vm)), (vec![job], vec!["clean+".to_owned()]));
    let busy = |error: Error| assert!(matches!(error, Error::DisksBusy { .. }), "{error}");
    busy(lab.engine.start_vm(vm, Start::default()).await.unwrap_err());
    busy(lab.engine.restore_snapshot(vm, clean()).await.unwrap_err());
    busy(lab.engine.delete_snapshot(vm, clean()).await.unwrap_err());
    lab.engine.cancel_job(job).unwrap();
    assert!(matches!(lab.outcome(job).await, Outcome::Canceled));
    let after = lab.engine.vm(vm).unwrap();
    assert_eq!((lab.sim.alive(), after.vm.state, &after.frozen), (before, view.vm.state, &view.frozen));
}

#[tokio::test]
async fn what_cannot_be_forked_has_no_snapshot_made() {
    let lab = EngineLab::new().await;
    let parent = lab.web().await;
    let refused = async || lab.engine.create_snapshot(parent, clean()).await.unwrap_err();
    lab.engine.pause_vm(parent).await.unwrap();
    assert!(matches!(refused().await, Error::Paused { .. }));
    lab.engine.unpause_vm(parent).await.unwrap();
    lab.done(lab.engine.suspend_vm(parent).await.unwrap()).await;
    assert!(matches!(refused().await, Error::Suspended { .. }));
    lab.start(parent).await;
    lab.sim.refuse_freeze(parent);
    let job = lab.engine.create_snapshot(parent, clean()).await.unwrap();
    assert_eq!(lab.failed(job).await, "the guest did not freeze within 5 s");
    assert_eq!((lab.snapshots(parent).len(), lab.engine.usage(ALICE).vms), (0, 1));
}

#[tokio::test]
async fn a_snapshot_is_no_sandbox() {
    let lab = EngineLab::new().await;
    let parent = lab.web().await;
    let snapshot = lab.snapshot(parent, "clean").await;
    assert_eq!(lab.vm_names(), ["web"]);
    assert!(lab.engine.vm(snapshot).is_none());
    let id = snapshot.to_string();
    for reference in
        [Reference::Name(clean()), Reference::IdPrefix(id[..8].to_owned()), Reference::IdPrefix(id)]
    {
        let found = lab.engine.find_vm(ALICE, &reference).await;
        assert!(matches!(found, Err(Error::NoSuch { kind: Kind::Vm, .. })), "{found:?}");
    }
    let refused =
        |result: Result<_, Error>| assert!(matches!(result, Err(Error::NoSuch { .. })), "{result:?}");
    refused(lab.engine.start_vm(snapshot, Start::default()).await.map(drop));
    refused(lab.engine.stop_vm(snapshot, Stop::default()).await.map(drop));
    refused(lab.engine.delete_vm(snapshot, StopMode::Forced).await.map(drop));
    refused(lab.engine.rename_vm(snapshot, "other".parse().unwrap()).await);
    refused(lab.engine.fork_vm(snapshot, crate::fork::fork(1)).await.map(drop));
    assert_eq!(lab.engine.dns_names(snapshot), Vec::<String>::new());
    // Its name and the next address are free for sandboxes.
    let name = Some(clean());
    let (vm, job) = lab.engine.create_vm(CreateVm { name, ..request() }).await.unwrap();
    lab.done(job).await;
    let slot = |vm| lab.engine.vm(vm).unwrap().vm.slot.0;
    assert_eq!(slot(vm), slot(parent) + 1);
}

#[tokio::test]
async fn names_are_unique_among_the_snapshots_of_a_sandbox() {
    let lab = EngineLab::new().await;
    let (web, other) = (lab.web().await, lab.running().await);
    lab.snapshot(web, "clean").await;
    lab.snapshot(other, "clean").await;
    let refused = lab.engine.create_snapshot(web, clean()).await.unwrap_err();
    assert_eq!(refused.to_string(), "web already has a snapshot clean");
    let before = lab.sim.alive();
    let nope = || "nope".parse().unwrap();
    let missing = [
        lab.engine.delete_snapshot(web, nope()).await.unwrap_err(),
        lab.engine.fork_vm(web, of_snapshot("nope", 1)).await.unwrap_err(),
    ];
    for error in missing {
        assert_eq!(error.to_string(), "web has no snapshot nope");
    }
    assert_eq!(lab.sim.alive(), before);
    lab.engine.rename_vm(web, "site".parse().unwrap()).await.unwrap();
    lab.engine.delete_snapshot(web, clean()).await.unwrap();
    lab.snapshot(web, "clean").await;
    assert_eq!(
        (lab.snapshots(web), lab.snapshots(other)),
        (vec!["clean+".to_owned()], vec!["clean+".to_owned()])
    );
}

#[tokio::test]
async fn snapshots_count_as_sandboxes_do() {
    let refused = async |lab: &EngineLab, vm, name: &str| {
        let before = lab.sim.alive();
        let refused = lab.engine.create_snapshot(vm, name.parse().unwrap()).await;
        assert!(matches!(refused, Err(Error::Limit(_))), "{refused:?}");
        assert_eq!(lab.sim.alive(), before);
    };
    let lab = EngineLab::with(|settings| settings.limits.vms = 2).await;
    let parent = lab.stopped().await;
    lab.snapshot(parent, "clean").await;
    assert_eq!(lab.engine.usage(ALICE).vms, 2);
    refused(&lab, parent, "second").await;
    let fork = lab.engine.fork_vm(parent, of_snapshot("clean", 1)).await;
    assert!(matches!(fork, Err(Error::Limit(_))), "{fork:?}");
    lab.engine.delete_snapshot(parent, clean()).await.unwrap();
    lab.snapshot(parent, "second").await;

    // A work disk of 8 GiB each, and what is frozen, which counts once.
    let disk = Bytes(Bytes::gib(16).0 + Bytes::mib(1).0);
    let lab = EngineLab::with(|settings| settings.limits.disk = disk).await;
    let parent = lab.stopped().await;
    lab.snapshot(parent, "clean").await;
    assert_eq!(lab.engine.usage(ALICE).disk, disk);
    refused(&lab, parent, "second").await;
    let lab = lab.restart_with(|settings| settings.limits.disk = disk).await;
    assert_eq!(lab.engine.usage(ALICE).disk, disk);
    refused(&lab, parent, "second").await;

    // The memory is 1 GiB, and a capture takes 100 MiB then. Children of one snapshot share it.
    let lab = EngineLab::with(|settings| settings.limits.image_disk = Bytes::mib(1100)).await;
    let parent = lab.web().await;
    lab.snapshot(parent, "clean").await;
    refused(&lab, parent, "second").await;
    lab.forked(parent, of_snapshot("clean", 3)).await;
    let lab = lab.restart_with(|settings| settings.limits.image_disk = Bytes::mib(1100)).await;
    // Its guest has to answer first.
    lab.start(parent).await;
    refused(&lab, parent, "second").await;
}

#[tokio::test]
async fn a_sandbox_is_deleted_with_its_snapshots_if_that_was_asked_for() {
    let lab = EngineLab::new().await;
    let parent = lab.stopped().await;
    lab.snapshot(parent, "clean").await;
    lab.start(parent).await;
    lab.snapshot(parent, "ready").await;
    lab.stop(parent).await;
    assert_eq!(lab.snapshots(parent), ["clean", "ready+"]);
    let refused = lab.engine.delete_vm(parent, StopMode::Graceful).await.unwrap_err();
    assert_eq!(refused.to_string(), "web has 2 snapshots, which would be deleted with it");
    assert_eq!(lab.snapshots(parent).len(), 2);
    lab.delete(parent).await;
    assert_eq!((lab.sim.alive(), lab.engine.usage(ALICE).vms), (Vec::new(), 0));

    // Its end is that of its snapshots.
    let mut lab = lab;
    let lifetime = Lifetime::UntilStopped;
    let (vm, job) = lab.engine.create_vm(CreateVm { lifetime, ..request() }).await.unwrap();
    lab.done(job).await;
    lab.snapshot(vm, "clean").await;
    lab.engine.stop_vm(vm, Stop::default()).await.unwrap();
    lab.until(vm, |state| state.is_none()).await;
    assert_eq!(lab.sim.alive(), Vec::<String>::new());
}

#[tokio::test]
async fn a_deletion_that_fails_half_way_is_repeated_without_force() {
    let lab = EngineLab::new().await;
    let parent = lab.stopped().await;
    lab.snapshot(parent, "clean").await;
    lab.sim.block_removal(Resource::Disks, true);
    let job = lab.engine.delete_vm(parent, StopMode::Forced).await.unwrap();
    lab.failed(job).await;
    assert_eq!(lab.state(parent), State::Deleting);
    let refused = lab.engine.fork_vm(parent, of_snapshot("clean", 1)).await;
    assert!(matches!(refused, Err(Error::Deleted { .. })), "{refused:?}");
    lab.sim.block_removal(Resource::Disks, false);
    lab.done(lab.engine.delete_vm(parent, StopMode::Graceful).await.unwrap()).await;
    assert_eq!(lab.vm_names(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_is_left_of_a_deleted_snapshot_is_removed_later() {
    let lab = EngineLab::new().await;
    let parent = lab.stopped().await;
    let before = lab.sim.alive();
    lab.snapshot(parent, "clean").await;
    lab.sim.block_removal(Resource::Disks, true);
    lab.engine.delete_snapshot(parent, clean()).await.unwrap();
    assert_eq!(lab.snapshots(parent), Vec::<String>::new());
    assert_ne!(lab.sim.alive(), before);
    lab.sim.block_removal(Resource::Disks, false);
    lab.wait_until("its disks are removed", |lab| lab.sim.alive() == before).await;
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_survives_restarts_also_if_the_host_cannot_be_looked_at() {
    let lab = EngineLab::new().await;
    let parent = lab.web().await;
    lab.snapshot(parent, "ready").await;
    lab.stop(parent).await;
    lab.snapshot(parent, "clean").await;
    let before = lab.sim.alive();
    let lab = lab.restart().await;
    assert_eq!(lab.snapshots(parent), ["ready+", "clean"]);
    for resource in [Resource::Disks, Resource::Capture] {
        lab.sim.break_scan(resource, true);
    }
    let lab = lab.restart().await;
    for resource in [Resource::Disks, Resource::Capture] {
        lab.sim.break_scan(resource, false);
    }
    tokio::time::sleep(LONG).await;
    assert_eq!((lab.messages(ALICE).await, lab.sim.alive()), (Vec::new(), before));
    for (name, count) in [("clean", 1), ("ready", 2)] {
        for child in lab.forked(parent, of_snapshot(name, count)).await {
            lab.start(child).await;
            assert!(lab.continues(child));
            lab.delete(child).await;
        }
    }
    for name in ["ready", "clean"] {
        lab.engine.delete_snapshot(parent, name.parse().unwrap()).await.unwrap();
    }
    lab.delete(parent).await;
    assert_eq!(lab.sim.alive(), Vec::<String>::new());
}

#[tokio::test]
async fn a_snapshot_whose_sandbox_is_lost_is_removed() {
    let lab = EngineLab::new().await;
    let parent = lab.stopped().await;
    lab.snapshot(parent, "clean").await;
    lab.sim.lose_rows_of(parent);
    let lab = lab.restart().await;
    assert_eq!(lab.sim.alive(), Vec::<String>::new());
}

#[tokio::test]
async fn nothing_else_happens_to_a_sandbox_and_its_snapshots_while_one_is_made_or_forked() {
    let lab = EngineLab::new().await;
    let parent = lab.stopped().await;
    lab.snapshot(parent, "clean").await;
    let before = lab.sim.alive();
    let second: Name = "second".parse().unwrap();
    lab.sim.block_workers(true);
    for fork in [false, true] {
        let job = match fork {
            true => lab.engine.fork_vm(parent, of_snapshot("clean", 2)).await.unwrap().1,
            false => lab.engine.create_snapshot(parent, second.clone()).await.unwrap(),
        };
        assert_eq!(lab.engine.vm_jobs(parent), [job]);
        assert_eq!(lab.snapshots(parent), ["clean"], "one that is being made is not there yet");
        let busy = |error: Error| assert!(matches!(error, Error::DisksBusy { .. }), "{error}");
        busy(lab.engine.create_snapshot(parent, second.clone()).await.unwrap_err());
        busy(lab.engine.delete_snapshot(parent, clean()).await.unwrap_err());
        busy(lab.engine.fork_vm(parent, of_snapshot("clean", 1)).await.unwrap_err());
        busy(lab.engine.delete_vm(parent, StopMode::Forced).await.unwrap_err());
        lab.engine.cancel_job(job).unwrap();
        assert!(matches!(lab.outcome(job).await, Outcome::Canceled));
        assert_eq!((lab.vm_names(), lab.sim.alive()), (vec!["web".to_owned()], before.clone()));
    }
    lab.sim.block_workers(false);
    lab.snapshot(parent, "second").await;
}

#[tokio::test]
async fn a_resumption_and_a_fork_of_a_snapshot_wait_for_each_other() {
    let mut lab = EngineLab::new().await;
    let parent = lab.web().await;
    lab.snapshot(parent, "clean").await;
    lab.done(lab.engine.suspend_vm(parent).await.unwrap()).await;
    lab.sim.block_workers(true);
    let (_, job) = lab.engine.fork_vm(parent, of_snapshot("clean", 1)).await.unwrap();
    for refused in [
        lab.engine.resume_vm(parent, Start::default()).await,
        lab.engine.start_vm(parent, Start::default()).await,
    ] {
        assert!(matches!(refused, Err(Error::DisksBusy { .. })), "{refused:?}");
    }
    lab.sim.block_workers(false);
    lab.done(job).await;

    lab.sim.slow_captures(true);
    let job = lab.engine.resume_vm(parent, Start::default()).await.unwrap();
    lab.until(parent, |state| state == Some(State::Resuming)).await;
    let refused = lab.engine.fork_vm(parent, of_snapshot("clean", 1)).await;
    assert!(matches!(refused, Err(Error::NotReady { .. })), "{refused:?}");
    lab.engine.cancel_job(job).unwrap();
    lab.outcome(job).await;
    lab.sim.slow_captures(false);
    lab.forked(parent, of_snapshot("clean", 1)).await;
    lab.delete(parent).await;
    assert_eq!(lab.vm_names(), ["web-1", "web-2"]);
}

#[tokio::test]
async fn an_image_and_a_kernel_stay_for_a_snapshot() {
    let lab = EngineLab::new().await;
    let parent = lab.stopped().await;
    lab.snapshot(parent, "clean").await;
    let (image, kernel) = (lab.engine.images()[0].id, lab.engine.kernels()[0].id);
    let refused = [
        lab.engine.delete_image(image).await.unwrap_err().to_string(),
        lab.engine.delete_kernel(kernel).await.unwrap_err().to_string(),
        lab.engine.share_image(image, false).await.unwrap_err().to_string(),
    ];
    for refused in refused {
        assert!(refused.ends_with("is used by the snapshot clean of web, web"), "{refused}");
    }
}

#[tokio::test]
async fn a_snapshot_that_fails_at_any_step_leaves_the_guest_running_and_nothing_else() {
    let mut failures = 0;
    for step in 0.. {
        let lab = EngineLab::new().await;
        let parent = lab.web().await;
        let before = lab.sim.alive();
        lab.sim.fail_at(Some(step));
        let is_made = lab.try_snapshot(parent).await;
        let is_over = lab.sim.steps() <= step;
        lab.sim.fail_at(None);
        assert!(lab.continues(parent), "step {step}");
        if is_over {
            break;
        }
        if !is_made {
            failures += 1;
            assert_eq!((lab.snapshots(parent).len(), lab.sim.alive()), (0, before), "step {step}");
            assert_eq!(lab.engine.usage(ALICE).vms, 1, "step {step}");
            assert!(lab.try_snapshot(parent).await, "step {step}");
        }
    }
    assert!(failures >= 12, "{failures}");
}

#[tokio::test]
async fn a_fork_of_a_snapshot_that_fails_at_any_step_leaves_only_the_snapshot() {
    let mut failures = 0;
    for step in 0.. {
        let lab = EngineLab::new().await;
        let parent = lab.web().await;
        lab.snapshot(parent, "clean").await;
        let before = lab.sim.alive();
        lab.sim.fail_at(Some(step));
        let is_made = lab.ended(lab.engine.fork_vm(parent, of_snapshot("clean", 2)).await).await;
        lab.sim.fail_at(None);
        assert!(lab.continues(parent), "step {step}");
        if is_made {
            break;
        }
        failures += 1;
        assert_eq!((lab.vm_names(), lab.sim.alive()), (vec!["web".to_owned()], before), "step {step}");
        let child = lab.forked(parent, of_snapshot("clean", 1)).await[0];
        lab.start(child).await;
        assert!(lab.continues(child), "step {step}");
    }
    // Look at the layers; for each child the ledger, a directory and the disks, the ledger and the memory, and the row.
    assert_eq!(failures, 1 + 2 * 6);
}

#[tokio::test]
async fn a_crash_at_any_step_leaves_a_whole_snapshot_or_none() {
    let mut kept = 0;
    for step in 0.. {
        let lab = EngineLab::new().await;
        let parent = lab.web().await;
        lab.sim.panic_at(Some(step));
        let tried = tokio::time::timeout(Duration::from_millis(300), lab.try_snapshot(parent)).await;
        let is_over = lab.sim.steps() <= step;
        lab.sim.panic_at(None);
        let lab = lab.restart().await;
        let what = format!("step {step}, {tried:?}");
        lab.until_continues(parent, &what).await;
        assert_eq!(lab.vm_names(), ["web"], "{what}");
        if !lab.engine.snapshots(parent).is_empty() {
            kept += 1;
            let child = lab.forked(parent, of_snapshot("clean", 1)).await[0];
            lab.start(child).await;
            assert!(lab.continues(child), "{what}");
            lab.delete(child).await;
        }
        lab.delete(parent).await;
        assert_eq!(lab.sim.alive(), Vec::<String>::new(), "{what}");
        if is_over {
            assert!(tried == Ok(true) && step >= 12 && kept > 0, "{what}");
            return;
        }
    }
}
