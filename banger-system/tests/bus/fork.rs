//! Forks over a real bus.

use banger_proto::bus::{ErrorName, names::action};
use zbus::OwnedObjectPath;

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
