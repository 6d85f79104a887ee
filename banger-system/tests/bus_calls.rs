//! Calls over a real bus: what works, what is refused and by which name, and who is asked for what.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod private_bus;
mod skip;

use std::collections::HashMap;

use banger_proto::bus::{
    ErrorName,
    names::{JOB_PARENT, MANAGER_PATH, VM_PARENT, action},
    record::{CheckRow, ImageRow, VmRow},
};
use private_bus::{
    ALICE, Answer, BOB, CAROL, Client, Failure, Options, Service, is_possible, null, options, require, until,
};
use zbus::{OwnedObjectPath, OwnedVariant, Variant};

const GET_ALL: &str = "org.freedesktop.DBus.Properties.GetAll";
const GET: &str = "org.freedesktop.DBus.Properties.Get";
const SET: &str = "org.freedesktop.DBus.Properties.Set";
const NOBODY: &str = "/dev/banger/Manager1/vm/00000000000000000000000000000000";

/// The last part of an error's name.
fn short(name: ErrorName) -> &'static str {
    name.as_str().rsplit('.').next().unwrap()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Failure>, name: ErrorName) -> String {
    let failure = result.unwrap_err();
    assert_eq!(failure.name, short(name), "{}", failure.message);
    assert!(!failure.message.is_empty() && failure.message.len() <= 512, "{:?}", failure.message);
    assert!(!failure.message.contains(char::is_control), "{:?}", failure.message);
    failure.message
}

