//! Snapshots of the errors and hints of this program, exactly as a user sees them, so that a change of their wording is
//! reviewed as a diff. `INSTA_UPDATE=always cargo nextest run -p banger-cli --bins` rewrites them; help pages have
//! golden files of their own in `tests/help/`.
//!
//! Errors that a module composes itself are in a test of that module, which calls [`check`].

use std::{fs, io, path::Path};

use banger_proto::{
    bus::ErrorName,
    guest::{Failure, FailureKind, frame},
};
use clap::Parser;

use crate::{
    cli::Cli,
    error::Error,
    guest::{agent::from_copy, attach},
    ui::hint::{self, Membership},
};

/// Files with tests only.
const TESTS: [&str; 2] = ["wording.rs", "option_values.rs"];

/// Compares a text with the snapshot of this name in `src/snapshots/`.
pub fn check(name: &str, text: &str) {
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, text);
    });
}

/// Formats errors as they are printed, each after a line with its name.
pub fn shown<N: std::fmt::Display>(errors: impl IntoIterator<Item = (N, Error)>) -> String {
    let one = |(name, error): (N, Error)| format!("[{name}]\n{}\n", error.text(None));
    errors.into_iter().map(one).collect()
}

/// Returns an error of the service with this name.
pub fn of_service(name: ErrorName) -> Error {
    Error::Service { name, message: "the message of the service".to_owned() }
}

#[test]
fn errors_of_the_service_and_their_hints() {
    let of_members = |membership| {
        move |&name: &ErrorName| {
            let error = of_service(name);
            match hint::hint(name, || membership) {
                Some(hint) => (format!("{name}, {membership:?}"), error.with_hint(hint)),
                None => (format!("{name}, {membership:?}"), error),
            }
        }
    };
    let by_membership = [ErrorName::AccessDenied, ErrorName::InteractiveAuthorizationRequired];
    let others = ErrorName::ALL.iter().filter(|name| !by_membership.contains(name));
    let members = by_membership.iter().map(of_members(Membership::Member));
    let outsiders = by_membership.iter().map(of_members(Membership::Outside));
    let all = others.map(|name| (name.to_string(), of_service(*name))).chain(members).chain(outsiders);
    check("errors_of_the_service", &shown(all));
}

#[test]
fn errors_of_the_client_and_their_hints() {
    let message = || "the message of the bus".to_owned();
    let bus = || Box::new(zbus::Error::Failure("the cause".to_owned()));
    let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
    let errors = [
        ("foreign", Error::Foreign { name: "com.example.Odd".to_owned(), message: message() }),
        ("no bus", Error::NoBus(bus())),
        ("no service", Error::NoService { message: message() }),
        ("service ended", Error::ServiceEnded),
        ("other version", Error::OtherVersion { message: message() }),
        ("bus", Error::Bus(bus())),
        ("io", Error::io("open /etc/shadow", denied())),
        ("refused", Error::Refused("the image has no name".to_owned())),
        ("usage", Error::Usage("the image has no name".to_owned()).with_hint("`--name NAME` gives it one.")),
        ("interrupted", Error::Interrupted { signal: 2 }),
        ("detached", Error::Detached { signal: 2 }),
    ];
    check("errors_of_the_client", &shown(errors));
}

#[test]
fn errors_of_guests_and_streams() {
    let message = || "cannot run make: No such file or directory".to_owned();
    let failure = |kind| Error::Guest(Failure { kind, message: message() });
    let frame = frame::Error::UnknownType(0x42);
    let errors = [
        ("guest", failure(FailureKind::NotFound)),
        ("hung up", Error::Attach(attach::Error::HungUp)),
        ("silent", Error::Attach(attach::Error::Silent(35))),
        ("invalid frame", Error::Attach(attach::Error::Frame(frame))),
        ("unexpected frame", Error::Attach(attach::Error::Unexpected)),
        ("broken", Error::Attach(attach::Error::Stream(io::ErrorKind::ConnectionReset.into()))),
    ];
    check("errors_of_guests", &shown(errors));
}

