//! Sessions with the real agent, which serves this host.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Stdio},
};

use serde_json::Value;

use crate::{
    host::{Host, until},
    input,
};

const SCRIPT: &str = "while read line; do echo got $line; done; exit 7";

/// Starts a host with a sandbox whose agent keeps sessions. Returns a name for one that no other test has.
fn begin(name: &str) -> (Host, String) {
    let host = Host::new();
    assert_eq!(host.banger(&["vm", "create", "-q", "--name", "lasting", "--image", "debian"]).status, 0);
    (host, format!("{name}-{}", std::process::id()))
}

fn spawn(host: &Host, args: &[&str]) -> Child {
    let mut command = host.command(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn say(client: &mut Child, text: &str, expect: &str) {
    client.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(client.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, expect);
}

fn session(host: &Host, name: &str) -> Value {
    let listed = host.banger(&["vm", "sessions", "--json", "lasting"]);
    let sessions: Value = serde_json::from_str(&listed.output).unwrap();
    sessions.as_array().unwrap().iter().find(|found| found["session"] == *name).unwrap().clone()
}

#[test]
fn a_session_outlives_its_client_and_its_exit_status_is_kept() {
    let (host, name) = begin("kept");
    let exec = ["vm", "exec", "--session", &name, "lasting", "--", "sh", "-c", SCRIPT];
    let mut client = spawn(&host, &exec);
    say(&mut client, "one\n", "got one\n");
    assert_eq!(
        (&session(&host, &name)["running"], &session(&host, &name)["attached"]),
        (&true.into(), &true.into())
    );
    // SIGKILL: it can do nothing more.
    client.kill().unwrap();
    client.wait().unwrap();
    until("the client is gone", || session(&host, &name)["attached"] == false);

    let taken = host.banger(&exec);
    assert_eq!(taken.status, 126);
    assert!(taken.errors.contains(&format!("a session {name} runs already")), "{taken:?}");
    let ended = host.banger_with(&["vm", "attach", "lasting", &name], input("two\n"));
    assert_eq!((ended.status, ended.output.as_str()), (7, "got one\ngot two\n"), "{ended:?}");
    let again = host.banger(&["vm", "attach", "lasting", &name]);
    assert_eq!((again.status, again.output.as_str()), (7, "got one\ngot two\n"), "{again:?}");
    let session = session(&host, &name);
    assert_eq!((&session["status"], &session["exit_status"]), (&"exited 7".into(), &7.into()));
    let log = host.banger(&["vm", "logs", &format!("--exec={}", session["id"]), "lasting"]);
    assert_eq!(log.output, "got one\ngot two\n");
}

#[test]
fn the_next_client_takes_over_and_a_session_can_be_stopped() {
    let (host, name) = begin("taken");
    let mut first = spawn(&host, &["vm", "exec", "--session", &name, "lasting", "--", "sh", "-c", SCRIPT]);
    say(&mut first, "one\n", "got one\n");
    let mut second = spawn(&host, &["vm", "attach", "lasting", &name]);
    say(&mut second, "", "got one\n");
    let first = first.wait_with_output().unwrap();
    let errors = String::from_utf8(first.stderr).unwrap();
    assert_eq!(first.status.code(), Some(126), "{errors}");
    assert!(errors.contains("another client has attached to the session"), "{errors}");

    assert_eq!(host.banger(&["vm", "sessions", "--stop", &name, "lasting"]).status, 0);
    let second = second.wait_with_output().unwrap();
    assert!(matches!(second.status.code(), Some(129 | 143)), "{second:?}");
    for verb in [&["vm", "attach", "lasting", "nope"][..], &["vm", "sessions", "--stop", "nope", "lasting"]] {
        let unknown = host.banger(verb);
        assert!(unknown.errors.starts_with("error: lasting has no session nope"), "{unknown:?}");
        assert!(unknown.errors.contains("`banger vm sessions lasting`"), "{unknown:?}");
    }
}
