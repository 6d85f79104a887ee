//! The metrics of the service over a real bus.

use std::{
    fs,
    io::Read,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::Command,
};

use banger_proto::bus::{
    ErrorName,
    names::{MANAGER_PATH, action},
};

use crate::private_bus::{
    ALICE, Answer, BOB, CAROL, Client, Failure, Options, Service, is_possible, options, refused, require,
    until,
};

async fn open(client: &Client, filter: Options) -> Result<OwnedFd, Failure> {
    let stream: zbus::OwnedFd = client.call(MANAGER_PATH, "OpenMetrics", &(filter,)).await?;
    Ok(stream.into())
}

async fn read(client: &Client, filter: Options) -> String {
    let mut stream = UnixStream::from(open(client, filter).await.unwrap());
    let read = move || {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

fn id(path: &str) -> &str {
    path.rsplit('/').next().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_caller_gets_the_figures_that_they_may_see() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, bob, carol, root) = (
        service.client(ALICE).await,
        service.client(BOB).await,
        service.client(CAROL).await,
        service.client(0).await,
    );
    let (hers, his) = (alice.create("hers", options([])).await, bob.create("his", options([])).await);
    let own = read(&alice, options([])).await;
    assert!(own.contains(id(&hers)) && !own.contains(id(&his)), "{own}");
    assert!(own.contains("banger_sandboxes{state=\"running\"} 1.0"), "{own}");
    assert!(!own.contains("banger_problems"), "{own}");
    let of_root = read(&root, options([])).await;
    for part in [id(&hers), id(&his), "banger_problems 0.0", "banger_sandboxes{state=\"running\"} 2.0"] {
        assert!(of_root.contains(part), "{part} is not in {of_root}");
    }

    // A monitor that may see everything, and a user who may not.
    let nothing = read(&carol, options([])).await;
    assert!(!nothing.contains(id(&hers)) && !nothing.contains("banger_problems"), "{nothing}");
    let denied = open(&carol, options([("all", true.into())])).await;
    refused(denied, ErrorName::InteractiveAuthorizationRequired);
    let monitor = service.client(CAROL).await;
    service.polkit.answer(CAROL, action::VM_VIEW_OTHERS, Answer::Yes);
    for filter in [options([]), options([("all", true.into())])] {
        let all = read(&monitor, filter).await;
        assert!(all.contains(id(&hers)) && all.contains("banger_problems"), "{all}");
    }
    refused(open(&alice, options([("most", true.into())])).await, ErrorName::InvalidOption);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_metrics_are_counted_until_they_are_closed() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let (alice, bob) = (service.client(ALICE).await, service.client(BOB).await);
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(open(&alice, options([])).await.unwrap());
    }
    refused(open(&alice, options([])).await, ErrorName::TooManyRequests);
    assert!(open(&bob, options([])).await.is_ok());
    held.pop();
    until(|| async { open(&alice, options([])).await.is_ok() }).await;
}

/// The program with the parser of Prometheus.
fn promtool() -> Option<PathBuf> {
    let named = std::env::var_os("BANGER_TEST_PROMTOOL").map(PathBuf::from);
    named.or_else(|| Some(PathBuf::from("/usr/bin/promtool")).filter(|path| Path::exists(path)))
}

/// Makes a document one that promtool imports: there, each sample has a time.
fn with_times(text: &str) -> String {
    let line = |line: &str| match line.starts_with('#') {
        true => format!("{line}\n"),
        false => format!("{line} 1700000000.0\n"),
    };
    text.lines().map(line).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_reads_the_metrics() {
    require!(is_possible(), "root and dbus-daemon");
    let program = promtool();
    require!(program.is_some(), "promtool of Debian's package prometheus");
    let service = Service::start().await;
    let root = service.client(0).await;
    let vm = service.client(ALICE).await.create("box", options([])).await;
    let text = read(&root, options([])).await;
    let directory = tempfile::tempdir().unwrap();
    let import = |name: &str, text: &str| {
        let file = directory.path().join(name);
        fs::write(&file, text).unwrap();
        let mut import = Command::new(program.as_ref().unwrap());
        import
            .args(["tsdb", "create-blocks-from", "openmetrics"])
            .arg(&file)
            .arg(directory.path().join("blocks"));
        import.output().unwrap()
    };
    let read = import("metrics", &with_times(&text));
    assert!(read.status.success(), "{}\n{text}", String::from_utf8_lossy(&read.stderr));
    let samples = text.lines().filter(|line| !line.starts_with('#')).count();
    let said = String::from_utf8_lossy(&read.stdout).into_owned();
    assert!(said.contains(&format!(" {samples} ")), "{samples} of {said}");
    assert!(text.contains(id(&vm)) && text.contains("banger_sandbox_start_phase_seconds_bucket"), "{text}");
    // The parser is strict: a document that is cut off is refused.
    let cut = with_times(text.strip_suffix("# EOF\n").unwrap());
    assert!(!import("cut", &cut).status.success());
}
