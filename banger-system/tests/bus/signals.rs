//! Signals on a real bus reach those who may see the object, and nobody else.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use banger_proto::bus::names::{MANAGER_PATH, VM_INTERFACE, action};
use zbus::{OwnedObjectPath, OwnedVariant};

use crate::private_bus::{
    ALICE, Answer, BOB, CAROL, Client, GET_ALL, Service, Signal, SignalRecorder, is_possible, options,
    require, until, within_timeout,
};

const GET_MANAGED_OBJECTS: &str = "org.freedesktop.DBus.ObjectManager.GetManagedObjects";
/// The Python with Debian's python3-gi.
const PYTHON: &str = "/usr/bin/python3";

type Objects = HashMap<OwnedObjectPath, HashMap<String, HashMap<String, OwnedVariant>>>;

fn names(signals: &[Signal], object: &str) -> Vec<String> {
    signals.iter().filter(|signal| signal.object == object).map(|signal| signal.signal.clone()).collect()
}

async fn finish(client: &Client, path: &str, member: &str) -> String {
    let job: OwnedObjectPath = client.call(path, member, &(options([]),)).await.unwrap();
    client.done(&job).await;
    job.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_hears_of_everything_and_others_of_nothing() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, bob) = (service.client(ALICE).await, service.client(BOB).await);
    let admin = service.client(CAROL).await;
    let (mut hers, mut his, mut all) =
        (SignalRecorder::of(&alice).await, SignalRecorder::of(&bob).await, SignalRecorder::of(&admin).await);
    for client in [&alice, &bob] {
        client.call::<()>(MANAGER_PATH, "Subscribe", &(options([]),)).await.unwrap();
    }
    let everything = || options([("all-owners", true.into())]);
    assert!(admin.call::<()>(MANAGER_PATH, "Subscribe", &(everything(),)).await.is_err());
    service.polkit.answer(CAROL, action::VM_VIEW_OTHERS, Answer::Yes);
    admin.call::<()>(MANAGER_PATH, "Subscribe", &(everything(),)).await.unwrap();

    let (vm, made) = alice.begin_create("box", options([])).await.unwrap();
    alice.done(&made).await;
    alice.call::<()>(&vm, "Rename", &("crate",)).await.unwrap();
    let stopped = finish(&alice, &vm, "Stop").await;
    let image = alice.import_image("secret", options([])).await;
    finish(&alice, &vm, "Delete").await;
    let signals = hers.until(&vm, "VMRemoved").await;
    let of_vm = names(&signals, &vm);
    assert_eq!(of_vm[..2], ["InterfacesAdded", "VMNew"]);
    assert_eq!(of_vm[of_vm.len() - 2..], ["InterfacesRemoved", "VMRemoved"]);
    let states: Vec<(String, String, String)> = signals
        .iter()
        .filter(|signal| signal.signal == "StateChanged")
        .map(|signal| signal.message.body().deserialize().unwrap())
        .collect();
    let steps: Vec<String> = states.iter().map(|(old, new, _)| format!("{old} {new}")).collect();
    assert_eq!(
        steps,
        ["created starting", "starting running", "running stopping", "stopping stopped", "stopped deleting"]
    );
    let changed = |property: &str| {
        signals.iter().filter(|signal| signal.object == vm && signal.signal == "PropertiesChanged").any(
            |signal| {
                let (interface, values, gone): (String, HashMap<String, OwnedVariant>, Vec<String>) =
                    signal.message.body().deserialize().unwrap();
                interface == VM_INTERFACE && gone.is_empty() && values.contains_key(property)
            },
        )
    };
    for property in ["State", "Ready", "Name", "BootId", "Unit"] {
        assert!(changed(property), "{property}");
    }
    assert!(!changed("Id") && !changed("OwnerUid"));
    for job in [&made, &stopped] {
        let of_job = names(&signals, job);
        assert!(of_job.contains(&"JobNew".to_owned()) && of_job.contains(&"Stage".to_owned()), "{of_job:?}");
        assert_eq!(of_job.iter().filter(|signal| *signal == "Completed").count(), 1);
    }
    assert_eq!(names(&signals, &image), ["InterfacesAdded", "ImageNew"]);
    assert!(names(&all.until(&vm, "VMRemoved").await, &vm).len() == of_vm.len());

    // The bus keeps the order of one sender's messages: signals to Bob about Alice would have come before this.
    let (vm, made) = bob.begin_create("box", options([])).await.unwrap();
    bob.done(&made).await;
    let signals = his.until(&made, "Completed").await;
    let others: Vec<&Signal> =
        signals.iter().filter(|signal| signal.object != vm && signal.object != made).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_creator_of_a_job_gets_its_end_once_without_subscribing() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let alice = service.client(ALICE).await;
    let mut recorder = SignalRecorder::of(&alice).await;
    let vm = alice.create("box", options([("wait-for", "running".into())])).await;
    // This start ends before the call returns, because there is nothing to do.
    for _ in 0..30 {
        let job: OwnedObjectPath =
            alice.call(&vm, "Start", &(options([("wait-for", "running".into())]),)).await.unwrap();
        let signals = recorder.until(&job, "Completed").await;
        assert_eq!(names(&signals, &job).iter().filter(|signal| *signal == "Completed").count(), 1);
    }
    service.sim.fail_at(Some(0));
    let (_, job) = alice.begin_create("broken", options([])).await.unwrap();
    let signals = recorder.until(&job, "Completed").await;
    let (result, error, message, _): (String, String, String, HashMap<String, OwnedVariant>) =
        signals.last().unwrap().message.body().deserialize().unwrap();
    assert_eq!((result.as_str(), error.as_str()), ("failed", "dev.banger.Error.HostNotReady"));
    assert!(message.contains("told to fail"), "{message}");
    // The object still has the result after the sandbox is deleted.
    assert_eq!(alice.text(&job, "ErrorName").await, error);
    assert_eq!(alice.wait(&job).await.2, message);
    // It did not subscribe to anything else.
    assert!(signals.iter().all(|signal| signal.object.contains("/job/")), "{signals:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_managed_objects_are_the_callers_own_and_the_shared_ones() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, bob) = (service.client(ALICE).await, service.client(BOB).await);
    let vm = alice.create("box", options([])).await;
    let image = alice.import_image("secret", options([])).await;
    // Its names are published concurrently with its start.
    until(|| async {
        let all: HashMap<String, OwnedVariant> = alice.call(&vm, GET_ALL, &(VM_INTERFACE,)).await.unwrap();
        !Vec::<String>::try_from(all["DnsNames"].clone()).unwrap().is_empty()
    })
    .await;
    let hers: Objects = alice.call(MANAGER_PATH, GET_MANAGED_OBJECTS, &()).await.unwrap();
    let his: Objects = bob.call(MANAGER_PATH, GET_MANAGED_OBJECTS, &()).await.unwrap();
    let has = |objects: &Objects, path: &str| objects.keys().any(|object| object.as_str() == path);
    assert!(has(&hers, &vm) && has(&hers, &image));
    assert!(!has(&his, &vm) && !has(&his, &image));
    // Everybody sees one image and one kernel. Only root sees the jobs that imported them.
    let kinds = |objects: &Objects| {
        let mut kinds: Vec<String> =
            objects.keys().map(|path| path.split('/').nth(4).unwrap().to_owned()).collect();
        kinds.sort();
        kinds
    };
    assert_eq!(kinds(&his), ["image", "kernel"]);
    // It reports the same properties as the object itself.
    let all: HashMap<String, OwnedVariant> = alice.call(&vm, GET_ALL, &(VM_INTERFACE,)).await.unwrap();
    let managed = hers.iter().find(|(path, _)| path.as_str() == vm).unwrap().1;
    assert_eq!(managed[VM_INTERFACE], all);
    // A caller that got the objects gets their changes.
    let mut recorder = SignalRecorder::of(&bob).await;
    let mine = bob.create("box", options([])).await;
    assert_eq!(names(&recorder.until(&mine, "VMNew").await, &mine), ["InterfacesAdded", "VMNew"]);
}

