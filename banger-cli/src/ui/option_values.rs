//! Bad values of every option: each is refused in the words of people.

use std::{any::TypeId, ffi::OsString, path::PathBuf};

use clap::{Arg, Command, CommandFactory, Parser, error::ErrorKind};

use crate::cli::Cli;

const SESSIONS: &[&str] = &["", "-x", "a b", "a/b"];
const COUNTS: &[&str] = &["", "many", "-1", "1.5", "0x10", "99999999999999999999999"];
const SIZES: &[&str] = &["", "0", "lots", "-1G", "1.G", "1.5QB", "99999999999T", "184467440737095516150"];
const PHASES: &[&str] = &["", "later", "Init"];
const PORTS: &[&str] = &["", "0", "65536", "http", "80/sctp", "80:", "1:2:3"];
const TIMES: &[&str] = &["", "soon", "25:99", "5 parsecs", "2026-13-01", "99999999999999999999s"];
const FORWARDS: &[&str] = &["", "a:b:c", "80:65536", "8080:", "127.0.0.1:x:80"];

const HOSTS: &[&str] = &[
    "",
    "lab",
    "tcp://lab",
    "ssh://",
    "ssh://-x",
    "ssh://-x@lab",
    "ssh://lab:0",
    "ssh://lab:many",
    "ssh://lab/x",
];
/// The options and arguments whose values are no plain texts, each with bad values.
const BAD: &[(&str, &[&str])] = &[
    ("--build-arg", &["", "=x"]),
    ("--compression", &["", "xz"]),
    ("--count", COUNTS),
    ("--disk-size", SIZES),
    ("--env", &["", "=x"]),
    ("--env-file", &["", "/nonexistent/file"]),
    ("--exec", COUNTS),
    ("--filter", &["", "colour=red", "state=runing", "name="]),
    ("--format", &["", "name", "{{", "{{.Name", "{{range .}}"]),
    ("--guest-path", &["", "repo", "/root/../etc"]),
    ("--host", HOSTS),
    ("--idle", &["", "30m", "suspend", "suspend=", "suspend=30", "delete=1h", "stop=-1m"]),
    ("--label", &["", "=x"]),
    ("--local", FORWARDS),
    ("--max", &["", "0", "many", "-1", "1.5", "99999999999"]),
    ("--max-output", SIZES),
    ("--memory", SIZES),
    ("--mode", &["", "deep"]),
    ("--from-snapshot <SANDBOX/SNAPSHOT>", &["", "clean", "web/", "/clean"]),
    ("--mount", &["", ":/srv", "src:srv", "src:/proc", "src:/a/../b", "type=bind,src=/a,dst=/b"]),
    ("--older-than", &["", "5", "5y", "-1d", "1.5h", "99999999999999999999d"]),
    ("--only-label", &["", "=x"]),
    ("--publish", PORTS),
    ("--pull", &["", "sometimes"]),
    ("--ready-timeout", &["", "0", "soon", "-1", "99999999999"]),
    ("--remote", FORWARDS),
    ("--restart", &["", "sometimes", "unless-stopped"]),
    ("--root-size", SIZES),
    ("--share", &["", "git", "git:", "git:a b", "docker:a/b", "ssh-agent:/nonexistent"]),
    ("--signal", &["", "SIGNOTHING", "99", "-9"]),
    ("--session", SESSIONS),
    ("--since", TIMES),
    ("--stop", &["", "-1", "1 2"]),
    ("--tail", COUNTS),
    ("--timeout", COUNTS),
    ("--until", TIMES),
    ("--vcpu", &["", "0", "many", "-1", "1.5", "99999999999"]),
    ("--vmm", &["", "bochs"]),
    ("--volume", &["", ":/srv", "/srv", "src", "src:/srv", "./src:srv", "./src:/proc", "./src:/srv:ro,x"]),
    ("--wait", PHASES),
    ("<LISTEN:CONNECT>", FORWARDS),
    ("<PORT>", PORTS),
    ("<SESSION>", SESSIONS),
    ("<URL>", HOSTS),
    ("<SHELL>", &["", "tcsh"]),
];

/// What the parsers of Rust say, and no person.
const RUST: [&str; 10] = [
    "invalid digit",
    "in string",
    "..=",
    "os error",
    "cannot parse integer",
    "to fit in target type",
    "invalid float",
    "out of range integral",
    "ParseIntError",
    "Err(",
];

/// Returns the names that an argument may have in the table: with its value, where another verb has an option of the same
/// name, or without.
fn names_of(arg: &Arg) -> Vec<String> {
    let names = arg.get_value_names().and_then(|names| names.first());
    let value = format!("<{}>", names.map_or(arg.get_id().as_str(), |name| name.as_str()));
    match arg.get_long() {
        Some(long) => vec![format!("--{long} {value}"), format!("--{long}")],
        None => vec![value],
    }
}

/// Returns whether any text is a value.
fn is_plain(arg: &Arg) -> bool {
    let plain = [TypeId::of::<String>(), TypeId::of::<OsString>(), TypeId::of::<PathBuf>()];
    let parser = arg.get_value_parser();
    arg.get_possible_values().is_empty() && plain.iter().any(|plain| parser.type_id() == *plain)
}

/// Checks the arguments of a command and of those below it. Collects the names that it has looked up.
fn check(command: &Command, words: &[String], seen: &mut Vec<String>) {
    for arg in command.get_arguments().filter(|arg| arg.get_action().takes_values()) {
        let names = names_of(arg);
        let Some((name, values)) = BAD.iter().find(|(known, _)| names.iter().any(|name| name == known))
        else {
            assert!(is_plain(arg), "{words:?} {names:?} needs a row with bad values");
            continue;
        };
        // The arguments before a positional one.
        let before = arg.get_index().map_or(0, |index| index - 1);
        for value in values.iter().filter(|value| arg.get_long().is_some() || !value.starts_with('-')) {
            let mut line = words.to_vec();
            line.extend((0..before).map(|_| "x".to_owned()));
            line.push(match arg.get_long() {
                Some(long) => format!("--{long}={value}"),
                None => (*value).to_owned(),
            });
            let Err(error) = Cli::try_parse_from(&line) else { panic!("{line:?} is accepted") };
            let text = error.to_string();
            let refused = [ErrorKind::ValueValidation, ErrorKind::InvalidValue];
            assert!(refused.contains(&error.kind()), "{line:?}: {text}");
            assert!(!RUST.iter().any(|word| text.contains(word)), "{line:?}: {text}");
        }
        seen.push((*name).to_owned());
    }
    for verb in command.get_subcommands() {
        check(verb, &[words, &[verb.get_name().to_owned()]].concat(), seen);
    }
}

#[test]
fn bad_values_of_all_options_are_refused_in_words_of_people() {
    let mut seen = Vec::new();
    let mut cli = Cli::command();
    cli.build();
    check(&cli, &["banger".to_owned()], &mut seen);
    for (name, _) in BAD {
        assert!(seen.iter().any(|seen| seen == name), "no option is called {name}");
    }
}
