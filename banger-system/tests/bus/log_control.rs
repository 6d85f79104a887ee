//! The log of the service as systemd controls it.

use zbus::{OwnedVariant, Variant};

use crate::private_bus::{ALICE, Client, GET, GET_ALL, SET, Service, is_possible, require};

const PATH: &str = "/org/freedesktop/LogControl1";
const INTERFACE: &str = "org.freedesktop.LogControl1";

async fn level(client: &Client) -> String {
    let value: OwnedVariant = client.call(PATH, GET, &(INTERFACE, "LogLevel")).await.unwrap();
    String::try_from(value).unwrap()
}

async fn set(client: &Client, name: &str, value: &'static str) -> Result<(), String> {
    let set = client.call::<()>(PATH, SET, &(INTERFACE, name, Variant::from(value))).await;
    set.map_err(|failure| failure.name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_sets_the_level_and_everybody_reads_it() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, root) = (service.client(ALICE).await, service.client(0).await);
    assert_eq!(level(&alice).await, "info");
    assert_eq!(set(&root, "LogLevel", "debug").await, Ok(()));
    assert_eq!(level(&alice).await, "debug");
    for (name, value) in [("LogLevel", "info"), ("LogTarget", "auto"), ("LogTarget", "console")] {
        assert_eq!(set(&alice, name, value).await, Err("AccessDenied".to_owned()), "{name}");
    }
    assert_eq!(level(&alice).await, "debug");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_log_cannot_do_is_refused_and_changes_nothing() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let root = service.client(0).await;
    for (name, value, error) in [
        ("LogLevel", "verbose", "InvalidArgs"),
        ("LogLevel", "", "InvalidArgs"),
        ("LogTarget", "journal", "NotSupported"),
        ("LogTarget", "/tmp/log", "NotSupported"),
    ] {
        assert_eq!(set(&root, name, value).await, Err(error.to_owned()), "{name} {value}");
    }
    assert!(set(&root, "SyslogIdentifier", "other").await.is_err());
    let all: std::collections::HashMap<String, OwnedVariant> =
        root.call(PATH, GET_ALL, &(INTERFACE,)).await.unwrap();
    let text = |name: &str| String::try_from(all[name].clone()).unwrap();
    assert_eq!(
        ["LogLevel", "LogTarget", "SyslogIdentifier"].map(text),
        ["info", "console", "banger-system"].map(str::to_owned)
    );
}
