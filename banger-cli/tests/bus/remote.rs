//! A user here, and banger on another host. A stand-in for ssh runs the commands of channels beside the bus of that host,
//! and passes bytes only.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    host::{Ended, Host, until},
    input,
    real::host_with_image,
};

/// What takes the place of ssh.
const SSH: &str = r#"#!/bin/sh
echo "$*" >> "$STAND_IN/calls"
check= login=
while [ $# -gt 0 ]; do
    case $1 in
        -O) check=1; shift 2 ;;
        -S | -o | -l | -p) shift 2 ;;
        -N) login=1; shift ;;
        -T | -f) shift ;;
        --) shift; break ;;
        *) echo "unexpected: $1" >&2; exit 255 ;;
    esac
done
host=$1
shift
[ -z "$check" ] || { [ -e "$STAND_IN/connected" ]; exit; }
case $host in
    nowhere) echo "ssh: Could not resolve hostname nowhere: Name or service not known" >&2; exit 255 ;;
    locked) echo "alice@locked: Permission denied (publickey)." >&2; exit 255 ;;
esac
[ -z "$login" ] || { touch "$STAND_IN/connected"; exit 0; }
export DBUS_SYSTEM_BUS_ADDRESS="$REMOTE_BUS" HOME="$STAND_IN/remote-home" PATH="$STAND_IN/bin:/usr/bin:/bin"
case $host in
    bare) PATH=/usr/bin:/bin ;;
    old) PATH="$STAND_IN/old:$PATH" ;;
    newer) PATH="$STAND_IN/newer:$PATH" ;;
    noisy) echo "Welcome to noisy!" ;;
    busless) DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nonexistent/bus ;;
    gone) echo "Connection to gone closed by remote host." >&2; exit 1 ;;
    cut) sh -c "$*"; echo "client_loop: send disconnect: Broken pipe" >&2; exit 255 ;;
esac
echo $$ >> "$STAND_IN/pids"
exec sh -c "exec $*"
"#;

/// A user whose own host has no bus.
struct User<'a> {
    remote: &'a Host,
}

impl<'a> User<'a> {
    /// Creates a user with a way to another host.
    fn of(remote: &'a Host) -> Self {
        let user = Self { remote };
        for directory in ["bin", "old", "newer", "remote-home", "ssh"] {
            fs::create_dir_all(user.path(directory)).unwrap();
        }
        let banger = env!("CARGO_BIN_EXE_banger");
        user.script("ssh/ssh", SSH);
        user.script("bin/banger", &format!("#!/bin/sh\nexec {banger} \"$@\"\n"));
        let refusal = "error: unrecognized subcommand 'remote-proxy'";
        user.script("old/banger", &format!("#!/bin/sh\necho \"{refusal}\" >&2\nexit 2\n"));
        let greeting = r#"banger-remote {"protocol":99,"version":"9.0.0","uid":0}"#;
        user.script("newer/banger", &format!("#!/bin/sh\necho '{greeting}'\ncat > /dev/null\n"));
        user
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.remote.path("stand-in").join(name)
    }

    fn script(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.remote.command(args);
        for (name, value) in self.variables() {
            command.env(name, value);
        }
        command
    }

    fn variables(&self) -> [(&'static str, String); 4] {
        [
            ("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus".to_owned()),
            ("REMOTE_BUS", self.remote.address()),
            ("STAND_IN", self.path("").display().to_string()),
            ("PATH", format!("{}:/usr/bin:/bin", self.path("ssh").display())),
        ]
    }

    /// Runs a command on the remote host.
    fn banger(&self, args: &[&str]) -> Ended {
        self.banger_with(args, Stdio::null())
    }

    fn banger_with(&self, args: &[&str], input: impl Into<Stdio>) -> Ended {
        self.run(&[&["--host", "ssh://alice@lab:2222"], args].concat(), input)
    }

    /// Runs a command on the host of its own choice.
    fn run(&self, args: &[&str], input: impl Into<Stdio>) -> Ended {
        ended(self.command(args).stdin(input))
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.path("calls")).unwrap_or_default()
    }

    /// Waits until every process that ssh has started on the remote host has ended.
    fn until_all_ended(&self) {
        let pids = fs::read_to_string(self.path("pids")).unwrap();
        until("the processes on the remote host end", || {
            pids.lines().all(|pid| !Path::new("/proc").join(pid).join("exe").exists())
        });
    }
}

