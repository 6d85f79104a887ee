//! Copies, connections and queries of a sandbox, with the real agent on this host.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::{
        fs::{PermissionsExt, symlink},
        net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    process::Stdio,
    thread,
};

use rustix::process::Signal;
use serde_json::Value;

use crate::host::{Host, until};

fn host() -> Host {
    let host = Host::new();
    let created = host.banger(&["vm", "create", "-q", "--name", "box", "--image", "debian"]);
    assert_eq!(created.status, 0, "{created:?}");
    host
}

/// Returns a directory as a path in the sandbox and on the host.
fn directory(host: &Host, name: &str) -> (String, PathBuf) {
    let path = host.path(name);
    (format!("box:{}", path.display()), path)
}

#[test]
fn files_and_directories_are_copied_both_ways() {
    let host = host();
    let source = host.path("source");
    fs::create_dir_all(source.join("deep/er")).unwrap();
    fs::write(source.join("deep/er/odd\nname"), "x").unwrap();
    fs::write(source.join("run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(source.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("/nowhere", source.join("link")).unwrap();
    let source = source.to_str().unwrap();

    let copy = |words: &[&str]| {
        let ended = host.banger(&[&["vm", "cp", "-q"], words].concat());
        assert_eq!((ended.status, ended.errors.as_str()), (0, ""), "{words:?}: {ended:?}");
    };
    let (there, inside) = directory(&host, "there");
    copy(&[source, &there]);
    assert_eq!(fs::read(inside.join("deep/er/odd\nname")).unwrap(), b"x");
    assert_eq!(fs::read_link(inside.join("link")).unwrap().to_str(), Some("/nowhere"));
    // It exists by now, so the next copy goes into it.
    copy(&[source, &there]);
    assert!(inside.join("source/run").exists());
    copy(&[&format!("{source}/run"), &format!("{there}/renamed")]);
    assert_eq!(fs::metadata(inside.join("renamed")).unwrap().permissions().mode() & 0o777, 0o755);

    let back = host.path("back");
    copy(&[&format!("{there}/source"), back.to_str().unwrap()]);
    assert_eq!(fs::read(back.join("deep/er/odd\nname")).unwrap(), b"x");
    copy(&[&format!("{there}/renamed"), back.to_str().unwrap()]);
    assert_eq!(fs::read(back.join("renamed")).unwrap(), b"#!/bin/sh\n");
    let left: Vec<_> =
        fs::read_dir(host.path(".")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with(".banger-")), "{left:?}");
}

#[test]
fn a_hyphen_is_an_archive() {
    let host = host();
    let (there, inside) = directory(&host, "there");
    let archive = |name: &str, content: &[u8]| {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        builder.append_data(&mut header, name, content).unwrap();
        builder.into_inner().unwrap()
    };
    let file = host.path("in.tar");
    fs::write(&file, archive("a/b", b"hello")).unwrap();
    let ended = host.banger_with(&["vm", "cp", "-", &there], fs::File::open(&file).unwrap());
    assert_eq!(ended.status, 0, "{ended:?}");
    assert_eq!(fs::read(inside.join("a/b")).unwrap(), b"hello");
    let output = host.command(&["vm", "cp", &format!("{there}/a"), "-"]).output().unwrap();
    let mut archive = tar::Archive::new(output.stdout.as_slice());
    let names: Vec<_> =
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
    assert!(names.contains(&PathBuf::from("a/b")), "{names:?}");
}

#[test]
fn listening_ports_are_listed() {
    let host = host();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let rows: Value = serde_json::from_str(&host.banger(&["vm", "ports", "--json", "box"]).output).unwrap();
    let row = rows.as_array().unwrap().iter().find(|row| row["port"] == port).expect("it is not listed");
    assert_eq!(
        (&row["sandbox"], &row["protocol"], &row["endpoint"]),
        (&"box".into(), &"tcp".into(), &Value::Null)
    );
    let table = host.banger(&["vm", "ports", "box"]).output;
    assert!(table.lines().any(|line| line.contains(&format!("{port}/tcp"))), "{table}");
}

fn port_of(said: &str) -> u16 {
    said.split(' ').next().unwrap().rsplit(':').next().unwrap().parse().unwrap()
}

#[test]
fn connections_are_forwarded_into_and_out_of_a_sandbox() {
    let host = host();
    // An echo server that ends its side when its client has.
    let echo = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = echo.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in echo.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut reader = stream.try_clone().unwrap();
                std::io::copy(&mut reader, &mut stream).unwrap();
                stream.shutdown(std::net::Shutdown::Write)
            });
        }
    });
    let check = |mut stream: TcpStream| {
        let much: Vec<u8> = (0..2_000_000u32).flat_map(|n| n.to_le_bytes()).collect();
        let (mut writer, expect) = (stream.try_clone().unwrap(), much.clone());
        let sender = thread::spawn(move || {
            writer.write_all(&much).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        sender.join().unwrap();
        assert!(back == expect, "{} bytes of {}", back.len(), expect.len());
    };

    let mut running = host.start(&["vm", "forward", "-L", &format!("0:{port}"), "box"]);
    let here = port_of(&running.next_error());
    check(TcpStream::connect(("127.0.0.1", here)).unwrap());
    check(TcpStream::connect(("127.0.0.1", here)).unwrap());
    running.signal(Signal::INT);
    assert_eq!(running.end().status, 0);

    // To a socket, from a socket.
    let (there, local) = (host.path("there.sock"), host.path("here.sock"));
    let listener = UnixListener::bind(&there).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).unwrap();
        stream.write_all(heard.to_uppercase().as_bytes()).unwrap();
    });
    let spec = format!("{}:{}", local.display(), there.display());
    let mut running = host.start(&["vm", "forward", "-L", &spec, "box"]);
    assert!(running.next_error().contains(" reaches "));
    let mut caller = UnixStream::connect(&local).unwrap();
    caller.write_all(b"hello").unwrap();
    caller.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    caller.read_to_string(&mut answer).unwrap();
    server.join().unwrap();
    assert_eq!(answer, "HELLO");
    running.signal(Signal::TERM);
    assert_eq!(running.end().status, 0);
    assert!(!local.exists());
}

