//! What a repository says of the place in which it wants to be worked on: `devcontainer.json`
//! (https://containers.dev/implementors/json_reference/), as far as a sandbox has the like of it.
//!
//! The file is a stranger's word. Nothing that it says happens on this host, but for ports of the loopback that
//! lead into the sandbox, and it learns nothing of this host: variables of the user's environment are not put in.

use std::{collections::BTreeMap, io::Read};

use serde_json::{Map, Value};

use super::{
    files::{Exactly, Found, Root},
    jsonc,
    prepare::{Plan, Planned},
    sender::cannot_read,
    source::Shown,
};
use crate::error::{Error, Result};

/// Where the file is, in this order.
const FILES: [&str; 2] = [".devcontainer/devcontainer.json", ".devcontainer.json"];
/// A longer one is none.
const MOST: u64 = 1 << 20;
/// Where editors have the repository, for users who cannot see the home of root.
const WORKSPACES: &str = "/workspaces";
/// Keys that say nothing about the place.
const IDLE: [&str; 2] = ["$schema", "name"];
/// Variables that we have no value for, or do not tell.
const UNKNOWN: [&str; 5] = ["localEnv:", "containerEnv:", "env:", "devcontainerId}", "localWorkspaceFolder}"];

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Devcontainer {
    /// The name of the file; empty where there is none.
    pub file: String,
    /// The image.
    pub image: Option<String>,
    /// What is to be run once the repository is there, a program and its arguments each.
    pub commands: Vec<Vec<String>>,
    /// Ports of the sandbox that are to be reached here under the same numbers.
    pub ports: Vec<u16>,
    /// Variables of the environment.
    pub env: BTreeMap<String, String>,
    /// Who works there, where that is not root.
    pub user: Option<String>,
    /// Where the repository is to be.
    pub folder: Option<String>,
    /// What is wanted and not to be had.
    pub left: Vec<String>,
}

impl Devcontainer {
    /// What the repository wants; nothing where it does not say.
    pub fn of(plan: &Plan) -> Result<Self> {
        let find = |name: &str| plan.files.iter().find(|file| file.path == name.as_bytes());
        let Some((name, file)) = FILES.iter().find_map(|name| Some((*name, find(name)?))) else {
            return Ok(Self { left: others(plan), ..Self::default() });
        };
        let text = read(plan, file)?;
        let base = plan.repository.root.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let wanted = Self::parse(name, &text, &base);
        wanted.map_err(|why| {
            Error::Refused(format!("cannot read {name}: {why}"))
                .advise("fix it, or ignore it with `--no-devcontainer`.")
        })
    }

    /// `base` is the name of the directory that the repository is in here.
    fn parse(file: &str, text: &str, base: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(&jsonc::plain(text)).map_err(|error| error.to_string())?;
        let Value::Object(fields) = value else { return Err("it is not an object".to_owned()) };
        let mut wanted = Self { file: file.to_owned(), ..Self::default() };
        // Others refer to it.
        if let Some(folder) = text_of(&fields, "workspaceFolder")? {
            let folder = folder.replace("${localWorkspaceFolderBasename}", base);
            match crate::command::vm::workspace_args::guest_path(&folder) {
                Ok(folder) if !folder.contains("${") => wanted.folder = Some(folder),
                _ => wanted.left.push("workspaceFolder".to_owned()),
            }
        }
        if let Some(user) = text_of(&fields, "remoteUser")? {
            wanted.user = Some(user).filter(|user| !matches!(user.as_str(), "root" | "0" | ""));
        }
        if wanted.user.is_some() && wanted.folder.is_none() {
            wanted.folder = Some(format!("{WORKSPACES}/{base}"));
        }
        let folder = wanted.folder.clone();
        let filled = |text: &str| filled(text, base, folder.as_deref());
        for (key, value) in &fields {
            match key.as_str() {
                "workspaceFolder" | "remoteUser" => {}
                "image" => match value {
                    Value::String(image) => wanted.image = Some(image.clone()),
                    _ => return Err("image is not a string".to_owned()),
                },
                "postCreateCommand" => wanted.read_commands(key, value, &filled)?,
                "forwardPorts" => wanted.read_ports(key, value)?,
                "containerEnv" | "remoteEnv" => wanted.read_env(key, value, &filled)?,
                key if IDLE.contains(&key) => {}
                key => wanted.left.push(key.to_owned()),
            }
        }
        Ok(wanted)
    }