fn ended(command: &mut Command) -> Ended {
    let output = command.output().unwrap();
    Ended {
        status: output.status.code().unwrap_or(-1),
        output: String::from_utf8(output.stdout).unwrap(),
        errors: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn a_command_runs_on_a_remote_host_and_leaves_nothing() {
    let host = Host::new();
    let user = User::of(&host);
    let script = "cat; echo err >&2; exit 42";
    let ended = user.banger_with(
        &["vm", "run", "--rm", "-q", "--image", "debian", "--", "sh", "-c", script],
        input("hello"),
    );
    assert_eq!(ended, Ended { status: 42, output: "hello".into(), errors: "err\n".into() });
    assert_eq!(host.calls("CreateVM")[0].options["lifetime"], "\"caller\"");
    assert_eq!(host.calls("Delete")[0].options["force"], "true");
    user.until_all_ended();
    let calls = user.calls();
    let lines: Vec<&str> = calls.lines().collect();
    // Looks for a connection, makes one, and uses it for the bus and for each stream.
    assert!(lines[0].contains("-O check") && lines[1].contains("-f -N"), "{calls}");
    assert!(lines[1].contains("-l alice -p 2222 -- lab") && lines[1].contains("BatchMode=yes"), "{calls}");
    for channel in &lines[2..] {
        assert!(channel.ends_with("-l alice -p 2222 -- lab banger remote-proxy"), "{channel}");
        assert!(channel.contains("BatchMode=yes") && channel.contains("ControlMaster=no"), "{channel}");
    }
    assert!(lines.len() >= 4, "{calls}");
    // The next command finds the connection.
    assert_eq!(user.banger(&["ps", "-q"]).output, "web\ndb\nlocked\n");
    assert_eq!(user.calls().matches("-f -N").count(), 1);
}

#[test]
fn files_reach_the_remote_service_and_come_back() {
    let host = Host::new();
    let user = User::of(&host);
    let (rootfs, kernel) = (host.path("rootfs.tar"), host.path("vmlinux"));
    fs::write(&rootfs, "root").unwrap();
    fs::write(&kernel, vec![7; 3 << 20]).unwrap();
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let registered = user.banger(&["image", "register", "-q", "--name", "mine", "--rootfs", &path(&rootfs)]);
    assert_eq!((registered.status, registered.output.as_str()), (0, "mine\n"), "{registered:?}");
    let imported = user.banger(&["kernel", "import", "-q", "--name", "big", "--vmlinuz", &path(&kernel)]);
    assert_eq!((imported.status, imported.output.as_str()), (0, "big\n"), "{imported:?}");
    let source = |kind: &str, name: &str| {
        let shown: Value =
            serde_json::from_str(&user.banger(&[kind, "show", "--json", name]).output).unwrap();
        shown["source"].as_str().unwrap().to_owned()
    };
    assert_eq!(source("image", "mine"), "rootfs=root");
    assert_eq!(source("kernel", "big"), "kernel=3145728 bytes");
    let exported = host.path("exported.tar");
    assert_eq!(user.banger(&["image", "export", "-q", "mine", &path(&exported)]).status, 0);
    assert!(fs::read(&exported).unwrap() == [9; 100_000]);
    user.until_all_ended();
}

#[test]
fn the_real_service_takes_and_gives_files() {
    let Some(host) = host_with_image() else { return };
    let user = User::of(&host);
    let exported = |name: &str| host.path(name).to_str().unwrap().to_owned();
    let here = host.banger(&["image", "export", "debian-bookworm", &exported("here.tar")]);
    let there = user.banger(&["image", "export", "debian-bookworm", &exported("there.tar")]);
    assert_eq!((there.status, &there.output), (0, &here.output), "{there:?}");
    assert_eq!(fs::read(host.path("there.tar")).unwrap(), fs::read(host.path("here.tar")).unwrap());

    // alice:secret
    let config = r#"{"auths":{"registry.test":{"auth":"YWxpY2U6c2VjcmV0"}}}"#;
    fs::create_dir_all(host.home().join(".docker")).unwrap();
    let private = ["image", "pull", "-q", "registry.test/private"];
    let refused = user.banger(&private);
    assert!(refused.errors.contains("hint: log in with `docker login REGISTRY`"), "{refused:?}");
    fs::write(host.home().join(".docker/config.json"), config).unwrap();
    let pulled = user.banger(&private);
    assert_eq!((pulled.status, pulled.output.as_str()), (0, "private\n"), "{pulled:?}");

    // A guest that greets, through the program that ssh runs.
    assert_eq!(user.banger(&["vm", "create", "-q", "--name", "web"]).status, 0);
    let mut proxy = user.command(&["ssh-proxy", "web.vm", "22"]);
    assert_eq!(ended(proxy.env("BANGER_HOST", "ssh://lab")).output, "SSH-2.0-memory\r\n");
    let metrics = user.banger(&["metrics"]);
    assert!(metrics.status == 0 && metrics.output.contains("# EOF"), "{metrics:?}");
    user.until_all_ended();
}

#[test]
fn errors_of_the_remote_service_are_its_own() {
    let host = Host::new();
    let user = User::of(&host);
    let missing = user.banger(&["vm", "exec", "wbe", "--", "true"]);
    assert_eq!(missing.status, 125);
    assert!(missing.errors.contains("hint: did you mean web?"), "{missing:?}");
    let refused = user.banger(&["vm", "exec", "web", "--", "no-such-program"]);
    assert_eq!(refused.status, 127, "{refused:?}");
    // Nobody there could be asked for a password.
    let locked = user.banger(&["vm", "stop", "locked"]);
    assert!(locked.errors.contains("`ssh -t -p 2222 alice@lab banger COMMAND` can ask"), "{locked:?}");
    let denied = user.banger(&["vm", "exec", "locked", "--", "true"]);
    assert!(denied.errors.contains("members of the group banger on that host"), "{denied:?}");
}

#[test]
fn what_is_wrong_on_the_way_is_told_apart() {
    let host = Host::new();
    let user = User::of(&host);
    for (name, error, hint) in [
        (
            "nowhere",
            "error: cannot reach ssh://nowhere.\n  because: ssh: Could not resolve hostname",
            "check the name",
        ),
        (
            "locked",
            "error: cannot reach ssh://locked.\n  because: alice@locked: Permission denied",
            "`ssh-copy-id locked`",
        ),
        ("bare", "error: banger is not installed on ssh://bare.\n", "install the package banger there"),
        ("old", "error: banger on ssh://old is too old", "install the same version"),
        ("newer", "error: banger on ssh://newer has version 9.0.0", "install the same version"),
        (
            "noisy",
            "error: unexpected output of the login shell on ssh://noisy: Welcome to noisy!",
            "must print nothing",
        ),
        (
            "busless",
            "error: cannot reach the system bus of ssh://busless",
            "`ssh busless systemctl status dbus`",
        ),
        (
            "gone",
            "error: lost the connection to ssh://gone.\n  because: Connection to gone closed",
            "try again",
        ),
    ] {
        let ended = user.run(&["--host", &format!("ssh://{name}"), "ps"], Stdio::null());
        assert_eq!((ended.status, ended.output.as_str()), (1, ""), "{name}: {ended:?}");
        assert!(ended.errors.starts_with(error) && ended.errors.contains(hint), "{name}: {ended:?}");
    }
    // Nothing that looks like an option gets as far as ssh.
    let before = user.calls();
    for address in ["ssh://-oProxyCommand=reboot", "ssh://-x@lab", "lab", "tcp://lab"] {
        assert_eq!(user.run(&["--host", address, "ps"], Stdio::null()).status, 2, "{address}");
        let ended = ended(user.command(&["ps"]).env("BANGER_HOST", address));
        assert_eq!(ended.status, 2, "{address}: {ended:?}");
    }
    assert_eq!(user.calls(), before);
}

#[test]
fn a_log_that_is_cut_off_is_not_whole() {
    let host = Host::new();
    let user = User::of(&host);
    let whole = user.banger(&["vm", "logs", "--raw", "web"]);
    assert!(whole.status == 0 && whole.output.contains("Started"), "{whole:?}");
    let cut = user.run(&["--host", "ssh://cut", "vm", "logs", "--raw", "web"], Stdio::null());
    assert_eq!((cut.status, &cut.output), (1, &whole.output), "{cut:?}");
    assert!(cut.errors.contains("lost the connection to ssh://cut.\n  because: client_loop"), "{cut:?}");
}

#[test]
fn a_context_is_used_until_another_is() {
    let host = Host::new();
    let user = User::of(&host);
    let run = |args: &[&str]| user.run(args, Stdio::null());
    assert_eq!(run(&["context", "add", "lab", "ssh://lab"]).output, "lab\n");
    assert_eq!(run(&["context", "use", "lab"]).output, "lab\n");
    assert_eq!(run(&["ps", "-q"]).output, "web\ndb\nlocked\n");
    let table = run(&["context", "list"]).output;
    assert!(table.lines().any(|line| line.split_whitespace().eq(["lab", "ssh://lab", "yes"])), "{table}");
    let version = run(&["version", "--json"]).output;
    assert!(version.contains("\"host\": \"ssh://lab\""), "{version}");
    assert!(run(&["doctor"]).output.starts_with("HOST  ssh://lab\n"));
    // What is said for one command counts first.
    let local = run(&["--context", "default", "ps"]);
    assert!(local.errors.starts_with("error: cannot reach the system bus.\n"), "{local:?}");
    let other = ended(user.command(&["ps"]).env("BANGER_HOST", "ssh://nowhere"));
    assert!(other.errors.starts_with("error: cannot reach ssh://nowhere"), "{other:?}");
    let other = ended(user.command(&["-c", "lab", "ps", "-q"]).env("BANGER_HOST", "ssh://nowhere"));
    assert_eq!(other.status, 0, "{other:?}");

    assert!(
        run(&["context", "delete", "lab"]).errors.contains("cannot delete the context lab: it is in use")
    );
    assert_eq!(run(&["context", "use", "default"]).status, 0);
    assert_eq!(run(&["context", "delete", "lab"]).output, "lab\n");
    let gone = run(&["context", "use", "lab"]);
    assert!(gone.status == 1 && gone.errors.contains("there is no context lab"), "{gone:?}");
    assert!(run(&["ps"]).errors.starts_with("error: cannot reach the system bus.\n"));
}

#[test]
fn connections_and_files_go_into_a_remote_sandbox() {
    let host = Host::new();
    let user = User::of(&host);
    assert_eq!(user.banger(&["vm", "create", "-q", "--name", "box", "--image", "debian"]).status, 0);
    let (source, inside, back) = (host.path("source"), host.path("inside"), host.path("back"));
    fs::write(&source, vec![5; 5 << 20]).unwrap();
    let there = format!("box:{}", inside.display());
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    assert_eq!(user.banger(&["vm", "cp", "-q", &path(&source), &there]).status, 0);
    assert_eq!(user.banger(&["vm", "cp", "-q", &there, &path(&back)]).status, 0);
    assert!(fs::read(&back).unwrap() == fs::read(&source).unwrap());

    let echo = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = echo.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in echo.incoming() {
            let (mut reader, mut writer) = (stream.as_ref().unwrap(), stream.as_ref().unwrap());
            std::io::copy(&mut reader, &mut writer).unwrap();
        }
    });
    let mut forward =
        user.command(&["--host", "ssh://lab", "vm", "forward", "-L", &format!("0:{port}"), "box"]);
    let mut running = forward.stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut errors = std::io::BufReader::new(running.stderr.take().unwrap());
    std::io::BufRead::read_line(&mut errors, &mut said).unwrap();
    let here: u16 = said.split(' ').next().unwrap().rsplit(':').next().unwrap().parse().unwrap();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(("127.0.0.1", here)).unwrap();
        stream.write_all(b"hello").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut back = String::new();
        stream.read_to_string(&mut back).unwrap();
        assert_eq!(back, "hello");
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&running), Signal::INT).unwrap();
    assert_eq!(running.wait().unwrap().code(), Some(0));
    user.until_all_ended();
}

