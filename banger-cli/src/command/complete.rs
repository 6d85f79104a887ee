//! Completions for shells. The shell runs this program for each completion, so that it can offer the names of
//! existing sandboxes, images and kernels, of catalog entries, and of files in a sandbox.

mod bash;
mod values;

use std::{env, ffi::OsStr};

use banger_proto::bus::option::catalog;
use clap::{Arg, Command, CommandFactory};
use clap_complete::{
    CompleteEnv,
    engine::{ArgValueCompleter, CompletionCandidate},
    env::{Elvish, Fish, Powershell, Shells, Zsh},
};

pub use self::bash::LINE;
use self::{bash::WholeWords, values::Source};
use crate::{
    cli::{Cli, verbs_of_vm},
    client::service::Kind,
    coding_agent,
    command::{list, vm},
    remote::{
        choice,
        contexts::{Contexts, DEFAULT},
    },
    ui::column::List,
    user::{dirs::UserDirs, settings},
};

/// The environment variable by which a shell's script requests completions.
pub const VARIABLE: &str = "BANGER_COMPLETE";
/// The shells that completions work in.
pub const SHELLS: Shells<'static> = Shells(&[&WholeWords, &Elvish, &Fish, &Powershell, &Zsh]);
/// The group of verbs that work without it as well.
const VM: &str = "vm";
/// The group of verbs about snapshots.
const SNAPSHOT: &str = "snapshot";
/// The value name of arguments that are names of this kind, and the group of verbs in which a bare `NAME` is one.
const KINDS: [(&str, &str, Kind); 3] =
    [("SANDBOX", VM, Kind::Vm), ("IMAGE", "image", Kind::Image), ("KERNEL", "kernel", Kind::Kernel)];
/// The value name of other arguments, and what is offered for them.
const SOURCES: [(&str, Source); 7] = [
    ("EGRESS", Source::Presets),
    ("REFERENCE", Source::Entries(catalog::IMAGE)),
    ("ENTRY", Source::Entries(catalog::KERNEL_KIND)),
    ("FROM", Source::Copies),
    ("TO", Source::Copies),
    ("SIGNAL", Source::Signals),
    ("FORMAT", Source::Formats),
];

/// Answers a shell that requests completions, and exits. Must be called before anything else is done or printed.
pub fn answer_shell() {
    if env::var_os(VARIABLE).is_some() {
        choice::set_for_completion();
    }
    CompleteEnv::with_factory(|| with_completers(Cli::command())).var(VARIABLE).shells(SHELLS).complete();
}

/// Adds completers to the command line.
fn with_completers(cli: Command) -> Command {
    let of_vm = verbs_of_vm(&cli);
    cli.mut_subcommands(|verb| {
        let is_of_vm = of_vm.iter().any(|name| name == verb.get_name());
        in_group(verb, "", is_of_vm.then_some(Kind::Vm))
    })
}

/// Adds completers to a command and those below it, in the group of verbs for this kind.
fn in_group(command: Command, parent: &str, group: Option<Kind>) -> Command {
    let verb = match (parent, command.get_name()) {
        // Its verbs are about other things than sandboxes.
        (SNAPSHOT, name) => format!("{SNAPSHOT} {name}"),
        (_, name) => name.to_owned(),
    };
    let group = KINDS.iter().find(|(_, name, _)| *name == verb).map(|(.., kind)| *kind).or(group);
    let add = |arg: Arg| match source(&arg, &verb, group) {
        Some(source) => arg.add(ArgValueCompleter::new(move |typed: &OsStr| source.complete(typed))),
        None => arg,
    };
    command.mut_args(add).mut_subcommands(move |below| in_group(below, &verb, group))
}

/// Returns what is offered for an argument of a verb.
fn source(arg: &Arg, verb: &str, group: Option<Kind>) -> Option<Source> {
    let kind = KINDS.iter().find(|(word, ..)| is_called(arg, word)).map(|(.., kind)| *kind);
    if let Some(kind) = kind.or(group.filter(|_| arg.is_positional() && is_called(arg, "NAME"))) {
        return Some(Source::Names(kind));
    }
    if let Some((_, source)) = SOURCES.iter().find(|(word, _)| is_called(arg, word)) {
        return Some(*source);
    }
    match verb {
        "images" if is_called(arg, "WHAT=VALUE") => Some(Source::Filters(Kind::Image)),
        _ if is_called(arg, "WHAT=VALUE") => Some(Source::Filters(group.unwrap_or(Kind::Vm))),
        "unpublish" if is_called(arg, "PORT") => Some(Source::Published),
        _ if is_called(arg, "COLUMN") => list_of(verb, group).map(Source::Sort),
        _ if is_called(arg, "COLUMNS") => list_of(verb, group).map(Source::Columns),
        _ => None,
    }
}

/// Returns the list that a verb prints.
fn list_of(verb: &str, group: Option<Kind>) -> Option<List> {
    Some(match (verb, group) {
        ("list", Some(Kind::Image)) | ("images", None) => list::IMAGES,
        ("list", Some(Kind::Kernel)) => list::KERNELS,
        ("snapshot list", _) => vm::snapshot::LIST,
        ("list" | "ps" | "ls", _) => vm::list::LIST,
        ("commands", _) => vm::commands::LIST,
        ("sessions", _) => vm::sessions::LIST,
        ("files", _) => vm::files::LIST,
        ("ports", _) => vm::ports::LIST,
        ("stats", _) => vm::stats::LIST,
        ("top", _) => vm::stats::PROCESSES,
        _ => return None,
    })
}

