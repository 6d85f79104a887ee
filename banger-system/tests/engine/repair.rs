//! A repair mends at once what the service would mend later, says what it did, and touches nothing that is in use.

use banger_domain::{
    id::{Uid, VmId},
    lifecycle::State,
    resource::Resource,
};
use banger_system::{
    engine::request::{Stop, StopMode},
    ports::{Check, Status},
};

use crate::engine_lab::{ALICE, BOB, EngineLab};

impl EngineLab {
    /// Repairs, and returns what was done.
    async fn repair(&self) -> Vec<String> {
        let checks = self.engine.repair(BOB).await;
        let done = checks.into_iter().filter(|check| check.status == Status::Fixed);
        done.map(|Check { name, message, .. }| format!("{name}: {message}")).collect()
    }

    fn remains_of(&self, vm: VmId) -> Vec<String> {
        self.sim.alive().into_iter().filter(|thing| thing.contains(&vm.to_string())).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_diagnosis_changes_nothing_and_a_repair_of_a_sound_host_neither() {
    let mut lab = EngineLab::new().await;
    let (up, down) = (lab.running().await, lab.running().await);
    lab.done(lab.engine.stop_vm(down, Stop::default()).await.unwrap()).await;
    lab.until(down, |state| state == Some(State::Stopped)).await;
    let state = |lab: &EngineLab| (lab.sim.alive(), lab.sim.rows());
    let (before, steps) = (state(&lab), lab.sim.steps());
    lab.engine.diagnose(ALICE).await;
    lab.engine.diagnose(Uid::ROOT).await;
    assert_eq!((state(&lab), lab.sim.steps()), (before.clone(), steps));
    assert_eq!(lab.repair().await, Vec::<String>::new());
    assert_eq!(state(&lab), before);
    assert_eq!((lab.state(up), lab.state(down)), (State::Running, State::Stopped));
}

#[tokio::test(start_paused = true)]
async fn what_a_stop_has_left_is_removed_at_once_or_shown_with_the_reason() {
    for resource in [Resource::Unit, Resource::Sockets, Resource::Nic, Resource::Mapper] {
        let lab = EngineLab::new().await;
        let (vm, other) = (lab.running().await, lab.running().await);
        let name = lab.engine.vm(vm).unwrap().vm.name.to_string();
        lab.sim.block_removal(resource, true);
        lab.failed(lab.engine.stop_vm(vm, Stop::default()).await.unwrap()).await;

        // As long as that is impossible, a repair does not say that it was done.
        assert_eq!(lab.repair().await, Vec::<String>::new(), "{resource:?}");
        let checks = lab.engine.repair(BOB).await;
        let left = checks.iter().find(|check| check.name == "leftovers").unwrap();
        assert!(left.status == Status::Warn && left.message.contains(&name), "{left:?}");
        assert!(left.hint.contains("`banger doctor --fix`"), "{left:?}");

        lab.sim.block_removal(resource, false);
        let done = lab.repair().await;
        assert!(done.len() == 1 && done[0].starts_with("leftovers: removed the "), "{done:?}");
        assert!(done[0].ends_with(&format!(" of {name}")), "{done:?}");
        assert_eq!(lab.messages(Uid::ROOT).await, Vec::<String>::new());
        assert_eq!(lab.repair().await, Vec::<String>::new(), "a second repair has nothing to do");
        assert_eq!((lab.state(vm), lab.state(other)), (State::Stopped, State::Running));
    }
}

#[tokio::test(start_paused = true)]
async fn resources_of_sandboxes_that_are_gone_are_removed_and_no_others() {
    let lab = EngineLab::new().await;
    let (up, orphan) = (lab.running().await, lab.running().await);
    lab.sim.lose_rows_of(orphan);
    let all = [Resource::Disks, Resource::Mapper, Resource::Sockets, Resource::Unit, Resource::Nic];
    all.into_iter().for_each(|resource| lab.sim.break_scan(resource, true));
    let mut lab = lab.restart().await;
    lab.until(up, |state| state == Some(State::Running)).await;
    assert!(!lab.remains_of(orphan).is_empty());
    let used = lab.remains_of(up);

    all.into_iter().for_each(|resource| lab.sim.break_scan(resource, false));
    let done = lab.repair().await;
    assert_eq!(lab.remains_of(orphan), Vec::<String>::new());
    let of_orphan = done.iter().filter(|line| line.ends_with(&format!(" of the deleted sandbox {orphan}")));
    assert_eq!(of_orphan.count(), all.len(), "{done:?}");
    assert_eq!(lab.remains_of(up), used);
    assert_eq!(lab.messages(Uid::ROOT).await, Vec::<String>::new());
    assert_eq!(lab.sim.disagreements(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_nothing_knows_of_is_removed_while_the_service_runs() {
    let lab = EngineLab::new().await;
    let (up, lost) = (lab.running().await, VmId::from_bits(7));
    lab.sim.leave_remains(lost);
    let used = lab.remains_of(up);
    lab.sim.block_removal(Resource::Disks, true);
    let done = lab.repair().await;
    let expect = ["block devices", "sockets"]
        .map(|what| format!("leftovers: removed the {what} of the deleted sandbox {lost}"));
    assert_eq!(done, expect);
    let left = lab.messages(Uid::ROOT).await;
    assert!(
        left.len() == 1 && left[0].starts_with("cannot remove the disks of the deleted sandbox"),
        "{left:?}"
    );
    lab.sim.block_removal(Resource::Disks, false);
    assert_eq!(lab.repair().await, [format!("leftovers: removed the disks of the deleted sandbox {lost}")]);
    assert_eq!((lab.remains_of(lost), lab.remains_of(up)), (Vec::new(), used));
    assert_eq!(lab.messages(ALICE).await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn missing_rules_are_loaded_again_and_a_failure_is_shown() {
    let lab = EngineLab::new().await;
    lab.running().await;
    lab.sim.lose_rules();
    // The first step of a repair without problems.
    lab.sim.fail_at(Some(0));
    let checks = lab.engine.repair(BOB).await;
    lab.sim.fail_at(None);
    let failed: Vec<_> = checks.iter().filter(|check| check.message.starts_with("cannot load")).collect();
    assert!(failed.len() == 1 && failed[0].status == Status::Warn, "{checks:?}");
    assert!(failed[0].hint.contains("journalctl"), "{failed:?}");
    assert_eq!(lab.repair().await, ["network: loaded the missing rules of the packet filter again"]);
    assert_eq!(lab.repair().await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_list_that_fails_is_shown_and_keeps_nothing_else_from_being_repaired() {
    let lab = EngineLab::new().await;
    let (up, lost) = (lab.running().await, VmId::from_bits(7));
    lab.sim.leave_remains(lost);
    lab.sim.break_scan(Resource::Sockets, true);
    assert_eq!(lab.repair().await.len(), 2, "disks and block devices");
    let messages = lab.messages(BOB).await;
    assert!(
        messages.len() == 1 && messages[0].starts_with("cannot list the sockets of sandboxes"),
        "{messages:?}"
    );
    lab.sim.break_scan(Resource::Sockets, false);
    assert_eq!(lab.repair().await.len(), 2, "sockets, and the list of them");
    assert_eq!(lab.remains_of(lost), Vec::<String>::new());
    assert_eq!(lab.state(up), State::Running);
}

#[tokio::test(start_paused = true)]
async fn files_without_a_row_are_removed() {
    let lab = EngineLab::new().await;
    lab.sim.lose_library();
    lab.sim.break_files(true);
    let lab = lab.restart().await;
    lab.sim.break_files(false);
    assert_eq!(lab.repair().await.len(), 2);
    assert!(lab.sim.image_files().is_empty() && lab.sim.kernel_files().is_empty());
    assert_eq!(lab.messages(BOB).await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_repair_during_a_deletion_takes_nothing_from_it() {
    let lab = EngineLab::new().await;
    let vm = lab.running().await;
    let job = lab.engine.delete_vm(vm, StopMode::Forced).await.unwrap();
    let (done, ()) = tokio::join!(lab.repair(), lab.done(job));
    assert!(done.iter().all(|line| line.starts_with("leftovers: ")), "{done:?}");
    assert_eq!(lab.sim.alive(), Vec::<String>::new());
    assert_eq!(lab.messages(Uid::ROOT).await, Vec::<String>::new());
}
