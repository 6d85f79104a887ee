//! Completions for shells. The shell asks this program for each of them, so that the names of sandboxes, images
//! and kernels are those that there are, here and in the catalogs.

use std::{ffi::OsStr, time::Duration};

use clap::{Arg, Command, CommandFactory};
use clap_complete::{
    CompleteEnv,
    engine::{ArgValueCompleter, CompletionCandidate},
};

use banger_proto::bus::{option::catalog, proxy::Options};
use zbus::Variant;

use crate::{bus::Bus, cli::Cli, error::Result, object::Object, plain, service::Kind};

/// The variable of the environment by which a shell's script asks for completions.
pub const VARIABLE: &str = "BANGER_COMPLETE";
/// Nobody waits longer for a name.
const PATIENCE: Duration = Duration::from_secs(1);
/// How the help calls an argument that is a name of this kind; and the group of verbs in which a bare `NAME` is
/// one.
const KINDS: [(&str, &str, Kind); 3] =
    [("SANDBOX", "vm", Kind::Vm), ("IMAGE", "image", Kind::Image), ("KERNEL", "kernel", Kind::Kernel)];

/// Answers a shell that asks for completions, and ends the process then. To be called before anything else is
/// done or printed.
pub fn answer_shell() {
    CompleteEnv::with_factory(|| completing(Cli::command())).var(VARIABLE).complete();
}

/// How the help calls an argument that is a name in a catalog, and what it is there.
const ENTRIES: [(&str, &str); 2] = [("REFERENCE", catalog::IMAGE), ("ENTRY", catalog::KERNEL_KIND)];

/// The command line with what completes the names in it.
fn completing(cli: Command) -> Command {
    cli.mut_subcommands(|group| {
        let of_group = KINDS.iter().find(|(_, name, _)| *name == group.get_name()).map(|(.., kind)| *kind);
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
        group.mut_subcommands(|verb| verb.mut_args(named).mut_subcommands(|part| part.mut_args(named)))
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

/// The names that begin as typed; none when the service does not run: it is not started for this.
fn candidates(kind: Kind, typed: &OsStr) -> Vec<CompletionCandidate> {
    let Some(typed) = typed.to_str() else { return Vec::new() };
    let mut objects = ask(objects(kind)).unwrap_or_default();
    objects.retain(|object| object.name().starts_with(typed));
    objects.sort_by(|one, other| one.name().cmp(other.name()));
    let candidate =
        |object: &Object| CompletionCandidate::new(object.name()).help(Some(about(kind, object).into()));
    objects.iter().map(candidate).collect()
}

/// What catalogs have that begins as typed.
fn entries(kind: &'static str, typed: &OsStr) -> Vec<CompletionCandidate> {
    let Some(typed) = typed.to_str() else { return Vec::new() };
    let mut entries = ask(available(kind)).unwrap_or_default();
    entries.retain(|entry| entry.text(catalog::NAME).starts_with(typed));
    let candidate = |entry: &Object| {
        let about = plain::line(entry.text(catalog::DESCRIPTION));
        CompletionCandidate::new(entry.text(catalog::NAME)).help(Some(about.into()))
    };
    entries.iter().map(candidate).collect()
}

fn ask(question: impl Future<Output = Result<Vec<Object>>>) -> Option<Vec<Object>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(async { tokio::time::timeout(PATIENCE, question).await }).ok()?.ok()
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

/// What a shell shows beside a name.
fn about(kind: Kind, object: &Object) -> String {
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

    /// Which arguments of a verb are completed with names.
    fn completed(verb: &str) -> Vec<String> {
        let command = verb.split(' ').fold(completing(Cli::command()), |command, word| {
            command.find_subcommand(word).unwrap_or_else(|| panic!("no verb {word}")).clone()
        });
        let named = command.get_arguments().filter(|arg| arg.get::<ArgValueCompleter>().is_some());
        named.map(|arg| arg.get_id().to_string()).collect()
    }

    #[test]
    fn names_are_completed_wherever_there_is_one() {
        for (verb, expect) in [
            ("vm run", &["image", "kernel"][..]),
            ("vm stop", &["sandboxes"]),
            ("vm exec", &["sandbox"]),
            ("vm show", &["reference"]),
            ("vm rename", &["sandbox"]),
            ("vm workspace export", &["sandbox"]),
            ("image delete", &["images"]),
            ("image export", &["image"]),
            ("image promote", &["images"]),
            ("image register", &["kernel"]),
            ("kernel show", &["reference"]),
            ("kernel pull", &["entry"]),
            ("image pull", &["reference", "kernel"]),
            ("ssh-config", &[]),
        ] {
            assert_eq!(completed(verb), expect, "{verb}");
        }
    }
}
