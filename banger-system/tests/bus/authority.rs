//! Authorisation on a real bus: who may do what, what polkit is asked, and what its answers do.

use std::{collections::HashMap, time::Duration};

use banger_proto::bus::{
    ErrorName,
    names::{MANAGER_PATH, action},
    record::VmRow,
};
use banger_system::{
    host,
    ports::authority::{Authority, Interaction, Question, Verdict},
};
use zbus::{OwnedObjectPath, OwnedVariant};

use crate::private_bus::{
    ALICE, Answer, BOB, Bus, CAROL, GET_ALL, Polkit, Service, is_possible, null, options, refused, require,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ones_own_sandboxes_need_polkit_only_to_be_created_and_to_run() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let alice = service.client(ALICE).await;
    let vm = alice.create("box", options([])).await;
    let questions = service.polkit.questions();
    assert_eq!(
        questions.iter().map(|q| (q.uid, q.action.as_str(), q.interactive)).collect::<Vec<_>>(),
        [(ALICE, action::VM_RUN, false)]
    );

    // Removed from the group: existing sandboxes can still be viewed, stopped and deleted.
    service.polkit.answer(ALICE, action::VM_RUN, Answer::NoAgent);
    refused(
        alice.call::<OwnedObjectPath>(&vm, "Restart", &(options([]),)).await,
        ErrorName::InteractiveAuthorizationRequired,
    );
    let question = service.polkit.questions().remove(0);
    assert_eq!(question.details["vm"], "box");
    assert_eq!(question.details["owner_uid"], ALICE.to_string());
    let job: OwnedObjectPath = alice.call(&vm, "Stop", &(options([]),)).await.unwrap();
    alice.done(&job).await;
    refused(
        alice.call::<OwnedObjectPath>(&vm, "Start", &(options([]),)).await,
        ErrorName::InteractiveAuthorizationRequired,
    );
    service.polkit.questions();
    alice.call::<()>(&vm, "Rename", &("crate",)).await.unwrap();
    let job: OwnedObjectPath = alice.call(&vm, "Delete", &(options([]),)).await.unwrap();
    alice.done(&job).await;
    assert_eq!(service.polkit.questions(), []);
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
    // No dialog opens before polkit requires one.
    let interactive: Vec<bool> =
        service.polkit.questions().iter().map(|question| question.interactive).collect();
    assert_eq!(interactive, [false, false, true, false, true, false]);
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
    let message = refused(alice.create_with("box", "start", false).await, ErrorName::AccessDenied);
    assert!(message.contains("polkit is not installed"), "{message}");
    root.create("box", options([])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_polkit_that_fails_refuses_nobody_and_lets_nobody_through() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, bob) = (service.client(ALICE).await, service.client(BOB).await);
    let vm = bob.create("box", options([])).await;
    for action in [action::VM_RUN, action::VM_VIEW_OTHERS] {
        service.polkit.answer(ALICE, action, Answer::Fails);
    }
    let message = refused(alice.create_with("hers", "start", false).await, ErrorName::HostNotReady);
    assert_eq!(message, "polkit cannot decide: it is too busy");
    refused(alice.property(&vm, "Name").await, ErrorName::HostNotReady);
    let permissions = alice.call::<HashMap<String, String>>(MANAGER_PATH, "GetPermissions", &()).await;
    refused(permissions, ErrorName::HostNotReady);
    // An unknown answer is not cached.
    service.polkit.answer(ALICE, action::VM_VIEW_OTHERS, Answer::Yes);
    assert_eq!(alice.text(&vm, "Name").await, "box");
    assert_eq!(service.engine.vms().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_polkit_that_does_not_answer_is_named_as_that() {
    require!(is_possible(), "root and dbus-daemon");
    let bus = Bus::start();
    let polkit = Polkit::start(&bus).await;
    polkit.answer(ALICE, action::VM_RUN, Answer::Silence);
    let alice = bus.client(ALICE).await;
    let short = Duration::from_millis(50);
    let authority = host::authority::Polkit::with_timeout(bus.connect(0).await, short);
    let question = Question {
        connection: alice.name(),
        action: action::VM_RUN,
        details: Vec::new(),
        interaction: Interaction::Forbidden,
    };
    match authority.check(question).await {
        Verdict::Undecided(why) => assert!(why.contains("has not answered"), "{why}"),
        other => panic!("{other:?}"),
    }
    // The question was withdrawn.
    polkit.until_waiting(0).await;
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

    // The answer is the same by name and by id, for existing and missing objects.
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
        // It cannot be cloned either: a clone can be read.
        let made = bob.create_with("mine", "image", reference.clone()).await;
        assert!(made.is_err(), "{reference}: {made:?}");
    }
    let rows: Vec<VmRow> = bob.call(MANAGER_PATH, "ListVMs", &(options([]),)).await.unwrap();
    assert_eq!(rows, []);
    refused(
        bob.call::<Vec<VmRow>>(MANAGER_PATH, "ListVMs", &(options([("all", true.into())]),)).await,
        ErrorName::InteractiveAuthorizationRequired,
    );

    // The same with a known path.
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
        bob.call::<zbus::OwnedFd>(&vm, "OpenStream", &("ssh", options([]))).await,
        ErrorName::InteractiveAuthorizationRequired,
    );
    refused(
        bob.call::<zbus::OwnedFd>(&vm, "OpenLog", &("console", options([]))).await,
        ErrorName::InteractiveAuthorizationRequired,
    );
    refused(bob.call::<()>(&image, "Rename", &("mine",)).await, ErrorName::InteractiveAuthorizationRequired);
    refused(
        bob.call::<()>(&image, "Delete", &(options([]),)).await,
        ErrorName::InteractiveAuthorizationRequired,
    );
    refused(
        bob.call::<OwnedObjectPath>(&image, "Tag", &("mine", options([]))).await,
        ErrorName::InteractiveAuthorizationRequired,
    );

    assert_eq!(alice.text(&vm, "State").await, "running");
    assert_eq!(alice.text(&vm, "Name").await, "hers");
    assert_eq!(service.sim.alive(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_administrator_who_authenticates_manages_other_peoples_sandboxes() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, bob) = (service.client(ALICE).await, service.client(BOB).await);
    let vm = alice.create("box", options([])).await;
    for action in [action::VM_VIEW_OTHERS, action::VM_MANAGE_OTHERS] {
        service.polkit.answer(BOB, action, Answer::Password);
    }
    service.polkit.questions();

    // As the CLI does: first without interaction, then with it.
    refused(
        bob.call::<OwnedObjectPath>(MANAGER_PATH, "GetVM", &("user1/box",)).await,
        ErrorName::InteractiveAuthorizationRequired,
    );
    let found: OwnedObjectPath =
        bob.call_interactively(MANAGER_PATH, "GetVM", &("user1/box",)).await.unwrap();
    assert_eq!(found.as_str(), vm);
    service.polkit.questions();
    assert_eq!(bob.text(&vm, "State").await, "running");
    assert_eq!(service.polkit.questions(), []);
    refused(
        bob.call::<OwnedObjectPath>(&vm, "Stop", &(options([]),)).await,
        ErrorName::InteractiveAuthorizationRequired,
    );
    service.polkit.questions();
    let job: OwnedObjectPath = bob.call_interactively(&vm, "Stop", &(options([]),)).await.unwrap();
    let questions = service.polkit.questions();
    assert_eq!(
        questions.iter().map(|q| (q.uid, q.action.as_str(), q.interactive)).collect::<Vec<_>>(),
        [false, true].map(|interactive| (BOB, action::VM_MANAGE_OTHERS, interactive))
    );
    assert_eq!(
        (questions[0].details["vm"].as_str(), questions[0].details["owner"].as_str()),
        ("box", "user1")
    );
    // The creator of a job may see how it ends, without asking polkit.
    bob.done(&job).await;
    assert_eq!(bob.text(&job, "State").await, "done");
    refused(bob.call::<()>(&job, "Cancel", &()).await, ErrorName::NotCancelable);
    assert_eq!(service.polkit.questions(), []);
    let another = service.client(BOB).await;
    refused(another.call::<()>(&job, "Cancel", &()).await, ErrorName::InteractiveAuthorizationRequired);
    assert_eq!(alice.text(&vm, "State").await, "stopped");

    // The right to view includes neither access nor management.
    service.polkit.answer(CAROL, action::VM_VIEW_OTHERS, Answer::Yes);
    let carol = service.client(CAROL).await;
    assert_eq!(carol.text(&vm, "Name").await, "box");
    refused(carol.call::<()>(&vm, "Rename", &("mine",)).await, ErrorName::InteractiveAuthorizationRequired);
    refused(
        carol.call::<zbus::OwnedFd>(&vm, "OpenLog", &("console", options([]))).await,
        ErrorName::InteractiveAuthorizationRequired,
    );
    // A verdict is cached for the reads that follow.
    service.polkit.questions();
    for _ in 0..20 {
        carol.text(&vm, "State").await;
    }
    assert!(service.polkit.questions().len() <= 1);
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
    let vm = bob.create("box", options([("image", "ours".into())])).await;
    // Everybody sees their own sandboxes of it, and nobody else's.
    for (client, expect) in [(&alice, vec![]), (&bob, vec![vm])] {
        let all: HashMap<String, OwnedVariant> =
            client.call(&ours, GET_ALL, &("dev.banger.Manager1.Image",)).await.unwrap();
        let used_by = Vec::<OwnedObjectPath>::try_from(all["UsedBy"].clone()).unwrap();
        assert_eq!(used_by.iter().map(|path| path.as_str()).collect::<Vec<_>>(), expect);
    }
    refused(alice.call::<()>(&ours, "Delete", &(options([]),)).await, ErrorName::ImageInUse);
    // Another name of it is the user's own alone.
    let tag: OwnedObjectPath = bob.call(&ours, "Tag", &("mine", options([]))).await.unwrap();
    assert_eq!(bob.text(&tag, "Name").await, "mine");
    assert_eq!(u32::try_from(bob.property(&tag, "OwnerUid").await.unwrap()).unwrap(), BOB);
    assert!(!bool::try_from(bob.property(&tag, "Shared").await.unwrap()).unwrap());
    refused(alice.property(&tag, "Name").await, ErrorName::AccessDenied);
    refused(bob.call::<OwnedObjectPath>(&ours, "Tag", &("mine", options([]))).await, ErrorName::NameTaken);
    refused(bob.call::<OwnedObjectPath>(&ours, "Tag", &("No", options([]))).await, ErrorName::InvalidName);
    refused(
        bob.call::<OwnedObjectPath>(&ours, "Tag", &("x", options([("y", true.into())]))).await,
        ErrorName::InvalidOption,
    );
    assert_eq!(service.engine.images().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_of_a_new_sandbox_are_authorised_before_it_exists() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let alice = service.client(ALICE).await;
    let with = |port: (&'static str, u16, u16, &'static str)| options([("ports", vec![port].into())]);
    let create = async |options| {
        alice.call::<(OwnedObjectPath, OwnedObjectPath)>(MANAGER_PATH, "CreateVM", &("box", options)).await
    };
    service.polkit.questions();
    for (port, named) in [(("tcp", 80, 80, "loopback"), "port 80"), (("udp", 53, 0, "all"), "a free port")] {
        refused(create(with(port)).await, ErrorName::InteractiveAuthorizationRequired);
        let questions = service.polkit.questions();
        let asked: Vec<&str> = questions.iter().map(|question| question.action.as_str()).collect();
        assert_eq!(asked, [action::VM_RUN, action::VM_PUBLISH]);
        let details = &questions[1].details;
        assert_eq!((details["port"].as_str(), details["object"].as_str()), (named, "sandbox box"));
    }
    // Without the image, an administrator is not asked.
    let nowhere = options([("ports", vec![("tcp", 80u16, 80u16, "all")].into()), ("image", "nope".into())]);
    refused(create(nowhere).await, ErrorName::NoSuchImage);
    assert!(service.polkit.questions().iter().all(|question| question.action != action::VM_PUBLISH));
    assert_eq!(service.sim.alive(), Vec::<String>::new());
    assert!(service.engine.vms().is_empty());

    let (vm, job) = create(with(("tcp", 80, 8080, "loopback"))).await.unwrap();
    alice.done(&job).await;
    let ports = vec![("tcp".to_owned(), 80u16, 8080u16, "127.0.0.1".to_owned())];
    let published = alice.property(&vm, "PublishedPorts").await.unwrap();
    assert_eq!(Vec::<(String, u16, u16, String)>::try_from(published).unwrap(), ports);
    refused(create(with(("tcp", 80, 8080, "loopback"))).await, ErrorName::AlreadyInUse);
}