#[test]
fn the_remote_end_goes_with_a_command_that_is_killed() {
    let host = Host::new();
    let user = User::of(&host);
    let mut events = user.command(&["--host", "ssh://lab", "events"]).stdout(Stdio::null()).spawn().unwrap();
    until("the service is asked", || !host.calls("Subscribe").is_empty());
    events.kill().unwrap();
    events.wait().unwrap();
    user.until_all_ended();

    // The other way round, the command says so.
    let mut events = user.command(&["--host", "ssh://lab", "events"]);
    let running = events.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    until("the service is asked", || host.calls("Subscribe").len() == 2);
    for pid in fs::read_to_string(user.path("pids")).unwrap().lines() {
        let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
        // Those of the first command are gone.
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
    let output = running.wait_with_output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.starts_with("error: lost the connection to ssh://lab.\n"), "{errors}");
}

/// Kills what ssh has started on the remote host. What has ended already is left alone.
fn cut_connections(user: &User<'_>) {
    for pid in fs::read_to_string(user.path("pids")).unwrap().lines() {
        let path = Path::new("/proc").join(pid).join("cmdline");
        let is_ours =
            fs::read(path).is_ok_and(|line| String::from_utf8_lossy(&line).contains("remote-proxy"));
        if is_ours {
            let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
}

#[test]
fn commands_that_wait_say_that_the_connection_is_lost() {
    let host = Host::new();
    let user = User::of(&host);
    let socket = host.path("socket");
    let spec = format!("{}:80", socket.display());
    let mut forward = user.command(&["--host", "ssh://lab", "vm", "forward", "-L", &spec, "web"]);
    let forward = forward.stderr(Stdio::piped()).spawn().unwrap();
    let mut mcp = user.command(&["--host", "ssh://lab", "mcp"]);
    let mut mcp = mcp.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let hello = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"test","version":"1"}}}"#;
    let mut input = mcp.stdin.take().unwrap();
    writeln!(input, "{hello}").unwrap();
    let mut said = String::new();
    let mut output = std::io::BufReader::new(mcp.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut said).unwrap();
    assert!(said.contains("serverInfo"), "{said}");
    let mut exec = user.command(&["--host", "ssh://lab", "vm", "exec", "web", "--", "sleep", "600"]);
    let exec = exec.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    until("the port is forwarded and the command runs", || {
        socket.exists() && host.calls("OpenAgent").len() == 1
    });
    cut_connections(&user);
    for (running, status) in [(forward, 1), (mcp, 1), (exec, 125)] {
        let ended = running.wait_with_output().unwrap();
        let errors = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(status), "{errors}");
        assert!(errors.contains("error: lost the connection to ssh://lab.\n"), "{errors}");
    }
    drop(input);
}