    /// A text is for a shell, a list is a program with its arguments, and an object has several of either.
    fn read_commands(
        &mut self,
        key: &str,
        value: &Value,
        filled: &impl Fn(&str) -> Option<String>,
    ) -> Result<(), String> {
        let words = match value {
            Value::Null => return Ok(()),
            Value::String(text) if text.trim().is_empty() => return Ok(()),
            Value::String(text) => vec!["sh".to_owned(), "-c".to_owned(), text.clone()],
            Value::Array(list) => texts(key, list)?,
            Value::Object(several) => {
                return several.iter().try_for_each(|(name, one)| match one {
                    Value::Object(_) => Err(format!("{key}.{name} is not a command")),
                    one => self.read_commands(&format!("{key}.{name}"), one, filled),
                });
            }
            _ => return Err(format!("{key} is not a command")),
        };
        match words.iter().map(|word| filled(word)).collect::<Option<Vec<_>>>() {
            Some(words) if words.is_empty() => {}
            Some(words) => self.commands.push(words),
            None => self.left.push(key.to_owned()),
        }
        Ok(())
    }

    fn read_ports(&mut self, key: &str, value: &Value) -> Result<(), String> {
        let Value::Array(list) = value else { return Err(format!("{key} is not a list")) };
        for port in list {
            let number = match port {
                Value::Number(number) => number.as_u64(),
                Value::String(text) => match text.rsplit_once(':') {
                    Some(("localhost" | "127.0.0.1", port)) => port.parse().ok(),
                    // Another machine beside the sandbox, which there is not.
                    Some(_) => {
                        self.left.push(format!("{key}: {text}"));
                        continue;
                    }
                    None => text.parse().ok(),
                },
                _ => None,
            };
            match number.and_then(|number| u16::try_from(number).ok()).filter(|port| *port != 0) {
                Some(port) if self.ports.contains(&port) => {}
                Some(port) => self.ports.push(port),
                None => return Err(format!("{port} in {key} is not a port")),
            }
        }
        Ok(())
    }

    fn read_env(
        &mut self,
        key: &str,
        value: &Value,
        filled: &impl Fn(&str) -> Option<String>,
    ) -> Result<(), String> {
        let Value::Object(fields) = value else { return Err(format!("{key} is not an object")) };
        for (name, value) in fields {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(format!("{name:?} in {key} is not a valid name for a variable"));
            }
            match value {
                // It takes a variable away, which nothing here has set.
                Value::Null => {}
                Value::String(text) if text.contains('\0') => {
                    return Err(format!("{key}.{name} is not a string"));
                }
                Value::String(text) => match filled(text) {
                    Some(text) => {
                        self.env.insert(name.clone(), text);
                    }
                    None => self.left.push(format!("{key}.{name}")),
                },
                _ => return Err(format!("{key}.{name} is not a string")),
            }
        }
        Ok(())
    }
}

/// Files of this kind at places from which none is taken unasked.
fn others(plan: &Plan) -> Vec<String> {
    let is_one = |file: &&Planned| {
        let path = file.path.strip_prefix(b".devcontainer/");
        path.and_then(|path| path.strip_suffix(b"/devcontainer.json"))
            .is_some_and(|name| !name.contains(&b'/'))
    };
    plan.files.iter().filter(is_one).map(|file| Shown(&file.path).to_string()).collect()
}

/// The file as it goes into the sandbox.
fn read(plan: &Plan, file: &Planned) -> Result<String> {
    let shown = || Shown(&file.path).to_string();
    if file.size > MOST {
        return Err(Error::Refused(format!("{} is longer than {} KiB", shown(), MOST >> 10)));
    }
    let bytes = match &file.id {
        Some(id) => plan.repository.git().run(&["cat-file", "blob", id], b"")?,
        None => {
            let failed = |source| cannot_read(&file.path, source);
            match Root::open(&plan.repository.root)?.look(&file.path).map_err(failed)? {
                Some(Found::File(content, _)) => {
                    let mut bytes = Vec::new();
                    Exactly::new(content, file.size).read_to_end(&mut bytes).map_err(failed)?;
                    bytes
                }
                _ => return Err(Error::Refused(format!("{} is not a file", shown()))),
            }
        }
    };
    String::from_utf8(bytes).map_err(|_| Error::Refused(format!("{} is not UTF-8", shown())))
}

fn text_of(fields: &Map<String, Value>, key: &str) -> Result<Option<String>, String> {
    match fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(format!("{key} is not a string")),
    }
}

fn texts(key: &str, list: &[Value]) -> Result<Vec<String>, String> {
    let text = |word: &Value| word.as_str().map(str::to_owned);
    list.iter().map(text).collect::<Option<_>>().ok_or_else(|| format!("{key} is not a list of strings"))
}

