//! Many calls at once, and slow calls: their caller does not block others.

use std::{
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use banger_domain::id::Uid;
use banger_proto::bus::{
    ErrorName,
    names::{MANAGER_PATH, action},
};
use banger_system::{
    host::users::{Accounts, NameService},
    sim::Sim,
};
use zbus::{OwnedObjectPath, OwnedVariant, Variant};

use crate::private_bus::{
    ALICE, Answer, BOB, GET, SET, Service, TIMEOUT, is_possible, options, refused, require,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_user_cannot_take_the_service_from_the_others() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, bob) = (service.client(ALICE).await, service.client(BOB).await);
    let vm = alice.create("box", options([])).await;
    service.polkit.questions();

    // A user has a limited number of dialogs, however many calls there are.
    service.polkit.answer(BOB, action::VM_MANAGE_OTHERS, Answer::OpenDialog);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let (bob, vm) = (bob.clone(), vm.clone());
        calls.spawn(async move { bob.call_interactively::<()>(&vm, "Rename", &("mine",)).await });
    }
    service.polkit.until_waiting(4).await;
    for _ in 0..36 {
        refused(calls.join_next().await.unwrap().unwrap(), ErrorName::TooManyRequests);
    }
    assert_eq!(service.polkit.waiting(), 4);
    // A read of any object does not wait.
    service.polkit.answer(BOB, action::VM_VIEW_OTHERS, Answer::Silence);
    let reader = {
        let (bob, vm) = (bob.clone(), vm.clone());
        tokio::spawn(async move {
            bob.call_interactively::<OwnedVariant>(&vm, GET, &("dev.banger.Manager1.VM", "Name")).await
        })
    };
    let writer = {
        let (bob, vm) = (bob.clone(), vm.clone());
        tokio::spawn(async move {
            bob.call::<()>(&vm, SET, &("dev.banger.Manager1.VM", "Name", Variant::from("x"))).await
        })
    };
    assert_eq!(writer.await.unwrap().unwrap_err().name, "PropertyReadOnly");
    assert_eq!(alice.text(&vm, "Name").await, "box");
    // Long before polkit has taken too long.
    alice.create("second", options([])).await;
    assert!(service.polkit.waiting() >= 4);
    refused(reader.await.unwrap(), ErrorName::HostNotReady);

    // The caller has gone, and its questions are withdrawn.
    service.polkit.answer(BOB, action::VM_VIEW_OTHERS, Answer::NoAgent);
    let name = bob.name();
    drop(bob);
    calls.shutdown().await;
    service.polkit.until_waiting(0).await;
    assert!(service.engine.vms().iter().all(|view| view.vm.name.as_str() != "mine"), "{name}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_calls_at_once_are_turned_away_and_waiting_for_jobs_is_no_such_call() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, bob) = (service.client(ALICE).await, service.client(BOB).await);
    service.sim.silence_guests(true);
    let (_, job) = alice.begin_create("box", options([])).await.unwrap();
    service.polkit.answer(ALICE, action::VM_RUN, Answer::Silence);

    let mut calls = tokio::task::JoinSet::new();
    for n in 0..50 {
        let alice = alice.clone();
        calls.spawn(async move { alice.create_with(&format!("n{n}"), "start", false).await });
    }
    // Only calls beyond the limit are answered.
    for _ in 0..18 {
        refused(calls.join_next().await.unwrap().unwrap(), ErrorName::TooManyRequests);
    }
    service.polkit.until_waiting(32).await;
    bob.create("box", options([("wait-for", "running".into())])).await;
    service.polkit.release();
    // The waiting calls are served; the quota of a user is separate.
    while let Some(made) = calls.join_next().await {
        assert!(made.unwrap().map_or_else(|failure| failure.name == "QuotaExceeded", |_| true));
    }

    for _ in 0..60 {
        alice.send(&job, "Wait", &(0u64,)).await;
    }
    alice.call::<OwnedObjectPath>(MANAGER_PATH, "GetVM", &("box",)).await.unwrap();
    alice.call::<()>(&job, "Cancel", &()).await.unwrap();
    assert_eq!(alice.wait(&job).await.0, "canceled");
}

/// A name service that answers when everybody has stopped waiting.
#[derive(Default)]
struct Stuck {
    answers: Mutex<bool>,
    changed: Condvar,
}

impl Stuck {
    fn answer(&self) {
        *self.answers.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

impl NameService for Stuck {
    fn uid_of(&self, _login: &str) -> Option<Uid> {
        let answers = self.answers.lock().unwrap();
        // The runtime of a failed test waits for its threads.
        drop(self.changed.wait_timeout_while(answers, TIMEOUT, |answers| !*answers));
        None
    }

    fn login_of(&self, _uid: Uid) -> Option<String> {
        self.uid_of("").map(|uid| uid.to_string())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_service_that_does_not_answer_holds_up_only_who_needs_it() {
    require!(is_possible(), "root and dbus-daemon");
    let stuck = Arc::new(Stuck::default());
    // Long enough for what must not wait, on a machine that does many other things.
    let accounts = Accounts::new(stuck.clone(), Duration::from_secs(10));
    let service = Service::start_with(Sim::new(), Arc::new(accounts)).await;
    let (alice, bob) = (service.client(ALICE).await, service.client(BOB).await);
    let vm = alice.create("box", options([])).await;
    // More than the threads of the runtime.
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..8 {
        let bob = bob.clone();
        calls.spawn(async move {
            bob.call::<OwnedObjectPath>(MANAGER_PATH, "GetVM", &(format!("user{n}/box"),)).await
        });
    }
    assert_eq!(alice.text(&vm, "Name").await, "box");
    let found = alice.call::<OwnedObjectPath>(MANAGER_PATH, "GetVM", &("box",));
    assert!(found.await.is_ok(), "a plain name needs no account");
    assert!(calls.try_join_next().is_none(), "the others waited, too");
    while let Some(answer) = calls.join_next().await {
        refused(answer.unwrap(), ErrorName::HostNotReady);
    }
    stuck.answer();
}
