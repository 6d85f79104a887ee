//! The fields that calls give to journal entries.

use zbus::OwnedObjectPath;

use crate::{
    entries::{Entries, Entry},
    private_bus::{ALICE, BOB, Service, is_possible, options, require},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_say_who_has_called_what() {
    require!(is_possible(), "root and dbus-daemon");
    let entries = Entries::default();
    // Each test has a process of its own.
    tracing::subscriber::set_global_default(entries.subscriber()).unwrap();
    let service = Service::start().await;
    let (alice, bob) = (service.client(ALICE).await, service.client(BOB).await);
    let vm = alice.create("box", options([])).await;
    let theirs = bob.create("box", options([])).await;
    entries.take();
    let job: OwnedObjectPath = alice.call(&vm, "Stop", &(options([]),)).await.unwrap();
    alice.done(&job).await;
    let id = |path: &str| path.rsplit('/').next().unwrap().to_owned();
    let all = entries.take();
    let started: Vec<&Entry> = all
        .iter()
        .filter(|entry| entry.get("job") == Some(&id(&job)) && entry["message"] == "started a job")
        .collect();
    let [started] = started[..] else { panic!("{all:#?}") };
    for (name, value) in [
        ("uid", ALICE.to_string()),
        ("operation", "Stop".to_owned()),
        ("vm", id(&vm)),
        ("kind", "vm-stop".to_owned()),
    ] {
        assert_eq!(started.get(name), Some(&value), "{name}: {started:?}");
    }
    assert!(!all.iter().any(|entry| entry.get("vm") == Some(&id(&theirs))), "{all:#?}");
}
