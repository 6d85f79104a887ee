//! The shim with ordinary programs in place of a VMM.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    fs::{self, File},
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use banger_jail::{
    message::{self, Answer, Order},
    ring::{Reader, Writer},
};
use rustix::{
    net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair},
    process::{Pid, Signal, kill_process},
};

const CAPACITY: u64 = 64 << 10;
/// Longer than any step takes on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A started shim, and the service's end of its socket.
struct Shim {
    process: Child,
    socket: Option<OwnedFd>,
    console: File,
    log: File,
}

impl Shim {
    fn new() -> Self {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_banger-shim"))
            .stdin(theirs)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let log = || {
            let file = tempfile::tempfile().unwrap();
            Writer::create(file.try_clone().unwrap(), CAPACITY).unwrap();
            file
        };
        Self { process, socket: Some(ours), console: log(), log: log() }
    }

    /// Starts a shim and orders it to run this command with these files.
    fn ordered(argv: &[&str], files: &[(&str, &File)]) -> (Self, Answer) {
        let shim = Self::new();
        let order = Order {
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            files: files.iter().map(|(name, _)| (*name).to_owned()).collect(),
            jail: None,
        };
        let mut sent: Vec<_> = files.iter().map(|(_, file)| file.as_fd()).collect();
        sent.extend([shim.console.as_fd(), shim.log.as_fd()]);
        let socket = shim.socket.as_ref().unwrap();
        message::send(socket, &order, &sent).unwrap();
        let (answer, _) = message::receive::<Answer>(socket).unwrap().unwrap();
        (shim, answer)
    }

    fn script(script: &str) -> Self {
        let (shim, answer) = Self::ordered(&["/bin/sh", "-c", script], &[]);
        assert!(matches!(answer, Answer::Started { .. }), "{answer:?}");
        shim
    }

    fn end(&mut self) -> ExitStatus {
        eventually(|| self.process.try_wait().unwrap())
    }

    fn wait_for(&self, text: &str) {
        eventually(|| contents(&self.console).contains(text).then_some(()));
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn contents(log: &File) -> String {
    let mut reader = Reader::new(log.try_clone().unwrap()).unwrap();
    let mut bytes = Vec::new();
    while reader.read(&mut bytes).unwrap() {}
    String::from_utf8_lossy(&bytes).into_owned()
}

fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "it does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn output_and_errors_go_into_their_own_logs() {
    let mut shim = Shim::script("echo out; echo err >&2");
    assert!(shim.end().success());
    assert_eq!((contents(&shim.console).as_str(), contents(&shim.log).as_str()), ("out\n", "err\n"));
}

#[test]
fn a_flood_neither_blocks_nor_grows_the_log() {
    let mut shim = Shim::script("head -c 100000000 /dev/zero; echo; echo end");
    assert!(shim.end().success());
    assert!(contents(&shim.console).ends_with("\0\nend\n"));
    // With the header, and the table of times.
    assert!(shim.console.metadata().unwrap().len() <= CAPACITY + 64 + (256 << 10));
}

#[test]
fn a_log_that_cannot_be_written_does_not_block_the_vmm() {
    let shim = Shim::new();
    let read_only =
        |file: &File| File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)));
    let (console, log) = (read_only(&shim.console).unwrap(), read_only(&shim.log).unwrap());
    let argv = ["/bin/sh", "-c", "head -c 1000000 /dev/zero"].map(str::to_owned).to_vec();
    let order = Order { argv, files: Vec::new(), jail: None };
    message::send(shim.socket.as_ref().unwrap(), &order, &[console.as_fd(), log.as_fd()]).unwrap();
    let mut shim = shim;
    assert!(shim.end().success());
}

#[test]
fn the_vmm_gets_its_files_by_name_and_no_others() {
    let mut data = tempfile::tempfile().unwrap();
    data.write_all(b"content").unwrap();
    // A file that the service forgot to close when it started the shim.
    let forgotten = File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&forgotten, rustix::io::FdFlags::empty()).unwrap();
    let script = "cat /proc/self/fd/{fd:data}; echo; ls -1 /proc/$$/fd; echo {fd:data}";
    let (mut shim, _) = Shim::ordered(&["/bin/sh", "-c", script], &[("data", &data)]);
    assert!(shim.end().success());
    let said = contents(&shim.console);
    let mut lines: Vec<&str> = said.lines().collect();
    let number = lines.pop().unwrap();
    assert_eq!(lines, ["content", "0", "1", "2", number], "with {forgotten:?}");
}

