//! Tests of sessions, with hosts in the same process.

#![allow(clippy::unwrap_used)]
use std::{thread, time::Duration};

use banger_proto::guest::{Failure, Request, Terminal};

use super::*;
use crate::test_host::{Host, command};

/// Returns a name that no other test has.
fn unique(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

fn exec(name: &str, argv: &[&str]) -> Exec {
    Exec { session: Some(name.to_owned()), ..command(argv) }
}

fn begin(name: &str, argv: &[&str]) -> Host {
    let mut host = Host::ask(Request::Exec(exec(name, argv)));
    assert!(matches!(host.next(), Frame::Started(_)));
    host
}

fn attach_to(name: &str, size: Option<WindowSize>) -> Host {
    Host::ask(Request::Attach(Attach { session: name.to_owned(), size }))
}

/// Reads output until it contains a text.
fn read_until(host: &mut Host, expect: &str) -> String {
    let mut text = String::new();
    while !text.contains(expect) {
        match host.next() {
            Frame::Output(bytes) => text.push_str(&String::from_utf8(bytes).unwrap()),
            Frame::Started(_) | Frame::Window(_) => {}
            other => panic!("{other:?} after {text:?}"),
        }
    }
    text
}

fn failure(mut host: Host) -> Failure {
    match host.bytes().1 {
        Frame::Failed(failure) => failure,
        other => panic!("{other:?}"),
    }
}

fn remove(name: &str) {
    for entry in store::all() {
        if entry.metadata().is_ok_and(|found| found.session.as_deref() == Some(name)) {
            entry.remove().unwrap();
        }
    }
}

#[test]
fn a_command_outlives_its_host_and_the_next_one_finds_it() {
    let name = unique("cat");
    let mut host = begin(&name, &["cat"]);
    host.send(&Frame::Input(b"first\n".to_vec()));
    read_until(&mut host, "first\n");
    drop(host);
    // Without a host.
    assert!(!super::super::facts().iter().any(|fact| fact.attached && fact.session.as_ref() == Some(&name)));
    let mut host = attach_to(&name, None);
    assert_eq!(read_until(&mut host, "first\n"), "first\n");
    host.send(&Frame::Input(b"second\n".to_vec()));
    host.send(&Frame::InputEnd);
    let (output, end) = host.bytes();
    assert_eq!((output, end), (b"second\n".to_vec(), Frame::Exit(Exit::Code(0))));
    // It has ended, and is remembered.
    for _ in 0..2 {
        let (output, end) = attach_to(&name, None).bytes();
        assert_eq!((output, end), (b"first\nsecond\n".to_vec(), Frame::Exit(Exit::Code(0))));
    }
    remove(&name);
}

#[test]
fn a_terminal_has_the_size_of_the_host_that_is_attached() {
    let name = unique("terminal");
    let size = |rows, columns| WindowSize { rows, columns };
    let script = "trap 'stty size' WINCH; stty size; while read line; do echo got $line; done; exit 7";
    let terminal = Some(Terminal { term: "vt100".to_owned(), size: size(24, 80) });
    let mut host = Host::ask(Request::Exec(Exec { terminal, ..exec(&name, &["bash", "-c", script]) }));
    read_until(&mut host, "24 80");
    drop(host);
    let mut host = attach_to(&name, Some(size(30, 100)));
    host.send(&Frame::Input(b"x\n".to_vec()));
    read_until(&mut host, "got x");
    host.send(&Frame::Input(b"y\n".to_vec()));
    let text = read_until(&mut host, "got y");
    drop(host);
    let mut host = attach_to(&name, Some(size(30, 100)));
    let text = text + &read_until(&mut host, "got y");
    assert!(text.contains("30 100"), "{text}");
    // The end of the input is a character, and the terminal stays open for the next host.
    host.send(&Frame::InputEnd);
    assert_eq!(host.bytes().1, Frame::Exit(Exit::Code(7)));
    remove(&name);
}

#[test]
fn the_next_host_takes_over() {
    let name = unique("taken");
    let first = begin(&name, &["sh", "-c", "read line; exit 5"]);
    // A shell without a command attaches.
    let mut second = Host::ask(Request::Exec(exec(&name, &[])));
    let refused = failure(first);
    assert_eq!(refused.message, format!("another client has attached to the session {name}"));
    second.send(&Frame::Input(b"\n".to_vec()));
    assert_eq!(second.bytes().1, Frame::Exit(Exit::Code(5)));
    remove(&name);
}

#[test]
fn a_name_is_taken_while_its_session_runs() {
    let name = unique("busy");
    let mut host = begin(&name, &["sh", "-c", "read line"]);
    let refused = failure(Host::ask(Request::Exec(exec(&name, &["true"]))));
    assert_eq!(refused.kind, FailureKind::AlreadyExists);
    host.send(&Frame::InputEnd);
    assert_eq!(host.bytes().1, Frame::Exit(Exit::Code(1)));
    let (_, end) = Host::ask(Request::Exec(exec(&name, &["true"]))).bytes();
    assert_eq!(end, Frame::Exit(Exit::Code(0)));
    remove(&name);
}

#[test]
fn what_cannot_be_attached_to_is_refused() {
    let name = unique("none");
    assert_eq!(failure(attach_to(&name, None)).kind, FailureKind::NotFound);
    let invalid = failure(Host::ask(Request::Exec(exec("a/b", &["true"]))));
    assert_eq!(invalid.kind, FailureKind::BadRequest);
    let missing = failure(Host::ask(Request::Exec(exec(&name, &["/nonexistent"]))));
    assert_eq!(missing.kind, FailureKind::NotFound);
    assert_eq!(failure(attach_to(&name, None)).kind, FailureKind::NotFound);
}

#[test]
fn a_slow_host_gets_all_output_and_no_host_holds_the_command_up() {
    const SIZE: usize = 2_000_000;
    let name = unique("much");
    let script = format!("read line; head -c {SIZE} /dev/zero | tr '\\0' x; read line");
    let mut host = begin(&name, &["sh", "-c", &script]);
    host.send(&Frame::Input(b"\n".to_vec()));
    thread::sleep(Duration::from_millis(300));
    let mut received = 0;
    while received < SIZE {
        if let Frame::Output(bytes) = host.next() {
            received += bytes.len();
        }
    }
    assert_eq!(received, SIZE);
    drop(host);
    let other = unique("alone");
    drop(begin(&other, &["sh", "-c", &format!("{script}; exit 3")]));
    let mut host = attach_to(&other, None);
    host.send(&Frame::Input(b"\n".to_vec()));
    read_until(&mut host, "x");
    drop(host);
    // It writes everything although nobody reads it, and waits for the second line.
    let written = || super::super::facts().into_iter().find(|fact| fact.session.as_ref() == Some(&other));
    while written().unwrap().written < SIZE as u64 {
        thread::sleep(Duration::from_millis(10));
    }
    let mut host = attach_to(&other, None);
    host.send(&Frame::Input(b"\n".to_vec()));
    let (output, end) = host.bytes();
    assert_eq!((output.len(), end), (REPLAY, Frame::Exit(Exit::Code(3))));
    let mut host = attach_to(&name, None);
    host.send(&Frame::InputEnd);
    host.bytes();
    remove(&name);
    remove(&other);
}

#[test]
fn the_replay_begins_at_a_line_or_a_control_sequence() {
    let tail = |text: &str| replay(&text.bytes().collect());
    assert_eq!(tail("abc\ndef"), b"abc\ndef");
    let long = "x".repeat(REPLAY - 4);
    assert_eq!(tail(&format!("ab\n{long}d")), format!("\n{long}d").as_bytes());
    assert_eq!(tail(&format!("ab\x1b[{long}")), format!("\x1b[{long}").as_bytes());
    assert_eq!(tail(&"x".repeat(REPLAY)).len(), REPLAY);
}