#[test]
fn errors_of_copies() {
    use banger_copy::Error as Copy;
    let path = || Path::new("/srv/data").to_owned();
    let full = || io::Error::from(io::ErrorKind::StorageFull);
    let errors = [
        ("read", Copy::Read { path: path(), source: io::ErrorKind::PermissionDenied.into() }),
        ("write", Copy::Write { path: path(), source: full() }),
        ("special", Copy::Special { path: path(), kind: "socket" }),
        ("in the way", Copy::InTheWay { path: path(), kind: "a directory" }),
        ("damaged", Copy::Damaged("it ends in the middle".to_owned())),
        ("stream", Copy::Stream(full())),
    ];
    check("errors_of_copies", &shown(errors.map(|(name, error)| (name, from_copy(error)))));
}

#[test]
fn errors_of_the_command_line() {
    let lines = [
        "vm",
        "vm rnu",
        "vm run --memory lots",
        "vm run --memory 0",
        "vm run --root-size 1.5QB",
        "vm run --vcpu many",
        "vm run --label =x",
        "vm run --vmm bochs",
        "vm run --pull sometimes",
        "vm run --ready-timeout 0",
        "vm run --rm -d",
        "vm create --wait later",
        "vm exec",
        "vm exec web -e =x -- true",
        "vm exec --json web -- true",
        "vm set web",
        "vm publish web",
        "vm publish web 0",
        "vm publish web 80/sctp",
        "vm unpublish web 70000",
        "vm forward web",
        "vm forward web -L a:b:c",
        "vm list --filter colour=red",
        "vm list --filter state=runing",
        "vm list --filter web",
        "vm list --format name",
        "vm list --format {{.Name",
        "vm stop web --timeout 99999999999",
        "vm kill web -s SIGNOTHING",
        "vm logs web --tail few",
        "vm cp web:/etc",
        "vm rename web",
        "vm workspace prepare web . --guest-path repo",
        "vm workspace prepare web . --guest-path /root/../etc",
        "vm workspace export web --apply --branch b",
        "vm workspace export web --message m",
        "image pull",
        "image register",
        "image register --name a --rootfs b --oci c",
        "image cache prune --older-than 5",
        "image cache prune --older-than 5y",
        "kernel import --name a",
        "kernel import --name a --host --vmlinuz b",
        "kernel pull",
        "config show --yaml",
        "completion tcsh",
        "frobnicate",
    ];
    let one = |line: &str| {
        let arguments = ["banger"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(arguments) {
            Ok(_) => format!("[{line}]\naccepted\n\n"),
            Err(error) => format!("[{line}]\n{}\n", error.render()),
        }
    };
    check("errors_of_the_command_line", &lines.map(one).concat());
}

/// Collects every literal of an error, a hint or a note in the sources, so that none changes unseen, however hard it
/// is to provoke.
#[test]
fn literals_of_errors_hints_and_notes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut text = String::new();
    for path in sources(&root) {
        let source = fs::read_to_string(&path).unwrap_or_default();
        let product = source.split("#[cfg(test)]").next().unwrap_or_default();
        let found = literals(product);
        if !found.is_empty() && !TESTS.iter().any(|test| path.ends_with(test)) {
            let name = path.strip_prefix(&root).unwrap_or(&path);
            text.push_str(&format!("[{}]\n{found}\n", name.display()));
        }
    }
    check("literals", &text);
}

/// A user has the package, and neither the sources nor their build tools.
#[test]
fn no_message_names_our_build_tools() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for path in sources(&root.join("src")).iter().filter(|path| !path.ends_with("wording.rs")) {
        let source = fs::read_to_string(path).unwrap_or_default();
        let product = source.split("#[cfg(test)]").next().unwrap_or_default();
        let messages = literals(product);
        seen += messages.len();
        assert!(!messages.contains("cargo ") && !messages.contains("xtask"), "{}", path.display());
    }
    assert!(seen > 5_000, "the sources are not found any more");
    for file in ["catalog/index.json", "recipes/debian-bookworm.toml"] {
        let text = fs::read_to_string(root.join("../packaging").join(file)).unwrap_or_default();
        assert!(!text.is_empty() && !text.contains("cargo") && !text.contains("xtask"), "{file}");
    }
}

