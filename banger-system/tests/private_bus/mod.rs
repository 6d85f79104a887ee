//! A private system bus for tests: a real dbus-daemon with the installed bus policy, the service on a host in memory,
//! a scripted polkit, and clients of several users.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    dead_code,
    unused_imports,
    reason = "each test binary uses a part of this"
)]

mod client;
mod policy;
mod polkit;
mod service;
mod signal_recorder;

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::{
    process::{Gid, Pid, Signal as KernelSignal, Uid, geteuid, kill_process},
    thread::{set_thread_res_gid, set_thread_res_uid},
};
use tempfile::TempDir;
use zbus::{Connection, connection::Builder};

pub use self::{
    client::{Client, Failure, GET, GET_ALL, Options, SET, null, options, refused},
    policy::{Decision, Group, Session, decide},
    polkit::{Answer, Polkit},
    service::Service,
    signal_recorder::{Signal, SignalRecorder},
};

/// Users that exist on every Debian and Fedora: dbus-daemon refuses a number without an account.
pub const ALICE: u32 = 1;
pub const BOB: u32 = 2;
/// A user without any group that polkit knows.
pub const CAROL: u32 = 3;

/// The longest that a test waits for anything, on a machine that does many other things.
pub const TIMEOUT: Duration = Duration::from_secs(120);

pub(crate) use crate::skip::require;

/// Returns whether this host can run these tests: it needs a bus daemon, and the right to connect as several users.
pub fn is_possible() -> bool {
    geteuid().is_root() && Path::new(DAEMON).exists()
}

const DAEMON: &str = "/usr/bin/dbus-daemon";

/// A bus of the system bus's type. Dropping it ends the daemon.
pub struct Bus {
    daemon: Child,
    socket: PathBuf,
    _directory: TempDir,
}

impl Bus {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Other users have to reach the socket.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let (socket, config) = (directory.path().join("bus"), directory.path().join("bus.conf"));
        fs::write(&config, configuration(&socket)).unwrap();
        let mut daemon = Command::new(DAEMON)
            .args(["--nofork", "--nosyslog", "--print-address"])
            .arg(format!("--config-file={}", config.display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        until_it_listens(&mut daemon);
        Self { daemon, socket, _directory: directory }
    }

    /// Makes the daemon read nothing until it is resumed.
    pub fn pause(&self) {
        self.signal(KernelSignal::STOP);
    }

    pub fn resume(&self) {
        self.signal(KernelSignal::CONT);
    }

    fn signal(&self, signal: KernelSignal) {
        kill_process(Pid::from_child(&self.daemon), signal).unwrap();
    }

    pub fn address(&self) -> String {
        format!("unix:path={}", self.socket.display())
    }

    /// Connects as this user. The bus takes the user from the socket, as for any client.
    pub async fn connect(&self, uid: u32) -> Connection {
        let socket = self.socket.clone();
        // The kernel records the user of the connecting thread, which ends afterwards.
        let connect = move || {
            let gid = Gid::from_raw(uid);
            set_thread_res_gid(gid, gid, gid).unwrap();
            let uid = Uid::from_raw(uid);
            set_thread_res_uid(uid, uid, uid).unwrap();
            UnixStream::connect(socket).unwrap()
        };
        let stream = std::thread::spawn(connect).join().unwrap();
        Builder::unix_stream(stream).user_id(uid).build().await.unwrap()
    }

    /// Returns a client of this user.
    pub async fn client(&self, uid: u32) -> Client {
        Client { connection: self.connect(uid).await }
    }
}

/// Waits until a `dbus-daemon` with `--print-address` takes connections. Its socket exists before that.
pub fn until_it_listens(daemon: &mut Child) {
    let mut line = String::new();
    BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("unix:"), "dbus-daemon did not start");
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }
}

/// Returns the rules of a distribution's system bus, and the installed file.
fn configuration(socket: &Path) -> String {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dbus/dev.banger.Manager1.conf");
    format!(
        r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <auth>EXTERNAL</auth>
  <listen>unix:path={socket}</listen>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
    <deny send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Monitoring"/>
    <allow send_destination="org.freedesktop.PolicyKit1"/>
  </policy>
  <policy user="root">
    <allow own="org.freedesktop.PolicyKit1"/>
    <allow own="org.freedesktop.resolve1"/>
    <allow send_destination="org.freedesktop.resolve1"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Monitoring"/>
  </policy>
  <include>{ours}</include>
</busconfig>
"#,
        socket = socket.display(),
        ours = ours.display(),
    )
}

/// Waits for something that must happen.
pub async fn within_timeout<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, what).await.expect("it comes in time")
}

/// Waits until a condition holds, by polling.
pub async fn until<F: Future<Output = bool>>(mut is_so: impl FnMut() -> F) {
    within_timeout(async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
