//! A repair mends at once what the service would mend later, says what it did, and touches nothing that is in use.

use std::time::Duration;

use banger_domain::{
    id::{JobId, Uid, VmId},
    lifecycle::State,
    resource::Resource,
};
use banger_system::{
    engine::{
        request::{CreateVm, Start, Stop, StopMode},
        view::Outcome,
    },
    ports::{Check, Status},
};

use crate::{
    engine_lab::{ALICE, BOB, EngineLab, request},
    fork::fork,
};

impl EngineLab {
    /// Repairs, and returns what was done.
    async fn repair(&self) -> Vec<String> {
        let checks = self.engine.repair(BOB).await.unwrap();
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
        let checks = lab.engine.repair(BOB).await.unwrap();
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
    let checks = lab.engine.repair(BOB).await.unwrap();
    lab.sim.fail_at(None);
    let failed: Vec<_> = checks.iter().filter(|check| check.message.starts_with("cannot restore")).collect();
    assert!(failed.len() == 1 && failed[0].status == Status::Fail, "{checks:?}");
    assert!(failed[0].hint.contains("journalctl"), "{failed:?}");
    assert_eq!(
        lab.repair().await,
        ["network: loaded the rules of the packet filter again: some were missing or not banger's"]
    );
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
    assert_eq!(done, Vec::<String>::new());
    assert_eq!(lab.sim.alive(), Vec::<String>::new());
    assert_eq!(lab.messages(Uid::ROOT).await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_a_row_names_is_not_removed_although_its_sandbox_is_not_known() {
    let mut kept = 0;
    for step in 0.. {
        let lab = EngineLab::new().await;
        let parent = lab.stopped().await;
        lab.sim.fail_at(Some(step));
        lab.sim.keep_rows(true);
        let done = lab.ended(lab.engine.fork_vm(parent, fork(2)).await).await;
        lab.sim.fail_at(None);
        lab.sim.keep_rows(false);
        let alive = lab.sim.alive();
        let rows: Vec<&str> = alive.iter().filter_map(|thing| thing.strip_prefix("row ")).collect();
        let of_rows = |mut alive: Vec<String>| {
            alive.retain(|thing| rows.iter().any(|vm| thing.ends_with(vm)));
            alive
        };
        if !done && rows.len() > 1 {
            kept += 1;
            assert_eq!(lab.vm_names(), ["web"], "step {step}");
        }
        let before = of_rows(alive.clone());
        lab.repair().await;
        // Nor is it when what was found of it is tried again.
        lab.sim.break_scan(Resource::Disks, true);
        lab.repair().await;
        lab.sim.break_scan(Resource::Disks, false);
        lab.repair().await;
        assert_eq!(of_rows(lab.sim.alive()), before, "step {step}");
        let lab = lab.restart().await;
        assert_eq!(lab.vm_names().len(), rows.len());
        for view in lab.engine.vms() {
            assert!(lab.remains_of(view.vm.id).contains(&format!("disks {}", view.vm.id)), "step {step}");
        }
        if done {
            break;
        }
    }
    assert!(kept > 0, "no child was left with its row");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_removed_while_rows_cannot_be_read() {
    let lab = EngineLab::new().await;
    let (up, lost) = (lab.running().await, VmId::from_bits(7));
    lab.sim.leave_remains(lost);
    let before = lab.sim.alive();
    lab.sim.hide_rows(true);
    let checks = lab.engine.repair(BOB).await.unwrap();
    let failed = checks.iter().find(|check| check.message.starts_with("cannot read which sandboxes"));
    assert!(failed.is_some(), "{checks:?}");
    assert!(checks.iter().all(|check| check.status != Status::Fixed), "{checks:?}");
    lab.sim.break_scan(Resource::Disks, true);
    lab.engine.repair(BOB).await.unwrap();
    lab.sim.break_scan(Resource::Disks, false);
    lab.engine.repair(BOB).await.unwrap();
    assert_eq!(lab.sim.alive(), before);
    lab.sim.hide_rows(false);
    lab.repair().await;
    assert_eq!((lab.remains_of(lost), lab.state(up)), (Vec::new(), State::Running));
}

#[tokio::test(start_paused = true)]
async fn what_others_have_removed_meanwhile_is_not_said_to_be_repaired() {
    let lab = EngineLab::new().await;
    // The network is set up once.
    lab.repair().await;
    let lost = VmId::from_bits(7);
    lab.sim.leave_remains(lost);
    lab.sim.remove_remains_at_the_next_read(lost);
    assert_eq!(lab.repair().await, Vec::<String>::new());
    assert_eq!(lab.remains_of(lost), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn snapshots_suspended_sandboxes_and_what_is_under_way_lose_nothing() {
    let nothing = Vec::<String>::new();
    let lab = EngineLab::with(|settings| settings.templates = true).await;
    // The network is set up once.
    lab.repair().await;
    let repair_until_done = async |job: JobId| {
        let mut ended = std::pin::pin!(lab.engine.wait_job(job, None));
        loop {
            assert_eq!(lab.repair().await, nothing);
            if let Ok(view) = tokio::time::timeout(Duration::from_micros(100), &mut ended).await {
                let outcome = &view.unwrap().outcome;
                return assert!(matches!(outcome, Some(Outcome::Done)), "{outcome:?}");
            }
        }
    };
    // A creation, and then a template of what it has started.
    let create = CreateVm { name: "web".parse().ok(), ..request() };
    let (web, job) = lab.engine.create_vm(create).await.unwrap();
    repair_until_done(job).await;
    while lab.sim.templates().0 == 0 {
        assert_eq!(lab.repair().await, nothing);
        tokio::time::sleep(Duration::from_micros(100)).await;
    }

    let snapshot = lab.engine.create_snapshot(web, "clean".parse().unwrap()).await.unwrap();
    repair_until_done(snapshot).await;
    let (children, job) = lab.engine.fork_vm(web, fork(2)).await.unwrap();
    repair_until_done(job).await;
    let suspend = lab.engine.suspend_vm(web).await.unwrap();
    repair_until_done(suspend).await;
    let snapshot = lab.engine.snapshots(web)[0].vm.id;
    let all = [web, snapshot, children[0], children[1]];
    for vm in all {
        assert!(lab.remains_of(vm).contains(&format!("capture {vm}")), "{:?}", lab.remains_of(vm));
    }
    let before = lab.sim.alive();
    assert_eq!((lab.repair().await, lab.sim.alive()), (nothing.clone(), before));

    // A fork and a snapshot that stand still half-way.
    lab.done(lab.engine.start_vm(web, Start::default()).await.unwrap()).await;
    for is_fork in [true, false] {
        lab.sim.slow_captures(true);
        let job = match is_fork {
            true => lab.engine.fork_vm(web, fork(1)).await.unwrap().1,
            false => lab.engine.create_snapshot(web, "later".parse().unwrap()).await.unwrap(),
        };
        while !lab.sim.stands_still(web) {
            tokio::task::yield_now().await;
        }
        let before = lab.sim.alive();
        assert_eq!((lab.repair().await, lab.sim.alive()), (nothing.clone(), before));
        lab.sim.slow_captures(false);
        lab.engine.cancel_job(job).unwrap();
        lab.outcome(job).await;
    }
}

#[tokio::test(start_paused = true)]
async fn two_repairs_come_one_after_the_other() {
    let lab = EngineLab::new().await;
    // The network is set up once.
    lab.repair().await;
    lab.sim.lose_rules();
    let (one, other) = tokio::join!(lab.repair(), lab.repair());
    assert_eq!(one.len() + other.len(), 1, "{one:?} {other:?}");
}