async fn create(
    client: &Client,
    name: &str,
    key: &'static str,
    value: impl Into<Variant<'static>>,
) -> Result<(String, String), Failure> {
    client.begin_create(name, options([(key, value.into())])).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_made_used_and_removed_by_its_owner() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let alice = service.client(ALICE).await;
    let labels = HashMap::from([("for".to_owned(), "tests".to_owned())]);
    let vm = alice
        .create(
            "box",
            options([("vcpus", 3u32.into()), ("memory", (256u64 << 20).into()), ("labels", labels.into())]),
        )
        .await;

    let all: HashMap<String, OwnedVariant> =
        alice.call(&vm, GET_ALL, &("dev.banger.Manager1.VM",)).await.unwrap();
    let text = |name: &str| String::try_from(all[name].clone()).unwrap();
    assert_eq!(
        (text("Name"), text("State"), text("Lifetime")),
        ("box".into(), "running".into(), "persistent".into())
    );
    assert_eq!((text("ImageName"), text("KernelName")), ("debian-bookworm".into(), "debian".into()));
    assert_eq!(u32::try_from(all["Vcpus"].clone()).unwrap(), 3);
    assert_eq!(u64::try_from(all["Memory"].clone()).unwrap(), 256 << 20);
    assert!(bool::try_from(all["Ready"].clone()).unwrap());
    assert_eq!(u32::try_from(all["OwnerUid"].clone()).unwrap(), ALICE);

    let found: OwnedObjectPath = alice.call(MANAGER_PATH, "GetVM", &("box",)).await.unwrap();
    assert_eq!(found.as_str(), vm);
    let rows: Vec<VmRow> = alice.call(MANAGER_PATH, "ListVMs", &(options([]),)).await.unwrap();
    assert_eq!(
        rows.iter().map(|row| (row.name.as_str(), row.state.as_str())).collect::<Vec<_>>(),
        [("box", "running")]
    );
    let images: Vec<ImageRow> = alice.call(MANAGER_PATH, "ListImages", &(options([]),)).await.unwrap();
    assert_eq!(images.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["debian-bookworm"]);

    alice.call::<()>(&vm, "Rename", &("crate",)).await.unwrap();
    assert_eq!(alice.text(&vm, "Name").await, "crate");
    let boot = alice.text(&vm, "BootId").await;
    for (member, state) in [("Stop", "stopped"), ("Start", "running"), ("Restart", "running")] {
        let job: OwnedObjectPath = alice.call(&vm, member, &(options([]),)).await.unwrap();
        alice.done(&job).await;
        assert_eq!(alice.text(&vm, "State").await, state, "after {member}");
    }
    assert_ne!(alice.text(&vm, "BootId").await, boot);
    let _: zbus::OwnedFd =
        alice.call(&vm, "OpenLog", &("console", options([("tail", 5u32.into())]))).await.unwrap();
    refused(alice.call::<OwnedObjectPath>(&vm, "Delete", &(options([]),)).await, ErrorName::InvalidState);
    let job: OwnedObjectPath =
        alice.call(&vm, "Delete", &(options([("force", true.into())]),)).await.unwrap();
    alice.done(&job).await;
    refused(alice.call::<OwnedObjectPath>(MANAGER_PATH, "GetVM", &("crate",)).await, ErrorName::NoSuchVm);
    until(|| async {
        alice
            .property(&vm, "State")
            .await
            .is_err_and(|e| e.name == "UnknownObject" || e.name == "NoSuchVM" || e.name == "UnknownInterface")
    })
    .await;
    assert_eq!(service.sim.alive(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_refused_by_name_and_leave_nothing() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let alice = service.client(ALICE).await;
    use ErrorName as E;

    for (reference, name) in [
        ("nope", E::NoSuchVm),
        ("0123456789ab", E::NoSuchVm),
        ("", E::InvalidName),
        ("../../etc", E::InvalidName),
        ("a\u{1b}]0;x\u{7}\n", E::InvalidName),
    ] {
        refused(alice.call::<OwnedObjectPath>(MANAGER_PATH, "GetVM", &(reference,)).await, name);
    }
    refused(alice.call::<OwnedObjectPath>(MANAGER_PATH, "GetImage", &("nope",)).await, E::NoSuchImage);
    refused(alice.call::<OwnedObjectPath>(MANAGER_PATH, "GetKernel", &("nope",)).await, E::NoSuchKernel);
    refused(alice.call::<OwnedObjectPath>(MANAGER_PATH, "GetJob", &("nope",)).await, E::NoSuchJob);
    refused(alice.call::<()>(&NOBODY.replace("/vm/", "/x/"), "Frob", &()).await, E::UnknownObject);

    refused(create(&alice, "Bad_Name", "start", false).await, E::InvalidName);
    refused(create(&alice, &"x".repeat(100_000), "start", false).await, E::InvalidName);
    refused(create(&alice, "a", "nat-typo", true).await, E::InvalidOption);
    refused(create(&alice, "a", "vcpus", "two").await, E::InvalidOption);
    refused(create(&alice, "a", "vcpus", 0u32).await, E::InvalidOption);
    refused(create(&alice, "a", "vcpus", -1i32).await, E::InvalidOption);
    refused(create(&alice, "a", "memory", 10u64 << 40).await, E::InvalidOption);
    refused(create(&alice, "a", "disk-size", u64::MAX).await, E::InvalidOption);
    refused(create(&alice, "a", "start", "yes").await, E::InvalidOption);
    refused(create(&alice, "a", "lifetime", "eternal").await, E::InvalidOption);
    refused(create(&alice, "a", "wait-for", "godot").await, E::InvalidOption);
    refused(create(&alice, "a", "ready-timeout-usec", u64::MAX).await, E::InvalidOption);
    refused(create(&alice, "a", "init", "relative/path").await, E::InvalidOption);
    refused(create(&alice, "a", "hostname", "no host name").await, E::InvalidName);
    refused(create(&alice, "a", "image", "nope").await, E::NoSuchImage);
    refused(create(&alice, "a", "kernel", "nope").await, E::NoSuchKernel);
    let many: HashMap<String, String> = (0..33).map(|n| (n.to_string(), String::new())).collect();
    refused(create(&alice, "a", "labels", many).await, E::InvalidOption);

    let files = |names: &[&'static str]| -> HashMap<&'static str, zbus::Fd<'static>> {
        names.iter().map(|name| (*name, zbus::Fd::from(null()))).collect()
    };
    let import = async |member: &str, files, given: Options| {
        alice.call::<OwnedObjectPath>(MANAGER_PATH, member, &("i", files, given)).await
    };
    refused(import("ImportImage", files(&[]), options([])).await, E::InvalidArgs);
    refused(import("ImportImage", files(&["rootfs", "shadow"]), options([])).await, E::InvalidOption);
    refused(
        import("ImportImage", files(&["rootfs"]), options([("digset", "x".into())])).await,
        E::InvalidOption,
    );
    refused(import("ImportKernel", files(&["modules"]), options([])).await, E::InvalidArgs);
    refused(
        import("ImportKernel", files(&["kernel"]), options([("kernel-ref", "debian".into())])).await,
        E::InvalidOption,
    );

    // A body of another shape, a member and an interface that do not exist, and a property that is not ours
    // to give or to take.
    refused(alice.call::<OwnedObjectPath>(MANAGER_PATH, "GetVM", &(7u32,)).await, E::InvalidArgs);
    refused(alice.call::<OwnedObjectPath>(MANAGER_PATH, "CreateVM", &("a",)).await, E::InvalidArgs);
    let failure = alice.call::<()>(MANAGER_PATH, "FormatHost", &()).await.unwrap_err();
    assert_eq!(failure.name, "UnknownMethod");
    let failure = alice.property(MANAGER_PATH, "Nonsense").await.unwrap_err();
    assert_eq!(failure.name, "UnknownProperty");

    assert_eq!(service.sim.alive(), Vec::<String>::new());
    let rows: Vec<VmRow> = alice.call(MANAGER_PATH, "ListVMs", &(options([]),)).await.unwrap();
    assert_eq!(rows, []);

    let vm = alice.create("box", options([("start", false.into()), ("x-note", "ignored".into())])).await;
    refused(create(&alice, "box", "start", false).await, E::NameTaken);
    for member in ["Start", "Stop", "Restart", "Delete"] {
        refused(
            alice.call::<OwnedObjectPath>(&vm, member, &(options([("typo", 1u32.into())]),)).await,
            E::InvalidOption,
        );
    }
    refused(alice.call::<()>(&vm, "Rename", &("Bad Name",)).await, E::InvalidName);
    refused(alice.call::<()>(&vm, "SetLifetime", &("eternal",)).await, E::InvalidOption);
    refused(alice.call::<()>(&vm, "Kill", &(9i32,)).await, E::InvalidState);
    refused(alice.call::<zbus::OwnedFd>(&vm, "OpenLog", &("shadow", options([]))).await, E::InvalidArgs);
    refused(alice.call::<zbus::OwnedFd>(&vm, "OpenAgent", &(options([]),)).await, E::InvalidState);
    let set = ("dev.banger.Manager1.VM", "Name", Variant::from("x"));
    let failure = alice.call::<()>(&vm, SET, &set).await.unwrap_err();
    assert_eq!(failure.name, "PropertyReadOnly");
    assert_eq!(alice.text(&vm, "State").await, "created");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_property_that_a_proxy_reads_is_there() {
    require!(is_possible(), "root and dbus-daemon");
    use banger_proto::bus::proxy::{JobProxy, ManagerProxy, VmProxy};
    let service = Service::start().await;
    let alice = service.client(ALICE).await;
    let manager = ManagerProxy::new(&alice.connection).await.unwrap();
    assert_eq!(manager.version().await.unwrap(), env!("CARGO_PKG_VERSION"));
    assert!(manager.api_level().await.unwrap() >= 1);
    manager.features().await.unwrap();
    assert_eq!(manager.default_image().await.unwrap(), "debian-bookworm");
    assert_eq!(manager.default_kernel().await.unwrap(), "debian");
    assert_eq!(manager.get_permissions().await.unwrap()[action::VM_RUN], "yes");
    assert_eq!(manager.get_permissions().await.unwrap()[action::VM_VIEW_OTHERS], "auth");
    assert!(manager.get_limits().await.unwrap().contains_key("vms"));
    let checks: Vec<CheckRow> = manager.diagnose(HashMap::new()).await.unwrap();
    assert!(
        checks.iter().any(|check| check.check == "default image" && check.status == "pass"),
        "{checks:?}"
    );

    let (path, job) = manager.create_vm("box", HashMap::new()).await.unwrap();
    let job = JobProxy::new(&alice.connection, job).await.unwrap();
    assert_eq!(job.wait(0).await.unwrap().0, "done");
    assert_eq!((job.state().await.unwrap().as_str(), job.progress().await.unwrap()), ("done", 1.0));
    assert_eq!(job.objects().await.unwrap(), std::slice::from_ref(&path));
    job.current_stage().await.unwrap();
    assert_eq!(
        job.cancel().await.unwrap_err().to_string().split(':').next(),
        Some("dev.banger.Error.NotCancelable")
    );
    let vm = VmProxy::new(&alice.connection, path.clone()).await.unwrap();
    assert_eq!(format!("{VM_PARENT}/{}", vm.id().await.unwrap()), path.as_str());
    assert_eq!((vm.name().await.unwrap().as_str(), vm.owner_uid().await.unwrap()), ("box", ALICE));
    assert_eq!((vm.state().await.unwrap().as_str(), vm.ready().await.unwrap()), ("running", true));
    vm.state_reason().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_machines_need_polkit_only_to_be_made_and_to_run() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let alice = service.client(ALICE).await;
    let vm = alice.create("box", options([])).await;
    let asked = service.polkit.asked();
    assert_eq!(
        asked.iter().map(|q| (q.uid, q.action.as_str(), q.interactive)).collect::<Vec<_>>(),
        [(ALICE, action::VM_RUN, false)]
    );

    // Out of the group: what exists can still be looked at, stopped and deleted.
    service.polkit.answer(ALICE, action::VM_RUN, Answer::NoAgent);
    refused(
        alice.call::<OwnedObjectPath>(&vm, "Restart", &(options([]),)).await,
        ErrorName::InteractiveAuthorizationRequired,
    );
    let question = service.polkit.asked().remove(0);
    assert_eq!(question.details["vm"], "box");
    assert_eq!(question.details["owner_uid"], ALICE.to_string());
    let job: OwnedObjectPath = alice.call(&vm, "Stop", &(options([]),)).await.unwrap();
    alice.done(&job).await;
    refused(
        alice.call::<OwnedObjectPath>(&vm, "Start", &(options([]),)).await,
        ErrorName::InteractiveAuthorizationRequired,
    );
    service.polkit.asked();
    alice.call::<()>(&vm, "Rename", &("crate",)).await.unwrap();
    let job: OwnedObjectPath = alice.call(&vm, "Delete", &(options([]),)).await.unwrap();
    alice.done(&job).await;
    assert_eq!(service.polkit.asked(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_answer_of_polkit_has_its_error_and_no_effect() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let carol = service.client(CAROL).await;
    let body = ("box", options([]));

    let message = refused(
        carol.call::<(OwnedObjectPath, OwnedObjectPath)>(MANAGER_PATH, "CreateVM", &body).await,
        ErrorName::InteractiveAuthorizationRequired,
    );
    assert!(message.contains("group banger"), "{message}");
    for (answer, part) in
        [(Answer::NoAgent, "group banger"), (Answer::Dismissed, "dismissed"), (Answer::No, "not allowed")]
    {
        service.polkit.answer(CAROL, action::VM_RUN, answer);
        let result = carol
            .call_interactively::<(OwnedObjectPath, OwnedObjectPath)>(MANAGER_PATH, "CreateVM", &body)
            .await;
        let message = refused(result, ErrorName::AccessDenied);
        assert!(message.contains(part), "{answer:?}: {message}");
    }
    // Nobody is bothered before polkit has said that somebody must be.
    let asked: Vec<bool> = service.polkit.asked().iter().map(|question| question.interactive).collect();
    assert_eq!(asked, [false, false, true, false, true, false]);
    assert_eq!(service.sim.alive(), Vec::<String>::new());

    service.polkit.answer(CAROL, action::VM_RUN, Answer::Password);
    refused(
        carol.call::<(OwnedObjectPath, OwnedObjectPath)>(MANAGER_PATH, "CreateVM", &body).await,
        ErrorName::InteractiveAuthorizationRequired,
    );
    let (_, job) = carol
        .call_interactively::<(OwnedObjectPath, OwnedObjectPath)>(MANAGER_PATH, "CreateVM", &body)
        .await
        .unwrap();
    carol.done(&job).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_polkit_only_root_may() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, root) = (service.client(ALICE).await, service.client(0).await);
    service.polkit.clone().stop().await;
    refused(create(&alice, "box", "start", false).await, ErrorName::AccessDenied);
    root.create("box", options([])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_peoples_objects_do_not_exist_for_whom_may_not_see_them() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, bob) = (service.client(ALICE).await, service.client(BOB).await);
    let vm = alice.create("hers", options([])).await;
    let image = alice.import_image("secret", options([])).await;
    let id = |path: &str| path.rsplit('/').next().unwrap().to_owned();
    let before = service.sim.alive();

    // By name or by id, there and not there: the same answer.
    for (there, not_there) in
        [(id(&vm)[..8].to_owned(), "00000000".to_owned()), ("hers".into(), "hurs".into())]
    {
        let of = async |reference: &str| {
            let answer = bob.call::<OwnedObjectPath>(MANAGER_PATH, "GetVM", &(reference,)).await;
            refused(answer, ErrorName::NoSuchVm).replace(reference, "…")
        };
        assert_eq!(of(&there).await, of(&not_there).await);
    }
    let of = async |reference: &str| {
        bob.call::<OwnedObjectPath>(MANAGER_PATH, "GetVM", &(reference,)).await.unwrap_err()
    };
    let (there, not_there) = (of("user1/hers").await, of("user1/hurs").await);
    assert_eq!((&there.name, &there.message), (&not_there.name, &not_there.message.replace("hurs", "hers")));
    for reference in [id(&image)[..8].to_owned(), "user1/secret".into(), "secret".into()] {
        let answer = bob.call::<OwnedObjectPath>(MANAGER_PATH, "GetImage", &(reference.as_str(),)).await;
        assert!(answer.is_err(), "{reference}: {answer:?}");
        // Nor can it be cloned: that would be reading it.
        let made = create(&bob, "mine", "image", reference.clone()).await;
        assert!(made.is_err(), "{reference}: {made:?}");
    }
    let rows: Vec<VmRow> = bob.call(MANAGER_PATH, "ListVMs", &(options([]),)).await.unwrap();
    assert_eq!(rows, []);
    refused(
        bob.call::<Vec<VmRow>>(MANAGER_PATH, "ListVMs", &(options([("all", true.into())]),)).await,
        ErrorName::InteractiveAuthorizationRequired,
    );

    // With the path in hand.
    for name in ["Name", "State", "OwnerUid"] {
        refused(bob.property(&vm, name).await, ErrorName::AccessDenied);
    }
    let all = bob.call::<HashMap<String, OwnedVariant>>(&vm, GET_ALL, &("dev.banger.Manager1.VM",)).await;
    assert!(all.as_ref().map_or(true, HashMap::is_empty), "{all:?}");
    refused(bob.property(&image, "Name").await, ErrorName::AccessDenied);
    let force = || options([("force", true.into())]);
    for member in ["Start", "Stop", "Restart", "Delete"] {
        let given = if member == "Start" { options([]) } else { force() };
        refused(
            bob.call::<OwnedObjectPath>(&vm, member, &(given,)).await,
            ErrorName::InteractiveAuthorizationRequired,
        );
    }
    refused(bob.call::<()>(&vm, "Kill", &(9i32,)).await, ErrorName::InteractiveAuthorizationRequired);
    refused(bob.call::<()>(&vm, "Rename", &("mine",)).await, ErrorName::InteractiveAuthorizationRequired);
    refused(
        bob.call::<()>(&vm, "SetLifetime", &("caller",)).await,
        ErrorName::InteractiveAuthorizationRequired,
    );
    refused(
        bob.call::<zbus::OwnedFd>(&vm, "OpenAgent", &(options([]),)).await,
        ErrorName::InteractiveAuthorizationRequired,
    );
    refused(
        bob.call::<zbus::OwnedFd>(&vm, "OpenLog", &("console", options([]))).await,
        ErrorName::InteractiveAuthorizationRequired,
    );
    refused(
        bob.call::<()>(&image, "Delete", &(options([]),)).await,
        ErrorName::InteractiveAuthorizationRequired,
    );

    assert_eq!(alice.text(&vm, "State").await, "running");
    assert_eq!(alice.text(&vm, "Name").await, "hers");
    assert_eq!(service.sim.alive(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_administrator_who_authenticates_manages_other_peoples_machines() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, bob) = (service.client(ALICE).await, service.client(BOB).await);
    let vm = alice.create("box", options([])).await;
    for action in [action::VM_VIEW_OTHERS, action::VM_MANAGE_OTHERS] {
        service.polkit.answer(BOB, action, Answer::Password);
    }
    service.polkit.asked();

    // As the command does: first without asking, then again with the right to ask.
    refused(
        bob.call::<OwnedObjectPath>(MANAGER_PATH, "GetVM", &("user1/box",)).await,
        ErrorName::InteractiveAuthorizationRequired,
    );
    let found: OwnedObjectPath =
        bob.call_interactively(MANAGER_PATH, "GetVM", &("user1/box",)).await.unwrap();
    assert_eq!(found.as_str(), vm);
    refused(
        bob.call::<OwnedObjectPath>(&vm, "Stop", &(options([]),)).await,
        ErrorName::InteractiveAuthorizationRequired,
    );
    service.polkit.asked();
    let job: OwnedObjectPath = bob.call_interactively(&vm, "Stop", &(options([]),)).await.unwrap();
    let asked = service.polkit.asked();
    assert_eq!(
        asked.iter().map(|q| (q.uid, q.action.as_str(), q.interactive)).collect::<Vec<_>>(),
        [false, true].map(|interactive| (BOB, action::VM_MANAGE_OTHERS, interactive))
    );
    assert_eq!((asked[0].details["vm"].as_str(), asked[0].details["owner"].as_str()), ("box", "user1"));
    // Who was allowed to begin it may see how it ends, without a word of polkit.
    bob.done(&job).await;
    assert_eq!(bob.text(&job, "State").await, "done");
    assert_eq!(service.polkit.asked(), []);
    assert_eq!(alice.text(&vm, "State").await, "stopped");

    // To see is not to enter, and not to manage.
    service.polkit.answer(CAROL, action::VM_VIEW_OTHERS, Answer::Yes);
    let carol = service.client(CAROL).await;
    assert_eq!(carol.text(&vm, "Name").await, "box");
    refused(carol.call::<()>(&vm, "Rename", &("mine",)).await, ErrorName::InteractiveAuthorizationRequired);
    refused(
        carol.call::<zbus::OwnedFd>(&vm, "OpenLog", &("console", options([]))).await,
        ErrorName::InteractiveAuthorizationRequired,
    );
    // A verdict holds for the reads that follow at once.
    service.polkit.asked();
    for _ in 0..20 {
        carol.text(&vm, "State").await;
    }
    assert!(service.polkit.asked().len() <= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_images_are_everybodys_to_use_and_an_administrators_to_change() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, bob) = (service.client(ALICE).await, service.client(BOB).await);
    let shared: OwnedObjectPath = alice.call(MANAGER_PATH, "GetImage", &("debian-bookworm",)).await.unwrap();
    assert_eq!(alice.text(&shared, "Name").await, "debian-bookworm");
    refused(
        alice.call::<()>(&shared, "Delete", &(options([]),)).await,
        ErrorName::InteractiveAuthorizationRequired,
    );
    let files = || HashMap::from([("rootfs", zbus::Fd::from(null()))]);
    refused(
        alice
            .call::<OwnedObjectPath>(
                MANAGER_PATH,
                "ImportImage",
                &("ours", files(), options([("shared", true.into())])),
            )
            .await,
        ErrorName::InteractiveAuthorizationRequired,
    );
    assert_eq!(service.engine.images().len(), 1);
    service.polkit.answer(ALICE, action::IMAGE_MANAGE_SHARED, Answer::Yes);
    let ours = alice.import_image("ours", options([("shared", true.into())])).await;
    assert_eq!(bob.text(&ours, "Name").await, "ours");
    bob.create("box", options([("image", "ours".into())])).await;
    refused(alice.call::<()>(&ours, "Delete", &(options([]),)).await, ErrorName::ImageInUse);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_user_cannot_take_the_service_from_the_others() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, bob) = (service.client(ALICE).await, service.client(BOB).await);
    let vm = alice.create("box", options([])).await;
    service.polkit.asked();

    // Questions that wait for an administrator: a few of one user, however many calls.
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
    // A read, of whatever object, waits for nobody.
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
    alice.create("second", options([])).await;
    refused(reader.await.unwrap(), ErrorName::AccessDenied);

    // Gone is gone: nobody is left to be asked for.
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
    service.sim.deafen_guests(true);
    let (vm, job) = alice.begin_create("box", options([])).await.unwrap();
    service.polkit.answer(ALICE, action::VM_RUN, Answer::Silence);

    let mut calls = tokio::task::JoinSet::new();
    for n in 0..50 {
        let alice = alice.clone();
        calls.spawn(async move { create(&alice, &format!("n{n}"), "start", false).await });
    }
    // Only what is beyond the limit is answered.
    for _ in 0..18 {
        refused(calls.join_next().await.unwrap().unwrap(), ErrorName::TooManyRequests);
    }
    service.polkit.until_waiting(32).await;
    bob.create("box", options([("wait-for", "running".into())])).await;
    service.polkit.release();
    // What waited is served; the share of a user is another matter.
    while let Some(made) = calls.join_next().await {
        assert!(made.unwrap().map_or_else(|failure| failure.name == "QuotaExceeded", |_| true));
    }

    let mut waits = tokio::task::JoinSet::new();
    for _ in 0..60 {
        let (alice, job) = (alice.clone(), job.clone());
        waits.spawn(async move { alice.wait(&job).await.0 });
    }
    alice.call::<()>(&job, "Cancel", &()).await.unwrap();
    for result in waits.join_all().await {
        assert_eq!(result, "canceled");
    }
    assert!(vm.starts_with(VM_PARENT) && job.starts_with(JOB_PARENT));
}