/// Status 2 means the command line and nothing else, so only what reads it may say so.
#[test]
fn only_commands_blame_the_command_line() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut blaming = 0;
    for path in sources(&root) {
        let source = fs::read_to_string(&path).unwrap_or_default();
        let product = source.split("#[cfg(test)]").next().unwrap_or_default();
        let name = path.strip_prefix(&root).unwrap_or(&path);
        if product.contains("Error::Usage(") && !path.ends_with("wording.rs") {
            let reads_it = name.starts_with("command")
                || ["ssh/mod.rs", "guest/attach/session.rs", "remote/choice.rs", "remote/contexts.rs"]
                    .iter()
                    .any(|file| name.ends_with(file));
            assert!(reads_it, "{}", name.display());
            blaming += 1;
        }
    }
    assert!(blaming > 3, "the sources are not found any more");
}

/// A command in a hint can be pasted: the command line takes it as it is.
#[test]
fn every_command_in_a_message_is_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut wrong, mut count) = (String::new(), 0);
    for path in sources(&root).iter().filter(|path| !path.ends_with("wording.rs")) {
        let source = fs::read_to_string(path).unwrap_or_default();
        let product = source.split("#[cfg(test)]").next().unwrap_or_default();
        // Literals continue on the next line after a backslash; comments and help are no messages.
        let lines = product.lines().filter(|line| !line.trim_start().starts_with("//"));
        let text = lines.collect::<Vec<_>>().join("\n");
        let text: Vec<&str> = text.split("\\\n").map(str::trim_start).collect();
        for rest in text.concat().split("`banger ").skip(1) {
            let Some((command, _)) = rest.split_once('`') else { continue };
            for command in command.split(" && banger ") {
                if let Some(problem) = problem_of(command) {
                    wrong.push_str(&format!("{}: banger {command}: {problem}\n", path.display()));
                }
                count += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(count > 50, "the messages are not found any more: {count}");
}

/// Returns what the command line finds wrong with a command of a message. Missing values are no fault: a message may
/// name a verb alone.
fn problem_of(command: &str) -> Option<String> {
    use clap::error::ErrorKind;
    let words = command.split_whitespace().filter(|word| *word != "…");
    let word = |word: &str| match word.split_once('{') {
        Some(("", "group}")) => "image".to_owned(),
        Some((before, _)) => format!("{before}8080"),
        None if word == "SIZE" => "1GiB".to_owned(),
        None if word == "SECONDS" => "1".to_owned(),
        None => word.to_owned(),
    };
    let line = ["banger".to_owned()].into_iter().chain(words.map(word));
    let error = Cli::try_parse_from(line).err()?;
    let fine = [
        ErrorKind::MissingRequiredArgument,
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
        ErrorKind::MissingSubcommand,
        ErrorKind::DisplayHelp,
        ErrorKind::DisplayVersion,
    ];
    (!fine.contains(&error.kind())).then(|| error.to_string())
}

fn sources(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let below = |path: std::path::PathBuf| match path.is_dir() {
        true => sources(&path),
        false => vec![path],
    };
    let all = paths.into_iter().flat_map(below);
    all.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

/// Returns the literals with a space in the arguments of these calls and attributes, one per line.
fn literals(source: &str) -> String {
    const CALLS: [&str; 9] = [
        "#[error(",
        ".with_hint(",
        ".note(",
        "Error::Refused(",
        "Error::Usage(",
        "Error::io(",
        "Err(",
        "failed(",
        ".print(",
    ];
    let mut lines: Vec<(usize, String)> = Vec::new();
    for call in CALLS {
        for (begin, _) in source.match_indices(call) {
            lines.extend(strings_of_call(source, begin + call.len()));
        }
    }
    lines.sort();
    lines.dedup();
    lines.into_iter().map(|(_, line)| format!("{line}\n")).collect()
}

/// Returns the string literals up to the parenthesis that closes the call, with their offsets.
fn strings_of_call(source: &str, begin: usize) -> Vec<(usize, String)> {
    let (mut found, mut depth, mut at) = (Vec::new(), 1, begin);
    let bytes = source.as_bytes();
    while depth > 0 && at < bytes.len() {
        match bytes[at] {
            b'(' => depth += 1,
            b')' => depth -= 1,
            b'\'' if bytes.get(at + 2) == Some(&b'\'') => at += 2,
            b'"' => {
                let start = at + 1;
                at = start;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                let text = source.get(start..at).unwrap_or_default();
                let text = text.split("\\\n").map(str::trim_start).collect::<String>();
                if text.contains(' ') {
                    found.push((start, text));
                }
            }
            _ => {}
        }
        at += 1;
    }
    found
}