#[test]
fn a_connection_that_is_refused_does_not_end_the_others() {
    let host = host();
    let mut running = host.start(&["vm", "forward", "-L", "0:1", "box"]);
    let here = port_of(&running.next_error());
    let mut stream = TcpStream::connect(("127.0.0.1", here)).unwrap();
    let mut nothing = Vec::new();
    let _ = stream.read_to_end(&mut nothing);
    assert!(nothing.is_empty());
    assert!(
        running.next_error().starts_with("error: a connection: cannot connect to 127.0.0.1:1 in the guest: ")
    );
    TcpStream::connect(("127.0.0.1", here)).unwrap();
    running.signal(Signal::INT);
    assert_eq!(running.end().status, 0);
    let ended = host.banger(&["vm", "forward", "-L", "x", "box"]);
    assert_eq!(ended.status, 2, "{ended:?}");
    assert_eq!(host.banger(&["vm", "forward", "box"]).status, 2);
}

#[test]
fn stats_processes_and_health_are_shown() {
    let host = host();
    let json = |words: &[&str]| -> Value {
        let ended = host.banger(words);
        serde_json::from_str(&ended.output).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
    };
    let stats = json(&["vm", "stats", "--json", "box"]);
    assert_eq!(stats[0]["sandbox"], "box");
    assert!(stats[0]["memory_total"].as_u64() > Some(0) && stats[0]["cpu_percent"].is_number());
    let top = json(&["vm", "top", "--json", "-n", "3", "box"]);
    assert!((1..=3).contains(&top.as_array().unwrap().len()));
    let health = json(&["vm", "health", "--json", "box"]);
    assert_eq!((&health[0]["healthy"], &health[0]["problems"]), (&true.into(), &Value::Array(Vec::new())));
    let ping = host.banger(&["vm", "ping", "box"]);
    assert!(ping.output.starts_with("box: answered in "), "{ping:?}");
    let ended = host.banger(&["vm", "health", "nope"]);
    assert_eq!(ended.status, 1);
    assert!(ended.errors.starts_with("error: there is no sandbox nope."), "{ended:?}");
}