#[test]
fn ports_are_published_with_the_name_of_their_host() {
    let Some(host) = host_with_image() else { return };
    let user = User::of(&host);
    assert_eq!(user.banger(&["vm", "create", "-q", "--name", "web"]).status, 0);
    let published = user.banger(&["vm", "publish", "web", "8080:80"]);
    assert_eq!(published.output, "127.0.0.1:8080 on ssh://alice@lab:2222\n", "{published:?}");
    let published = user.banger(&["vm", "publish", "web", "0.0.0.0:8081:81"]);
    assert_eq!(published.output, "lab:8081\n", "{published:?}");
    assert_eq!(host.banger(&["vm", "publish", "web", "8082:82"]).output, "127.0.0.1:8082\n");
}

#[test]
fn a_snapshot_of_a_remote_host_is_run_there() {
    let Some(host) = host_with_image() else { return };
    let user = User::of(&host);
    assert_eq!(user.banger(&["vm", "create", "-q", "--name", "web"]).status, 0);
    assert_eq!(user.banger(&["vm", "snapshot", "create", "-q", "web", "clean"]).output, "clean\n");
    let ran = user.banger(&["vm", "run", "-q", "-d", "--from-snapshot", "web/clean", "--name", "again"]);
    assert_eq!((ran.status, ran.output.as_str()), (0, "again\n"), "{ran:?}");
    assert_eq!(host.banger(&["vm", "list", "-q"]).output.lines().count(), 2);
    let missing = user.banger(&["vm", "run", "-q", "-d", "--from-snapshot", "web/nope"]);
    assert!(missing.status != 0 && missing.errors.contains("nope"), "{missing:?}");
    user.until_all_ended();
}

