//! Sandboxes that idle: what counts as use, what happens after the time of the policy, and that nothing runs without one.

use std::time::Duration;

use banger_domain::{
    id::VmId,
    idle::{Busy, IdlePolicy, Use},
    lifecycle::{Reason, State},
    stream::Purpose,
};
use banger_system::engine::{
    request::{Configure, CreateVm, Start},
    view::Outcome,
};

use crate::engine_lab::{ALICE, EngineLab, TIMEOUT, request};

const MINUTE: Duration = Duration::from_secs(60);

pub fn policy(action: &str, minutes: u32) -> Option<IdlePolicy> {
    Some(IdlePolicy::new(action, minutes * MINUTE).unwrap())
}

impl EngineLab {
    pub async fn idling(&self, action: &str, minutes: u32) -> VmId {
        let request = CreateVm { idle: policy(action, minutes), ..request() };
        let (vm, job) = self.engine.create_vm(request).await.unwrap();
        self.done(job).await;
        vm
    }

    /// Lets minutes pass, and the looks that are due.
    pub async fn pass(&self, minutes: u32) {
        for _ in 0..minutes {
            tokio::time::sleep(MINUTE).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn busy(&self, vm: VmId) -> Option<Busy> {
        self.engine.vm(vm).unwrap().busy
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_sandbox_is_suspended_after_its_time_and_says_why() {
    let lab = EngineLab::new().await;
    let vm = lab.idling("suspend", 30).await;
    let other = lab.running().await;
    lab.pass(2).await;
    let view = lab.engine.vm(vm).unwrap();
    assert!(view.idle_at.is_some() && view.busy.is_none(), "{view:?}");
    let at = view.idle_at;
    lab.pass(27).await;
    assert_eq!((lab.state(vm), lab.engine.vm(vm).unwrap().idle_at), (State::Running, at));
    lab.pass(3).await;
    let view = lab.engine.vm(vm).unwrap();
    assert_eq!((view.vm.state, view.vm.reason.to_string().as_str()), (State::Suspended, "idle:30 minutes"));
    assert_eq!((view.idle_at, lab.state(other)), (None, State::Running));
    // The reason outlives the service.
    let lab = lab.restart().await;
    assert_eq!(lab.engine.vm(vm).unwrap().vm.reason, Reason::Idle("30 minutes".to_owned()));
    // It idles again after it was resumed.
    lab.done(lab.engine.resume_vm(vm, Start::default()).await.unwrap()).await;
    lab.pass(28).await;
    assert_eq!(lab.state(vm), State::Running);
    lab.pass(4).await;
    assert_eq!(lab.state(vm), State::Suspended);
}

#[tokio::test(start_paused = true)]
async fn an_idle_sandbox_is_stopped_if_its_policy_says_so() {
    let lab = EngineLab::new().await;
    let vm = lab.idling("stop", 5).await;
    lab.pass(8).await;
    let view = lab.engine.vm(vm).unwrap();
    assert_eq!((view.vm.state, view.vm.reason.to_string().as_str()), (State::Stopped, "idle:5 minutes"));
}

#[tokio::test(start_paused = true)]
async fn whatever_uses_a_sandbox_keeps_it_running() {
    let lab = EngineLab::new().await;
    lab.sim.enable_agents();
    let vm = lab.idling("suspend", 5).await;
    let used = |streams, commands, connections| Use { streams, commands, connections, busy: Duration::ZERO };
    for (used, busy) in
        [(used(1, 0, 0), Busy::Streams), (used(0, 1, 0), Busy::Commands), (used(0, 0, 1), Busy::Connections)]
    {
        lab.sim.use_guest(vm, used);
        lab.pass(10).await;
        assert_eq!((lab.state(vm), lab.busy(vm)), (State::Running, Some(busy)));
        assert_eq!(lab.engine.vm(vm).unwrap().idle_at, None);
    }
    for minute in 1..=10 {
        lab.sim.use_guest(vm, Use { busy: minute * MINUTE / 10, ..Use::default() });
        lab.pass(1).await;
    }
    assert_eq!((lab.state(vm), lab.busy(vm)), (State::Running, Some(Busy::Load)));
    // A request that is over at the next look.
    for _ in 0..4 {
        lab.pass(3).await;
        drop(lab.engine.open_agent(vm, ALICE, Purpose::default(), TIMEOUT).await.unwrap());
    }
    assert_eq!(lab.state(vm), State::Running);
    // A guest that does not answer.
    lab.sim.silence_guests(true);
    lab.pass(10).await;
    assert_eq!(lab.state(vm), State::Running);
    lab.sim.silence_guests(false);
    // Questions do not keep it up.
    for _ in 0..2 {
        lab.pass(2).await;
        drop(lab.engine.open_agent(vm, ALICE, Purpose::Question, TIMEOUT).await.unwrap());
    }
    lab.pass(4).await;
    assert_eq!(lab.state(vm), State::Suspended);
}

#[tokio::test(start_paused = true)]
async fn a_policy_can_be_set_and_removed_while_the_sandbox_runs() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    let set = async |idle| {
        lab.engine.configure_vm(vm, Configure { idle: Some(idle), ..Configure::default() }).await.unwrap();
    };
    lab.pass(100).await;
    set(policy("suspend", 5)).await;
    lab.pass(4).await;
    assert_eq!(lab.state(vm), State::Running, "the time counts from the change");
    set(None).await;
    lab.pass(100).await;
    let view = lab.engine.vm(vm).unwrap();
    assert_eq!((view.vm.state, view.idle_at, view.busy), (State::Running, None, None));
    set(policy("suspend", 1)).await;
    lab.pass(4).await;
    assert_eq!(lab.state(vm), State::Suspended);
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_cannot_be_suspended_runs_on_and_is_tried_again_after_its_time() {
    let lab = EngineLab::new().await;
    let vm = lab.idling("suspend", 5).await;
    lab.sim.forbid_captures();
    lab.pass(30).await;
    assert_eq!(lab.state(vm), State::Running);
    let failed =
        lab.engine.jobs().iter().filter(|job| matches!(job.outcome, Some(Outcome::Failed(_)))).count();
    assert!((1..=6).contains(&failed), "{failed} tries");
}

#[tokio::test(start_paused = true)]
async fn a_pause_counts_as_use() {
    let lab = EngineLab::new().await;
    let vm = lab.idling("suspend", 10).await;
    lab.pass(5).await;
    assert!(lab.engine.vm(vm).unwrap().idle_at.is_some());
    lab.engine.pause_vm(vm).await.unwrap();
    assert_eq!(lab.engine.vm(vm).unwrap().idle_at, None);
    lab.pass(60).await;
    lab.engine.unpause_vm(vm).await.unwrap();
    lab.pass(8).await;
    assert_eq!(lab.state(vm), State::Running);
    lab.pass(4).await;
    assert_eq!(lab.state(vm), State::Suspended);
}
