//! Sandboxes that idled, were suspended, and wake when somebody uses them: what wakes them, what does not, and how often.

use std::{collections::BTreeSet, time::Duration};

use banger_domain::{
    dns::{
        question::{Answer, Kind},
        table::Client,
    },
    id::VmId,
    lifecycle::{Reason, State},
    net::port::{Port, Protocol, Scope},
};
use banger_system::{
    engine::{
        request::{Configure, Start, Stop, StopMode},
        view::JobKind,
    },
    ports::{Check, Status, wake::Woken},
};

use crate::{
    engine_lab::{ALICE, EngineLab},
    idle::policy,
};

const FORCED: Stop = Stop { timeout: None, mode: StopMode::Forced };

fn port(host: u16) -> Port {
    Port { scope: Scope::Loopback, protocol: Protocol::Tcp, host, guest: 80 }
}

impl EngineLab {
    /// Returns a sandbox with a published port that idled, and was suspended.
    async fn asleep(&self, action: &str) -> VmId {
        let vm = self.idling(action, 2).await;
        self.engine.publish_port(vm, port(8080)).await.unwrap();
        self.sleeps(vm).await;
        vm
    }

    async fn sleeps(&self, vm: VmId) {
        self.pass(5).await;
        self.wait_until("it is suspended", |lab| lab.state(vm) == State::Suspended).await;
        // The names follow a moment later.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    fn reason(&self, vm: VmId) -> String {
        self.engine.vm(vm).unwrap().vm.reason.to_string()
    }

    fn resumptions(&self) -> usize {
        self.engine.jobs().iter().filter(|job| job.kind == JobKind::VmResume).count()
    }

