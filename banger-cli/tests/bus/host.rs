//! A private system bus with a service, and the command as a user runs it.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags, open},
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::service::{Call, Service};

const CONFIG: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
  "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=@DIR@/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
  </policy>
</busconfig>
"#;

/// A host with banger installed.
pub struct Host {
    dir: TempDir,
    bus: Child,
    /// Keeps the service running.
    _runtime: Runtime,
    service: Option<Arc<Service>>,
    /// The process of the real service, if it is that one.
    real: Option<Child>,
}

impl Host {
    /// Creates a host where the real service keeps everything in memory. Returns `None` if it was not built.
    pub fn real() -> Option<Self> {
        let program = Path::new(env!("CARGO_BIN_EXE_banger")).with_file_name("banger-system");
        if !program.exists() {
            skip("the real service: build the whole workspace first");
            return None;
        }
        let mut host = Self::without_service();
        let service = Command::new(program)
            .arg("--sim")
            .env("DBUS_SYSTEM_BUS_ADDRESS", host.address())
            .stderr(File::create(host.path("service.log")).unwrap())
            .spawn();
        host.real = Some(service.unwrap());
        until("the service answers", || host.banger(&["ps"]).status == 0);
        Some(host)
    }

    /// Creates a host with a running service.
    pub fn new() -> Self {
        let mut host = Self::without_service();
        let address = host.address();
        host.service = Some(host._runtime.block_on(Service::start(&address)));
        host
    }