#[test]
fn an_interrupt_is_for_the_command_and_not_for_ssh() {
    let host = Host::new();
    let user = User::of(&host);
    let variables = user.variables();
    let variables: Vec<(&str, &str)> =
        variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let create = ["--host", "ssh://lab", "vm", "create", "--name", "hanging", "--image", "debian"];
    let mut terminal = host.start_in_terminal_with(&create, &variables);
    terminal.wait_for("waiting for the guest");
    terminal.type_in("\x03");
    terminal.wait_for("error: interrupted.");
    let (status, seen) = terminal.end();
    assert_eq!(status.code(), Some(130), "{seen}");
    assert_eq!(host.calls("Cancel").len(), 1);
    // There was somebody to ask.
    let calls = user.calls();
    let login = calls.lines().find(|line| line.contains("-f -N")).unwrap();
    assert!(!login.contains("BatchMode"), "{login}");
}

#[test]
fn names_of_a_remote_host_are_completed() {
    let host = Host::new();
    let user = User::of(&host);
    let completed = |words: &[&str]| {
        let mut command = user.command(&[&["--", "banger"], words].concat());
        command.env("BANGER_COMPLETE", "fish").env("_CLAP_COMPLETE_INDEX", words.len().to_string());
        ended(&mut command)
    };
    let stop = ["--host", "ssh://lab", "vm", "stop", "w"];
    // It logs in nowhere, and uses the connection of another command.
    let nothing = completed(&stop);
    assert_eq!((nothing.output.trim(), nothing.errors.as_str()), ("", ""), "{nothing:?}");
    assert!(user.calls().lines().all(|call| call.contains("-O check")), "{}", user.calls());
    assert_eq!(user.run(&["--host", "ssh://lab", "ps", "-q"], Stdio::null()).status, 0);
    let names = completed(&stop);
    assert!(names.output.starts_with("web"), "{names:?}");
    assert_eq!(user.run(&["context", "add", "lab", "ssh://lab"], Stdio::null()).status, 0);
    let contexts = completed(&["context", "use", "l"]);
    assert!(contexts.output.starts_with("lab"), "{contexts:?}");
    let nowhere = completed(&["--host", "ssh://nowhere", "vm", "stop", "w"]);
    assert_eq!((nowhere.output.trim(), nowhere.errors.as_str()), ("", ""), "{nowhere:?}");
}