/// A text with the variables of the file put in; nothing where it has one that we do not tell.
fn filled(text: &str, base: &str, folder: Option<&str>) -> Option<String> {
    let folder = folder.unwrap_or(crate::command::vm::workspace_args::DEFAULT);
    let folder_base = folder.rsplit('/').next().unwrap_or(folder);
    let text = text
        .replace("${localWorkspaceFolderBasename}", base)
        .replace("${containerWorkspaceFolderBasename}", folder_base)
        .replace("${containerWorkspaceFolder}", folder);
    let unknown = UNKNOWN.iter().any(|name| text.contains(&format!("${{{name}")));
    (!unknown).then_some(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(text: &str) -> Result<Devcontainer, String> {
        Devcontainer::parse("x.json", text, "shop")
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn what_a_sandbox_has_the_like_of_is_taken() {
        let wanted = parse(
            r#"{
                // A comment.
                "name": "Shop",
                "image": "example.org/dev:1",
                "postCreateCommand": "make tools && echo ${HOME} ${containerWorkspaceFolder}",
                "forwardPorts": [3000, "8080", "localhost:9000", 3000],
                "containerEnv": { "A": "1", "B": "${localWorkspaceFolderBasename}", },
                "remoteEnv": { "C": null, "D": "x=y" },
                "workspaceFolder": "/srv/${localWorkspaceFolderBasename}",
                "remoteUser": "dev",
            }"#,
        );
        let wanted = wanted.unwrap();
        assert_eq!(wanted.image.as_deref(), Some("example.org/dev:1"));
        assert_eq!(wanted.commands, [words(&["sh", "-c", "make tools && echo ${HOME} /srv/shop"])]);
        assert_eq!(wanted.ports, [3000, 8080, 9000]);
        let env: Vec<_> = wanted.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(env, ["A=1", "B=shop", "D=x=y"]);
        assert_eq!((wanted.user.as_deref(), wanted.folder.as_deref()), (Some("dev"), Some("/srv/shop")));
        assert_eq!(wanted.left, [""; 0]);
    }

    #[test]
    fn commands_have_three_forms() {
        let commands = |text: &str| parse(&format!(r#"{{"postCreateCommand": {text}}}"#)).unwrap().commands;
        assert_eq!(commands("null"), Vec::<Vec<String>>::new());
        assert_eq!(commands(r#"" ""#), Vec::<Vec<String>>::new());
        assert_eq!(commands(r#"["npm", "ci"]"#), [words(&["npm", "ci"])]);
        assert_eq!(
            commands(r#"{"a": "x", "b": ["y", "z"]}"#),
            [words(&["sh", "-c", "x"]), words(&["y", "z"])]
        );
    }

    #[test]
    fn what_is_not_taken_is_told() {
        let left = |text: &str| parse(text).unwrap().left;
        assert_eq!(
            left(r#"{"features": {}, "initializeCommand": "rm -r x"}"#),
            ["features", "initializeCommand"]
        );
        assert_eq!(left(r#"{"forwardPorts": ["db:5432"]}"#), ["forwardPorts: db:5432"]);
        assert_eq!(left(r#"{"containerEnv": {"T": "${localEnv:TOKEN}"}}"#), ["containerEnv.T"]);
        assert_eq!(left(r#"{"postCreateCommand": "echo ${localEnv:TOKEN}"}"#), ["postCreateCommand"]);
        assert_eq!(left(r#"{"workspaceFolder": "relative"}"#), ["workspaceFolder"]);
        assert_eq!(left(r#"{"workspaceFolder": "/x/${localEnv:Y}"}"#), ["workspaceFolder"]);
    }

    #[test]
    fn another_user_than_root_works_where_it_can() {
        assert_eq!(parse(r#"{"remoteUser": "dev"}"#).unwrap().folder.as_deref(), Some("/workspaces/shop"));
        assert_eq!(parse(r#"{"remoteUser": "root"}"#).unwrap(), parse("{}").unwrap());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (text, why) in [
            ("", "EOF"),
            ("[]", "not an object"),
            ("{\"image\": 1}", "image is not a string"),
            ("{\"forwardPorts\": 1}", "forwardPorts is not a list"),
            ("{\"forwardPorts\": [70000]}", "70000 in forwardPorts is not a port"),
            ("{\"forwardPorts\": [\"x\"]}", "not a port"),
            ("{\"containerEnv\": {\"A=B\": \"x\"}}", "not a valid name for a variable"),
            ("{\"containerEnv\": {\"A\": 1}}", "containerEnv.A is not a string"),
            ("{\"postCreateCommand\": 1}", "postCreateCommand is not a command"),
            ("{\"postCreateCommand\": [1]}", "not a list of strings"),
            ("{\"postCreateCommand\": {\"a\": {\"b\": \"c\"}}}", "postCreateCommand.a is not a command"),
            ("{\"remoteUser\": []}", "remoteUser is not a string"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
