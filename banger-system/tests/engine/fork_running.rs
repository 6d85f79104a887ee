//! Forks of a running sandbox on a host in memory: its guest continues, and so do its children, as guests of their own.

use std::{collections::BTreeSet, time::Duration};

use banger_domain::{
    clock::Occasion,
    id::VmId,
    lifecycle::State,
    net::nic::Mac,
    vm::{BootedFrom, Lifetime},
};
use banger_proto::size::Bytes;
use banger_system::{
    engine::{
        error::Error,
        request::{CreateVm, ForkVm, KeepMemory, Start, StartCause, Stop, StopMode, WaitFor},
        view::Outcome,
    },
    ports::{disks::MAX_DEPTH, supervisor::Ended},
};

use crate::{
    engine_lab::{ALICE, EngineLab, TIMEOUT, request},
    fork::fork,
};

const COLD: Start =
    Start { memory: KeepMemory::No, wait_for: WaitFor::Agent, ready_timeout: None, cause: StartCause::User };
const FORCED: Stop = Stop { timeout: None, mode: StopMode::Forced };

impl EngineLab {
    /// Creates a sandbox named `web` that runs.
    pub async fn web(&self) -> VmId {
        let name = Some("web".parse().unwrap());
        let (vm, job) = self.engine.create_vm(CreateVm { name, ..request() }).await.unwrap();
        self.done(job).await;
        vm
    }

    /// Returns whether the guest of a running sandbox runs, too, and answers to its token.
    pub fn continues(&self, vm: VmId) -> bool {
        let token = self.engine.vm(vm).unwrap().vm.token.clone();
        self.state(vm) == State::Running
            && !self.sim.stands_still(vm)
            && !self.sim.is_guest_frozen(vm)
            && !self.sim.has_run_unsynced()
            && self.sim.configured(vm).is_some_and(|config| config.token == token.as_str())
    }