/// GLib's ObjectManager client, in a process of a user.
struct Watcher {
    process: Child,
    lines: tokio::sync::mpsc::UnboundedReceiver<String>,
}

impl Watcher {
    async fn start(service: &Service, uid: u32) -> Self {
        let mut process = Command::new("/usr/bin/setpriv")
            .args([format!("--reuid={uid}"), format!("--regid={uid}"), "--clear-groups".to_owned()])
            .args([PYTHON, "-c", include_str!("../private_bus/watch_objects.py")])
            .env("DBUS_SYSTEM_BUS_ADDRESS", service.bus.address())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let mut watcher = Self { process, lines };
        watcher.until(|line| line == "ready").await;
        watcher
    }

    async fn until(&mut self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let mut all = Vec::new();
        within_timeout(async {
            loop {
                let line = self.lines.recv().await.expect("the watcher lives");
                all.push(line.clone());
                if wanted(&line) {
                    return;
                }
            }
        })
        .await;
        all
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn has_glib() -> bool {
    let import = ["-c", "import gi; from gi.repository import Gio"];
    Path::new(PYTHON).exists()
        && Command::new(PYTHON).args(import).status().is_ok_and(|status| status.success())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unmodified_glib_client_follows_its_users_sandboxes_and_no_others() {
    require!(is_possible() && has_glib(), "root, dbus-daemon and python3-gi");
    let service = Service::start().await;
    let (alice, bob) = (service.client(ALICE).await, service.client(BOB).await);
    let (mut hers, mut his) = (Watcher::start(&service, ALICE).await, Watcher::start(&service, BOB).await);
    let vm = alice.create("box", options([])).await;
    hers.until(|line| line == format!("added {vm} box")).await;
    hers.until(|line| line == format!("changed {vm} State running")).await;
    alice.call::<()>(&vm, "Rename", &("crate",)).await.unwrap();
    hers.until(|line| line == format!("changed {vm} Name crate")).await;
    finish(&alice, &vm, "Stop").await;
    finish(&alice, &vm, "Delete").await;
    hers.until(|line| line == format!("removed {vm}")).await;
    let mine = bob.create("mine", options([])).await;
    let signals = his.until(|line| line == format!("added {mine} mine")).await;
    assert!(signals.iter().all(|line| line.contains(&mine) || line.contains("/job/")), "{signals:?}");
    assert!(signals.iter().all(|line| !line.contains(&vm)), "{signals:?}");
}

/// Returns the example of `docs/dbus.md` in this language.
fn example(language: &str) -> &'static str {
    let page = include_str!("../../../docs/dbus.md");
    let (_, rest) = page.split_once(&format!("```{language}\n")).unwrap();
    rest.split("```").next().unwrap()
}

/// Runs a program as a user and returns its output.
async fn run_as(service: &Service, uid: u32, program: &[&str]) -> String {
    let mut command = Command::new("/usr/bin/setpriv");
    command
        .args([format!("--reuid={uid}"), format!("--regid={uid}"), "--clear-groups".to_owned()])
        .args(program)
        .env("DBUS_SYSTEM_BUS_ADDRESS", service.bus.address());
    let output =
        within_timeout(tokio::task::spawn_blocking(move || command.output())).await.unwrap().unwrap();
    let said = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", said(&output.stdout), said(&output.stderr));
    said(&output.stdout)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_example_for_busctl_works() {
    require!(is_possible() && Path::new("/usr/bin/busctl").exists(), "root, dbus-daemon and busctl");
    let service = Service::start().await;
    let output = run_as(&service, ALICE, &["/bin/sh", "-euc", example("sh")]).await;
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines.len(), 4, "{output}");
    assert_eq!(lines[1], "s \"running\"");
    assert!(lines[2].starts_with("s \"172."), "{output}");
    assert!([0, 3].iter().all(|line| lines[*line].starts_with("sssa{sv} \"done\" \"\" \"\"")), "{output}");
    assert_eq!(service.sim.alive(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_example_for_python_works() {
    require!(is_possible() && has_glib(), "root, dbus-daemon and python3-gi");
    let service = Service::start().await;
    let output = run_as(&service, ALICE, &[PYTHON, "-c", example("python")]).await;
    assert!(output.contains("running at 172."), "{output}");
    for step in
        ["created starting", "starting running", "running stopping", "stopping stopped", "stopped deleting"]
    {
        assert!(output.contains(step), "{step}: {output}");
    }
    assert!(output.lines().last().unwrap().starts_with("deleted /dev/banger/Manager1/vm/"), "{output}");
    assert_eq!(service.sim.alive(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_are_counted_per_user_and_forgotten_when_they_go() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    // Clients that do not wait for the reply count the same.
    for _ in 0..40 {
        let hasty = service.client(ALICE).await;
        hasty.send(MANAGER_PATH, GET_MANAGED_OBJECTS, &()).await;
    }
    let mut listeners = Vec::new();
    for _ in 0..32 {
        let client = service.client(ALICE).await;
        until(|| async { client.call::<()>(MANAGER_PATH, "Subscribe", &(options([]),)).await.is_ok() }).await;
        listeners.push(client);
    }
    let late = service.client(ALICE).await;
    let failure = late.call::<()>(MANAGER_PATH, "Subscribe", &(options([]),)).await.unwrap_err();
    assert_eq!(failure.name, "TooManyRequests");
    service.client(BOB).await.call::<()>(MANAGER_PATH, "Subscribe", &(options([]),)).await.unwrap();
    listeners[0].call::<()>(MANAGER_PATH, "Unsubscribe", &()).await.unwrap();
    late.call::<()>(MANAGER_PATH, "Subscribe", &(options([]),)).await.unwrap();
    drop(listeners);
    let again = service.client(ALICE).await;
    until(|| async { again.call::<()>(MANAGER_PATH, "Subscribe", &(options([]),)).await.is_ok() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_may_read_many_objects_at_once() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let alice = service.client(ALICE).await;
    let vm = alice.create("box", options([])).await;
    let mut reads = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let (alice, vm) = (alice.clone(), vm.clone());
        reads.spawn(async move { alice.text(&vm, "Name").await });
    }
    assert_eq!(reads.join_all().await, vec!["box"; 100]);
}