/// A server of ssh for this user. ssh starts it for each connection, in place of a connection to a port.
struct Sshd<'a> {
    host: &'a Host,
    program: String,
}

impl<'a> Sshd<'a> {
    /// Returns `None` if there is no server of ssh for tests.
    fn of(host: &'a Host) -> Option<Self> {
        let Ok(program) = std::env::var("BANGER_TEST_SSHD") else {
            crate::host::skip("BANGER_TEST_SSHD, a program sshd");
            return None;
        };
        let sshd = Self { host, program };
        fs::create_dir_all(sshd.path("bin")).unwrap();
        let path = |name: &str| sshd.path(name).display().to_string();
        for key in ["host_key", "user_key", "other_key"] {
            let mut make = Command::new("ssh-keygen");
            make.args(["-q", "-t", "ed25519", "-N", "", "-f", &path(key)]);
            assert_eq!(ended(&mut make).status, 0);
        }
        fs::copy(path("user_key.pub"), path("authorized_keys")).unwrap();
        let bin = Path::new(env!("CARGO_BIN_EXE_banger")).parent().unwrap().display().to_string();
        let settings = format!(
            "HostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\n\
             SetEnv DBUS_SYSTEM_BUS_ADDRESS={} PATH={bin}:/usr/bin:/bin\n",
            path("host_key"),
            path("authorized_keys"),
            host.address()
        );
        fs::write(path("sshd_config"), settings).unwrap();
        // Run by root, it wants a user and a directory to lock itself into, which only it sees.
        let root = format!(
            "cp /etc/passwd {0} && echo 'sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin' >> {0} && \
             mount --bind {0} /etc/passwd && mount -t tmpfs none /run && mkdir /run/sshd && ",
            path("passwd")
        );
        let start = format!("exec {} -i -e -f {}", sshd.program, path("sshd_config"));
        let serve = match rustix::process::geteuid().is_root() {
            true => format!("exec unshare --mount sh -c \"{root}{start}\" 2> {}", path("log")),
            false => format!("{start} 2> {}", path("log")),
        };
        sshd.script("serve", &format!("#!/bin/sh\n{serve}\n"));
        sshd.trust("host_key");
        sshd.log_in_with("user_key");
        sshd.script("bin/ssh", &format!("#!/bin/sh\nexec /usr/bin/ssh -F {} \"$@\"\n", path("config")));
        Some(sshd)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.host.path("sshd").join(name)
    }