fn is_called(arg: &Arg, word: &str) -> bool {
    arg.get_value_names().is_some_and(|names| names.iter().any(|name| name.as_str() == word))
}

/// Returns the names of the user's profiles with this prefix. Returns none if the settings cannot be read.
pub fn profiles(typed: &OsStr) -> Vec<CompletionCandidate> {
    let Some(typed) = typed.to_str() else { return Vec::new() };
    let file = UserDirs::of_caller().and_then(|dirs| settings::read(&dirs.settings())).unwrap_or_default();
    let names = file.profiles.into_keys().filter(|name| name.starts_with(typed));
    names.map(CompletionCandidate::new).collect()
}

/// Returns the names of the presets of coding agents with this prefix. Returns none if they cannot be read.
pub fn agents(typed: &OsStr) -> Vec<CompletionCandidate> {
    let Some(typed) = typed.to_str() else { return Vec::new() };
    let names = coding_agent::names().unwrap_or_default();
    names.into_iter().filter(|name| name.starts_with(typed)).map(CompletionCandidate::new).collect()
}

/// Returns the names of the user's contexts with this prefix. Returns none if they cannot be read.
pub fn contexts(typed: &OsStr) -> Vec<CompletionCandidate> {
    let Some(typed) = typed.to_str() else { return Vec::new() };
    let known = Contexts::of_caller().unwrap_or_default();
    let all = [(DEFAULT, "the local host")].into_iter().chain(known.iter());
    let fitting = all.filter(|(name, _)| name.starts_with(typed));
    fitting.map(|(name, host)| CompletionCandidate::new(name).help(Some(host.to_owned().into()))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Returns the arguments of a verb that have a completer.
    fn completed(verb: &str) -> Vec<String> {
        let command = verb.split(' ').fold(with_completers(Cli::command()), |command, word| {
            command.find_subcommand(word).unwrap_or_else(|| panic!("no verb {word}")).clone()
        });
        let named = command.get_arguments().filter(|arg| arg.get::<ArgValueCompleter>().is_some());
        named.map(|arg| arg.get_id().to_string()).collect()
    }

    #[test]
    fn names_are_completed_in_every_command() {
        for (verb, expect) in [
            ("vm run", &["image", "kernel", "egress", "profile"][..]),
            ("vm stop", &["sandboxes"]),
            ("vm exec", &["sandbox"]),
            ("vm show", &["reference", "format"]),
            ("vm rename", &["reference"]),
            ("stop", &["sandboxes"]),
            ("show", &["reference", "format"]),
            ("run", &["image", "kernel", "egress", "profile"]),
            ("pull", &["reference", "kernel"]),
            ("image rename", &["reference"]),
            ("vm workspace export", &["sandbox"]),
            ("image delete", &["references"]),
            ("image export", &["image"]),
            ("image push", &["image"]),
            ("image promote", &["images"]),
            ("image register", &["kernel"]),
            ("kernel show", &["reference", "format"]),
            ("kernel delete", &["references"]),
            ("kernel pull", &["entry"]),
            ("image pull", &["reference", "kernel"]),
            ("config show", &["profile"]),
            ("agent", &["preset", "image", "kernel", "egress", "profile"]),
            ("agent show", &["name"]),
            ("ssh-config", &[]),
            ("vm cp", &["from", "to"]),
            ("vm kill", &["sandboxes", "signal"]),
            ("vm publish", &["sandbox"]),
            ("vm egress", &["sandbox"]),
            ("vm egress allow", &["sandbox", "hosts"]),
            ("vm files", &["sandbox", "columns", "sort", "format"]),
            ("vm fork", &["sandbox"]),
            ("vm snapshot create", &["sandbox"]),
            ("vm snapshot restore", &["sandbox"]),
            ("vm snapshot list", &["sandbox", "columns", "sort", "format"]),
            ("vm unpublish", &["sandbox", "ports"]),
            ("vm list", &["filter", "columns", "sort", "format"]),
            ("ps", &["filter", "columns", "sort", "format"]),
            ("image list", &["filter", "columns", "sort", "format"]),
            ("kernel list", &["columns", "sort", "format", "filter"]),
            ("image tag", &["image"]),
        ] {
            assert_eq!(completed(verb), expect, "{verb}");
        }
    }

    #[test]
    fn the_columns_of_every_list_are_completed() {
        fn check(command: &Command, words: &str, seen: &mut usize) {
            for arg in
                command.get_arguments().filter(|arg| arg.get_id() == "sort" || arg.get_id() == "columns")
            {
                assert!(arg.get::<ArgValueCompleter>().is_some(), "{words} {}", arg.get_id());
                *seen += 1;
            }
            for verb in command.get_subcommands() {
                check(verb, &format!("{words} {}", verb.get_name()), seen);
            }
        }
        let mut seen = 0;
        check(&with_completers(Cli::command()), "banger", &mut seen);
        assert!(seen >= 16, "{seen}");
    }
}
