//! Forks on a host in memory: new sandboxes with the disks of one that is down.

use std::collections::BTreeSet;

use banger_domain::{
    id::{JobId, VmId},
    lifecycle::State,
    net::port::Port,
    vm::Lifetime,
};
use banger_proto::size::Bytes;
use banger_system::{
    engine::{
        error::Error,
        request::{CreateVm, ForkVm, Start, Stop, StopMode},
        view::Outcome,
    },
    ports::disks::MAX_DEPTH,
};

use crate::engine_lab::{ALICE, EngineLab, request};

pub fn fork(count: u32) -> ForkVm {
    ForkVm { count, names: Vec::new(), snapshot: None, lifetime: Lifetime::Persistent }
}

fn named(names: &[&str]) -> ForkVm {
    let names: Vec<_> = names.iter().map(|name| name.parse().unwrap()).collect();
    ForkVm { count: names.len() as u32, names, snapshot: None, lifetime: Lifetime::Persistent }
}

impl EngineLab {
    /// Creates a sandbox named `web` that has written to its disks.
    pub async fn stopped(&self) -> VmId {
        let name = Some("web".parse().unwrap());
        let (vm, job) = self.engine.create_vm(CreateVm { name, ..request() }).await.unwrap();
        self.done(job).await;
        self.stop(vm).await;
        vm
    }

    pub async fn stop(&self, vm: VmId) {
        self.done(self.engine.stop_vm(vm, Stop::default()).await.unwrap()).await;
    }

    pub async fn start(&self, vm: VmId) {
        self.done(self.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    }

    pub async fn forked(&self, vm: VmId, request: ForkVm) -> Vec<VmId> {
        let (children, job) = self.engine.fork_vm(vm, request).await.unwrap();
        self.done(job).await;
        children
    }

    pub fn vm_names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.engine.vms().iter().map(|view| view.vm.name.to_string()).collect();
        names.sort();
        names
    }