    fn script(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Makes this key the known one of the host.
    fn trust(&self, key: &str) {
        let key = fs::read_to_string(self.path(&format!("{key}.pub"))).unwrap();
        fs::write(self.path("known_hosts"), format!("lab {key}")).unwrap();
    }

    fn log_in_with(&self, key: &str) {
        let settings = format!(
            "Host lab\nProxyCommand {}\nIdentityFile {}\nIdentitiesOnly yes\nUserKnownHostsFile {}\n\
             GlobalKnownHostsFile /dev/null\nUpdateHostKeys no\n",
            self.path("serve").display(),
            self.path(key).display(),
            self.path("known_hosts").display()
        );
        fs::write(self.path("config"), settings).unwrap();
    }

    fn banger_with(&self, args: &[&str], input: impl Into<Stdio>) -> Ended {
        let mut command = self.host.command(&[&["--host", "ssh://lab"], args].concat());
        command.env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus").env_remove("SSH_AUTH_SOCK");
        command.env("PATH", format!("{}:/usr/bin:/bin", self.path("bin").display()));
        ended(command.stdin(input))
    }

    fn banger(&self, args: &[&str]) -> Ended {
        self.banger_with(args, Stdio::null())
    }

    /// Ends the connection that ssh keeps.
    fn hang_up(&self) {
        let sockets = self.host.home().join(".local/state/banger/ssh");
        for entry in fs::read_dir(sockets).into_iter().flatten().flatten() {
            if entry.path().extension().is_none() {
                let mut exit = Command::new(self.path("bin/ssh"));
                exit.arg("-S").arg(entry.path()).args(["-O", "exit", "lab"]);
                ended(&mut exit);
            }
        }
    }
}

impl Drop for Sshd<'_> {
    fn drop(&mut self) {
        self.hang_up();
    }
}

#[test]
fn a_real_ssh_carries_everything_in_one_connection() {
    let host = Host::new();
    let Some(sshd) = Sshd::of(&host) else { return };
    let script = "cat; echo err >&2; exit 42";
    let run = ["vm", "run", "--rm", "-q", "--image", "debian", "--", "sh", "-c", script];
    let log = || fs::read_to_string(sshd.path("log")).unwrap_or_default();
    let ended = sshd.banger_with(&run, input("hello"));
    let expect = Ended { status: 42, output: "hello".into(), errors: "err\n".into() };
    assert_eq!(ended, expect, "{}", log());
    let rootfs = host.path("rootfs.tar");
    fs::write(&rootfs, vec![1; 5 << 20]).unwrap();
    let register = ["image", "register", "-q", "--name", "mine", "--rootfs", rootfs.to_str().unwrap()];
    assert_eq!(sshd.banger(&register).output, "mine\n");
    let shown = sshd.banger(&["image", "show", "--json", "mine"]).output;
    assert!(shown.contains("rootfs=5242880 bytes"), "{shown}");
    // Later commands find the connection of the first one, even if nobody could log in any more.
    sshd.log_in_with("other_key");
    assert_eq!(sshd.banger(&["ps", "-q"]).output, "web\ndb\nlocked\n");
    sshd.hang_up();
    let refused = sshd.banger(&["ps"]);
    assert!(refused.errors.starts_with("error: cannot reach ssh://lab.\n"), "{refused:?}");
    assert!(refused.errors.contains("Permission denied (publickey"), "{refused:?}");
    assert!(refused.errors.contains("`ssh-copy-id lab` installs a key"), "{refused:?}");
    sshd.log_in_with("user_key");
    sshd.trust("other_key");
    let other = sshd.banger(&["ps"]);
    assert!(other.errors.contains("make sure that it is the right host"), "{other:?}");
    fs::write(sshd.path("known_hosts"), "").unwrap();
    let unknown = sshd.banger(&["ps"]);
    assert!(unknown.errors.contains("`ssh lab` shows the key of the host and asks"), "{unknown:?}");
}
