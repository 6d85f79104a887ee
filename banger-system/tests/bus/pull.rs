//! Pulls over a real bus: which work, which are refused with which error, and who gets the signals.

use std::{collections::HashMap, fs::File, io::Write, os::fd::OwnedFd};

use banger_proto::bus::{
    ErrorName as E,
    names::{MANAGER_PATH, action},
};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use zbus::{OwnedObjectPath, OwnedVariant, Variant};

use crate::private_bus::{ALICE, Answer, BOB, Options, Service, is_possible, options, refused, require};

const TOOL: &str = "registry.test/org/tool:1";

fn credentials(text: &str) -> Variant<'static> {
    let mut file = File::from(memfd_create("credentials", MemfdFlags::ALLOW_SEALING).unwrap());
    file.write_all(text.as_bytes()).unwrap();
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    Variant::from(zbus::Fd::from(OwnedFd::from(file)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_pulled_by_its_user_and_known_by_its_reference() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, bob) = (service.client(ALICE).await, service.client(BOB).await);
    let job: OwnedObjectPath = alice.call(MANAGER_PATH, "PullImage", &(TOOL, options([]))).await.unwrap();
    let data = alice.done(&job).await;
    let image = OwnedObjectPath::try_from(data["image"].clone()).unwrap();
    let digest = alice.text(&image, "ManifestDigest").await;
    assert_eq!(String::try_from(data["digest"].clone()).unwrap(), digest);
    assert!(digest.starts_with("sha256:") && digest.len() == 71, "{digest}");
    assert_eq!(
        (alice.text(&image, "Name").await, alice.text(&image, "Source").await),
        ("tool-1".into(), TOOL.into())
    );
    let config = alice.property(&image, "Config").await.unwrap();
    let config = HashMap::<String, OwnedVariant>::try_from(config).unwrap();
    let env = Vec::<String>::try_from(config["env"].clone()).unwrap();
    assert_eq!((env[1].as_str(), config.contains_key("user")), ("LANG=C.UTF-8", false));
    let progress = f64::try_from(alice.property(&job, "Progress").await.unwrap()).unwrap();
    assert!((progress - 1.0).abs() < f64::EPSILON);

    // Its reference works like its name, for its owner only.
    for name in [TOOL, "tool-1"] {
        let found: OwnedObjectPath = alice.call(MANAGER_PATH, "GetImage", &(name,)).await.unwrap();
        assert_eq!(found, image);
        refused(bob.call::<OwnedObjectPath>(MANAGER_PATH, "GetImage", &(name,)).await, E::NoSuchImage);
        refused(bob.create_with("", "image", name).await, E::NoSuchImage);
    }
    let vm = alice.create("", options([("image", TOOL.into())])).await;
    assert_eq!(alice.text(&vm, "ImageName").await, "tool-1");
    // Pulling it again succeeds at once.
    let again: OwnedObjectPath = alice.call(MANAGER_PATH, "PullImage", &(TOOL, options([]))).await.unwrap();
    let again = OwnedObjectPath::try_from(alice.done(&again).await["image"].clone()).unwrap();
    assert_eq!(again, image);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_image_is_replaced_with_permission_and_stays_shared() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let alice = service.client(ALICE).await;
    let pull = async || {
        let force = options([("force", true.into()), ("name", "tool-1".into())]);
        alice.call::<OwnedObjectPath>(MANAGER_PATH, "PullImage", &("registry.test/other", force)).await
    };
    service.polkit.answer(ALICE, action::IMAGE_MANAGE_SHARED, Answer::Yes);
    let shared = options([("shared", true.into())]);
    let job: OwnedObjectPath = alice.call(MANAGER_PATH, "PullImage", &(TOOL, shared)).await.unwrap();
    let old = OwnedObjectPath::try_from(alice.done(&job).await["image"].clone()).unwrap();
    service.polkit.answer(ALICE, action::IMAGE_MANAGE_SHARED, Answer::Password);
    refused(pull().await, E::InteractiveAuthorizationRequired);
    assert_eq!(alice.text(&old, "Source").await, TOOL);
    service.polkit.answer(ALICE, action::IMAGE_MANAGE_SHARED, Answer::Yes);
    let new = OwnedObjectPath::try_from(alice.done(&pull().await.unwrap()).await["image"].clone()).unwrap();
    assert!(bool::try_from(alice.property(&new, "Shared").await.unwrap()).unwrap());
    // Its object may be on the bus for another moment.
    let gone = alice.property(&old, "Name").await.unwrap_err();
    assert!(["UnknownObject", "NoSuchImage"].contains(&gone.name.as_str()), "{}", gone.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_pull_reports_the_error_by_name() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let alice = service.client(ALICE).await;
    let pull = async |reference: &str, options: Options| {
        alice.call::<OwnedObjectPath>(MANAGER_PATH, "PullImage", &(reference, options)).await
    };
    for reference in ["", "A", "../etc", "registry.test/x\u{1b}", "http://registry.test/x"] {
        refused(pull(reference, options([])).await, E::InvalidArgs);
    }
    refused(pull(TOOL, options([("plattform", "x".into())])).await, E::InvalidOption);
    refused(pull(TOOL, options([("platform", "linux/mips".into())])).await, E::InvalidOption);
    refused(pull(TOOL, options([("platform", "amd64".into())])).await, E::InvalidOption);
    refused(pull(TOOL, options([("name", "No".into())])).await, E::InvalidName);
    refused(pull(TOOL, options([("kernel", "none".into())])).await, E::NoSuchKernel);
    refused(pull(TOOL, options([("credentials", "secret".into())])).await, E::InvalidOption);
    refused(pull(TOOL, options([("credentials", credentials("secret"))])).await, E::BadFileDescriptor);

    let private = "registry.test/private";
    for (reference, name) in [
        ("unreachable.test/x", "dev.banger.Error.RegistryUnreachable"),
        ("registry.test/missing", "dev.banger.Error.RegistryError"),
        (private, "dev.banger.Error.RegistryAuthRequired"),
        ("registry.test/broken", "dev.banger.Error.DigestMismatch"),
    ] {
        let job = pull(reference, options([])).await.unwrap();
        let (result, error, message, _) = alice.wait(&job).await;
        assert_eq!((result.as_str(), error.as_str()), ("failed", name), "{message}");
    }
    let known = credentials(r#"{"username":"alice","password":"secret"}"#);
    let job = pull(private, options([("credentials", known)])).await.unwrap();
    alice.done(&job).await;
    // The name belongs to another image now.
    let other = options([("name", "private".into())]);
    refused(pull(TOOL, other).await, E::NameTaken);
    let forced = options([("name", "private".into()), ("force", true.into())]);
    alice.done(&pull(TOOL, forced).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cache_that_all_share_is_pruned_by_an_administrator() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let alice = service.client(ALICE).await;
    let job: OwnedObjectPath = alice.call(MANAGER_PATH, "PullImage", &(TOOL, options([]))).await.unwrap();
    alice.done(&job).await;
    for dry_run in [true, false] {
        let options = options([("dry-run", dry_run.into())]);
        let asked = alice.call::<OwnedObjectPath>(MANAGER_PATH, "PruneCache", &(options,)).await;
        refused(asked, E::InteractiveAuthorizationRequired);
    }
    service.polkit.answer(ALICE, action::IMAGE_MANAGE_SHARED, Answer::Yes);
    for (dry_run, expect) in [(true, 2), (false, 2), (false, 0)] {
        let options = options([("dry-run", dry_run.into()), ("older-than-usec", 0u64.into())]);
        let job: OwnedObjectPath = alice.call(MANAGER_PATH, "PruneCache", &(options,)).await.unwrap();
        assert_eq!(u64::try_from(alice.done(&job).await["blobs"].clone()).unwrap(), expect);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn catalogs_are_listed_for_everybody_and_fetched_for_those_who_may_pull() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, bob) = (service.client(ALICE).await, service.client(BOB).await);
    type Entries = Vec<HashMap<String, OwnedVariant>>;
    let entries: Entries = alice.call(MANAGER_PATH, "ListCatalog", &(options([]),)).await.unwrap();
    assert!(entries.is_empty(), "nothing was fetched yet");
    let refresh = options([("older-than-usec", 1u64.into())]);
    let job: OwnedObjectPath = alice.call(MANAGER_PATH, "RefreshCatalog", &(refresh,)).await.unwrap();
    let data = alice.done(&job).await;
    assert_eq!(u64::try_from(data["catalogs"].clone()).unwrap(), 1);
    let of_kind = async |kind: &'static str| {
        bob.call::<Entries>(MANAGER_PATH, "ListCatalog", &(options([("kind", kind.into())]),)).await
    };
    assert_eq!((of_kind("image").await.unwrap().len(), of_kind("kernel").await.unwrap().len()), (3, 1));
    refused(of_kind("vm").await, E::InvalidOption);

    let pull = async |member: &str, name: &str, options: Options| {
        alice.call::<OwnedObjectPath>(MANAGER_PATH, member, &(name, options)).await
    };
    refused(pull("PullKernel", "a/b", options([])).await, E::InvalidName);
    refused(pull("PullKernel", "debian", options([("kernel", "x".into())])).await, E::InvalidOption);
    refused(pull("PullImage", TOOL, options([("from", "catalog".into())])).await, E::InvalidOption);
    refused(pull("PullImage", "tool", options([("from", "heaven".into())])).await, E::InvalidOption);
    for (member, name, expect) in [
        ("PullKernel", "nope", "dev.banger.Error.NoSuchKernel"),
        ("PullImage", "nope", "dev.banger.Error.NoSuchImage"),
        ("PullImage", "later", "dev.banger.Error.NotPublished"),
    ] {
        let from = match member {
            "PullImage" => options([("from", "catalog".into())]),
            _ => options([]),
        };
        let job = pull(member, name, from).await.unwrap();
        let (result, error, message, _) = alice.wait(&job).await;
        assert_eq!((result.as_str(), error.as_str()), ("failed", expect), "{message}");
    }
    let data = alice.done(&pull("PullKernel", "debian", options([])).await.unwrap()).await;
    let kernel = OwnedObjectPath::try_from(data["kernel"].clone()).unwrap();
    assert!(alice.text(&kernel, "Source").await.starts_with("catalog:sim/debian@sha256:"));
}
