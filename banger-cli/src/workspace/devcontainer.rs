//! The repository's `devcontainer.json` (https://containers.dev/implementors/json_reference/), as far as a sandbox
//! supports it.
//!
//! The file is not trusted. It has no effect on the host except for forwarded ports of the loopback, and it learns
//! nothing about the host: variables of the user's environment are not substituted.

use std::{collections::BTreeMap, io::Read};

use serde_json::{Map, Value};

use super::{
    files::{Exactly, Found, Root},
    jsonc,
    prepare::{Plan, Planned},
    sender::cannot_read,
    source::DisplayPath,
};
use crate::error::{Error, Result};

/// Paths of the file, in order of preference.
const FILES: [&str; 2] = [".devcontainer/devcontainer.json", ".devcontainer.json"];
/// Limit on the size of the file.
const MAX_SIZE: u64 = 1 << 20;
/// Path of repositories in editors, used for users who cannot access the home of root.
const WORKSPACES: &str = "/workspaces";
/// Keys without an effect.
const IGNORED_KEYS: [&str; 2] = ["$schema", "name"];
/// Variables that have no value in a sandbox, or that must not be revealed.
const UNKNOWN: [&str; 5] = ["localEnv:", "containerEnv:", "env:", "devcontainerId}", "localWorkspaceFolder}"];

/// The supported settings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Devcontainer {
    /// The name of the file; empty if there is none.
    pub file: String,
    /// The image.
    pub image: Option<String>,
    /// Commands to run once the repository is there, each a program and its arguments.
    pub commands: Vec<Vec<String>>,
    /// Ports of the sandbox to forward to the same ports of the host.
    pub ports: Vec<u16>,
    /// Variables of the environment.
    pub env: BTreeMap<String, String>,
    /// The user that works there, if not root.
    pub user: Option<String>,
    /// The path of the repository in the sandbox.
    pub folder: Option<String>,
    /// Settings that are not supported.
    pub unsupported: Vec<String>,
}

impl Devcontainer {
    /// Reads the settings of a repository. They are empty if it has none.
    pub fn of(plan: &Plan) -> Result<Self> {
        let find = |name: &str| plan.files.iter().find(|file| file.path == name.as_bytes());
        let Some((name, file)) = FILES.iter().find_map(|name| Some((*name, find(name)?))) else {
            return Ok(Self { unsupported: others(plan), ..Self::default() });
        };
        let text = read(plan, file)?;
        let base = plan.repository.root.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let wanted = Self::parse(name, &text, &base);
        wanted.map_err(|why| {
            Error::Refused(format!("cannot read {name}: {why}"))
                .with_hint("fix it, or ignore it with `--no-devcontainer`.")
        })
    }

    /// Parses the file. `base` is the name of the repository's directory on the host.
    fn parse(file: &str, text: &str, base: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(&jsonc::plain(text)).map_err(|error| {
            format!("it is not valid JSON at line {}, column {}", error.line(), error.column())
        })?;
        let Value::Object(fields) = value else { return Err("it is not an object".to_owned()) };
        let mut wanted = Self { file: file.to_owned(), ..Self::default() };
        // First, because other settings refer to it.
        if let Some(folder) = string_of(&fields, "workspaceFolder")? {
            let folder = folder.replace("${localWorkspaceFolderBasename}", base);
            match crate::command::vm::workspace_args::guest_path(&folder) {
                Ok(folder) if !folder.contains("${") => wanted.folder = Some(folder),
                _ => wanted.unsupported.push("workspaceFolder".to_owned()),
            }
        }
        if let Some(user) = string_of(&fields, "remoteUser")? {
            wanted.user = Some(user).filter(|user| !matches!(user.as_str(), "root" | "0" | ""));
        }
        if wanted.user.is_some() && wanted.folder.is_none() {
            wanted.folder = Some(format!("{WORKSPACES}/{base}"));
        }
        let folder = wanted.folder.clone();
        let substituted = |text: &str| substitute(text, base, folder.as_deref());
        for (key, value) in &fields {
            match key.as_str() {
                "workspaceFolder" | "remoteUser" => {}
                "image" => match value {
                    Value::String(image) => wanted.image = Some(image.clone()),
                    _ => return Err("image is not a string".to_owned()),
                },
                "postCreateCommand" => wanted.read_commands(key, value, &substituted)?,
                "forwardPorts" => wanted.read_ports(key, value)?,
                "containerEnv" | "remoteEnv" => wanted.read_env(key, value, &substituted)?,
                key if IGNORED_KEYS.contains(&key) => {}
                key => wanted.unsupported.push(key.to_owned()),
            }
        }
        Ok(wanted)
    }