#[test]
fn the_shim_ends_as_its_vmm_does() {
    let check = |script: &str, code, signal| {
        let status = Shim::script(script).end();
        assert_eq!((status.code(), status.signal()), (code, signal), "{script}");
    };
    check("exit 0", Some(0), None);
    check("exit 7", Some(7), None);
    check("exit 255", Some(255), None);
    for signal in [6, 9, 11, 15] {
        check(&format!("kill -{signal} $$"), None, Some(signal));
    }
}

#[test]
fn a_signal_goes_to_the_vmm_and_its_last_output_is_kept() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::ABORT] {
        let script = "trap 'echo bye; exit 3' TERM INT HUP QUIT ABRT; echo up; while :; do sleep 0.05; done";
        let mut shim = Shim::script(script);
        shim.wait_for("up\n");
        shim.signal(signal);
        assert_eq!(shim.end().code(), Some(3));
        assert_eq!(contents(&shim.console), "up\nbye\n", "{signal:?}");
    }
}

#[test]
fn the_vmm_does_not_outlive_the_shim() {
    let mut shim = Shim::script("echo $$ up; exec sleep 1000");
    shim.wait_for(" up\n");
    let vmm = format!("/proc/{}", contents(&shim.console).split(' ').next().unwrap());
    assert!(Path::new(&vmm).exists());
    shim.signal(Signal::KILL);
    assert_eq!(shim.end().signal(), Some(9));
    // The process that adopts it may take a while to reap it.
    let ended = || fs::read_to_string(format!("{vmm}/stat")).map_or(true, |stat| stat.contains(") Z "));
    eventually(|| ended().then_some(()));
}

#[test]
fn the_service_may_go_once_the_vmm_runs_and_not_before() {
    let (hold, mut release) = std::io::pipe().unwrap();
    let hold = File::from(OwnedFd::from(hold));
    let script = "read line < /proc/self/fd/{fd:hold}; echo $line";
    let (mut shim, _) = Shim::ordered(&["/bin/sh", "-c", script], &[("hold", &hold)]);
    shim.socket = None;
    release.write_all(b"still there\n").unwrap();
    assert!(shim.end().success());
    assert_eq!(contents(&shim.console), "still there\n");

    let mut waiting = Shim::new();
    waiting.socket = None;
    assert!(!waiting.end().success());
}

#[test]
fn impossible_orders_are_refused_with_a_reason() {
    let refused = |answer: &Answer, words: &str| {
        assert!(matches!(answer, Answer::Failed { message } if message.contains(words)), "{answer:?}");
    };
    let (mut shim, answer) = Shim::ordered(&["/no/such/program"], &[]);
    refused(&answer, "/no/such/program");
    assert!(!shim.end().success());
    refused(&Shim::ordered(&["/bin/echo", "{fd:missing}"], &[]).1, "is missing");
    refused(&Shim::ordered(&[], &[]).1, "no program");

    let shim = Shim::new();
    let socket = shim.socket.as_ref().unwrap();
    send(socket, b"garbage", SendFlags::empty()).unwrap();
    refused(&message::receive::<Answer>(socket).unwrap().unwrap().0, "");

    let shim = Shim::new();
    let order = Order { argv: vec!["/bin/true".into()], files: vec!["one".into()], jail: None };
    message::send(shim.socket.as_ref().unwrap(), &order, &[]).unwrap();
    refused(&message::receive::<Answer>(shim.socket.as_ref().unwrap()).unwrap().unwrap().0, "does not match");
}

#[test]
fn the_vmm_has_an_empty_environment_and_no_input() {
    let mut shim = Shim::script(
        "read line || echo no input; /usr/bin/env | grep -v -e ^PWD= -e ^_= -e ^SHLVL= -e ^OLDPWD=",
    );
    shim.end();
    assert_eq!(contents(&shim.console), "no input\n");
}
