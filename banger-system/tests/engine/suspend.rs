//! Suspending and resuming sandboxes: what works meanwhile, what is refused, and what failures and crashes leave.

use std::time::Duration;

use banger_domain::{
    clock::Occasion,
    id::{JobId, KernelId, VmId},
    lifecycle::{Reason, State},
    resource::Resource,
    stream::Purpose,
    vm::{BootedFrom, Lifetime},
};
use banger_proto::size::Bytes;
use banger_system::{
    engine::{
        error::Error,
        request::{Configure, CreateVm, KeepMemory, Start, StartCause, Stop, StopMode, WaitFor},
        view::Outcome,
    },
    ports::supervisor::Ended,
};

use crate::engine_lab::{ALICE, EngineLab, LONG, TIMEOUT, request};

const COLD: Start =
    Start { memory: KeepMemory::No, wait_for: WaitFor::Agent, ready_timeout: None, cause: StartCause::User };
const FORCED: Stop = Stop { timeout: None, mode: StopMode::Forced };

impl EngineLab {
    async fn suspend(&self, vm: VmId) {
        self.done(self.engine.suspend_vm(vm).await.unwrap()).await;
    }

    async fn cancel(&self, job: JobId) {
        self.engine.cancel_job(job).unwrap();
        let outcome = self.outcome(job).await;
        assert!(matches!(outcome, Outcome::Canceled), "{outcome:?}");
    }

    async fn suspended(&self) -> VmId {
        let vm = self.running().await;
        self.suspend(vm).await;
        vm
    }

    async fn resume(&self, vm: VmId) {
        self.done(self.engine.resume_vm(vm, Start::default()).await.unwrap()).await;
    }

    /// Tries to suspend or to resume. Returns whether that worked.
    async fn tries(&self, suspends: bool, vm: VmId) -> bool {
        let job = match suspends {
            true => self.engine.suspend_vm(vm).await,
            false => self.engine.resume_vm(vm, Start::default()).await,
        };
        match job {
            Ok(job) => matches!(self.outcome(job).await, Outcome::Done),
            Err(_) => false,
        }
    }

    /// Checks that the host has what belongs to the state of a VM, and nothing else.
    fn check(&self, vm: VmId, what: &str) {
        assert!(self.is_consistent(vm), "{what}: {} {:?}", self.state(vm), self.sim.alive());
    }

    fn is_consistent(&self, vm: VmId) -> bool {
        let (state, alive, id) = (self.state(vm), self.sim.alive(), vm.to_string());
        let has = |noun: &str| alive.iter().any(|thing| *thing == format!("{noun} {id}"));
        let parts = ["process", "nic", "sockets"].map(has);
        let captured = [self.sim.is_captured(vm), has("capture"), has("ledger capture")];
        match state {
            State::Running => parts == [true; 3] && captured == [false; 3] && !self.sim.stands_still(vm),
            State::Suspended => parts == [false; 3] && captured == [true; 3],
            _ => false,
        }
    }