#[test]
fn lists_have_columns_an_order_and_forms() {
    let host = host();
    for name in ["red", "a-name-that-is-longer-than-half-a-narrow-terminal"] {
        assert_eq!(host.banger(&["vm", "create", "-q", "--name", name, "--image", "debian"]).status, 0);
    }
    let list = |words: &[&str]| {
        let ended = host.banger(&[&["ps"], words].concat());
        assert_eq!((ended.status, ended.errors.as_str()), (0, ""), "{words:?}: {ended:?}");
        ended.output
    };
    let names = list(&["--sort", "-name", "--format", "{{.Name}}"]);
    let mut sorted: Vec<&str> = names.lines().collect();
    sorted.sort_unstable_by(|one, other| other.cmp(one));
    assert_eq!(names.lines().collect::<Vec<_>>(), sorted);
    assert!(list(&["--columns", "name,state"]).starts_with("NAME "));
    for line in list(&["--format", "json"]).lines() {
        assert!(serde_json::from_str::<Value>(line).unwrap()["name"].is_string());
    }
    for words in [["--columns", "colour"], ["--sort", "colour"], ["--format", "{{.Colour}}"]] {
        let ended = host.banger(&[&["ps"], &words[..]].concat());
        assert_eq!(ended.status, 2, "{ended:?}");
        assert!(ended.errors.contains("hint: ") && ended.errors.contains("name, state"), "{ended:?}");
    }
    // A pipe has all columns at any width; a terminal has those that fit.
    let wide = list(&[]);
    assert!(wide.contains("CREATED") && wide.lines().any(|line| line.len() > 80), "{wide}");
    let terminal = host.start_in_terminal_with(&["ps"], &[("COLUMNS", "40")]);
    let (status, seen) = terminal.end();
    assert!(status.success() && seen.starts_with("NAME"), "{seen}");
    assert!(seen.lines().all(|line| line.trim_end().chars().count() <= 40), "{seen}");
    assert!(seen.contains('…'), "{seen}");
}

#[test]
fn the_output_of_a_detached_command_is_kept() {
    let host = host();
    let detach = |script: &str| {
        let ended = host.banger(&["vm", "exec", "-d", "box", "--", "sh", "-c", script]);
        assert_eq!((ended.status, ended.errors.as_str()), (0, ""), "{ended:?}");
        ended.output.trim().to_owned()
    };
    let logs = |more: &[&str]| host.banger(&[&["vm", "logs"], more, &["box"]].concat());
    let listed = |id: &str| {
        let commands = host.banger(&["vm", "commands", "box"]).output;
        commands.lines().find(|line| line.split_whitespace().next() == Some(id)).unwrap().to_owned()
    };
    let id = detach("echo out; echo err >&2; sleep 0.5; printf '\\033[31mred\\n'; exit 3");
    // With its end, and with the whole output.
    assert_eq!(logs(&[&format!("--exec={id}"), "-f"]).output, "out\nerr\n\x1b[31mred\n");
    assert_eq!(logs(&[&format!("--exec={id}"), "-n", "1"]).output, "\x1b[31mred\n");
    let line = listed(&id);
    assert!(line.contains("exited 3") && line.contains("sh -c echo out"), "{line}");
    // The sandbox of this test is this host, where other tests detach commands, too.
    assert_eq!(logs(&["--exec"]).status, 0);
    let ended = logs(&["--exec=999999999"]);
    assert_eq!(
        (ended.status, ended.errors.as_str()),
        (1, "error: there is no detached command 999999999.\n")
    );
    assert_eq!(logs(&["--exec=/etc/passwd"]).status, 2);

    let endless = detach("trap '' HUP; echo ready; while :; do sleep 0.1; done");
    assert!(listed(&endless).contains("running"));
    let mut terminal = host.start_in_terminal(&["vm", "logs", "-f", &format!("--exec={endless}"), "box"]);
    terminal.wait_for("ready");
    terminal.type_in("\x03");
    assert_eq!(terminal.end().0.code(), Some(0));
    let ended = host.banger(&["vm", "commands", "--stop", &endless, "box"]);
    assert_eq!((ended.status, ended.errors.as_str()), (0, ""), "{ended:?}");
    assert!(listed(&endless).contains("killed by signal 15"), "{}", listed(&endless));
    let mut terminal = host.start_in_terminal(&["vm", "logs", &format!("--exec={id}"), "box"]);
    assert!(!terminal.wait_for("red").contains("[31m"));
    terminal.end();
}

