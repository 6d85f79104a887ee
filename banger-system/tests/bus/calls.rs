//! Calls over a real bus: which work, and which are refused with which error.

use std::{collections::HashMap, io::Read};

use banger_proto::bus::{
    ErrorName,
    names::{MANAGER_PATH, VM_PARENT, action},
    record::{CheckRow, ImageRow, VmRow},
};
use banger_system::sim::network::GREETING;
use zbus::{OwnedObjectPath, OwnedVariant, Variant};

use crate::private_bus::{
    ALICE, GET_ALL, Options, SET, Service, is_possible, null, options, refused, require, until,
};

const INTROSPECT: &str = "org.freedesktop.DBus.Introspectable.Introspect";
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";
const NOBODY: &str = "/dev/banger/Manager1/vm/00000000000000000000000000000000";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_is_created_used_and_deleted_by_its_owner() {
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
    let labels = HashMap::from([("team", "web"), ("old", "")]);
    alice.call::<()>(&vm, "Configure", &(options([("labels", labels.into())]),)).await.unwrap();
    let removed = options([("remove-labels", vec!["old"].into())]);
    alice.call::<()>(&vm, "Configure", &(removed,)).await.unwrap();
    let labels = HashMap::<String, String>::try_from(alice.property(&vm, "Labels").await.unwrap()).unwrap();
    // The other one is from its creation.
    let expect = [("for", "tests"), ("team", "web")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(labels, HashMap::from(expect));
    for (action, after) in [("suspend", 1_800_000_000u64), ("stop", 60_000_000)] {
        let idle = options([("idle-action", action.into()), ("idle-after-usec", after.into())]);
        alice.call::<()>(&vm, "Configure", &(idle,)).await.unwrap();
        assert_eq!(alice.text(&vm, "IdleAction").await, action);
        let found = u64::try_from(alice.property(&vm, "IdleAfter").await.unwrap()).unwrap();
        assert_eq!(found, after);
    }
    alice.call::<()>(&vm, "Configure", &(options([("idle-action", "".into())]),)).await.unwrap();
    assert_eq!(alice.text(&vm, "IdleAction").await, "");
    let boot = alice.text(&vm, "BootId").await;
    for (member, state) in [("Stop", "stopped"), ("Start", "running"), ("Restart", "running")] {
        let job: OwnedObjectPath = alice.call(&vm, member, &(options([]),)).await.unwrap();
        alice.done(&job).await;
        assert_eq!(alice.text(&vm, "State").await, state, "after {member}");
    }
    assert_ne!(alice.text(&vm, "BootId").await, boot);
    assert!(alice.text(&vm, "SshHostKey").await.starts_with("ssh-ed25519 AAAA"));
    let stream: zbus::OwnedFd = alice.call(&vm, "OpenStream", &("ssh", options([]))).await.unwrap();
    let mut said = Vec::new();
    std::fs::File::from(std::os::fd::OwnedFd::from(stream)).read_to_end(&mut said).unwrap();
    assert_eq!(said, GREETING);
    let _: zbus::OwnedFd =
        alice.call(&vm, "OpenLog", &("console", options([("tail", 5u32.into())]))).await.unwrap();
    refused(alice.call::<OwnedObjectPath>(&vm, "Delete", &(options([]),)).await, ErrorName::InvalidState);
    let job: OwnedObjectPath =
        alice.call(&vm, "Delete", &(options([("force", true.into())]),)).await.unwrap();
    alice.done(&job).await;
    refused(alice.call::<OwnedObjectPath>(MANAGER_PATH, "GetVM", &("crate",)).await, ErrorName::NoSuchVm);
    // Its object is removed too: nothing answers at its path, and introspection does not show it.
    let id = vm.rsplit('/').next().unwrap();
    until(|| async {
        !alice.call::<String>(VM_PARENT, INTROSPECT, &()).await.is_ok_and(|xml| xml.contains(id))
    })
    .await;
    assert!(
        ["UnknownObject", "UnknownInterface"]
            .contains(&&*alice.property(&vm, "State").await.unwrap_err().name)
    );
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

    refused(alice.create_with("Bad_Name", "start", false).await, E::InvalidName);
    refused(alice.create_with(&"x".repeat(100_000), "start", false).await, E::InvalidName);
    refused(alice.create_with("a", "nat-typo", true).await, E::InvalidOption);
    refused(alice.create_with("a", "vcpus", "two").await, E::InvalidOption);
    refused(alice.create_with("a", "vcpus", 0u32).await, E::InvalidOption);
    refused(alice.create_with("a", "vcpus", -1i32).await, E::InvalidOption);
    refused(alice.create_with("a", "memory", 10u64 << 40).await, E::InvalidOption);
    refused(alice.create_with("a", "disk-size", u64::MAX).await, E::InvalidOption);
    refused(alice.create_with("a", "start", "yes").await, E::InvalidOption);
    refused(alice.create_with("a", "lifetime", "eternal").await, E::InvalidOption);
    refused(alice.create_with("a", "wait-for", "godot").await, E::InvalidOption);
    refused(alice.create_with("a", "ready-timeout-usec", u64::MAX).await, E::InvalidOption);
    refused(alice.create_with("a", "init", "relative/path").await, E::InvalidOption);
    refused(alice.create_with("a", "idle-action", "suspend").await, E::InvalidOption);
    refused(alice.create_with("a", "idle-after-usec", 60_000_000u64).await, E::InvalidOption);
    for keys in [vec![""], vec!["command=\"sh\" ssh-ed25519 AAAA"], vec![KEY; 17], vec![KEY, "a\nb"]] {
        refused(alice.create_with("a", "ssh-authorized-keys", keys).await, E::InvalidOption);
    }
    refused(alice.create_with("a", "hostname", "no host name").await, E::InvalidName);
    refused(alice.create_with("a", "image", "nope").await, E::NoSuchImage);
    refused(alice.create_with("a", "kernel", "nope").await, E::NoSuchKernel);
    let many: HashMap<String, String> = (0..33).map(|n| (n.to_string(), String::new())).collect();
    refused(alice.create_with("a", "labels", many).await, E::InvalidOption);

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

    // A body of the wrong type, an unknown member, an unknown interface, and a read-only property.
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
    refused(alice.create_with("box", "start", false).await, E::NameTaken);
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
    let endless = options([("follow", true.into()), ("until-usec", 1u64.into())]);
    refused(alice.call::<zbus::OwnedFd>(&vm, "OpenLog", &("console", endless)).await, E::InvalidOption);
    refused(alice.call::<zbus::OwnedFd>(&vm, "OpenAgent", &(options([]),)).await, E::InvalidState);
    let purpose = options([("purpose", Variant::from("fun"))]);
    refused(alice.call::<zbus::OwnedFd>(&vm, "OpenAgent", &(purpose,)).await, E::InvalidOption);
    refused(alice.call::<zbus::OwnedFd>(&vm, "OpenStream", &("ssh", options([]))).await, E::InvalidState);
    refused(alice.call::<zbus::OwnedFd>(&vm, "OpenStream", &("telnet", options([]))).await, E::InvalidArgs);
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