    /// Returns what the name server would say to the host.
    fn answer(&self, vm: VmId) -> Answer {
        let names = self.sim.names().unwrap();
        let name = self.engine.vm(vm).unwrap().vm.name.to_string();
        names.answer(Client::Host, &[name.as_bytes(), b"vm"], Kind::A)
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_to_its_port_wakes_a_sandbox_that_idled() {
    let lab = EngineLab::new().await;
    let vm = lab.asleep("suspend").await;
    assert_eq!((lab.sim.dozing(), lab.sim.nic(vm)), (vec![vm], None));
    assert_eq!(lab.sim.knock(8080).await, Some(Woken::Yes));
    assert_eq!((lab.state(vm), lab.reason(vm).as_str()), (State::Running, "woken:port 8080"));
    assert_eq!((lab.sim.dozing(), lab.sim.nic(vm).unwrap().ports), (vec![], BTreeSet::from([port(8080)])));
    // And so the next time.
    lab.sleeps(vm).await;
    assert_eq!(lab.sim.knock(8080).await, Some(Woken::Yes));
    lab.done(lab.engine.delete_vm(vm, StopMode::Forced).await.unwrap()).await;
    assert_eq!(lab.sim.alive(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_look_up_of_its_name_wakes_a_sandbox_that_idled() {
    let lab = EngineLab::new().await;
    let vm = lab.asleep("suspend").await;
    let Answer::Asleep(asleep, records) = lab.answer(vm) else { panic!("{:?}", lab.answer(vm)) };
    assert_eq!(asleep, vm);
    assert_eq!(lab.sim.look_up(vm).await, Woken::Yes);
    assert_eq!((lab.state(vm), lab.reason(vm).as_str()), (State::Running, "woken:name"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(lab.answer(vm), Answer::Records(records), "the address is the same");
}

#[tokio::test(start_paused = true)]
async fn many_clients_wake_a_sandbox_once() {
    let lab = EngineLab::new().await;
    let vm = lab.asleep("suspend").await;
    let (ports, names) = (
        futures_util::future::join_all((0..50).map(|_| lab.sim.knock(8080))),
        futures_util::future::join_all((0..50).map(|_| lab.sim.look_up(vm))),
    );
    let (ports, names) = tokio::join!(ports, names);
    assert!(ports.iter().all(|woken| *woken == Some(Woken::Yes)), "{ports:?}");
    assert!(names.iter().all(|woken| *woken == Woken::Yes), "{names:?}");
    assert_eq!(lab.resumptions(), 1);
}

#[tokio::test(start_paused = true)]
async fn only_a_sandbox_that_idled_and_whose_policy_says_so_wakes() {
    let lab = EngineLab::new().await;
    let vm = lab.asleep("suspend-no-wake").await;
    let stays = async |lab: &EngineLab, what: &str| {
        assert_eq!(lab.sim.knock(8080).await, None, "{what}");
        assert_eq!(lab.sim.look_up(vm).await, Woken::No, "{what}");
        assert_eq!((lab.state(vm), lab.sim.dozing()), (State::Suspended, vec![]), "{what}");
        assert!(matches!(lab.answer(vm), Answer::NoName(_)), "{what}");
    };
    stays(&lab, "its policy keeps it suspended").await;
    let set = async |idle| {
        lab.engine.configure_vm(vm, Configure { idle: Some(idle), ..Configure::default() }).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    set(policy("suspend", 2)).await;
    assert_eq!(lab.sim.dozing(), [vm]);
    set(None).await;
    stays(&lab, "it has no policy any more").await;
    set(policy("suspend", 2)).await;
    assert_eq!(lab.sim.knock(8080).await, Some(Woken::Yes));
    // Its user has suspended it.
    lab.wait_until("its guest answers", |lab| lab.engine.vm(vm).unwrap().is_ready()).await;
    lab.done(lab.engine.suspend_vm(vm).await.unwrap()).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    stays(&lab, "its user wanted that").await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_client_leaves_the_sandbox_suspended_and_it_is_not_tried_again_at_once() {
    let lab = EngineLab::with(|settings| settings.limits.running = 1).await;
    let vm = lab.asleep("suspend").await;
    let other = lab.running().await;
    for _ in 0..20 {
        assert_eq!(lab.sim.knock(8080).await, Some(Woken::No));
        assert_eq!(lab.sim.look_up(vm).await, Woken::No);
    }
    assert_eq!((lab.state(vm), lab.resumptions()), (State::Suspended, 1));
    assert_eq!((lab.reason(vm).as_str(), lab.sim.dozing()), ("idle:2 minutes", vec![vm]));
    lab.done(lab.engine.stop_vm(other, FORCED).await.unwrap()).await;
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(lab.sim.knock(8080).await, Some(Woken::Yes));
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_cannot_be_resumed_wakes_nobody_again() {
    let lab = EngineLab::new().await;
    let vm = lab.asleep("suspend").await;
    lab.sim.damage_captures();
    assert_eq!(lab.sim.knock(8080).await, Some(Woken::No));
    assert_eq!((lab.state(vm), lab.sim.dozing()), (State::Suspended, vec![]));
    assert!(matches!(lab.engine.vm(vm).unwrap().vm.reason, Reason::StartFailed(_)));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((lab.sim.look_up(vm).await, lab.resumptions()), (Woken::No, 1), "it would fail again");
}

#[tokio::test(start_paused = true)]
async fn a_wake_that_fails_at_any_step_answers_its_client_and_leaves_a_sandbox_that_wakes() {
    for n in 0.. {
        let lab = EngineLab::new().await;
        let vm = lab.asleep("suspend").await;
        lab.sim.fail_at(Some(n));
        let woken = lab.sim.knock(8080).await.unwrap();
        let is_over = lab.sim.steps() <= n;
        lab.sim.fail_at(None);
        if woken == Woken::Yes {
            assert_eq!(lab.state(vm), State::Running, "step {n}");
        } else {
            assert!(!is_over, "nothing has failed");
            lab.wait_until("it is down", |lab| !lab.state(vm).is_up()).await;
            assert_eq!(lab.reason(vm), "idle:2 minutes", "step {n}");
            // Its ports are held at once, or tried again.
            lab.wait_until("it dozes", |lab| lab.sim.dozing() == [vm]).await;
            tokio::time::sleep(Duration::from_secs(11)).await;
            assert_eq!(lab.sim.knock(8080).await, Some(Woken::Yes), "step {n}");
        }
        lab.done(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
        assert_eq!(lab.sim.nic(vm).map(|nic| nic.ports), Some(BTreeSet::from([port(8080)])), "step {n}");
        lab.done(lab.engine.delete_vm(vm, StopMode::Forced).await.unwrap()).await;
        assert_eq!(lab.sim.alive(), Vec::<String>::new(), "step {n}");
        if is_over {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_while_it_wakes_leaves_a_sandbox_that_wakes_again() {
    let lab = EngineLab::new().await;
    let vm = lab.asleep("suspend").await;
    lab.sim.slow_captures(true);
    let sim = lab.sim.clone();
    let client = tokio::spawn(async move { sim.knock(8080).await });
    lab.wait_until("it is being resumed", |lab| lab.state(vm) == State::Resuming).await;
    let lab = lab.restart().await;
    lab.sim.slow_captures(false);
    assert_eq!(client.await.unwrap(), Some(Woken::No), "the service is gone");
    lab.wait_until("it dozes again", |lab| lab.sim.dozing() == [vm]).await;
    assert_eq!((lab.state(vm), lab.reason(vm).as_str()), (State::Suspended, "idle:2 minutes"));
    assert_eq!(lab.sim.knock(8080).await, Some(Woken::Yes));
}

#[tokio::test(start_paused = true)]
async fn its_ports_stay_its_own_while_it_sleeps_and_go_with_it() {
    let lab = EngineLab::new().await;
    let vm = lab.asleep("suspend").await;
    let other = lab.running().await;
    assert!(lab.engine.publish_port(other, port(8080)).await.is_err(), "it is held");
    lab.engine.publish_port(vm, port(8081)).await.unwrap();
    lab.sim.occupy_port(8082, true);
    assert!(lab.engine.publish_port(vm, port(8082)).await.is_err());
    lab.engine.unpublish_port(vm, port(8080)).await.unwrap();
    lab.engine.publish_port(other, port(8080)).await.unwrap();
    assert_eq!((lab.sim.knock(8080).await, lab.sim.dozing()), (None, vec![vm]));
    // The next run of the service takes it over.
    let lab = lab.restart().await;
    lab.wait_until("it dozes", |lab| lab.sim.dozing() == [vm]).await;
    assert_eq!(lab.sim.knock(8081).await, Some(Woken::Yes));
    lab.sleeps(vm).await;
    lab.done(lab.engine.stop_vm(vm, FORCED).await.unwrap()).await;
    assert_eq!((lab.state(vm), lab.sim.dozing()), (State::Stopped, vec![]));
    assert_eq!(lab.sim.look_up(vm).await, Woken::No);
    let alive = lab.sim.alive();
    assert!(!alive.iter().any(|thing| *thing == format!("ledger nic {vm}")), "{alive:?}");
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_whose_port_is_taken_wakes_by_its_name() {
    let lab = EngineLab::new().await;
    let vm = lab.asleep("suspend").await;
    lab.sim.occupy_port(8080, true);
    let lab = lab.restart().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((lab.state(vm), lab.sim.dozing()), (State::Suspended, vec![]));
    lab.sim.occupy_port(8080, false);
    assert_eq!(lab.sim.look_up(vm).await, Woken::Yes);
    assert_eq!(lab.engine.usage(ALICE).running, 1);
}

#[tokio::test(start_paused = true)]
async fn ports_that_could_not_be_held_are_tried_again() {
    let lab = EngineLab::new().await;
    let vm = lab.asleep("suspend").await;
    lab.sim.occupy_port(8080, true);
    let lab = lab.restart().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(lab.sim.dozing(), []);
    let checks = lab.engine.diagnose(ALICE).await;
    let named = |check: &Check| check.status == Status::Warn && check.message.contains("network interface");
    assert!(checks.iter().any(named), "{checks:?}");
    lab.sim.occupy_port(8080, false);
    lab.wait_until("it dozes", |lab| lab.sim.dozing() == [vm]).await;
    assert!(!lab.engine.diagnose(ALICE).await.iter().any(named));
    assert_eq!(lab.sim.knock(8080).await, Some(Woken::Yes));
}

#[tokio::test(start_paused = true)]
async fn a_wake_that_its_owner_cancels_is_not_the_last_one() {
    let lab = EngineLab::new().await;
    let vm = lab.asleep("suspend").await;
    lab.sim.slow_captures(true);
    let sim = lab.sim.clone();
    let client = tokio::spawn(async move { sim.knock(8080).await });
    lab.wait_until("it is being resumed", |lab| lab.state(vm) == State::Resuming).await;
    let jobs = lab.engine.jobs();
    let job = jobs.iter().find(|job| job.kind == JobKind::VmResume).unwrap().id;
    lab.engine.cancel_job(job).unwrap();
    assert_eq!(client.await.unwrap(), Some(Woken::No));
    lab.sim.slow_captures(false);
    assert_eq!((lab.state(vm), lab.sim.dozing()), (State::Suspended, vec![vm]));
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(lab.sim.knock(8080).await, Some(Woken::Yes));
}

#[tokio::test(start_paused = true)]
async fn a_look_up_after_a_refusal_waits_for_a_sandbox_that_its_owner_resumes() {
    let lab = EngineLab::with(|settings| settings.limits.running = 1).await;
    let vm = lab.asleep("suspend").await;
    let other = lab.running().await;
    assert_eq!(lab.sim.look_up(vm).await, Woken::No);
    lab.done(lab.engine.stop_vm(other, FORCED).await.unwrap()).await;
    lab.sim.slow_captures(true);
    lab.engine.resume_vm(vm, Start::default()).await.unwrap();
    assert_eq!(lab.state(vm), State::Resuming);
    let sim = lab.sim.clone();
    let client = tokio::spawn(async move { sim.look_up(vm).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    lab.sim.slow_captures(false);
    assert_eq!(client.await.unwrap(), Woken::Yes);
}