    pub async fn until_continues(&self, vm: VmId, what: &str) {
        let continued = async {
            while !self.continues(vm) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let continued = tokio::time::timeout(TIMEOUT, continued).await;
        assert!(continued.is_ok(), "{what}: {} {:?}", self.state(vm), self.sim.alive());
    }

    /// Forks a sandbox once it is ready for that.
    async fn until_forked(&self, vm: VmId) {
        let forked = async {
            while let Err(error) = self.engine.fork_vm(vm, fork(1)).await {
                assert!(matches!(error, Error::NotReady { .. }), "{error}");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(TIMEOUT, forked).await.unwrap();
    }

    pub async fn delete(&self, vm: VmId) {
        self.done(self.engine.delete_vm(vm, StopMode::Forced).await.unwrap()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_running_guest_continues_and_so_do_its_children_as_other_guests() {
    let lab = EngineLab::new().await;
    let parent = lab.web().await;
    let boot = lab.engine.vm(parent).unwrap().vm.boot_id.clone();
    let children = lab.forked(parent, fork(3)).await;
    assert!(lab.continues(parent));
    assert_eq!(lab.engine.vm(parent).unwrap().vm.boot_id, boot);
    for child in &children {
        let view = lab.engine.vm(*child).unwrap();
        assert_eq!(view.vm.state, State::Suspended);
        assert!(view.captured.is_some() && view.frozen == lab.engine.vm(parent).unwrap().frozen);
        lab.start(*child).await;
        assert!(lab.continues(*child) && !lab.sim.is_captured(*child));
        let view = lab.engine.vm(*child).unwrap();
        assert_eq!(view.vm.booted_from, Some(BootedFrom::Suspension));
        let [Some(identity)] = &lab.sim.rejuvenated(*child)[..] else { panic!("it has no identity") };
        assert_eq!(identity.hostname, view.vm.name.to_string());
        assert_eq!(identity.machine_id, child.to_string());
        assert_eq!(identity.ssh.as_ref().unwrap().host_key_public, view.vm.host_key.public());
        let network = identity.network.as_ref().unwrap();
        assert_eq!(network.replaces, Mac::of_guest(parent).0);
        assert_eq!(network.network.mac, view.mac.0);
        assert_eq!(Some(network.network.ipv4), view.address);
    }
    let all = [&[parent], &children[..]].concat();
    let tokens = all.iter().map(|vm| lab.engine.vm(*vm).unwrap().vm.token.as_str().to_owned());
    assert_eq!(tokens.collect::<BTreeSet<_>>().len(), 4);
    assert!(lab.continues(parent) && lab.sim.rejuvenated(parent).is_empty());

    // From now on they are like any other: a child is forked, suspended and resumed.
    let grandchild = lab.forked(children[0], fork(1)).await[0];
    lab.start(grandchild).await;
    lab.done(lab.engine.suspend_vm(children[1]).await.unwrap()).await;
    lab.start(children[1]).await;
    assert_eq!(lab.sim.rejuvenated(children[1]), []);
    for vm in [&all[..], &[grandchild]].concat() {
        lab.delete(vm).await;
    }
    assert_eq!(lab.sim.alive(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_cannot_be_captured_is_refused_and_left_alone() {
    let lab = EngineLab::new().await;
    let parent = lab.web().await;
    lab.sim.refuse_freeze(parent);
    let (_, job) = lab.engine.fork_vm(parent, fork(2)).await.unwrap();
    assert_eq!(lab.failed(job).await, "the guest did not freeze within 5 s");
    assert!(lab.continues(parent));
    lab.engine.pause_vm(parent).await.unwrap();
    let refused = lab.engine.fork_vm(parent, fork(1)).await;
    assert!(matches!(refused, Err(Error::Paused { .. })), "{refused:?}");
    lab.engine.unpause_vm(parent).await.unwrap();
    lab.sim.forbid_captures();
    let refused = lab.engine.fork_vm(parent, fork(1)).await;
    assert!(matches!(refused, Err(Error::StillWriting { .. })), "{refused:?}");
    assert_eq!(lab.vm_names(), ["web"]);
}

#[tokio::test(start_paused = true)]
async fn the_memory_of_all_children_counts_once_and_before_it_is_written() {
    let lab = EngineLab::with(|settings| settings.limits.image_disk = Bytes::mib(1000)).await;
    let parent = lab.web().await;
    let refused = lab.engine.fork_vm(parent, fork(1)).await;
    assert!(matches!(refused, Err(Error::Limit(_))), "{refused:?}");
    assert_eq!((lab.vm_names(), lab.engine.vm(parent).unwrap().frozen.len()), (vec!["web".to_owned()], 0));

    // The memory is 1 GiB, and a capture takes 100 MiB then.
    let lab = EngineLab::with(|settings| settings.limits.image_disk = Bytes::mib(1200)).await;
    let parent = lab.web().await;
    lab.forked(parent, fork(3)).await;
    lab.forked(parent, fork(1)).await;
    let refused = lab.engine.fork_vm(parent, fork(1)).await;
    assert!(matches!(refused, Err(Error::Limit(_))), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn what_two_forks_of_one_user_will_freeze_counts_together() {
    let disk = Bytes(Bytes::gib(32).0 + Bytes::mib(1).0);
    let lab = EngineLab::with(|settings| settings.limits.disk = disk).await;
    let (first, second) = (lab.web().await, lab.running().await);
    lab.stop(first).await;
    lab.stop(second).await;
    lab.sim.block_workers(true);
    let (_, job) = lab.engine.fork_vm(first, fork(1)).await.unwrap();
    let refused = lab.engine.fork_vm(second, fork(1)).await;
    assert!(matches!(refused, Err(Error::Limit(_))), "{refused:?}");
    lab.sim.block_workers(false);
    lab.done(job).await;
}

#[tokio::test(start_paused = true)]
async fn each_fork_of_a_running_sandbox_adds_a_layer() {
    let lab = EngineLab::new().await;
    let parent = lab.web().await;
    for _ in 0..MAX_DEPTH {
        let children = lab.forked(parent, fork(1)).await;
        lab.done(lab.engine.delete_vm(children[0], StopMode::Graceful).await.unwrap()).await;
    }
    let refused = lab.engine.fork_vm(parent, fork(1)).await;
    assert!(matches!(refused, Err(Error::TooDeep)), "{refused:?}");
    assert!(lab.continues(parent));
}

#[tokio::test(start_paused = true)]
async fn requests_and_ends_during_a_capture() {
    let mut lab = EngineLab::new().await;
    let parent = lab.web().await;
    let before = lab.sim.alive();
    let begin = async |lab: &EngineLab| {
        lab.sim.slow_captures(true);
        let (_, job) = lab.engine.fork_vm(parent, fork(2)).await.unwrap();
        while !lab.sim.stands_still(parent) {
            tokio::task::yield_now().await;
        }
        job
    };
    let job = begin(&lab).await;
    let busy = |error: Error| assert!(matches!(error, Error::DisksBusy { .. }), "{error}");
    busy(lab.engine.suspend_vm(parent).await.unwrap_err());
    busy(lab.engine.pause_vm(parent).await.unwrap_err());
    busy(lab.engine.stop_vm(parent, Stop::default()).await.unwrap_err());
    busy(lab.engine.restart_vm(parent, Stop::default(), Start::default()).await.unwrap_err());
    busy(lab.engine.fork_vm(parent, fork(1)).await.unwrap_err());
    lab.engine.cancel_job(job).unwrap();
    assert!(matches!(lab.outcome(job).await, Outcome::Canceled));
    assert!(lab.continues(parent));
    assert_eq!((lab.vm_names(), lab.sim.alive()), (vec!["web".to_owned()], before.clone()));

    // The client of all children disconnects.
    lab.sim.slow_captures(true);
    let lifetime = Lifetime::Caller { connection: ":1.7".into(), bus: "bus".into() };
    let (_, job) = lab.engine.fork_vm(parent, ForkVm { lifetime, ..fork(2) }).await.unwrap();
    while !lab.sim.stands_still(parent) {
        tokio::task::yield_now().await;
    }
    lab.engine.client_disconnected(":1.7", "bus").await;
    assert!(matches!(lab.outcome(job).await, Outcome::Canceled));
    assert!(lab.continues(parent));
    assert_eq!((lab.vm_names(), lab.sim.alive()), (vec!["web".to_owned()], before));

    // Its VMM ends meanwhile, with and without a request.
    let job = begin(&lab).await;
    let stop = lab.engine.stop_vm(parent, FORCED).await.unwrap();
    lab.done(stop).await;
    assert_eq!(lab.failed(job).await, "web is not running");
    assert_eq!((lab.vm_names(), lab.state(parent)), (vec!["web".to_owned()], State::Stopped));
    lab.sim.slow_captures(false);
    lab.start(parent).await;
    let job = begin(&lab).await;
    lab.sim.end_process(parent, Ended::Failed("killed:9".to_owned()));
    assert_eq!(lab.failed(job).await, "web is not running");
    lab.until(parent, |state| state == Some(State::Failed)).await;
    lab.sim.slow_captures(false);
    lab.start(parent).await;
    let children = lab.forked(parent, fork(1)).await;
    lab.start(children[0]).await;
    assert!(lab.continues(parent) && lab.continues(children[0]));
}

/// Returns a sandbox whose guest stays frozen after a fork.
async fn stuck(lab: &EngineLab) -> VmId {
    let parent = lab.web().await;
    lab.sim.refuse_thaws(true);
    let (_, job) = lab.engine.fork_vm(parent, fork(1)).await.unwrap();
    let message = lab.failed(job).await;
    let expect = "web does not continue after the fork, and banger keeps trying: the agent does not answer";
    assert_eq!(message, expect);
    assert!(lab.sim.is_guest_frozen(parent) && !lab.sim.stands_still(parent));
    assert_eq!(lab.vm_names(), ["web"]);
    parent
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_continue_is_tried_until_it_does() {
    let lab = EngineLab::new().await;
    let parent = stuck(&lab).await;
    let not_ready = |error: Error| assert!(matches!(error, Error::NotReady { .. }), "{error}");
    not_ready(lab.engine.fork_vm(parent, fork(1)).await.unwrap_err());
    let job = lab.engine.suspend_vm(parent).await.unwrap();
    assert_eq!(lab.failed(job).await, "the guest of web does not answer yet");
    lab.sim.refuse_thaws(false);
    lab.until_continues(parent, "thawed").await;
    lab.until_forked(parent).await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_continue_is_tried_after_a_restart_until_it_does() {
    let lab = EngineLab::new().await;
    let parent = stuck(&lab).await;
    lab.sim.refuse_thaws(true);
    let lab = lab.restart().await;
    let tried = async {
        while lab.sim.refused_thaws() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, tried).await.unwrap();
    lab.sim.refuse_thaws(false);
    lab.until_continues(parent, "thawed").await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_continue_may_end_and_is_as_others_after_its_next_start() {
    let lab = EngineLab::new().await;
    let parent = stuck(&lab).await;
    lab.done(lab.engine.stop_vm(parent, FORCED).await.unwrap()).await;
    lab.sim.refuse_thaws(false);
    lab.start(parent).await;
    lab.forked(parent, fork(1)).await;
    assert!(lab.continues(parent));
}

#[tokio::test(start_paused = true)]
async fn a_crash_during_the_save_leaves_no_guest_standing_whatever_its_vmm_says() {
    let lab = EngineLab::new().await;
    let parent = lab.web().await;
    lab.sim.slow_captures(true);
    lab.engine.fork_vm(parent, fork(1)).await.unwrap();
    while !lab.sim.stands_still(parent) {
        tokio::task::yield_now().await;
    }
    lab.sim.silence_vmms(true);
    let lab = lab.restart().await;
    lab.until_continues(parent, "after the crash").await;
}

#[tokio::test(start_paused = true)]
async fn the_clock_is_set_before_the_disks_of_the_children_are_made() {
    let lab = EngineLab::new().await;
    let parent = lab.web().await;
    let before = lab.sim.clock_syncs(parent, Occasion::Jump);
    lab.sim.block_workers(true);
    let (_, job) = lab.engine.fork_vm(parent, fork(1)).await.unwrap();
    let set = async {
        while lab.sim.clock_syncs(parent, Occasion::Jump) == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, set).await.unwrap();
    lab.sim.block_workers(false);
    lab.done(job).await;
}

#[tokio::test(start_paused = true)]
async fn a_child_whose_programs_are_not_thawed_is_a_running_sandbox_and_tried_until_they_are() {
    let lab = EngineLab::new().await;
    let parent = lab.web().await;
    let child = lab.forked(parent, fork(1)).await[0];
    lab.sim.refuse_thaws(true);
    lab.start(child).await;
    assert_eq!(lab.state(child), State::Running);
    assert!(lab.sim.is_guest_frozen(child) && !lab.sim.is_captured(child));
    lab.sim.refuse_thaws(false);
    lab.until_continues(child, "thawed").await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_while_children_are_removed_leaves_no_row_without_disks() {
    let lab = EngineLab::new().await;
    let parent = lab.web().await;
    lab.sim.fail_at(None);
    lab.forked(parent, fork(2)).await;
    let last = lab.sim.steps();
    for (step, crash) in (1..=5).flat_map(|back| (1..=8).map(move |after| (last - back, after))) {
        let lab = EngineLab::new().await;
        let parent = lab.web().await;
        lab.sim.panic_at(Some(step + crash));
        lab.sim.fail_at(Some(step));
        let tried = async { lab.ended(lab.engine.fork_vm(parent, fork(2)).await).await };
        let _ = tokio::time::timeout(Duration::from_millis(200), tried).await;
        lab.sim.panic_at(None);
        lab.sim.fail_at(None);
        let lab = lab.restart().await;
        lab.until_continues(parent, &format!("step {step}, crash {crash}")).await;
        for view in lab.engine.vms().iter().filter(|view| view.vm.id != parent) {
            lab.start(view.vm.id).await;
            assert!(lab.continues(view.vm.id), "step {step}, crash {crash}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_child_whose_first_start_fails_at_any_step_stays_suspended_and_may_start_again() {
    for step in 0.. {
        let lab = EngineLab::new().await;
        let parent = lab.web().await;
        let child = lab.forked(parent, fork(1)).await[0];
        lab.sim.fail_at(Some(step));
        let started = match lab.engine.start_vm(child, Start::default()).await {
            Ok(job) => matches!(lab.outcome(job).await, Outcome::Done),
            Err(_) => false,
        };
        let is_over = lab.sim.steps() <= step;
        lab.sim.fail_at(None);
        let what = format!("step {step}, started {started}");
        if !started {
            assert_eq!(lab.state(child), State::Suspended, "{what}");
            assert!(lab.sim.is_captured(child), "{what}");
            lab.start(child).await;
        }
        assert!(lab.continues(child), "{what}");
        assert_eq!(lab.sim.rejuvenated(child).len(), 1, "{what}");
        lab.delete(child).await;
        if is_over {
            assert!(started && step >= 12, "{what}");
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_child_that_is_not_confirmed_can_be_booted_without_its_memory() {
    let lab = EngineLab::new().await;
    let parent = lab.web().await;
    let child = lab.forked(parent, fork(1)).await[0];
    lab.sim.damage_captures();
    let message = lab.failed(lab.engine.start_vm(child, Start::default()).await.unwrap()).await;
    assert_eq!(message, "its memory on disk has changed; a cold start keeps the disks");
    lab.done(lab.engine.start_vm(child, COLD).await.unwrap()).await;
    assert!(lab.continues(child) && !lab.sim.is_captured(child));
    assert_eq!(lab.engine.vm(child).unwrap().vm.booted_from, Some(BootedFrom::Cold));
}

#[tokio::test(start_paused = true)]
async fn a_fork_that_fails_at_any_step_leaves_the_guest_running_and_no_child() {
    let mut failures = 0;
    for step in 0.. {
        let lab = EngineLab::new().await;
        let parent = lab.web().await;
        let before = lab.sim.alive();
        lab.sim.fail_at(Some(step));
        let ended = lab.ended(lab.engine.fork_vm(parent, fork(2)).await).await;
        let is_over = lab.sim.steps() <= step;
        lab.sim.fail_at(None);
        assert!(lab.continues(parent), "step {step}");
        if is_over {
            break;
        }
        if !ended {
            failures += 1;
            assert_eq!((lab.vm_names(), lab.sim.alive()), (vec!["web".to_owned()], before), "step {step}");
        }
        let child = lab.forked(parent, fork(1)).await[0];
        lab.start(child).await;
        assert!(lab.continues(parent) && lab.continues(child), "step {step}");
    }
    // Letting the guest continue is tried again.
    assert!(failures >= 18, "{failures}");
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_step_leaves_the_guest_running_and_all_children_or_none() {
    for step in 0.. {
        let lab = EngineLab::new().await;
        let parent = lab.web().await;
        lab.sim.panic_at(Some(step));
        let tried = async { lab.ended(lab.engine.fork_vm(parent, fork(2)).await).await };
        let tried = tokio::time::timeout(Duration::from_millis(300), tried).await;
        let is_over = lab.sim.steps() <= step;
        lab.sim.panic_at(None);
        let lab = lab.restart().await;
        let what = format!("step {step}, {tried:?}");
        lab.until_continues(parent, &what).await;
        for view in lab.engine.vms().iter().filter(|view| view.vm.id != parent) {
            // Only those that have a row are there, and they are whole.
            assert_eq!(view.vm.state, State::Suspended, "{what}");
            lab.start(view.vm.id).await;
            assert!(lab.continues(view.vm.id), "{what}");
            lab.delete(view.vm.id).await;
        }
        // Its guest has to answer first.
        lab.start(parent).await;
        let child = lab.forked(parent, fork(1)).await[0];
        lab.delete(child).await;
        lab.delete(parent).await;
        assert_eq!(lab.sim.alive(), Vec::<String>::new(), "{what}");
        if is_over {
            assert!(tried == Ok(true) && step >= 18, "{what}");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_during_the_first_start_of_a_child_leaves_it_suspended_or_running() {
    for step in 0.. {
        let lab = EngineLab::new().await;
        let parent = lab.web().await;
        let child = lab.forked(parent, fork(1)).await[0];
        lab.sim.panic_at(Some(step));
        let tried = async {
            match lab.engine.start_vm(child, Start::default()).await {
                Ok(job) => matches!(lab.outcome(job).await, Outcome::Done),
                Err(_) => false,
            }
        };
        let tried = tokio::time::timeout(Duration::from_millis(300), tried).await;
        let is_over = lab.sim.steps() <= step;
        lab.sim.panic_at(None);
        let mut lab = lab.restart().await;
        let what = format!("step {step}, {tried:?}");
        lab.until(child, |state| matches!(state, Some(State::Suspended | State::Running))).await;
        if lab.state(child) == State::Suspended {
            lab.start(child).await;
        }
        lab.until_continues(child, &what).await;
        assert_eq!(lab.engine.usage(ALICE).running, 2, "{what}");
        if is_over {
            assert!(tried == Ok(true) && step >= 12, "{what}");
            return;
        }
    }
}
