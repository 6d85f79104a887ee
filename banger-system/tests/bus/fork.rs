//! Forks and snapshots over a real bus.

use std::collections::HashMap;

use banger_proto::bus::{ErrorName, names::action};
use zbus::{OwnedObjectPath, OwnedVariant, Variant};

use crate::private_bus::{ALICE, Answer, BOB, Options, Service, is_possible, options, refused, require};

type Forked = (Vec<OwnedObjectPath>, OwnedObjectPath);

fn names(names: &[&'static str]) -> Options {
    options([("names", names.to_vec().into())])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_forks_a_sandbox_and_others_need_an_administrator() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, bob) = (service.client(ALICE).await, service.client(BOB).await);
    let vm = alice.create("box", options([])).await;
    let fork = async |count: u32, with: Options| alice.call::<Forked>(&vm, "Fork", &(count, with)).await;
    let (children, job) = fork(1, names(&["live"])).await.unwrap();
    let done = alice.done(&job).await;
    assert!(done.contains_key("pause"), "{done:?}");
    assert_eq!(alice.text(&children[0], "State").await, "suspended");
    alice.call::<()>(&vm, "Pause", &()).await.unwrap();
    refused(fork(1, options([])).await, ErrorName::Paused);
    alice.call::<()>(&vm, "Unpause", &()).await.unwrap();
    let job: OwnedObjectPath = alice.call(&vm, "Stop", &(options([]),)).await.unwrap();
    alice.done(&job).await;
    for (count, with, name) in [
        (0, options([]), ErrorName::InvalidOption),
        (101, options([]), ErrorName::InvalidOption),
        (2, names(&["left"]), ErrorName::InvalidOption),
        (1, names(&["No Name"]), ErrorName::InvalidName),
        (1, names(&["box"]), ErrorName::NameTaken),
        (1, options([("typo", 1u32.into())]), ErrorName::InvalidOption),
    ] {
        refused(fork(count, with).await, name);
    }
    service.polkit.questions();
    let by_bob = bob.call::<Forked>(&vm, "Fork", &(1u32, options([]))).await;
    refused(by_bob, ErrorName::InteractiveAuthorizationRequired);
    assert_eq!(service.polkit.questions().last().unwrap().action, action::VM_ACCESS_OTHERS);

    let (children, job) = fork(2, names(&["left", "right"])).await.unwrap();
    let done = alice.done(&job).await;
    assert!(done.contains_key("vm"), "{done:?}");
    for (child, name) in children.iter().zip(["left", "right"]) {
        assert_eq!(alice.text(child, "Name").await, name);
        assert_eq!(alice.text(child, "State").await, "created");
    }
    // What an administrator forks belongs to the owner of the original.
    service.polkit.answer(BOB, action::VM_ACCESS_OTHERS, Answer::Yes);
    let (children, job) = bob.call::<Forked>(&vm, "Fork", &(1u32, options([]))).await.unwrap();
    alice.done(&job).await;
    assert_eq!(u32::try_from(alice.property(&children[0], "OwnerUid").await.unwrap()).unwrap(), ALICE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_made_listed_forked_and_deleted_and_is_no_object() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, bob) = (service.client(ALICE).await, service.client(BOB).await);
    let vm = alice.create("box", options([])).await;
    let create = async |name: &'static str, with: Options| {
        alice.call::<OwnedObjectPath>(&vm, "CreateSnapshot", &(name, with)).await
    };
    let list = async || {
        let all: Vec<HashMap<String, OwnedVariant>> = alice.call(&vm, "ListSnapshots", &()).await.unwrap();
        all
    };
    let job = create("clean", options([])).await.unwrap();
    let done = alice.done(&job).await;
    assert!(done.contains_key("pause"), "{done:?}");
    let [snapshot] = &list().await[..] else { panic!("it is not listed") };
    assert_eq!(*snapshot["name"], Variant::from("clean"));
    assert_eq!(*snapshot["memory"], Variant::from(true));
    assert!(matches!(*snapshot["created_at"], Variant::U64(at) if at > 0), "{snapshot:?}");
    assert!(matches!(*snapshot["size"], Variant::U64(size) if size > 0), "{snapshot:?}");
    assert_eq!(snapshot.len(), 4);

    for (name, with, error) in [
        ("clean", options([]), ErrorName::NameTaken),
        ("No Name", options([]), ErrorName::InvalidName),
        ("other", options([("typo", 1u32.into())]), ErrorName::InvalidOption),
    ] {
        refused(create(name, with).await, error);
    }
    let fork = async |snapshot: &'static str| {
        let with = options([("snapshot", snapshot.into()), ("names", vec!["again"].into())]);
        alice.call::<Forked>(&vm, "Fork", &(1u32, with)).await
    };
    refused(fork("nope").await, ErrorName::NoSuchSnapshot);
    refused(fork("No Name").await, ErrorName::InvalidName);
    refused(alice.call::<()>(&vm, "DeleteSnapshot", &("nope",)).await, ErrorName::NoSuchSnapshot);

    let job: OwnedObjectPath = alice.call(&vm, "Stop", &(options([]),)).await.unwrap();
    alice.done(&job).await;
    let (children, job) = fork("clean").await.unwrap();
    alice.done(&job).await;
    assert_eq!(alice.text(&children[0], "State").await, "suspended");
    let refusal = alice.call::<OwnedObjectPath>(&vm, "Delete", &(options([]),)).await;
    refused(refusal, ErrorName::HasSnapshots);

    // Others need the action that a fork needs. The snapshot belongs to the owner of the sandbox.
    service.polkit.questions();
    let by_bob = bob.call::<OwnedObjectPath>(&vm, "CreateSnapshot", &("mine", options([]))).await;
    refused(by_bob, ErrorName::InteractiveAuthorizationRequired);
    assert_eq!(service.polkit.questions().last().unwrap().action, action::VM_ACCESS_OTHERS);
    service.polkit.answer(BOB, action::VM_ACCESS_OTHERS, Answer::Yes);
    let job: OwnedObjectPath = bob.call(&vm, "CreateSnapshot", &("mine", options([]))).await.unwrap();
    bob.done(&job).await;
    alice.call::<()>(&vm, "DeleteSnapshot", &("clean",)).await.unwrap();
    let [snapshot] = &list().await[..] else { panic!("one is left") };
    assert_eq!((&*snapshot["name"], &*snapshot["memory"]), (&Variant::from("mine"), &Variant::from(false)));
    let job: OwnedObjectPath =
        alice.call(&vm, "Delete", &(options([("force", true.into())]),)).await.unwrap();
    alice.done(&job).await;
}
