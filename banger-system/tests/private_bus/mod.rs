//! A system bus of a test's own: a real dbus-daemon with the bus policy that we install, the service on a
//! host in memory, a polkit that answers as it is told to, and clients of several users.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    dead_code,
    unused_imports,
    reason = "each test binary uses a part of this"
)]

mod client;
mod ear;
mod polkit;
mod service;

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::{
    process::{Gid, Uid, geteuid},
    thread::{set_thread_res_gid, set_thread_res_uid},
};
use tempfile::TempDir;
use zbus::{Connection, connection::Builder};

pub use self::{
    client::{Client, Failure, GET, GET_ALL, Options, SET, null, options, refused},
    ear::{Ear, Heard},
    polkit::{Answer, Polkit},
    service::Service,
};

/// Users that every Debian and Fedora has: dbus-daemon turns away a number that has no account.
pub const ALICE: u32 = 1;
pub const BOB: u32 = 2;
/// In no group that polkit knows of.
pub const CAROL: u32 = 3;

/// No test waits longer for what must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) use crate::skip::require;

/// Whether this machine can do these tests: a bus daemon, and the right to connect as several users.
pub fn is_possible() -> bool {
    geteuid().is_root() && Path::new(DAEMON).exists()
}

const DAEMON: &str = "/usr/bin/dbus-daemon";

/// A bus of the type of the system bus. It ends with this value.
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
        // The address is printed once the daemon listens.
        let mut line = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("unix:"), "dbus-daemon did not start");
        Self { daemon, socket, _directory: directory }
    }

    pub fn address(&self) -> String {
        format!("unix:path={}", self.socket.display())
    }

    /// A connection of this user. The bus takes the user from the socket, as for any client.
    pub async fn connect(&self, uid: u32) -> Connection {
        let socket = self.socket.clone();
        // The kernel notes the user of the thread that connects; the thread ends with it.
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

    /// A client of this user.
    pub async fn client(&self, uid: u32) -> Client {
        Client { connection: self.connect(uid).await }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }
}

/// The rules of a distribution's system bus, and our own file.
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

/// Waits for what must come.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it comes in time")
}

/// Waits until something is so, looking again and again.
pub async fn until<F: Future<Output = bool>>(mut is_so: impl FnMut() -> F) {
    soon(async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
