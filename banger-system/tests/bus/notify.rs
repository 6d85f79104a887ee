//! The notifications that `banger-notify` shows on a desktop: a session bus with a notification daemon.

use std::{
    collections::HashMap,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use banger_system::ports::supervisor::Ended;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, connection::Builder, interface};

use crate::private_bus::{
    ALICE, BOB, Client, Service, is_possible, options, require, until, until_it_listens,
};

/// A notification as the desktop got it: what it replaces, its summary and its body.
type Shown = (u32, String, String);

/// A desktop that reads markup, as most do.
#[derive(Clone, Default)]
struct Desktop(Arc<Mutex<Vec<Shown>>>);

#[interface(name = "org.freedesktop.Notifications")]
impl Desktop {
    #[allow(clippy::too_many_arguments, reason = "these are the specification's")]
    fn notify(
        &self,
        _app_name: String,
        replaces_id: u32,
        _app_icon: String,
        summary: String,
        body: String,
        _actions: Vec<String>,
        _hints: HashMap<String, OwnedVariant>,
        _expire_timeout: i32,
    ) -> u32 {
        let mut shown = self.0.lock().unwrap();
        shown.push((replaces_id, summary, body));
        u32::try_from(shown.len()).unwrap()
    }

    fn get_capabilities(&self) -> Vec<String> {
        vec!["body".to_owned(), "body-markup".to_owned()]
    }
}

impl Desktop {
    fn shown(&self) -> Vec<Shown> {
        self.0.lock().unwrap().clone()
    }
}

/// A session bus, and what runs in the session. All of it ends when this is dropped.
struct Session {
    daemon: Child,
    program: Child,
    desktop: Desktop,
    _connection: Connection,
    _directory: tempfile::TempDir,
}

impl Drop for Session {
    fn drop(&mut self) {
        for child in [&mut self.program, &mut self.daemon] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Session {
    /// Starts a session of alice, and waits until the program follows the service.
    async fn start(service: &Service) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = format!("unix:path={}/bus", directory.path().display());
        let as_alice = |program: &Path| {
            let mut command = Command::new("/usr/bin/setpriv");
            command.args([
                format!("--reuid={ALICE}"),
                format!("--regid={ALICE}"),
                "--clear-groups".to_owned(),
            ]);
            command.arg(program);
            command
        };
        std::os::unix::fs::chown(directory.path(), Some(ALICE), Some(ALICE)).unwrap();
        let mut daemon = as_alice(Path::new("/usr/bin/dbus-daemon"))
            .args(["--session", "--nofork", "--nosyslog", "--nopidfile", "--print-address"])
            .arg(format!("--address={address}"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        until_it_listens(&mut daemon);
        let socket = directory.path().join("bus");
        let desktop = Desktop::default();
        // The bus of a user refuses all others, root as well.
        let connect = move || {
            let user = rustix::process::Uid::from_raw(ALICE);
            rustix::thread::set_thread_res_uid(user, user, user).unwrap();
            std::os::unix::net::UnixStream::connect(socket).unwrap()
        };
        let stream = std::thread::spawn(connect).join().unwrap();
        let connection = Builder::unix_stream(stream)
            .user_id(ALICE)
            .serve_at("/org/freedesktop/Notifications", desktop.clone())
            .name("org.freedesktop.Notifications")
            .build()
            .await
            .unwrap();
        let built = Path::new(env!("CARGO_BIN_EXE_banger-system")).with_file_name("banger-notify");
        // alice may not reach the one that was built.
        let program = directory.path().join("banger-notify");
        std::fs::copy(built, &program).unwrap();
        let program = as_alice(&program)
            .env("DBUS_SYSTEM_BUS_ADDRESS", service.bus.address())
            .env("DBUS_SESSION_BUS_ADDRESS", address)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { daemon, program, desktop, _connection: connection, _directory: directory }
    }

    /// Waits for as many notifications, and returns them.
    async fn until_shown(&self, count: usize) -> Vec<Shown> {
        until(|| async { self.desktop.shown().len() >= count }).await;
        self.desktop.shown()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_become_notifications_of_their_owner_and_never_a_flood() {
    require!(is_possible(), "root and dbus-daemon");
    let service = Service::start().await;
    let session = Session::start(&service).await;
    let (alice, bob) = (service.client(ALICE).await, service.client(BOB).await);
    let vm = alice.create("web", options([])).await;
    let others = bob.create("others", options([])).await;

    // The program may still subscribe: what fails before that is not its news.
    until(|| async {
        crash(&service, &bob, &others).await;
        crash(&service, &alice, &vm).await;
        !session.desktop.shown().is_empty()
    })
    .await;
    let shown = session.until_shown(1).await;
    let expect = (0, "web failed".to_owned(), "vmm-exit:killed:9. See: banger vm logs web".to_owned());
    assert_eq!(shown[0], expect);

    for _ in 0..10 {
        crash(&service, &alice, &vm).await;
    }
    let shown = session.until_shown(5).await;
    assert_eq!(shown.len(), 5, "{shown:?}");
    // Each replaces the last one about the sandbox.
    assert!(
        shown[1..].iter().all(|(replaced, summary, _)| *replaced > 0 && summary == "web failed"),
        "{shown:?}"
    );
}

/// Kills the VMM of a sandbox, and starts it again.
async fn crash(service: &Service, client: &Client, vm: &str) {
    let id = vm.rsplit('/').next().unwrap().parse().unwrap();
    service.sim.end_process(id, Ended::Failed("killed:9".into()));
    until(|| async { client.text(vm, "State").await == "failed" }).await;
    let job: OwnedObjectPath = client.call(vm, "Start", &(options([]),)).await.unwrap();
    client.done(job.as_str()).await;
}
