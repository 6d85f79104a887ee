//! What happens when a connection goes away: that of a caller with a bound sandbox, of a caller in a password dialog,
//! or of the service itself.

use std::process::{Child, Command, ExitStatus, Stdio};

use banger_domain::{
    id::VmId,
    lifecycle::State,
    vm::{Lifetime, Vm},
};
use banger_proto::bus::{
    ErrorName,
    names::{MANAGER_PATH, SERVICE, VM_PARENT, action},
};
use banger_system::ports::store::Store;
use zbus::{OwnedObjectPath, fdo::DBusProxy, names::BusName};

use crate::private_bus::{
    ALICE, Answer, BOB, Bus, Client, Options, Service, is_possible, options, refused, require, until,
};

fn bound() -> Options {
    options([("lifetime", "caller".into())])
}

fn id(path: &str) -> VmId {
    path.rsplit('/').next().unwrap().parse().unwrap()
}

/// Waits until the bus has noticed that a client disconnected.
async fn until_gone(bus: &Bus, name: &str) {
    let watch = DBusProxy::new(&bus.connect(0).await).await.unwrap();
    until(|| async { !watch.name_has_owner(BusName::try_from(name).unwrap()).await.unwrap() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_bound_to_its_caller_is_deleted_with_it_and_others_stay() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, other) = (service.client(ALICE).await, service.client(ALICE).await);
    let with_her = alice.create("with-her", bound()).await;
    let with_other = other.create("with-other", bound()).await;
    let detached = alice.create("detached", bound()).await;
    alice.call::<()>(&detached, "SetLifetime", &("persistent",)).await.unwrap();
    let attached = other.create("attached", options([])).await;
    alice.call::<()>(&attached, "SetLifetime", &("caller",)).await.unwrap();
    let kept = alice.create("kept", options([])).await;
    drop(alice);
    until(|| async { [&with_her, &attached].iter().all(|vm| service.engine.vm(id(vm)).is_none()) }).await;
    for vm in [&with_other, &detached, &kept] {
        assert_eq!(other.text(vm, "State").await, "running", "{vm}");
    }
    assert!(!service.sim.alive().iter().any(|thing| thing.contains(&id(&with_her).to_string())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forks_that_are_bound_to_their_caller_are_deleted_with_it() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, other) = (service.client(ALICE).await, service.client(ALICE).await);
    let vm = alice.create("box", options([])).await;
    let fork = async |client: &Client, name: &'static str| {
        let with = options([("lifetime", "caller".into()), ("names", vec![name].into())]);
        let (children, job): (Vec<OwnedObjectPath>, OwnedObjectPath) =
            client.call(&vm, "Fork", &(1u32, with)).await.unwrap();
        client.done(&job).await;
        children[0].clone()
    };
    let (started, suspended, kept) =
        (fork(&other, "started").await, fork(&other, "suspended").await, fork(&alice, "kept").await);
    let job: OwnedObjectPath = other.call(&started, "Start", &(options([]),)).await.unwrap();
    other.done(&job).await;
    // One whose fork has not ended goes, too.
    let with = options([("lifetime", "caller".into()), ("names", vec!["late"].into())]);
    let (late, _): (Vec<OwnedObjectPath>, OwnedObjectPath) =
        other.call(&vm, "Fork", &(1u32, with)).await.unwrap();
    drop(other);
    let gone = [&started, &suspended, &late[0]];
    until(|| async { gone.iter().all(|vm| service.engine.vm(id(vm)).is_none()) }).await;
    assert_eq!(alice.text(&kept, "State").await, "suspended");
    assert_eq!(alice.text(&vm, "State").await, "running");
    let wrong = options([("lifetime", "eternal".into())]);
    refused(
        alice.call::<(Vec<OwnedObjectPath>, OwnedObjectPath)>(&vm, "Fork", &(1u32, wrong)).await,
        ErrorName::InvalidOption,
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_disconnects_while_polkit_decides_leaves_no_sandbox_and_no_question() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    service.polkit.answer(ALICE, action::VM_RUN, Answer::Silence);
    let alice = service.client(ALICE).await;
    alice.send(MANAGER_PATH, "CreateVM", &("box", bound())).await;
    service.polkit.until_waiting(1).await;
    drop(alice);
    // The question is withdrawn without an answer.
    service.polkit.until_waiting(0).await;
    service.polkit.release();
    let next = service.client(ALICE).await;
    let vm = next.create("box", options([])).await;
    assert_eq!(service.engine.vms().iter().map(|view| view.vm.id).collect::<Vec<_>>(), [id(&vm)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_caller_that_disconnects_while_its_sandbox_is_created_leaves_none() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, bob) = (service.client(ALICE).await, service.client(BOB).await);
    let name = alice.name();
    service.clock.stop();
    alice.send(MANAGER_PATH, "CreateVM", &("box", bound())).await;
    service.clock.until_stopped().await;
    drop(alice);
    until_gone(&service.bus, &name).await;
    // The bus reports disconnects in order: once Bob's sandbox is deleted, the service knows that Alice has gone.
    let his = bob.create("his", bound()).await;
    drop(bob);
    until(|| async { service.engine.vm(id(&his)).is_none() }).await;
    service.clock.run();
    let root = service.client(0).await;
    let last = root.create("last", options([])).await;
    until(|| async { service.engine.vms().iter().all(|view| view.vm.id == id(&last)) }).await;
    assert!(service.polkit.questions().iter().any(|question| question.uid == ALICE));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_the_sandboxes_of_disconnected_callers_are_deleted() {
    require!(is_possible(), "root and dbus-daemon");
    let mut service = Service::start().await;
    let (alice, bob) = (service.client(ALICE).await, service.client(BOB).await);
    let hers = alice.create("hers", bound()).await;
    let his = bob.create("his", bound()).await;
    let of_another_bus = alice.create("old", options([])).await;
    let kept = bob.create("kept", options([])).await;
    let namesake = service.client(ALICE).await;

    service.crash().await;
    let name = bob.name();
    drop(bob);
    until_gone(&service.bus, &name).await;
    // A caller on an earlier bus: the host has rebooted, and another client has its unique name now.
    let mut row = service.engine.vm(id(&of_another_bus)).unwrap().vm.clone();
    row.lifetime = Lifetime::Caller { connection: namesake.name(), bus: "another".into() };
    service.sim.put_vm(&row).await.unwrap();
    service.restart().await;

    until(|| async { [&his, &of_another_bus].iter().all(|vm| service.engine.vm(id(vm)).is_none()) }).await;
    assert_eq!(alice.text(&hers, "State").await, "running");
    assert!(service.engine.vm(id(&kept)).is_some_and(|view| view.vm.state == State::Running));
    // It is still bound to her.
    drop(alice);
    until(|| async { service.engine.vm(id(&hers)).is_none() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_name_is_there_so_is_everything_behind_it() {
    require!(is_possible(), "root and dbus-daemon");
    let mut service = Service::start().await;
    let alice = service.client(ALICE).await;
    let vm = alice.create("box", options([("start", false.into())])).await;
    let row = service.engine.vm(id(&vm)).unwrap().vm.clone();
    service.crash().await;
    let watch = DBusProxy::new(&alice.connection).await.unwrap();
    until(|| async { !watch.name_has_owner(BusName::try_from(SERVICE).unwrap()).await.unwrap() }).await;
    // Enough objects that exporting them takes a while; this is the last one.
    let last = VmId::from_bits(u128::MAX);
    for vm in (1..400).map(VmId::from_bits).chain([last]) {
        let name = format!("box-{}", &vm.to_string()[28..]).parse().unwrap();
        service.sim.put_vm(&Vm { id: vm, name, ..row.clone() }).await.unwrap();
    }
    let last = format!("{VM_PARENT}/{last}");
    // Reads it from the moment when the name has an owner.
    let impatient = tokio::spawn({
        let alice = alice.clone();
        async move {
            loop {
                match alice.property(&last, "Name").await {
                    Err(failure) if failure.name == "ServiceUnknown" || failure.name == "NameHasNoOwner" => {}
                    answer => return answer,
                }
            }
        }
    });
    service.restart().await;
    let name = String::try_from(impatient.await.unwrap().unwrap()).unwrap();
    assert_eq!(name, "box-ffff");
}

/// The program itself, with a host in memory.
struct Program(Child);

impl Program {
    fn start(address: Option<&str>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_banger-system"));
        command.arg("--sim").env_remove("DBUS_SYSTEM_BUS_ADDRESS").env_remove("JOURNAL_STREAM");
        if let Some(address) = address {
            command.env("DBUS_SYSTEM_BUS_ADDRESS", address);
        }
        Self(command.stderr(Stdio::null()).spawn().unwrap())
    }

    async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        until(|| {
            status = self.0.try_wait().unwrap();
            std::future::ready(status.is_some())
        })
        .await;
        status.unwrap()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

async fn serves(client: &Client) -> bool {
    client.property(MANAGER_PATH, "Version").await.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_serves_a_private_bus_alone_and_ends_when_asked_or_when_the_bus_ends() {
    require!(is_possible(), "root and dbus-daemon");
    assert!(!Program::start(None).ended().await.success(), "it may not play on the bus of the host");

    let bus = Bus::start();
    let alice = bus.client(ALICE).await;
    let mut first = Program::start(Some(&bus.address()));
    until(|| serves(&alice)).await;
    let owner = || async {
        let watch = DBusProxy::new(&alice.connection).await.unwrap();
        watch.get_name_owner(BusName::try_from(SERVICE).unwrap()).await.unwrap()
    };
    let before = owner().await;
    let mut second = Program::start(Some(&bus.address()));
    assert!(!second.ended().await.success(), "there is one service");
    assert_eq!(owner().await, before);

    let tool = |arguments: &[&str]| {
        let output = Command::new("busctl")
            .arg(format!("--address={}", bus.address()))
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(tool(&["tree", SERVICE]).contains(MANAGER_PATH));
    assert!(tool(&["introspect", SERVICE, MANAGER_PATH]).contains("CreateVM"));
    assert!(
        tool(&["call", SERVICE, MANAGER_PATH, SERVICE, "ListVMs", "a{sv}", "1", "all", "b", "true"])
            .starts_with("a(ssusso) 0")
    );

    first.signal(rustix::process::Signal::TERM);
    assert!(first.ended().await.success());
    let mut third = Program::start(Some(&bus.address()));
    until(|| serves(&alice)).await;
    drop((alice, bus));
    assert!(!third.ended().await.success(), "systemd starts it again");
}