    /// Creates a host with a bus and no service.
    pub fn without_service() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("bus.conf");
        std::fs::write(&config, CONFIG.replace("@DIR@", dir.path().to_str().unwrap())).unwrap();
        let mut bus = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--print-address"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon must be installed for these tests");
        let mut line = String::new();
        // It prints its address when it listens.
        BufReader::new(bus.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("unix:"), "{line}");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        Self { dir, bus, _runtime: runtime.unwrap(), service: None, real: None }
    }

    /// Returns the address of the bus.
    pub fn address(&self) -> String {
        format!("unix:path={}/bus", self.dir.path().display())
    }

    /// Returns a path for a file of the test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the calls of this method so far.
    pub fn calls(&self, member: &str) -> Vec<Call> {
        self.service.as_ref().unwrap().calls().into_iter().filter(|call| call.member == member).collect()
    }

    /// Returns the names of all called methods so far.
    pub fn all_calls(&self) -> Vec<String> {
        self.service.as_ref().unwrap().calls().into_iter().map(|call| call.member).collect()
    }

    /// Makes the service leave calls for the agent unanswered from now on.
    pub fn hang_agents(&self) {
        self.service.as_ref().unwrap().agents_hang.store(true, Relaxed);
    }

    /// Boots a sandbox again, as another client would.
    pub fn boot(&self, name: &str) {
        self.service.as_ref().unwrap().boot(name);
    }

    /// Returns the home of the user.
    pub fn home(&self) -> PathBuf {
        self.path("home")
    }

    /// Returns the command with these arguments.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_banger"));
        command.args(args).env("DBUS_SYSTEM_BUS_ADDRESS", self.address()).stdin(Stdio::null());
        // The tests must not use the home of the user that runs them.
        command.env("HOME", self.home()).env_remove("XDG_DATA_HOME").env_remove("XDG_CONFIG_HOME");
        for variable in ["DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"] {
            command.env_remove(variable);
        }
        command
    }

    /// Runs the command to its end.
    pub fn banger(&self, args: &[&str]) -> Ended {
        self.banger_with(args, Stdio::null())
    }

    /// Runs the command to its end with this input.
    pub fn banger_with(&self, args: &[&str], input: impl Into<Stdio>) -> Ended {
        let output = self.command(args).stdin(input).output().unwrap();
        Ended {
            status: output.status.code().unwrap_or(-1),
            output: String::from_utf8(output.stdout).unwrap(),
            errors: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Starts the command, whose output can be read while it runs.
    pub fn start(&self, args: &[&str]) -> Running {
        start(self.command(args))
    }

    /// Starts a command through a program that executes it.
    pub fn start_with(&self, program: &str, command: &Command) -> Running {
        let mut behind = Command::new(program);
        behind.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
        behind.env("DBUS_SYSTEM_BUS_ADDRESS", self.address());
        start(behind)
    }

    /// Starts the command in a terminal.
    pub fn start_in_terminal(&self, args: &[&str]) -> Terminal {
        self.start_in_terminal_with(args, &[])
    }

    /// Starts the command in a terminal, with additional variables.
    pub fn start_in_terminal_with(&self, args: &[&str], env: &[(&str, &str)]) -> Terminal {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        let user = open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let [input, output, errors] = [(); 3].map(|()| Stdio::from(user.try_clone().unwrap()));
        let terminal =
            Terminal { controller: File::from(controller), user, child: None, seen: String::new() };
        terminal.resize(24, 80);
        // With a controlling terminal, as after a login.
        let child = Command::new("setsid")
            .args(["--ctty", "--wait", env!("CARGO_BIN_EXE_banger")])
            .args(args)
            .env("DBUS_SYSTEM_BUS_ADDRESS", self.address())
            .env("HOME", self.home())
            .env("TERM", "vt100")
            .envs(env.iter().copied())
            .stdin(input)
            .stdout(output)
            .stderr(errors)
            .spawn();
        Terminal { child: Some(child.unwrap()), ..terminal }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for child in self.real.iter_mut().chain([&mut self.bus]) {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// Reports why a test did not run: in its output, and in the file that counts skipped tests.
pub fn skip(reason: &str) {
    eprintln!("SKIPPED: this test needs {reason}");
    if let Some(file) = std::env::var_os("BANGER_TEST_SKIPS") {
        let mut file = File::options().append(true).open(file).unwrap();
        std::io::Write::write_all(&mut file, format!("{reason}\n").as_bytes()).unwrap();
    }
}

/// A command that has ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    pub status: i32,
    pub output: String,
    pub errors: String,
}

/// A running command.
pub struct Running {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    errors: BufReader<std::process::ChildStderr>,
}

impl Running {
    pub fn next_output(&mut self) -> String {
        next_line(&mut self.output)
    }

    pub fn next_error(&mut self) -> String {
        next_line(&mut self.errors)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Closes the read end of the output.
    pub fn close_output(self) -> (Child, BufReader<std::process::ChildStderr>) {
        (self.child, self.errors)
    }

    pub fn end(mut self) -> Ended {
        let (mut output, mut errors) = (String::new(), String::new());
        self.output.read_to_string(&mut output).unwrap();
        self.errors.read_to_string(&mut errors).unwrap();
        Ended { status: self.child.wait().unwrap().code().unwrap_or(-1), output, errors }
    }
}

fn start(mut command: Command) -> Running {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let errors = BufReader::new(child.stderr.take().unwrap());
    Running { child, output, errors }
}

fn next_line(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// How often a terminal looks whether its command has ended.
const POLL: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// How long a command may print nothing of what is waited for. Much longer than any needs on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A terminal in which the command runs.
pub struct Terminal {
    controller: File,
    user: OwnedFd,
    child: Option<Child>,
    seen: String,
}

impl Terminal {
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.controller, size).unwrap();
    }

    pub fn type_in(&mut self, text: &str) {
        std::io::Write::write_all(&mut self.controller, text.as_bytes()).unwrap();
    }

    /// Reads until this text appears. Returns everything read so far.
    pub fn wait_for(&mut self, text: &str) -> &str {
        let mut bytes = [0; 1024];
        let begun = Instant::now();
        while !self.seen.contains(text) {
            assert!(begun.elapsed() < PATIENCE, "{text:?} did not appear: {:?}", self.seen);
            // What it printed at its end is still read.
            let has_ended = self.child.as_mut().unwrap().try_wait().unwrap().is_some();
            let mut ready = [PollFd::new(&self.controller, PollFlags::IN)];
            if poll(&mut ready, Some(&POLL)).unwrap() == 0 {
                assert!(!has_ended, "it ended without {text:?}: {:?}", self.seen);
                continue;
            }
            let count = self.controller.read(&mut bytes).unwrap();
            self.seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
        &self.seen
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.child.as_ref().unwrap()), signal).unwrap();
    }

    pub fn is_raw(&self) -> bool {
        !tcgetattr(&self.user).unwrap().local_modes.intersects(LocalModes::ECHO | LocalModes::ICANON)
    }

    /// Closes the window. Returns the status.
    pub fn close(mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        drop(self);
        child.wait().unwrap()
    }

    /// Returns the status and everything that was printed.
    pub fn end(mut self) -> (ExitStatus, String) {
        let status = self.child.take().unwrap().wait().unwrap();
        // The rest is in the buffer.
        let flags = rustix::fs::fcntl_getfl(&self.controller).unwrap();
        rustix::fs::fcntl_setfl(&self.controller, flags | OFlags::NONBLOCK).unwrap();
        let mut bytes = [0; 4096];
        while let Ok(count) = self.controller.read(&mut bytes) {
            self.seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
        (status, self.seen)
    }
}

/// The longest that a test waits for anything, on a machine that does many other things.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Waits until a condition holds, and fails after a while.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !so() {
        assert!(begin.elapsed() < TIMEOUT, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