#[test]
fn auto_forwards_every_listening_port() {
    let host = host();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || listener.accept().unwrap().0.write_all(b"hello"));
    let mut running = host.start(&["vm", "forward", "--auto", "box"]);
    let said = loop {
        let line = running.next_error();
        if line.contains(&format!(" reaches {port} (")) {
            break line;
        }
    };
    // Its own port is in use, because the sandbox of this test is this host.
    assert_ne!(port_of(&said), port);
    let mut heard = String::new();
    TcpStream::connect(("127.0.0.1", port_of(&said))).unwrap().read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "hello");
    running.signal(Signal::INT);
    assert_eq!(running.end().status, 0);
}

#[test]
fn similar_names_are_suggested() {
    let host = host();
    let ended = host.banger(&["vm", "show", "bxo"]);
    assert_eq!(
        ended.errors,
        "error: there is no sandbox bxo.\nhint: did you mean box? `banger vm list` shows your sandboxes.\n"
    );
    let ended = host.banger(&["vm", "lits"]);
    assert!(ended.status == 2 && ended.errors.contains("'list'"), "{ended:?}");
}

#[test]
fn colours_can_be_turned_off() {
    let host = Host::new();
    let seen = |more: &[(&str, &str)]| {
        let mut terminal =
            host.start_in_terminal_with(&["vm", "create", "--name", "hanging", "--image", "debian"], more);
        terminal.wait_for("waiting for the guest");
        terminal.type_in("\x03");
        let help = host.start_in_terminal_with(&["vm", "--help"], more);
        terminal.end().1 + &help.end().1
    };
    let is_coloured = |text: &str| {
        text.split("\x1b[")
            .skip(1)
            .any(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m'))
    };
    assert!(is_coloured(&seen(&[])));
    assert!(!is_coloured(&seen(&[("NO_COLOR", "1")])));
}

#[test]
fn prune_deletes_only_stopped_sandboxes() {
    let host = host();
    for name in ["resting", "idle"] {
        host.banger(&["vm", "create", "-q", "--no-start", "--name", name, "--image", "debian"]);
    }
    assert_eq!(host.banger(&["vm", "prune", "--dry-run"]).output, "resting\nidle\n");
    let ended = host.banger(&["vm", "prune"]);
    assert_eq!(ended.status, 1);
    assert!(ended.errors.starts_with("error: there is no terminal to ask on.\nhint: `--force`"), "{ended:?}");
    let mut terminal = host.start_in_terminal(&["vm", "prune"]);
    terminal.wait_for("Delete resting, idle with everything on their disks? [y/N] ");
    terminal.type_in("n\n");
    terminal.wait_for("nothing was deleted");
    assert_eq!(terminal.end().0.code(), Some(1));
    assert_eq!(host.banger(&["vm", "prune", "-q", "--force"]).output, "resting: deleted\nidle: deleted\n");
    assert_eq!(host.banger(&["vm", "prune", "--dry-run"]).output, "");
    assert!(host.banger(&["vm", "list", "-q"]).output.contains("box"));
}

#[test]
fn sandboxes_are_filtered_and_renamed() {
    let host = host();
    let create =
        ["vm", "create", "-q", "--name", "red", "--image", "debian", "--label", "team=web", "--label", "x"];
    assert_eq!(host.banger(&create).status, 0);
    let labels = host.calls("CreateVM").last().unwrap().options["labels"].clone();
    assert!(labels.contains("team") && labels.contains("web"), "{labels}");
    assert_eq!(host.banger(&["vm", "list", "-q", "--filter", "name=red"]).output, "red\n");
    assert_eq!(host.banger(&["vm", "list", "-q", "--filter", "state=stopped"]).output, "");
    assert_eq!(host.banger(&["vm", "list", "-q", "--filter", "name=re"]).output, "red\n");
    assert_eq!(host.banger(&["vm", "list", "--filter", "colour=red"]).status, 2);
    assert_eq!(host.banger(&["vm", "rename", "red", "blue"]).output, "red: renamed to blue\n");
    assert_eq!(host.banger(&["vm", "list", "-q", "--filter", "name=blue"]).output, "blue\n");
}

#[test]
fn a_shell_has_a_terminal_and_reminds_of_a_running_sandbox() {
    let host = Host::new();
    let mut terminal = host.start_in_terminal(&["vm", "shell", "web"]);
    terminal.wait_for("vt100 24x80\r\n");
    terminal.type_in("\x04");
    terminal.wait_for("web is still running: `banger vm exec web`");
    assert_eq!(terminal.end().0.code(), Some(7));
    assert_eq!(
        host.command(&["vm", "shell", "nope"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .code(),
        Some(125)
    );
}

#[test]
fn every_sandbox_gets_the_users_files() {
    let host = Host::new();
    let settings = host.home().join(".config/banger");
    fs::create_dir_all(&settings).unwrap();
    fs::write(host.home().join("token"), "secret").unwrap();
    let there = host.path("there");
    let text = format!(
        "git_identity = false\n[[file_sync]]\nhost = '~/token'\nguest = '{0}/token'\nmode = '0600'\n\
         [[file_sync]]\nhost = '~/missing'\nguest = '{0}/missing'\n",
        there.display()
    );
    fs::write(settings.join("config.toml"), &text).unwrap();
    let ended = host.banger(&["vm", "create", "--name", "box", "--image", "debian"]);
    assert_eq!(ended.status, 0, "{ended:?}");
    assert!(ended.errors.contains("/missing does not exist, so it is not in the sandbox."), "{ended:?}");
    assert_eq!(fs::read_to_string(there.join("token")).unwrap(), "secret");
    assert_eq!(fs::metadata(there.join("token")).unwrap().permissions().mode() & 0o777, 0o600);
    let shown = host.banger(&["config", "show", "--origin", "--json"]);
    let shown: Value = serde_json::from_str(&shown.output).unwrap();
    assert_eq!(shown["git_identity"]["value"], false);
    assert!(shown["file_sync"]["origin"].as_str().unwrap().ends_with(".config/banger/config.toml"));

    fs::write(settings.join("config.toml"), "file_snyc = []\n").unwrap();
    let made = host.calls("CreateVM").len();
    let ended = host.banger(&["vm", "create", "--name", "box-2", "--image", "debian"]);
    assert_eq!(ended.status, 1);
    assert!(
        ended.errors.contains("because: line 1: there is no key file_snyc; did you mean file_sync?"),
        "{ended:?}"
    );
    assert_eq!(host.calls("CreateVM").len(), made);
}

#[test]
fn events_are_printed_as_they_arrive() {
    let Some(host) = crate::real::host_with_image() else { return };
    let mut events = host.start(&["events", "--json"]);
    let created = thread::scope(|scope| {
        let next = scope.spawn(|| {
            let mut seen = Vec::new();
            while !seen.contains(&"StateChanged running".to_owned()) {
                let event: Value = serde_json::from_str(&events.next_output()).unwrap();
                let state = event["arguments"][1].as_str().unwrap_or_default();
                seen.push(match event["event"].as_str().unwrap() {
                    "StateChanged" => format!("StateChanged {state}"),
                    other => other.to_owned(),
                });
            }
            seen
        });
        // Only clients that were connected before may receive it.
        until("somebody listens", || {
            // Deleted again, because a user has a limit of sandboxes, and a busy host starts the listener late.
            host.banger(&["vm", "create", "-q", "--name", "heard"]);
            host.banger(&["vm", "delete", "-q", "--force", "heard"]);
            next.is_finished()
        });
        next.join().unwrap()
    });
    assert!(created.contains(&"VMNew".to_owned()), "{created:?}");
    events.signal(Signal::INT);
    let ended = events.end();
    assert_eq!(ended.status, 0, "{ended:?}");
}