    /// Waits until a recovered engine has brought a VM into one of these states.
    async fn settle(&self, vm: VmId, what: &str) {
        let settled = async {
            while !self.is_consistent(vm) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let settled = tokio::time::timeout(TIMEOUT, settled).await;
        assert!(settled.is_ok(), "{what}: {} {:?}", self.state(vm), self.sim.alive());
    }
}

#[tokio::test(start_paused = true)]
async fn a_suspended_sandbox_has_no_vmm_and_continues_with_its_memory() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    let token = lab.engine.vm(vm).unwrap().vm.token.clone();
    let boot = lab.engine.vm(vm).unwrap().vm.boot_id.clone();
    for _ in 0..2 {
        lab.suspend(vm).await;
        lab.check(vm, "suspended");
        let view = lab.engine.vm(vm).unwrap();
        assert!(view.captured.is_some() && !view.is_ready() && view.pid == 0);
        assert_eq!((view.vm.reason.clone(), lab.engine.usage(ALICE).running), (Reason::UserRequest, 0));
        lab.suspend(vm).await;

        let jumps = lab.sim.clock_syncs(vm, Occasion::Jump);
        lab.resume(vm).await;
        lab.check(vm, "resumed");
        let view = lab.engine.vm(vm).unwrap();
        assert!(view.captured.is_none() && view.is_ready() && view.vm.token == token);
        assert!(!boot.is_empty() && view.vm.boot_id == boot, "the same boot continues");
        assert_eq!(view.vm.booted_from, Some(BootedFrom::Suspension));
        assert!(lab.sim.clock_syncs(vm, Occasion::Jump) > jumps, "its clock is set");
        lab.resume(vm).await;
    }
    // A start resumes, too.
    lab.suspend(vm).await;
    lab.done(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    assert_eq!(lab.engine.vm(vm).unwrap().vm.booted_from, Some(BootedFrom::Suspension));
    lab.done(lab.engine.delete_vm(vm, StopMode::Forced).await.unwrap()).await;
    assert_eq!(lab.sim.alive(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_canceled_wait_leaves_a_resumed_guest_running() {
    let mut lab = EngineLab::new().await;
    let vm = lab.suspended().await;
    lab.sim.silence_guests(true);
    let job = lab.engine.resume_vm(vm, Start::default()).await.unwrap();
    lab.until(vm, |state| state == Some(State::Running)).await;
    lab.cancel(job).await;
    // Requests that the task handles after the cancellation.
    lab.engine.rename_vm(vm, "other".parse().unwrap()).await.unwrap();
    // The same after a restart of the service.
    let lab = lab.restart().await;
    assert_eq!(lab.engine.vm(vm).unwrap().vm.booted_from, Some(BootedFrom::Suspension));
    lab.cancel(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    lab.engine.rename_vm(vm, "another".parse().unwrap()).await.unwrap();
    lab.sim.silence_guests(false);
    lab.settle(vm, "its memory is kept").await;
}

#[tokio::test(start_paused = true)]
async fn a_canceled_resumption_leaves_the_sandbox_suspended_while_its_memory_is_loaded() {
    let mut lab = EngineLab::new().await;
    let vm = lab.suspended().await;
    lab.sim.slow_captures(true);
    let resume = async || lab.engine.resume_vm(vm, Start::default()).await.unwrap();
    let (first, second) = (resume().await, resume().await);
    lab.cancel(first).await;
    assert_eq!(lab.state(vm), State::Resuming, "another job waits");
    lab.cancel(second).await;
    lab.check(vm, "its memory is kept");
    assert_eq!(lab.engine.vm(vm).unwrap().vm.reason, Reason::UserRequest);
    let again = resume().await;
    lab.sim.slow_captures(false);
    lab.done(again).await;
    lab.check(vm, "resumed");

    // What loses the memory does not wait for it, either.
    for how in ["stop", "kill", "delete"] {
        lab.suspend(vm).await;
        lab.sim.slow_captures(true);
        let job = lab.engine.resume_vm(vm, Start::default()).await.unwrap();
        for refused in [
            lab.engine.stop_vm(vm, Stop::default()).await,
            lab.engine.restart_vm(vm, Stop::default(), Start::default()).await,
        ] {
            assert!(matches!(refused, Err(Error::Suspended { .. })), "{refused:?}");
        }
        match how {
            "stop" => lab.done(lab.engine.stop_vm(vm, FORCED).await.unwrap()).await,
            "kill" => lab.engine.kill_vm(vm, 9).await.unwrap(),
            _ => lab.done(lab.engine.delete_vm(vm, StopMode::Forced).await.unwrap()).await,
        }
        lab.failed(job).await;
        lab.sim.slow_captures(false);
        if how != "delete" {
            lab.until(vm, |state| state == Some(State::Stopped)).await;
            assert!(!lab.sim.is_captured(vm), "{how}");
            lab.done(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
        }
    }
    assert_eq!(lab.sim.alive(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_canceled_suspension_leaves_the_guest_running() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    lab.sim.slow_captures(true);
    let suspend = async || lab.engine.suspend_vm(vm).await.unwrap();
    let (first, second) = (suspend().await, suspend().await);
    lab.cancel(first).await;
    assert_eq!(lab.state(vm), State::Suspending, "another job waits");
    lab.cancel(second).await;
    lab.check(vm, "it runs on");
    assert_eq!(lab.engine.vm(vm).unwrap().captured, None);
    lab.sim.slow_captures(false);
    lab.suspend(vm).await;
    lab.resume(vm).await;
    lab.check(vm, "it can be suspended");
}

#[tokio::test(start_paused = true)]
async fn a_vmm_that_cannot_be_ended_is_ended_later() {
    for by_user in [true, false] {
        let lab = EngineLab::new().await;
        let vm = lab.running().await;
        lab.sim.withstand_kills(true);
        let message = lab.failed(lab.engine.suspend_vm(vm).await.unwrap()).await;
        assert_eq!(message, "the unit does not go away");
        assert_eq!(lab.state(vm), State::Suspending);
        let problems = lab.messages(ALICE).await;
        assert!(problems.iter().any(|problem| problem.contains("VMM process")), "{problems:?}");
        lab.sim.withstand_kills(false);
        match by_user {
            true => lab.suspend(vm).await,
            false => lab.wait_until("suspended", |lab| lab.state(vm) == State::Suspended).await,
        }
        lab.check(vm, "ended");
        assert_eq!(lab.messages(ALICE).await, Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn a_vmm_that_keeps_its_pipe_open_ends_the_suspension() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    lab.sim.keep_pipes(true);
    let job = lab.engine.suspend_vm(vm).await.unwrap();
    let view = tokio::time::timeout(LONG, lab.engine.wait_job(job, None)).await.unwrap().unwrap();
    let Some(Outcome::Failed(error)) = &view.outcome else { panic!("{view:?}") };
    assert_eq!(error.to_string(), "reading the memory of the guest took longer than 60 s");
    lab.check(vm, "it runs on");
}

#[tokio::test(start_paused = true)]
async fn another_kernel_of_the_sandbox_does_not_get_the_memory() {
    let lab = EngineLab::new().await;
    let vm = lab.suspended().await;
    lab.sim.replace_kernel_of(vm, KernelId::from_bits(77));
    let lab = lab.restart().await;
    let message = lab.failed(lab.engine.resume_vm(vm, Start::default()).await.unwrap()).await;
    assert!(message.starts_with("the sandbox's kernel ("), "{message}");
    lab.check(vm, "it stays suspended");
}

#[tokio::test(start_paused = true)]
async fn memory_that_cannot_be_removed_counts_against_the_quota() {
    let lab = EngineLab::new().await;
    let vm = lab.suspended().await;
    lab.sim.block_removal(Resource::Capture, true);
    lab.resume(vm).await;
    assert!(lab.engine.vm(vm).unwrap().captured.is_some(), "it is still on disk");
    let refused = lab.engine.suspend_vm(vm).await.unwrap();
    assert_eq!(lab.failed(refused).await, "the capture does not go away");
    assert_eq!(lab.state(vm), State::Running);
    lab.sim.block_removal(Resource::Capture, false);
    lab.suspend(vm).await;
    lab.check(vm, "suspended");
}

#[tokio::test(start_paused = true)]
async fn a_request_to_a_suspended_guest_resumes_it() {
    let lab = EngineLab::new().await;
    lab.sim.enable_agents();
    let vm = lab.suspended().await;
    lab.engine.open_agent(vm, ALICE, Purpose::default(), TIMEOUT).await.unwrap();
    assert_eq!(lab.state(vm), State::Running);
    // Two at the same time resume it once.
    lab.suspend(vm).await;
    let open = || lab.engine.open_agent(vm, ALICE, Purpose::default(), TIMEOUT);
    let (one, other) = tokio::join!(open(), open());
    assert!(one.is_ok() && other.is_ok(), "{one:?} {other:?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_while_the_memory_is_loaded_but_no_longer_than_its_own_time() {
    let lab = EngineLab::new().await;
    lab.sim.enable_agents();
    let vm = lab.suspended().await;
    lab.sim.slow_captures(true);
    let open = |timeout| lab.engine.open_agent(vm, ALICE, Purpose::default(), timeout);
    for _ in 0..2 {
        let late = open(Duration::from_millis(20)).await;
        assert!(matches!(late, Err(Error::Suspended { .. })), "{late:?}");
        assert_eq!(lab.state(vm), State::Resuming);
    }
    let loaded = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        lab.sim.slow_captures(false);
    };
    let (opened, ()) = tokio::join!(open(TIMEOUT), loaded);
    assert!(opened.is_ok(), "{opened:?}");
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_cannot_be_resumed_says_why_to_each_request() {
    let lab = EngineLab::new().await;
    let vm = lab.suspended().await;
    lab.sim.damage_captures();
    let opened = lab.engine.open_agent(vm, ALICE, Purpose::default(), TIMEOUT).await;
    let Err(Error::Dependency { why }) = opened else { panic!("{opened:?}") };
    assert!(matches!(*why, Error::CannotResume { .. }), "{why}");
    let message = lab.failed(lab.engine.resume_vm(vm, Start::default()).await.unwrap()).await;
    assert_eq!(message, "its memory on disk has changed; a cold start keeps the disks");
    lab.check(vm, "it stays suspended");
    lab.done(lab.engine.start_vm(vm, COLD).await.unwrap()).await;
    lab.check(vm, "cold");
    assert_eq!(lab.engine.vm(vm).unwrap().vm.booted_from, Some(BootedFrom::Cold));
}

#[tokio::test(start_paused = true)]
async fn another_vmm_does_not_load_the_memory() {
    let lab = EngineLab::new().await;
    let vm = lab.suspended().await;
    lab.sim.upgrade_saving_vmm();
    let message = lab.failed(lab.engine.resume_vm(vm, Start::default()).await.unwrap()).await;
    assert_eq!(
        message,
        "the VMM (1, now 2) has changed since the sandbox was suspended; a cold start keeps the disks"
    );
    lab.check(vm, "it stays suspended");
}

#[tokio::test(start_paused = true)]
async fn a_vmm_that_cannot_save_guests_is_left_alone() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    lab.sim.forbid_captures();
    let message = lab.failed(lab.engine.suspend_vm(vm).await.unwrap()).await;
    assert_eq!(message, "this VMM cannot save guests");
    lab.check(vm, "it runs");
}

#[tokio::test(start_paused = true)]
async fn impossible_requests_are_refused_and_change_nothing() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    lab.engine.pause_vm(vm).await.unwrap();
    for refused in [lab.engine.suspend_vm(vm).await, lab.engine.resume_vm(vm, Start::default()).await] {
        assert!(matches!(refused, Err(Error::Paused { .. })), "{refused:?}");
    }
    lab.engine.unpause_vm(vm).await.unwrap();

    lab.suspend(vm).await;
    let memory = Configure { memory: Some(Bytes::gib(2)), ..Configure::default() };
    for refused in [
        lab.engine.stop_vm(vm, Stop::default()).await.map(drop),
        lab.engine.restart_vm(vm, Stop::default(), Start::default()).await.map(drop),
        lab.engine.configure_vm(vm, memory).await,
    ] {
        assert!(matches!(refused, Err(Error::Suspended { .. })), "{refused:?}");
    }
    assert!(matches!(lab.engine.pause_vm(vm).await, Err(Error::State(_))));
    lab.engine.rename_vm(vm, "other".parse().unwrap()).await.unwrap();
    lab.check(vm, "it stays suspended");

    lab.done(lab.engine.stop_vm(vm, FORCED).await.unwrap()).await;
    assert_eq!((lab.state(vm), lab.sim.is_captured(vm)), (State::Stopped, false));
    for refused in [lab.engine.suspend_vm(vm).await, lab.engine.resume_vm(vm, Start::default()).await] {
        assert!(matches!(refused, Err(Error::State(_))), "{refused:?}");
    }
    lab.sim.silence_guests(true);
    lab.failed(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    let refused = lab.engine.suspend_vm(vm).await;
    assert!(matches!(refused, Err(Error::NotReady { .. })), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn the_memory_on_disk_counts_against_the_quota() {
    let lab = EngineLab::with(|settings| settings.limits.image_disk = Bytes::mib(1500)).await;
    let (first, second) = (lab.running().await, lab.running().await);
    lab.suspend(first).await;
    let second_too = lab.engine.suspend_vm(second).await.unwrap();
    // What the first takes is known by now, and less than its memory.
    lab.done(second_too).await;

    let lab = EngineLab::with(|settings| settings.limits.image_disk = Bytes::mib(1000)).await;
    let vm = lab.running().await;
    let message = lab.failed(lab.engine.suspend_vm(vm).await.unwrap()).await;
    assert!(message.starts_with("you may have 1000 MiB of images, and this would make it "), "{message}");
    lab.check(vm, "it runs");
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_ends_while_it_is_suspended_or_being_suspended() {
    let mut lab = EngineLab::new().await;
    lab.sim.slow_captures(true);
    let (stopped, crashed, deleted) = (lab.running().await, lab.running().await, lab.running().await);
    let mut jobs = Vec::new();
    for vm in [stopped, crashed, deleted] {
        jobs.push(lab.engine.suspend_vm(vm).await.unwrap());
        lab.until(vm, |state| state == Some(State::Suspending)).await;
        let opened = lab.engine.open_agent(vm, ALICE, Purpose::default(), TIMEOUT).await;
        assert!(matches!(opened, Err(Error::Suspended { .. })), "{opened:?}");
    }
    let refused = lab.engine.stop_vm(stopped, Stop::default()).await;
    assert!(matches!(refused, Err(Error::Suspended { .. })), "{refused:?}");
    lab.done(lab.engine.stop_vm(stopped, FORCED).await.unwrap()).await;
    lab.sim.end_process(crashed, Ended::Failed("killed:9".to_owned()));
    lab.until(crashed, |state| state == Some(State::Failed)).await;
    lab.done(lab.engine.delete_vm(deleted, StopMode::Forced).await.unwrap()).await;
    for job in jobs {
        lab.failed(job).await;
    }
    assert_eq!((lab.state(stopped), lab.state(crashed)), (State::Stopped, State::Failed));
    lab.sim.slow_captures(false);
    for vm in [stopped, crashed] {
        lab.done(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
        lab.check(vm, "it starts again");
        lab.suspend(vm).await;
        lab.done(lab.engine.delete_vm(vm, StopMode::Graceful).await.unwrap()).await;
    }
    assert_eq!(lab.sim.alive(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_of_one_run_stays_while_it_is_suspended() {
    let lab = EngineLab::new().await;
    let (vm, job) =
        lab.engine.create_vm(CreateVm { lifetime: Lifetime::UntilStopped, ..request() }).await.unwrap();
    lab.done(job).await;
    lab.suspend(vm).await;
    let lab = lab.restart().await;
    lab.resume(vm).await;
    lab.check(vm, "resumed");
}

#[tokio::test(start_paused = true)]
async fn a_failure_at_any_step_leaves_the_guest_running_or_suspended() {
    for suspends in [true, false] {
        let lab = EngineLab::new().await;
        let vm = lab.running().await;
        for step in 0.. {
            if suspends && lab.state(vm) == State::Suspended {
                lab.resume(vm).await;
            }
            if !suspends && lab.state(vm) == State::Running {
                lab.suspend(vm).await;
            }
            lab.sim.fail_at(Some(step));
            let worked = lab.tries(suspends, vm).await;
            let is_over = lab.sim.steps() <= step;
            lab.sim.fail_at(None);
            let what = format!("suspends {suspends}, step {step}, worked {worked}");
            let expected = if worked == suspends { State::Suspended } else { State::Running };
            assert_eq!(lab.state(vm), expected, "{what}");
            lab.check(vm, &what);
            if is_over {
                assert!(worked && step >= 7, "{what}");
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_step_leaves_the_guest_running_or_suspended() {
    for suspends in [true, false] {
        let mut lab = EngineLab::new().await;
        let vm = lab.running().await;
        for step in 0.. {
            if lab.state(vm) == State::Running {
                // Its guest has to answer.
                lab.done(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
            }
            if suspends && lab.state(vm) == State::Suspended {
                lab.resume(vm).await;
            }
            if !suspends && lab.state(vm) == State::Running {
                lab.suspend(vm).await;
            }
            lab.sim.panic_at(Some(step));
            let tried = tokio::time::timeout(Duration::from_millis(300), lab.tries(suspends, vm)).await;
            let is_over = lab.sim.steps() <= step;
            lab.sim.panic_at(None);
            lab = lab.restart().await;
            let what = format!("suspends {suspends}, step {step}, {tried:?}");
            lab.settle(vm, &what).await;
            if is_over {
                assert!(tried == Ok(true) && step >= 7, "{what}");
                break;
            }
        }
        // All of it still works.
        if lab.state(vm) == State::Suspended {
            lab.resume(vm).await;
        }
        lab.done(lab.engine.delete_vm(vm, StopMode::Forced).await.unwrap()).await;
        assert_eq!(lab.sim.alive(), Vec::<String>::new());
    }
}