    /// Waits until a job ends, whatever it was refused for.
    pub async fn ended(&self, begun: Result<(Vec<VmId>, JobId), Error>) -> bool {
        match begun {
            Ok((_, job)) => matches!(self.outcome(job).await, Outcome::Done),
            Err(_) => false,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn children_have_the_disks_of_their_parent_and_an_identity_of_their_own() {
    let lab = EngineLab::new().await;
    let parent = lab.stopped().await;
    let children = lab.forked(parent, fork(2)).await;
    assert_eq!(lab.vm_names(), ["web", "web-1", "web-2"]);
    let all: Vec<_> = [parent].iter().chain(&children).map(|vm| lab.engine.vm(*vm).unwrap()).collect();
    for child in &all[1..] {
        assert_eq!((child.vm.state, child.vm.owner), (State::Created, ALICE));
        assert_eq!(lab.sim.disk_sizes(child.vm.id), lab.sim.disk_sizes(parent));
        assert_eq!(child.frozen, all[0].frozen);
        assert_eq!(child.vm.spec.hostname, child.vm.name);
        assert_eq!(child.vm.spec.ports, BTreeSet::<Port>::new());
    }
    let distinct = |of: &dyn Fn(usize) -> String| (0..all.len()).map(of).collect::<BTreeSet<_>>().len();
    assert_eq!(distinct(&|at| all[at].vm.host_key.public().to_owned()), 3);
    assert_eq!(distinct(&|at| all[at].vm.slot.0.to_string()), 3);
    assert_eq!(distinct(&|at| all[at].mac.to_string()), 3);

    // The parent goes first, and nothing is left after the last child.
    lab.done(lab.engine.delete_vm(parent, StopMode::Graceful).await.unwrap()).await;
    for child in children {
        lab.start(child).await;
        lab.done(lab.engine.delete_vm(child, StopMode::Forced).await.unwrap()).await;
    }
    assert_eq!(lab.sim.alive(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn names_are_free_numbers_or_those_of_the_request() {
    let lab = EngineLab::new().await;
    let parent = lab.stopped().await;
    lab.forked(parent, named(&["web-2", "left"])).await;
    lab.forked(parent, fork(2)).await;
    assert_eq!(lab.vm_names(), ["left", "web", "web-1", "web-2", "web-3"]);
    for refused in [named(&["new", "left"]), named(&["new", "new"])] {
        assert!(lab.engine.fork_vm(parent, refused).await.is_err());
    }
    assert_eq!(lab.vm_names(), ["left", "web", "web-1", "web-2", "web-3"]);
}

#[tokio::test(start_paused = true)]
async fn quotas_are_checked_before_anything_is_made() {
    let refused = async |lab: &EngineLab, parent, count| {
        let refused = lab.engine.fork_vm(parent, fork(count)).await.unwrap_err();
        assert!(matches!(refused, Error::Limit(_)), "{refused}");
    };
    let lab = EngineLab::with(|settings| settings.limits.vms = 3).await;
    let parent = lab.stopped().await;
    refused(&lab, parent, 3).await;
    assert_eq!(lab.engine.vm(parent).unwrap().frozen, [], "it was frozen in vain");
    lab.forked(parent, fork(2)).await;

    // Each has a work disk of 8 GiB, and what is frozen counts once.
    let disk = Bytes(Bytes::gib(32).0 + Bytes::mib(1).0);
    let lab = EngineLab::with(|settings| settings.limits.disk = disk).await;
    let parent = lab.stopped().await;
    refused(&lab, parent, 4).await;
    let children = lab.forked(parent, fork(2)).await;
    lab.forked(parent, fork(1)).await;
    lab.start(parent).await;
    lab.stop(parent).await;
    // Another layer is too much, even if the number of sandboxes is the same.
    lab.done(lab.engine.delete_vm(children[0], StopMode::Graceful).await.unwrap()).await;
    refused(&lab, parent, 1).await;
    // After a restart of the service the layers still count.
    let lab = lab.restart().await;
    assert_eq!(lab.engine.vm(parent).unwrap().frozen.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn disks_are_forked_only_so_often() {
    let lab = EngineLab::new().await;
    let parent = lab.stopped().await;
    for round in 1..=MAX_DEPTH {
        let children = lab.forked(parent, fork(1)).await;
        // Nothing was written since, so this adds no layer.
        lab.forked(parent, fork(1)).await;
        assert_eq!(lab.engine.vm(children[0]).unwrap().frozen.len(), round);
        lab.start(parent).await;
        lab.stop(parent).await;
    }
    let before = lab.vm_names();
    let refused = lab.engine.fork_vm(parent, fork(1)).await.unwrap_err();
    assert!(matches!(refused, Error::TooDeep), "{refused}");
    assert_eq!(lab.vm_names(), before);
}

#[tokio::test(start_paused = true)]
async fn nothing_uses_the_disks_of_a_sandbox_while_it_is_forked() {
    let lab = EngineLab::new().await;
    let parent = lab.stopped().await;
    let before = lab.sim.alive();
    lab.sim.block_workers(true);
    let (_, job) = lab.engine.fork_vm(parent, fork(3)).await.unwrap();
    assert_eq!(lab.engine.vm_jobs(parent), [job]);
    let busy = |error: Error| assert!(matches!(error, Error::DisksBusy { .. }), "{error}");
    busy(lab.engine.start_vm(parent, Start::default()).await.unwrap_err());
    busy(lab.engine.delete_vm(parent, StopMode::Forced).await.unwrap_err());
    busy(lab.engine.fork_vm(parent, fork(1)).await.unwrap_err());
    lab.engine.cancel_job(job).unwrap();
    lab.sim.block_workers(false);
    assert!(matches!(lab.outcome(job).await, Outcome::Canceled));
    assert_eq!((lab.vm_names(), lab.sim.alive()), (vec!["web".to_owned()], before));
    lab.start(parent).await;
}

#[tokio::test(start_paused = true)]
async fn a_fork_whose_caller_is_gone_is_canceled_and_leaves_nothing() {
    let lab = EngineLab::new().await;
    let parent = lab.stopped().await;
    let before = lab.sim.alive();
    let bound = |connection: &str| ForkVm {
        lifetime: Lifetime::Caller { connection: connection.into(), bus: "bus".into() },
        ..fork(2)
    };
    lab.sim.block_workers(true);
    let (_, job) = lab.engine.fork_vm(parent, bound(":1.7")).await.unwrap();
    while lab.sim.alive() == before {
        tokio::task::yield_now().await;
    }
    // Others have nothing to do with it.
    for (connection, bus) in [(":1.8", "bus"), (":1.7", "other")] {
        lab.engine.client_disconnected(connection, bus).await;
    }
    assert!(lab.engine.job(job).unwrap().outcome.is_none());
    lab.engine.client_disconnected(":1.7", "bus").await;
    lab.sim.block_workers(false);
    let outcome = lab.outcome(job).await;
    assert!(matches!(outcome, Outcome::Canceled), "{outcome:?}");
    assert_eq!((lab.vm_names(), lab.sim.alive()), (vec!["web".to_owned()], before));

    // A sandbox that stays is made although its caller is gone.
    lab.sim.block_workers(true);
    let (children, job) = lab.engine.fork_vm(parent, fork(1)).await.unwrap();
    lab.engine.client_disconnected(":1.7", "bus").await;
    lab.sim.block_workers(false);
    lab.done(job).await;
    assert_eq!(lab.state(children[0]), State::Created);
}

#[tokio::test(start_paused = true)]
async fn a_crash_during_a_fork_leaves_the_parent_alone() {
    let lab = EngineLab::new().await;
    let parent = lab.stopped().await;
    let before = lab.sim.alive();
    lab.sim.block_workers(true);
    lab.engine.fork_vm(parent, fork(3)).await.unwrap();
    while lab.sim.alive() == before {
        tokio::task::yield_now().await;
    }
    let lab = lab.restart().await;
    lab.sim.block_workers(false);
    assert_eq!((lab.vm_names(), lab.sim.alive()), (vec!["web".to_owned()], before));
    lab.forked(parent, fork(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_fork_that_fails_at_any_step_leaves_nothing_and_may_be_repeated() {
    let mut failures = 0;
    for step in 0.. {
        let lab = EngineLab::new().await;
        let parent = lab.stopped().await;
        let before = lab.sim.alive();
        lab.sim.fail_at(Some(step));
        let ended = lab.ended(lab.engine.fork_vm(parent, fork(2)).await).await;
        lab.sim.fail_at(None);
        if ended {
            break;
        }
        failures += 1;
        assert_eq!((lab.vm_names(), lab.sim.alive()), (vec!["web".to_owned()], before), "step {step}");
        lab.forked(parent, fork(2)).await;
        lab.start(parent).await;
    }
    // Look, freeze and look again; for each child the ledger, a directory, the disks and the row.
    assert_eq!(failures, 3 + 2 * 4);
}
