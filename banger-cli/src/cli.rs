//! The command line.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    process,
};

use clap::{Command as Parser, CommandFactory, FromArgMatches};

use crate::{
    command::{Command, habits},
    error::{Error, FAILURE, Result},
    error_file,
    remote::choice::CommandLine,
};

/// Sandboxes with a kernel of their own, in one command
///
/// Each sandbox is a microVM. With `--rm` it is deleted when you leave it; otherwise it stays until you delete it.
/// You need no password, no container runtime, and no image that you build by hand.
#[derive(Debug, clap::Parser)]
#[command(
    name = "banger",
    version,
    max_term_width = 100,
    after_long_help = "\
Examples:
  banger run --rm               a shell in a fresh sandbox, which is deleted when you leave it
  banger run --rm -- make test  one command in a fresh sandbox, with its output and exit status
  banger ps                     your sandboxes
  banger doctor                 whether this host is ready, and what it lacks

Exit status:
  0      success
  1      failure
  2      wrong usage: the command line is invalid
  128+N  interrupted by the signal N, such as 130 by Ctrl-C
  `run` and `exec` exit with the status of the command; see their help."
)]
pub struct Cli {
    /// Also write errors to this file, a JSON object on each line. Must be the first option on the command line
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    error_file: Option<PathBuf>,
    #[command(flatten)]
    pub host: CommandLine,
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs on the first page of the help. The other verbs of `banger vm` work without `vm` as well.
const GROUPS: [(&str, &[&str]); 3] = [
    (
        "Sandboxes",
        &[
            "run", "agent", "create", "list", "start", "stop", "restart", "pause", "suspend", "resume",
            "kill", "delete",
        ],
    ),
    ("In a sandbox", &["exec", "shell", "ssh", "cp", "logs", "forward", "workspace"]),
    (
        "More",
        &[
            "vm",
            "image",
            "kernel",
            "events",
            "config",
            "context",
            "doctor",
            "metrics",
            "mcp",
            "ssh-config",
            "version",
            "schema",
            "completion",
        ],
    ),
];

/// Returns the parser of the command line, with its verbs in groups.
pub fn parser() -> Parser {
    let parser = Cli::command();
    let header = *parser.get_styles().get_header();
    let literal = *parser.get_styles().get_literal();
    let mut template = "{about-with-newline}\n{usage-heading} {usage}\n\n".to_owned();
    for (title, verbs) in GROUPS {
        template.push_str(&format!("{header}{title}:{header:#}\n"));
        for verb in verbs.iter().filter_map(|verb| parser.find_subcommand(verb)) {
            let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
            let aliases = verb.get_visible_aliases().collect::<Vec<_>>().join(", ");
            let aliases = if aliases.is_empty() { aliases } else { format!(" [also: {aliases}]") };
            template.push_str(&format!("  {literal}{:<10}{literal:#}  {about}{aliases}\n", verb.get_name()));
        }
        template.push('\n');
    }
    template.push_str("All verbs of `banger vm` work without `vm`.\n\n");
    template.push_str(&format!("{header}Options:{header:#}\n{{options}}{{after-help}}"));
    parser.help_template(template)
}

/// Returns the names of the verbs that work with and without `vm`.
pub fn verbs_of_vm(parser: &Parser) -> Vec<String> {
    let vm = parser.find_subcommand("vm").into_iter();
    vm.flat_map(Parser::get_subcommands).map(|verb| verb.get_name().to_owned()).collect()
}

/// Parses a command line.
pub fn try_parse(line: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut parser = parser();
    let matches = parser.try_get_matches_from_mut(line)?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut parser))
}

/// Parses the command line of this process. Ends the process if it is invalid, or if it asks for help.
pub fn parse() -> Cli {
    if let Err(error) = open_error_file(env::args_os().skip(1)) {
        error.print(None);
        process::exit(FAILURE.into())
    }
    try_parse(env::args_os()).unwrap_or_else(|wrong| end(&wrong))
}

/// Opens the file of `--error-file`, before anything else can be wrong with the command line.
fn open_error_file(mut words: impl Iterator<Item = OsString>) -> Result<()> {
    match error_file(&mut words) {
        Some(path) => error_file::open(&path),
        None => Ok(()),
    }
}

