//! Recovery on a host where something fails: the rest is recovered, `doctor` shows the failure, and it is tried again.

use banger_domain::{
    egress::Egress,
    id::{Uid, VmId},
    lifecycle::State,
    net::nic::Nat,
    resource::Resource,
    vm::Lifetime,
};
use banger_system::{
    engine::{
        Settings,
        request::{Configure, CreateVm, Start, Stop, StopMode},
    },
    ports::{Check, supervisor::Ended},
};

use crate::engine_lab::{ALICE, BOB, EngineLab, LONG, request};

/// Returns the resources of a running sandbox.
fn of_running() -> impl Iterator<Item = Resource> {
    Resource::ALL.into_iter().filter(|resource| *resource != Resource::Capture)
}

impl EngineLab {
    /// Returns what `doctor` shows a user of problems.
    async fn problems(&self, caller: Uid) -> Vec<Check> {
        let checks = self.engine.diagnose(caller).await;
        checks.into_iter().filter(|check| ["recovery", "leftovers"].contains(&check.name)).collect()
    }

    pub async fn messages(&self, caller: Uid) -> Vec<String> {
        self.problems(caller).await.into_iter().map(|check| check.message).collect()
    }

    fn things_of(&self, vm: VmId) -> Vec<String> {
        let id = vm.to_string();
        self.sim.alive().into_iter().filter(|thing| thing.contains(&id)).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_that_fails_keeps_nothing_else_from_being_recovered() {
    for resource in of_running() {
        let lab = EngineLab::new().await;
        let (up, down, orphan) = (lab.running().await, lab.running().await, lab.running().await);
        lab.done(lab.engine.stop_vm(down, Stop::default()).await.unwrap()).await;
        lab.sim.lose_rows_of(orphan);
        lab.sim.break_scan(resource, true);

        let mut lab = lab.restart().await;
        lab.until(up, |state| state == Some(State::Running)).await;
        assert_eq!(lab.state(down), State::Stopped, "{resource:?}");
        let left = lab.things_of(orphan).len();
        assert_eq!(left, 1, "all but what is not listed is removed: {:?}", lab.things_of(orphan));
        let messages = lab.messages(BOB).await;
        assert!(messages[0].starts_with("cannot list the ") && messages.len() == 1, "{messages:?}");
        // Sandboxes work meanwhile.
        lab.done(lab.engine.start_vm(down, Start::default()).await.unwrap()).await;

        lab.sim.break_scan(resource, false);
        lab.wait_until("the orphan is removed", |lab| lab.things_of(orphan).is_empty()).await;
        assert_eq!(lab.messages(BOB).await, Vec::<String>::new());
        assert_eq!((lab.state(up), lab.state(down)), (State::Running, State::Running), "{resource:?}");
        for vm in [up, down] {
            lab.done(lab.engine.delete_vm(vm, StopMode::Forced).await.unwrap()).await;
        }
        assert_eq!(lab.sim.alive(), Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_ended_is_noticed_without_a_list_of_processes() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    lab.tasks.abort_all().await;
    lab.sim.end_process(vm, Ended::Clean);
    lab.sim.break_scan(Resource::Unit, true);
    let mut lab = lab.restart().await;
    lab.until(vm, |state| state == Some(State::Stopped)).await;
    assert_eq!(lab.things_of(vm).len(), 3, "row, disks and their record: {:?}", lab.things_of(vm));
}

#[tokio::test(start_paused = true)]
async fn an_interface_that_is_not_taken_over_is_tried_again() {
    let lab = EngineLab::new().await;
    let (up, ended) = (lab.running().await, lab.running().await);
    let everything = Configure { egress: Some(Egress::Everything.into()), ..Configure::default() };
    lab.engine.configure_vm(up, everything).await.unwrap();
    lab.sim.lose_nics(true);
    let nothing = |settings: &mut Settings| settings.egress_ceiling = Egress::Nothing;
    let mut lab = lab.restart_with(nothing).await;
    for vm in [up, ended] {
        lab.until(vm, |state| state == Some(State::Running)).await;
    }
    while lab.messages(ALICE).await.len() < 2 {
        tokio::task::yield_now().await;
    }
    let name = lab.engine.vm(up).unwrap().vm.name.to_string();
    let expect = format!("cannot set up the network interface of {name} again: ");
    let messages = lab.messages(ALICE).await;
    assert!(messages.iter().any(|message| message.starts_with(&expect)), "{messages:?}");
    assert_eq!(lab.messages(BOB).await, Vec::<String>::new(), "they belong to somebody else");
    assert_eq!(lab.sim.nic(up).unwrap().nat, Nat::On, "the rules of the earlier run");

    // What no longer runs needs no interface.
    lab.done(lab.engine.stop_vm(ended, Stop::default()).await.unwrap()).await;
    assert_eq!(lab.messages(ALICE).await.len(), 1);
    lab.sim.lose_nics(false);
    lab.wait_until("the ceiling applies", |lab| lab.sim.nic(up).unwrap().nat == Nat::Off).await;
    tokio::time::sleep(LONG).await;
    assert_eq!(lab.messages(ALICE).await, Vec::<String>::new());
    assert_eq!((lab.state(up), lab.state(ended)), (State::Running, State::Stopped));
}

#[tokio::test(start_paused = true)]
async fn an_orphan_that_stays_keeps_nothing_from_being_recovered() {
    for resource in of_running() {
        let lab = EngineLab::new().await;
        let (up, orphan) = (lab.running().await, lab.running().await);
        lab.sim.lose_rows_of(orphan);
        lab.sim.block_removal(resource, true);

        let mut lab = lab.restart().await;
        lab.until(up, |state| state == Some(State::Running)).await;
        let messages = lab.messages(Uid::ROOT).await;
        assert!(messages.len() == 1 && messages[0].contains(&orphan.to_string()), "{messages:?}");
        assert_eq!(lab.messages(ALICE).await, Vec::<String>::new(), "it has no owner any more");

        lab.sim.block_removal(resource, false);
        tokio::time::sleep(LONG).await;
        assert_eq!(lab.things_of(orphan), Vec::<String>::new());
        assert_eq!(lab.messages(Uid::ROOT).await, Vec::<String>::new());
        assert_eq!(lab.state(up), State::Running);
    }
}

#[tokio::test(start_paused = true)]
async fn files_of_lost_images_and_kernels_are_removed_once_that_is_possible() {
    let lab = EngineLab::new().await;
    lab.sim.lose_library();
    lab.sim.break_files(true);
    let lab = lab.restart().await;
    assert_eq!(lab.messages(BOB).await.len(), 2);
    lab.sim.break_files(false);
    let is_empty = |lab: &EngineLab| lab.sim.image_files().is_empty() && lab.sim.kernel_files().is_empty();
    lab.wait_until("the files are removed", is_empty).await;
    assert_eq!(lab.messages(BOB).await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn an_image_keeps_its_files_as_long_as_it_has_a_row() {
    let lab = EngineLab::new().await;
    let image = lab.engine.images()[0].id;
    lab.sim.fail_at(Some(0));
    lab.engine.delete_image(image).await.unwrap_err();
    lab.sim.fail_at(None);
    assert!(lab.engine.image(image).is_some());
    assert_eq!(lab.sim.image_files(), [image]);

    lab.sim.break_files(true);
    lab.engine.delete_image(image).await.unwrap_err();
    assert!(lab.engine.image(image).is_none());
    let messages = lab.messages(BOB).await;
    let expect = "cannot remove the files of a deleted image: ";
    assert!(messages.len() == 1 && messages[0].starts_with(expect), "{messages:?}");
    lab.sim.break_files(false);
    lab.wait_until("the files are removed", |lab| lab.sim.image_files().is_empty()).await;
    assert_eq!(lab.messages(BOB).await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_a_stop_or_a_deletion_leaves_is_on_the_job_and_in_doctor() {
    for resource in of_running().filter(|resource| *resource != Resource::Disks) {
        let lab = EngineLab::new().await;
        let vm = lab.running().await;
        let name = lab.engine.vm(vm).unwrap().vm.name.to_string();
        lab.sim.block_removal(resource, true);
        let error = lab.failed(lab.engine.stop_vm(vm, Stop::default()).await.unwrap()).await;
        assert!(error.starts_with("cannot remove the ") && error.ends_with(&name), "{error}");
        assert_eq!(lab.state(vm), State::Stopped);
        let messages = lab.messages(ALICE).await;
        assert!(messages.len() == 1 && messages[0].starts_with(&error), "{messages:?}");
        assert_eq!(lab.messages(BOB).await, Vec::<String>::new(), "it belongs to somebody else");
        // A deletion does not succeed either, and is not forgotten.
        assert_eq!(lab.failed(lab.engine.delete_vm(vm, StopMode::Forced).await.unwrap()).await, error);
        assert_eq!(lab.state(vm), State::Deleting);
        lab.sim.block_removal(resource, false);
        lab.wait_until("the sandbox is deleted", |lab| lab.engine.vm(vm).is_none()).await;
        assert_eq!(lab.sim.alive(), Vec::<String>::new());
        assert_eq!(lab.messages(Uid::ROOT).await, Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_until_stopped_that_ended_while_no_service_ran_is_deleted() {
    for ended in [Ended::Clean, Ended::Failed("killed".to_owned())] {
        let lab = EngineLab::new().await;
        let create = CreateVm { lifetime: Lifetime::UntilStopped, ..request() };
        let (vm, job) = lab.engine.create_vm(create).await.unwrap();
        lab.done(job).await;
        // A restart of the service alone changes nothing.
        let mut lab = lab.restart().await;
        lab.until(vm, |state| state == Some(State::Running)).await;
        lab.tasks.abort_all().await;
        lab.sim.end_process(vm, ended);
        let lab = lab.restart().await;
        lab.wait_until("the sandbox is deleted", |lab| lab.engine.vm(vm).is_none()).await;
        assert_eq!(lab.sim.alive(), Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_while_a_sandbox_until_stopped_ends_does_not_keep_it() {
    let mut halfway = 0;
    for resource in of_running() {
        let mut lab = EngineLab::new().await;
        let create = CreateVm { lifetime: Lifetime::UntilStopped, ..request() };
        let (vm, job) = lab.engine.create_vm(create).await.unwrap();
        lab.done(job).await;
        // The deletion gets no further than this, and the service dies.
        lab.sim.block_removal(resource, true);
        lab.sim.end_process(vm, Ended::Clean);
        lab.until(vm, |state| matches!(state, Some(State::Deleting) | None)).await;
        halfway += usize::from(!lab.things_of(vm).is_empty());
        lab.tasks.abort_all().await;
        lab.sim.block_removal(resource, false);
        let lab = lab.restart().await;
        lab.wait_until("the sandbox is deleted", |lab| lab.engine.vm(vm).is_none()).await;
        assert_eq!(lab.sim.alive(), Vec::<String>::new(), "{resource:?}");
    }
    assert!(halfway > 3, "only {halfway} deletions were interrupted");
}

#[tokio::test(start_paused = true)]
async fn labels_are_set_and_removed_in_any_state_and_bounded() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    let set = |pairs: &[(&str, &str)], removed: &[&str]| Configure {
        labels: pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        removed_labels: removed.iter().map(|key| (*key).to_owned()).collect(),
        ..Configure::default()
    };
    let labels = |lab: &EngineLab| {
        let view = lab.engine.vm(vm).unwrap();
        view.vm.spec.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>()
    };
    lab.engine.configure_vm(vm, set(&[("team", "web"), ("owner", "")], &[])).await.unwrap();
    lab.engine.configure_vm(vm, set(&[("team", "db")], &["owner", "absent"])).await.unwrap();
    assert_eq!(labels(&lab), ["team=db"]);
    let (long, many) = ("x".repeat(257), (0..33).map(|n| n.to_string()).collect::<Vec<_>>());
    let many: Vec<_> = many.iter().map(|key| (key.as_str(), "")).collect();
    for wrong in [set(&[("key", &long)], &[]), set(&many, &["team"])] {
        let error = lab.engine.configure_vm(vm, wrong).await.unwrap_err();
        assert_eq!(error.to_string(), "a sandbox can have at most 32 labels of 256 bytes each");
    }
    let lab = lab.restart().await;
    assert_eq!(labels(&lab), ["team=db"]);
}

#[tokio::test(start_paused = true)]
async fn a_vmm_whose_start_was_interrupted_is_ended_and_starts_again() {
    let lab = EngineLab::new().await;
    let (vm, other) = (lab.running().await, lab.running().await);
    lab.sim.interrupt_start(vm);
    let mut lab = lab.restart().await;
    lab.until(vm, |state| state == Some(State::Stopped)).await;
    assert_eq!(lab.state(other), State::Running);
    assert!(!lab.things_of(vm).iter().any(|thing| thing.starts_with("process")), "{:?}", lab.sim.alive());
    lab.done(lab.engine.start_vm(vm, Start::default()).await.unwrap()).await;
    assert_eq!(lab.state(vm), State::Running);
}