    /// Reads commands: a string is for a shell, a list is a program with its arguments, and an object contains
    /// several of either.
    fn read_commands(
        &mut self,
        key: &str,
        value: &Value,
        substituted: &impl Fn(&str) -> Option<String>,
    ) -> Result<(), String> {
        let arguments = match value {
            Value::Null => return Ok(()),
            Value::String(text) if text.trim().is_empty() => return Ok(()),
            Value::String(text) => vec!["sh".to_owned(), "-c".to_owned(), text.clone()],
            Value::Array(list) => strings(key, list)?,
            Value::Object(several) => {
                return several.iter().try_for_each(|(name, one)| match one {
                    Value::Object(_) => Err(format!("{key}.{name} is not a command")),
                    one => self.read_commands(&format!("{key}.{name}"), one, substituted),
                });
            }
            _ => return Err(format!("{key} is not a command")),
        };
        match arguments.iter().map(|word| substituted(word)).collect::<Option<Vec<_>>>() {
            Some(arguments) if arguments.is_empty() => {}
            Some(arguments) => self.commands.push(arguments),
            None => self.unsupported.push(key.to_owned()),
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
                    // A port of another container, which does not exist.
                    Some(_) => {
                        self.unsupported.push(format!("{key}: {text}"));
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
        substituted: &impl Fn(&str) -> Option<String>,
    ) -> Result<(), String> {
        let Value::Object(fields) = value else { return Err(format!("{key} is not an object")) };
        for (name, value) in fields {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(format!("{name:?} in {key} is not a valid name for a variable"));
            }
            match value {
                // It unsets a variable, which is not set here.
                Value::Null => {}
                Value::String(text) if text.contains('\0') => {
                    return Err(format!("{key}.{name} is not a string"));
                }
                Value::String(text) => match substituted(text) {
                    Some(text) => {
                        self.env.insert(name.clone(), text);
                    }
                    None => self.unsupported.push(format!("{key}.{name}")),
                },
                _ => return Err(format!("{key}.{name} is not a string")),
            }
        }
        Ok(())
    }
}

/// Returns files of this kind at other paths, which are only used on request.
fn others(plan: &Plan) -> Vec<String> {
    let is_one = |file: &&Planned| {
        let path = file.path.strip_prefix(b".devcontainer/");
        path.and_then(|path| path.strip_suffix(b"/devcontainer.json"))
            .is_some_and(|name| !name.contains(&b'/'))
    };
    plan.files.iter().filter(is_one).map(|file| DisplayPath(&file.path).to_string()).collect()
}

/// Reads the file as it will be in the sandbox.
fn read(plan: &Plan, file: &Planned) -> Result<String> {
    let shown = || DisplayPath(&file.path).to_string();
    if file.size > MAX_SIZE {
        return Err(Error::Refused(format!("{} is longer than {} KiB", shown(), MAX_SIZE >> 10)));
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

fn string_of(fields: &Map<String, Value>, key: &str) -> Result<Option<String>, String> {
    match fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(format!("{key} is not a string")),
    }
}

fn strings(key: &str, list: &[Value]) -> Result<Vec<String>, String> {
    let text = |word: &Value| word.as_str().map(str::to_owned);
    list.iter().map(text).collect::<Option<_>>().ok_or_else(|| format!("{key} is not a list of strings"))
}

/// Substitutes variables in a text. Returns `None` if it contains an unsupported one.
fn substitute(text: &str, base: &str, folder: Option<&str>) -> Option<String> {
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

    fn arguments(arguments: &[&str]) -> Vec<String> {
        arguments.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn supported_settings_are_read() {
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
        assert_eq!(wanted.commands, [arguments(&["sh", "-c", "make tools && echo ${HOME} /srv/shop"])]);
        assert_eq!(wanted.ports, [3000, 8080, 9000]);
        let env: Vec<_> = wanted.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(env, ["A=1", "B=shop", "D=x=y"]);
        assert_eq!((wanted.user.as_deref(), wanted.folder.as_deref()), (Some("dev"), Some("/srv/shop")));
        assert_eq!(wanted.unsupported, [""; 0]);
    }

    #[test]
    fn commands_have_three_forms() {
        let commands = |text: &str| parse(&format!(r#"{{"postCreateCommand": {text}}}"#)).unwrap().commands;
        assert_eq!(commands("null"), Vec::<Vec<String>>::new());
        assert_eq!(commands(r#"" ""#), Vec::<Vec<String>>::new());
        assert_eq!(commands(r#"["npm", "ci"]"#), [arguments(&["npm", "ci"])]);
        assert_eq!(
            commands(r#"{"a": "x", "b": ["y", "z"]}"#),
            [arguments(&["sh", "-c", "x"]), arguments(&["y", "z"])]
        );
    }

    #[test]
    fn unsupported_settings_are_listed() {
        let unsupported = |text: &str| parse(text).unwrap().unsupported;
        assert_eq!(
            unsupported(r#"{"features": {}, "initializeCommand": "rm -r x"}"#),
            ["features", "initializeCommand"]
        );
        assert_eq!(unsupported(r#"{"forwardPorts": ["db:5432"]}"#), ["forwardPorts: db:5432"]);
        assert_eq!(unsupported(r#"{"containerEnv": {"T": "${localEnv:TOKEN}"}}"#), ["containerEnv.T"]);
        assert_eq!(unsupported(r#"{"postCreateCommand": "echo ${localEnv:TOKEN}"}"#), ["postCreateCommand"]);
        assert_eq!(unsupported(r#"{"workspaceFolder": "relative"}"#), ["workspaceFolder"]);
        assert_eq!(unsupported(r#"{"workspaceFolder": "/x/${localEnv:Y}"}"#), ["workspaceFolder"]);
    }

    #[test]
    fn another_user_than_root_works_where_it_can() {
        assert_eq!(parse(r#"{"remoteUser": "dev"}"#).unwrap().folder.as_deref(), Some("/workspaces/shop"));
        assert_eq!(parse(r#"{"remoteUser": "root"}"#).unwrap(), parse("{}").unwrap());
    }

    #[test]
    fn invalid_files_are_refused() {
        let mut all = String::new();
        for (text, why) in [
            ("", "not valid JSON at line 1"),
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
            all.push_str(&format!("{text}\n{error}\n\n"));
        }
        crate::ui::wording::check("errors_of_devcontainers", &all);
    }
}