/// Returns the file of `--error-file`.
fn error_file(words: &mut impl Iterator<Item = OsString>) -> Option<PathBuf> {
    let first = words.next()?;
    match first.to_str() {
        Some("--error-file") => words.next().map(PathBuf::from),
        _ => {
            let path = first.as_bytes().strip_prefix(b"--error-file=")?;
            Some(OsStr::from_bytes(path).into())
        }
    }
}

/// Returns the command line of this process, as text for messages.
pub fn line() -> Vec<String> {
    env::args_os().map(|word| word.to_string_lossy().into_owned()).collect()
}

/// Says what is wrong with the command line, and ends the process.
fn end(wrong: &clap::Error) -> ! {
    match habits::explain(wrong, &line()) {
        Some(error) => {
            error.print(None);
            process::exit(error.status(FAILURE).into())
        }
        None => {
            if wrong.use_stderr() {
                let text = wrong.to_string();
                let what = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
                error_file::add(&Error::Arguments(what.to_owned()), None);
            }
            wrong.exit()
        }
    }
}

/// Parses the arguments of one command, for its tests. The words are separated by spaces.
#[cfg(test)]
pub fn parse_args<T: clap::Args>(line: &str) -> clap::error::Result<T> {
    let parser = T::augment_args(Parser::new("test").no_binary_name(true));
    T::from_arg_matches(&parser.try_get_matches_from(line.split_whitespace())?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "../tests/documented/mod.rs"]
mod documented;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn documented_commands_are_valid() {
        let commands = documented::all();
        assert!(commands.len() > 60, "only {} commands are documented", commands.len());
        let mut wrong = Vec::new();
        for command in commands {
            let line = ["banger"].into_iter().chain(command.words.iter().map(String::as_str));
            if let Err(error) = try_parse(line.map(OsString::from))
                && error.use_stderr()
            {
                wrong.push(format!("{}: banger {}: {error}", command.place, command.words.join(" ")));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn the_file_of_errors_is_known_before_the_rest_is_parsed() {
        for (line, expect) in [
            (&["--error-file", "/f", "--wrong"][..], Some("/f")),
            (&["--error-file=/f", "ps"], Some("/f")),
            (&["--error-file"], None),
            (&["ps", "--error-file", "/f"], None),
            (&["exec", "web", "--", "x", "--error-file=/f"], None),
            (&[], None),
        ] {
            let found = error_file(&mut line.iter().map(OsString::from));
            assert_eq!(found.as_deref(), expect.map(std::path::Path::new), "{line:?}");
        }
    }

    /// Returns the names of the verbs that people see.
    fn names(command: &Parser) -> BTreeSet<&str> {
        command.get_subcommands().filter(|verb| !verb.is_hide_set()).map(Parser::get_name).collect()
    }

    #[test]
    fn every_verb_is_in_one_group_or_one_of_vm() {
        let parser = parser();
        let of_vm = names(parser.find_subcommand("vm").unwrap());
        let listed: Vec<&str> = GROUPS.iter().flat_map(|(_, verbs)| verbs.iter().copied()).collect();
        let distinct: BTreeSet<&str> = listed.iter().copied().collect();
        assert_eq!(listed.len(), distinct.len());
        let all = names(&parser);
        assert!(distinct.is_subset(&all), "{:?}", distinct.difference(&all));
        assert!(of_vm.is_subset(&all), "{:?}", of_vm.difference(&all));
        let missing: Vec<_> = all.difference(&distinct).filter(|verb| !of_vm.contains(*verb)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn verbs_have_the_aliases_of_their_kind_in_every_group() {
        let parser = parser();
        // `config` has no objects.
        let is_group = |group: &&Parser| group.has_subcommands() && group.get_name() != "config";
        let groups = parser.get_subcommands().filter(is_group);
        let verbs = groups.flat_map(Parser::get_subcommands).chain(parser.get_subcommands());
        for verb in verbs {
            let expect = match verb.get_name() {
                "list" => "ls",
                "delete" => "rm",
                "show" => "inspect",
                _ => continue,
            };
            assert!(verb.get_all_aliases().any(|alias| alias == expect), "{verb:?}");
        }
    }
}
