//! Completions for shells. The shell runs this program for each completion, so that it can offer the names of
//! existing sandboxes, images and kernels, and of catalog entries.

use std::{ffi::OsStr, time::Duration};

use clap::{Arg, Command, CommandFactory};
use clap_complete::{
    CompleteEnv,
    engine::{ArgValueCompleter, CompletionCandidate},
};

use banger_proto::bus::{option::catalog, proxy::Options};
use zbus::Variant;

use crate::{
    cli::{Cli, verbs_of_vm},
    client::{bus::Bus, object::Object, service::Kind},
    error::Result,
    ui::sanitize,
    user::{dirs::UserDirs, settings},
};

/// The environment variable by which a shell's script requests completions.
pub const VARIABLE: &str = "BANGER_COMPLETE";
/// How long a completion may take.
const TIMEOUT: Duration = Duration::from_secs(1);
/// The group of verbs that work without it as well.
const VM: &str = "vm";
/// The value name of arguments that are names of this kind, and the group of verbs in which a bare `NAME` is one.
const KINDS: [(&str, &str, Kind); 3] =
    [("SANDBOX", VM, Kind::Vm), ("IMAGE", "image", Kind::Image), ("KERNEL", "kernel", Kind::Kernel)];

/// Answers a shell that requests completions, and exits. Must be called before anything else is done or printed.
pub fn answer_shell() {
    CompleteEnv::with_factory(|| with_completers(Cli::command())).var(VARIABLE).complete();
}

/// The value name of arguments that are names in a catalog, and their kind.
const ENTRIES: [(&str, &str); 2] = [("REFERENCE", catalog::IMAGE), ("ENTRY", catalog::KERNEL_KIND)];

/// Adds completers for names to the command line.
fn with_completers(cli: Command) -> Command {
    let of_vm = verbs_of_vm(&cli);
    cli.mut_subcommands(|group| {
        let is_of_vm = of_vm.iter().any(|verb| verb == group.get_name());
        let name = if is_of_vm { VM } else { group.get_name() };
        let of_group = KINDS.iter().find(|(_, group, _)| *group == name).map(|(.., kind)| *kind);
        let named = move |arg: Arg| {
            let entry = ENTRIES.iter().find(|(word, _)| is_called(&arg, word));
            match (kind_of(&arg).or(of_group.filter(|_| is_bare_name(&arg))), entry) {
                (Some(kind), _) => {
                    arg.add(ArgValueCompleter::new(move |typed: &OsStr| candidates(kind, typed)))
                }
                (None, Some((_, kind))) => {
                    arg.add(ArgValueCompleter::new(move |typed: &OsStr| entries(kind, typed)))
                }
                (None, None) => arg,
            }
        };
        group
            .mut_args(named)
            .mut_subcommands(|verb| verb.mut_args(named).mut_subcommands(|part| part.mut_args(named)))
    })
}

fn kind_of(arg: &Arg) -> Option<Kind> {
    KINDS.iter().find(|(word, ..)| is_called(arg, word)).map(|(.., kind)| *kind)
}

fn is_bare_name(arg: &Arg) -> bool {
    arg.is_positional() && is_called(arg, "NAME")
}

fn is_called(arg: &Arg, word: &str) -> bool {
    arg.get_value_names().is_some_and(|names| names.iter().any(|name| name.as_str() == word))
}

/// Returns the names with this prefix. Returns none if the service is not running: it is not started for this.
fn candidates(kind: Kind, typed: &OsStr) -> Vec<CompletionCandidate> {
    let Some(typed) = typed.to_str() else { return Vec::new() };
    let mut objects = block_on(objects(kind)).unwrap_or_default();
    objects.retain(|object| object.name().starts_with(typed));
    objects.sort_by(|one, other| one.name().cmp(other.name()));
    let candidate = |object: &Object| {
        CompletionCandidate::new(object.name()).help(Some(description(kind, object).into()))
    };
    objects.iter().map(candidate).collect()
}

/// Returns the catalog entries with this prefix.
fn entries(kind: &'static str, typed: &OsStr) -> Vec<CompletionCandidate> {
    let Some(typed) = typed.to_str() else { return Vec::new() };
    let mut entries = block_on(available(kind)).unwrap_or_default();
    entries.retain(|entry| entry.text(catalog::NAME).starts_with(typed));
    let candidate = |entry: &Object| {
        let about = sanitize::line(entry.text(catalog::DESCRIPTION));
        CompletionCandidate::new(entry.text(catalog::NAME)).help(Some(about.into()))
    };
    entries.iter().map(candidate).collect()
}

/// Returns the names of the user's profiles with this prefix. Returns none if the settings cannot be read.
pub fn profiles(typed: &OsStr) -> Vec<CompletionCandidate> {
    let Some(typed) = typed.to_str() else { return Vec::new() };
    let file = UserDirs::of_caller().and_then(|dirs| settings::read(&dirs.settings())).unwrap_or_default();
    let names = file.profiles.into_keys().filter(|name| name.starts_with(typed));
    names.map(CompletionCandidate::new).collect()
}

fn block_on(question: impl Future<Output = Result<Vec<Object>>>) -> Option<Vec<Object>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(async { tokio::time::timeout(TIMEOUT, question).await }).ok()?.ok()
}

async fn available(kind: &str) -> Result<Vec<Object>> {
    let bus = Bus::connect().await?;
    if !bus.service_runs().await {
        return Ok(Vec::new());
    }
    let options = Options::from([(catalog::KIND, Variant::from(kind))]);
    Ok(bus.list_catalog(&options).await?.into_iter().map(Object::new).collect())
}

async fn objects(kind: Kind) -> Result<Vec<Object>> {
    let bus = Bus::connect().await?;
    match bus.service_runs().await {
        true => bus.objects(kind.interface()).await,
        false => Ok(Vec::new()),
    }
}

/// Returns the description that a shell shows next to a name.
fn description(kind: Kind, object: &Object) -> String {
    match kind {
        Kind::Vm => format!("{}, {}", object.text("State"), object.text("ImageName")),
        Kind::Image => object.text("Source").to_owned(),
        Kind::Kernel => object.text("Version").to_owned(),
    }
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
            ("vm run", &["image", "kernel", "profile"][..]),
            ("vm stop", &["sandboxes"]),
            ("vm exec", &["sandbox"]),
            ("vm show", &["reference"]),
            ("vm rename", &["reference"]),
            ("stop", &["sandboxes"]),
            ("show", &["reference"]),
            ("run", &["image", "kernel"]),
            ("pull", &["reference", "kernel"]),
            ("image rename", &["reference"]),
            ("vm workspace export", &["sandbox"]),
            ("image delete", &["references"]),
            ("image export", &["image"]),
            ("image promote", &["images"]),
            ("image register", &["kernel"]),
            ("kernel show", &["reference"]),
            ("kernel delete", &["references"]),
            ("kernel pull", &["entry"]),
            ("image pull", &["reference", "kernel"]),
            ("config show", &["profile"]),
            ("ssh-config", &[]),
        ] {
            assert_eq!(completed(verb), expect, "{verb}");
        }
    }
}
