//! Variables in a devcontainer.json: `${NAME}` and `${NAME:ARGUMENT:DEFAULT}`.
//!
//! They are filled in twice: when the file is read, with what the host knows, and in the new sandbox, with its id and
//! its environment. Everything else in `${…}` stays, because it may be meant for a shell.

use std::{collections::BTreeMap, convert::Infallible};

/// By how many bytes the sandbox may lengthen a text.
const MAX_FILLED: usize = 16 << 10;

/// What is known when the file is read.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// The name of the directory on the host that has the file's settings.
    pub base: String,
    /// The path of that directory in the sandbox.
    pub directory: String,
    /// The variables that the user passes on. Nothing else of the user's environment can be read.
    pub passed: BTreeMap<String, String>,
}

/// What is known in the sandbox.
#[derive(Debug, Clone, Default)]
pub struct Guest {
    /// The id of the sandbox.
    pub id: String,
    /// The environment of its programs.
    pub env: BTreeMap<String, String>,
}

impl Known {
    /// Fills in a text. Fails with the reason if it needs a variable that the user does not pass on.
    pub fn fill(&self, text: &str) -> Result<String, String> {
        replace(text, |name, arguments| match name {
            "localEnv" | "env" => match arguments {
                [] | ["", ..] => Err(format!("${{{name}}} names no variable")),
                [variable, rest @ ..] => match (self.passed.get(*variable), rest) {
                    (Some(value), _) => Ok(Some(value.clone())),
                    (None, [default, ..]) => Ok(Some((*default).to_owned())),
                    (None, []) => Err(format!("`-e {variable}` lets it read {variable} of your environment")),
                },
            },
            // Nothing of the host is in the sandbox: what runs there, such as Docker, finds the files at this path.
            "localWorkspaceFolder" | "containerWorkspaceFolder" => Ok(Some(self.directory.clone())),
            "localWorkspaceFolderBasename" => Ok(Some(self.base.clone())),
            "containerWorkspaceFolderBasename" => {
                Ok(Some(self.directory.rsplit('/').next().unwrap_or_default().to_owned()))
            }
            _ => Ok(None),
        })
    }

    /// Fills in a text that must be complete before there is a sandbox.
    pub fn fill_all(&self, text: &str) -> Result<String, String> {
        let text = self.fill(text)?;
        match first(&text) {
            None => Ok(text),
            Some(unknown) => Err(format!("{unknown} has no value")),
        }
    }
}

impl Guest {
    /// Fills in what was left open. A variable that is not set is empty, and so is one that would make the text too
    /// long.
    pub fn fill(&self, text: &str) -> String {
        let mut left = MAX_FILLED;
        let filled = replace(text, |name, arguments| {
            Ok::<_, Infallible>(match (name, arguments) {
                ("devcontainerId", _) => Some(self.id.clone()),
                ("containerEnv", [variable, rest @ ..]) => {
                    let value = self.env.get(*variable).map(String::as_str);
                    let value = value.or(rest.first().copied()).unwrap_or_default();
                    let value = if value.len() <= left { value } else { "" };
                    left -= value.len();
                    Some(value.to_owned())
                }
                _ => None,
            })
        });
        match filled {
            Ok(text) => text,
            Err(never) => match never {},
        }
    }
}

/// Returns whether a text needs the environment of the sandbox.
pub fn needs_environment(text: &str) -> bool {
    text.contains("${containerEnv:")
}

/// Returns the first `${…}` of a text.
fn first(text: &str) -> Option<&str> {
    let start = text.find("${")?;
    let end = text[start..].find('}')?;
    Some(&text[start..=start + end])
}

/// Replaces each `${…}` for which `value` returns something.
fn replace<E>(
    text: &str,
    mut value: impl FnMut(&str, &[&str]) -> Result<Option<String>, E>,
) -> Result<String, E> {
    let (mut filled, mut rest) = (String::new(), text);
    while let Some(found) = first(rest) {
        let start = rest.find(found).unwrap_or_default();
        let mut parts = found[2..found.len() - 1].split(':');
        let (name, arguments) = (parts.next().unwrap_or_default(), parts.collect::<Vec<_>>());
        filled.push_str(&rest[..start]);
        match value(name, &arguments)? {
            Some(text) => filled.push_str(&text),
            None => filled.push_str(found),
        }
        rest = &rest[start + found.len()..];
    }
    filled.push_str(rest);
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_fills_in_what_it_may_reveal() {
        let passed = BTreeMap::from([("TOKEN".to_owned(), "t".to_owned())]);
        let known = Known { base: "shop".into(), directory: "/srv/a/shop-1".into(), passed };
        let read = |name: &str| Err(format!("`-e {name}` lets it read {name} of your environment"));
        for (text, expect) in [
            ("", Ok("".to_owned())),
            ("${localWorkspaceFolder}|${containerWorkspaceFolder}", Ok("/srv/a/shop-1|/srv/a/shop-1".into())),
            ("${localWorkspaceFolderBasename} ${containerWorkspaceFolderBasename}", Ok("shop shop-1".into())),
            ("${localEnv:TOKEN}${env:TOKEN:x}", Ok("tt".into())),
            ("${localEnv:HOME:/none}", Ok("/none".into())),
            ("${localEnv:HOME:a:b}", Ok("a".into())),
            ("${localEnv:HOME:}", Ok("".into())),
            ("x${localEnv:HOME}", read("HOME")),
            ("${env:HOME}", read("HOME")),
            ("${localEnv}", Err("${localEnv} names no variable".into())),
            ("${localEnv:}", Err("${localEnv} names no variable".into())),
            // These are for the sandbox or for a shell.
            (
                "${containerEnv:PATH}:/x ${HOME} ${X:-y} $A ${",
                Ok("${containerEnv:PATH}:/x ${HOME} ${X:-y} $A ${".into()),
            ),
        ] {
            assert_eq!(known.fill(text), expect, "{text}");
        }
        assert_eq!(known.fill_all("a:${templateOption:v}"), Err("${templateOption:v} has no value".into()));
        assert_eq!(known.fill_all("a:${localEnv:V:1}"), Ok("a:1".into()));
    }

    #[test]
    fn the_sandbox_fills_in_its_own() {
        let env = BTreeMap::from([("PATH".to_owned(), "/bin:${devcontainerId}".to_owned())]);
        let guest = Guest { id: "0123".into(), env };
        for (text, expect) in [
            ("${containerEnv:PATH}:/x", "/bin:${devcontainerId}:/x"),
            ("${containerEnv:NONE}-${containerEnv:NONE:d}", "-d"),
            ("cache-${devcontainerId}", "cache-0123"),
            ("${containerEnv} ${HOME}", "${containerEnv} ${HOME}"),
        ] {
            assert_eq!(guest.fill(text), expect, "{text}");
        }
        let env = BTreeMap::from([("BIG".to_owned(), "x".repeat(MAX_FILLED))]);
        let filled = Guest { id: String::new(), env }.fill(&"${containerEnv:BIG}".repeat(1000));
        assert_eq!(filled.len(), MAX_FILLED);
    }
}
