//! Which host this process uses: the command line counts first, then the variable `BANGER_HOST`, then the context that
//! the user has chosen.

use std::{env, ffi::OsString, sync::OnceLock};

use clap_complete::engine::ArgValueCompleter;

use super::{
    contexts::{Contexts, DEFAULT},
    server::Server,
};
use crate::{
    command::complete,
    error::{Error, Result},
};

/// The variable with the address of a host.
pub const VARIABLE: &str = "BANGER_HOST";

/// What the command line says.
static COMMAND_LINE: OnceLock<CommandLine> = OnceLock::new();

/// The options of the command line.
#[derive(Debug, Clone, PartialEq, Eq, Default, clap::Args)]
pub struct CommandLine {
    /// Use the banger of another host: ssh://[USER@]HOST[:PORT]
    #[arg(long, value_name = "URL", conflicts_with = "context", hide_short_help = true)]
    host: Option<Server>,
    /// Use the host of this context, instead of the one chosen with `banger context use`
    #[arg(short, long, value_name = "CONTEXT", hide_short_help = true, add = ArgValueCompleter::new(complete::contexts))]
    context: Option<String>,
}

impl CommandLine {
    /// Finds the options in a line that is not complete yet. Options of the command itself come after its name.
    fn of_incomplete(words: impl IntoIterator<Item = OsString>) -> Self {
        let mut found = Self::default();
        let mut words = words.into_iter().map(|word| word.to_string_lossy().into_owned());
        while let Some(word) = words.next() {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (word, None),
            };
            match name.as_str() {
                "--host" => {
                    found.host = value.or_else(|| words.next()).and_then(|text| text.parse().ok());
                }
                "--context" | "-c" => found.context = value.or_else(|| words.next()),
                name if name.starts_with('-') => {}
                _ => break,
            }
        }
        found
    }
}

/// Sets what the command line says, once.
pub fn set(options: &CommandLine) {
    // Nothing else sets it.
    let _ = COMMAND_LINE.set(options.clone());
}

/// Sets what a line says that a shell completes.
pub fn set_for_completion() {
    // bash splits an address into several words, and passes the line as well.
    let line = env::var(complete::LINE).unwrap_or_default();
    let words: Vec<OsString> = match line.is_empty() {
        false => line.split_whitespace().skip(1).map(OsString::from).collect(),
        // The shell's script passes the words after `--`, the first of which is the program.
        true => env::args_os().skip_while(|word| word != "--").skip(2).collect(),
    };
    set(&CommandLine::of_incomplete(words));
}

/// Where the choice comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `--host` or `BANGER_HOST`.
    Address,
    /// The context of this name.
    Context(String),
}

/// Returns the host that this process uses; `None` for the local one. It stays the same when the user chooses another.
pub fn chosen() -> Result<Option<Server>> {
    static CHOSEN: OnceLock<Option<Server>> = OnceLock::new();
    if let Some(server) = CHOSEN.get() {
        return Ok(server.clone());
    }
    let (server, _) = chosen_by()?;
    Ok(CHOSEN.get_or_init(|| server).clone())
}

/// Returns the host that this process uses, and where the choice comes from.
pub fn chosen_by() -> Result<(Option<Server>, Origin)> {
    let variable = env::var(VARIABLE).ok();
    resolve(&COMMAND_LINE.get().cloned().unwrap_or_default(), variable.as_deref(), Contexts::of_caller)
}

fn resolve(
    line: &CommandLine,
    variable: Option<&str>,
    contexts: impl FnOnce() -> Result<Contexts>,
) -> Result<(Option<Server>, Origin)> {
    if let Some(server) = &line.host {
        return Ok((Some(server.clone()), Origin::Address));
    }
    let variable = variable.filter(|text| !text.is_empty());
    let name = match (&line.context, variable) {
        (Some(name), _) if name == DEFAULT => return Ok((None, Origin::Context(name.clone()))),
        (Some(name), _) => Some(name.clone()),
        (None, Some(text)) => {
            let server = text.parse().map_err(|why| {
                Error::Usage(format!("{VARIABLE} is not a host: {why}"))
                    .with_hint("`unset BANGER_HOST` returns to the local host, or to your context.")
            })?;
            return Ok((Some(server), Origin::Address));
        }
        (None, None) => None,
    };
    let contexts = contexts()?;
    let name = name.unwrap_or_else(|| contexts.current().to_owned());
    Ok((contexts.server(&name)?, Origin::Context(name)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn contexts() -> Result<Contexts> {
        let mut contexts = Contexts::default();
        contexts.add("lab", &"ssh://lab".parse().unwrap())?;
        contexts.add("far", &"ssh://far".parse().unwrap())?;
        contexts.choose("lab")?;
        Ok(contexts)
    }

    fn check(line: &[&str], variable: Option<&str>, expect: &str) {
        let line = CommandLine::of_incomplete(line.iter().map(OsString::from));
        let (server, _) = resolve(&line, variable, contexts).unwrap();
        assert_eq!(server.map(|server| server.to_string()).unwrap_or_default(), expect, "{line:?}");
    }

    #[test]
    fn the_command_line_beats_the_variable_and_that_the_context() {
        check(&[], None, "ssh://lab");
        check(&[], Some(""), "ssh://lab");
        check(&[], Some("ssh://b"), "ssh://b");
        check(&["--context", "far"], Some("ssh://b"), "ssh://far");
        check(&["-c", "default"], Some("ssh://b"), "");
        check(&["--host", "ssh://a"], Some("ssh://b"), "ssh://a");
        check(&["--host=ssh://a", "ps"], None, "ssh://a");
    }

    #[test]
    fn options_of_a_verb_are_not_ours() {
        check(&["kernel", "import", "--host"], None, "ssh://lab");
        check(&["exec", "web", "--context", "far"], None, "ssh://lab");
    }

    #[test]
    fn a_host_that_does_not_exist_is_refused() {
        let none = CommandLine::default();
        let error = resolve(&none, Some("lab"), contexts).unwrap_err();
        assert!(error.to_string().starts_with("BANGER_HOST is not a host: write ssh://"), "{error}");
        let line = CommandLine { host: None, context: Some("lap".to_owned()) };
        let error = resolve(&line, None, contexts).unwrap_err();
        assert!(error.hint().unwrap().contains("did you mean lab?"), "{error}");
    }
}
