//! The repository's `devcontainer.json` (https://containers.dev/implementors/json_reference/), as far as a sandbox
//! supports it.
//!
//! The file is not trusted. It runs and mounts nothing on the host; its only effect there are forwarded ports of the
//! loopback. It learns nothing about the host but the variables that the user passes on with `-e`. Whatever it asks for
//! is bounded, and one setting that cannot be used does not refuse the others: it is listed.
//!
//! [`find`] chooses the file, [`Devcontainer::of`] reads it, [`setup`] applies it to a new sandbox, and
//! [`lifecycle`] runs its commands at their moments, later ones included.

mod build;
#[cfg(test)]
mod cases;
mod commands;
mod env;
mod fill;
mod find;
mod folder;
pub mod lifecycle;
mod mounts;
mod notes;
mod ports;
mod requirements;
pub mod setup;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    env::current_dir,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use self::{
    build::{Build, Needs, feature_name},
    commands::{Command, Moment},
    env::Environment,
    fill::Known,
    find::{Found, Search, find, listed, read},
    folder::Folder,
    mounts::Mount,
    notes::{Ignored, choices, entry},
    ports::{MAX_PORTS, Pair},
    requirements::Requirements,
};
use super::{
    jsonc,
    prepare::Plan,
    source::{DisplayPath, SYMLINK},
};
use crate::{
    command::vm::size_args::SizeArgs,
    error::{Error, Result},
};

/// Limit on the mounts.
const MAX_MOUNTS: usize = 32;
/// Settings that need nothing: they are for editors, a sandbox already has what they ask for, or they only say how long
/// a tool should wait.
const SATISFIED: [&str; 15] = [
    "$schema",
    "name",
    "customizations",
    "extensions",
    "settings",
    "devPort",
    "portsAttributes",
    "otherPortsAttributes",
    "updateRemoteUserUID",
    "init",
    "privileged",
    "capAdd",
    "securityOpt",
    "waitFor",
    "overrideFeatureInstallOrder",
];

/// What the user wants of the file.
#[derive(Debug, Clone, Default)]
pub struct Wishes<'a> {
    /// Which one.
    pub file: Option<&'a Path>,
    /// The image, whatever the file says.
    pub image: Option<&'a str>,
    /// Where the repository goes, whatever the file says.
    pub guest_path: Option<&'a str>,
    /// Variables that it may read.
    pub passed: BTreeMap<String, String>,
}

/// Where a file is.
#[derive(Debug, Clone, Default)]
struct Around {
    /// Its path in the repository.
    file: String,
    /// The name of the repository's directory on the host.
    repository: String,
    /// The directory whose settings it has, relative to the repository.
    below: String,
    /// Where the repository goes, if the user has said it.
    guest_path: Option<String>,
    /// Variables that it may read.
    passed: BTreeMap<String, String>,
}

/// The supported settings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Devcontainer {
    /// The path of the file in the repository; empty if there is none.
    file: String,
    /// The image.
    pub image: Option<String>,
    /// Why it has an image that cannot be known.
    unknown_image: Option<String>,
    /// The image to build.
    build: Option<Build>,
    /// Names of features.
    features: Vec<String>,
    /// Whether the reference implementation would pass something of the host to the build of the image.
    hands_over: bool,
    /// The sizes of the sandbox.
    sizes: Requirements,
    /// Commands to run in the sandbox.
    commands: BTreeMap<Moment, Vec<Command>>,
    /// Ports of the sandbox to forward.
    pub ports: Vec<Pair>,
    /// Variables of the environment.
    env: Environment,
    /// Mounts.
    mounts: Vec<Mount>,
    /// The user that works there, if not root.
    pub user: Option<String>,
    /// The paths of the repository and of its commands in the sandbox.
    folder: Option<Folder>,
    /// Settings that are not applied.
    ignored: Vec<Ignored>,
    /// A note about the choice of the file.
    choice: Option<String>,
    /// A note about its image.
    advice: Option<String>,
}

impl Devcontainer {
    /// Reads the settings of a repository. They are empty if it has none.
    pub fn of(plan: &Plan, wishes: Wishes<'_>) -> Result<Self> {
        let Search { found, others } = find(plan, wishes.file)?;
        let Some(found) = found else { return Ok(Self { choice: choices(&others), ..Self::default() }) };
        let text = read(plan, found.file)?;
        let image = wishes.image;
        let around = Around::of(plan, &found, wishes);
        let parsed = Self::parse(&text, &around).and_then(|wanted| match &wanted.unknown_image {
            Some(why) if image.is_none() => Err(why.clone()),
            _ => Ok(wanted),
        });
        let mut wanted = parsed.map_err(|why| {
            Error::Refused(format!("cannot read {}: {why}", DisplayPath(found.path.as_bytes())))
                .with_hint("fix it, or ignore it with `--no-devcontainer`.")
        })?;
        wanted.check_directory(plan);
        wanted.advise(plan, &around);
        if !others.is_empty() {
            let file = DisplayPath(found.path.as_bytes());
            let others = listed(&others);
            wanted.choice =
                Some(format!("note: {file} is used; `--devcontainer PATH` chooses another one: {others}."));
        }
        Ok(wanted)
    }

    /// Returns where the repository goes.
    pub fn root(&self) -> Option<&str> {
        self.folder.as_ref().map(|folder| folder.root.as_str())
    }

    /// Returns the sizes that it requires, if it does.
    pub fn sizes(&self) -> Option<SizeArgs> {
        let Requirements { cpus, memory, storage } = self.sizes;
        let is_on_work_disk = self.root().is_none_or(|root| root.starts_with("/root/"));
        let (root, disk) = if is_on_work_disk { (None, storage) } else { (storage, None) };
        (self.sizes != Requirements::default()).then(|| SizeArgs::new(cpus, memory, root, disk))
    }

    /// Parses the file. Only what makes the file as a whole unusable is an error.
    fn parse(text: &str, around: &Around) -> Result<Self, String> {
        let value: Value = serde_json::from_str(&jsonc::plain(text)).map_err(|error| {
            format!("it is not valid JSON at line {}, column {}", error.line(), error.column())
        })?;
        let Value::Object(fields) = value else { return Err("it is not an object".to_owned()) };
        let base = around.below.rsplit('/').next().filter(|name| !name.is_empty());
        let mut known = Known {
            base: base.unwrap_or(&around.repository).to_owned(),
            directory: String::new(),
            passed: around.passed.clone(),
        };
        let mut wanted = Self { file: around.file.clone(), ..Self::default() };
        // First, because other settings refer to the folder, and the folder depends on the user.
        wanted.read_user(&fields, &known);
        let (folder, ignored) = Folder::read(&fields, around, &known, wanted.user.is_none());
        wanted.ignore(ignored);
        known.directory.clone_from(&folder.directory);
        wanted.folder = Some(folder);
        match fields.get("image").map(|image| image.as_str().map(|image| known.fill_all(image))) {
            Some(Some(Ok(image))) => wanted.image = Some(image),
            Some(Some(Err(why))) => {
                wanted.unknown_image = Some(format!("cannot tell which image it names: {why}"))
            }
            Some(None) if fields["image"].is_null() => {}
            Some(None) => wanted.unknown_image = Some("image is not a string".to_owned()),
            None => {}
        }
        let fill = |text: &str| known.fill(text);
        let directory = around.file.rsplit_once('/').map_or("", |(directory, _)| directory);
        wanted.hands_over = build::hands_over(&fields);
        wanted.build = Build::read(&fields, directory, &fill, &mut wanted.ignored);
        for (key, value) in &fields {
            wanted.read(key, value, &fill);
        }
        Ok(wanted)
    }

    /// Reads a setting that no other one depends on.
    fn read(&mut self, key: &str, value: &Value, fill: &impl Fn(&str) -> Result<String, String>) {
        if let Some(moment) = Moment::of(key) {
            let (commands, ignored) = commands::read(key, value, fill);
            self.commands.insert(moment, commands);
            return self.ignore(ignored);
        }
        match (key, value) {
            ("image" | "build" | "dockerFile" | "context", _) => {}
            ("workspaceFolder" | "workspaceMount" | "remoteUser" | "containerUser", Value::String(_)) => {}
            (_, Value::Null) => {}
            (key, _) if SATISFIED.contains(&key) => {}
            ("initializeCommand", _) => self.note(key, "it would run on the host"),
            ("forwardPorts", Value::Array(list)) => self.read_ports(key, list, ports::forwarded),
            ("forwardPorts", one) => self.read_ports(key, std::slice::from_ref(one), ports::forwarded),
            ("appPort", Value::Array(list)) => self.read_ports(key, list, ports::published),
            ("appPort", one) => self.read_ports(key, std::slice::from_ref(one), ports::published),
            ("containerEnv", Value::Object(fields)) => {
                let (variables, ignored) = env::read(key, fields, fill);
                self.env.container = variables;
                self.env.private.extend(env::private(fields));
                self.ignore(ignored);
            }
            ("remoteEnv", Value::Object(fields)) => {
                let (variables, ignored) = env::read(key, fields, fill);
                self.env.remote = variables;
                self.env.private.extend(env::private(fields));
                self.ignore(ignored);
            }
            ("mounts", Value::Array(list)) => self.read_mounts(key, list, fill),
            ("features", Value::Object(features)) => {
                self.features = features.keys().map(|id| entry(&feature_name(id), "")).collect();
            }
            ("hostRequirements", Value::Object(fields)) => {
                let (sizes, ignored) = Requirements::read(fields);
                self.sizes = sizes;
                self.ignore(ignored);
            }
            ("runArgs", Value::Array(list)) => self.read_run_args(key, list),
            ("overrideCommand", Value::Bool(true)) => {}
            ("overrideCommand", _) => self.note(key, "the image's own command is not run"),
            ("userEnvProbe", value) if value == "none" => {}
            ("shutdownAction", value) if value == "none" => {}
            ("shutdownAction", _) => self.note(key, "the sandbox keeps running"),
            ("dockerComposeFile", _) => {
                self.note(key, "`docker compose` in the sandbox can start its services")
            }
            ("service" | "runServices", _) => {}
            (
                "containerEnv" | "remoteEnv" | "mounts" | "features" | "hostRequirements" | "runArgs"
                | "remoteUser" | "containerUser" | "workspaceFolder" | "workspaceMount",
                _,
            ) => self.note(key, "it has another type than the specification says"),
            (key, _) => self.note(key, ""),
        }
    }

    fn note(&mut self, key: &str, why: &str) {
        self.ignored.push(Ignored::new(key, why));
    }

    fn ignore(&mut self, all: Vec<(String, String)>) {
        self.ignored.extend(all.into_iter().map(|(key, why)| Ignored { key, why }));
    }

    /// Reads the user of commands: `remoteUser`, else `containerUser`.
    fn read_user(&mut self, fields: &Map<String, Value>, known: &Known) {
        let text = |key| fields.get(key).and_then(Value::as_str).filter(|user| !user.is_empty());
        let user = text("remoteUser").map(|user| ("remoteUser", user));
        let Some((key, user)) = user.or(text("containerUser").map(|user| ("containerUser", user))) else {
            return;
        };
        match known.fill_all(user) {
            // A group may follow.
            Ok(user) => {
                let name = user.split(':').next().unwrap_or_default();
                self.user = Some(name.to_owned()).filter(|name| !matches!(name.as_str(), "root" | "0" | ""));
            }
            Err(why) => self.note(key, &why),
        }
    }

    fn read_ports(&mut self, key: &str, list: &[Value], read: impl Fn(&Value) -> Result<Pair, String>) {
        for port in list {
            match read(port) {
                Ok(pair) if self.ports.iter().any(|(_, guest)| *guest == pair.1) => {}
                Ok(_) if self.ports.len() == MAX_PORTS => {
                    return self.note(key, &format!("there are more than {MAX_PORTS} ports"));
                }
                Ok(pair) => self.ports.push(pair),
                Err(why) => {
                    let port = port.as_str().map_or_else(|| port.to_string(), str::to_owned);
                    self.note(&format!("{key} {port}"), &why);
                }
            }
        }
    }

    fn read_mounts(&mut self, key: &str, list: &[Value], fill: &impl Fn(&str) -> Result<String, String>) {
        for mount in list {
            match mounts::read(mount, fill) {
                Ok(_) if self.mounts.len() == MAX_MOUNTS => {
                    return self.note(key, &format!("there are more than {MAX_MOUNTS} mounts"));
                }
                Ok(mount) => self.mounts.push(mount),
                Err(why) => self.note(&format!("{key} {}", mounts::shown(mount)), &why),
            }
        }
    }

    /// Lists the arguments of `docker run` that a sandbox does not already satisfy.
    fn read_run_args(&mut self, key: &str, list: &[Value]) {
        const SATISFIED: [&str; 5] = ["--cap-add", "--security-opt", "--privileged", "--init", "--rm"];
        let mut words = list.iter().filter_map(Value::as_str);
        let mut left = Vec::new();
        while let Some(word) = words.next() {
            match SATISFIED.iter().find(|option| word.split('=').next() == Some(**option)) {
                Some(&("--cap-add" | "--security-opt")) if !word.contains('=') => drop(words.next()),
                Some(_) => {}
                None => left.push(word),
            }
        }
        if !left.is_empty() {
            self.note(&format!("{key} {}", left.join(" ")), "");
        }
    }

    /// Runs commands at the top of the repository if the directory for them is not sent.
    fn check_directory(&mut self, plan: &Plan) {
        let Some(folder) = &mut self.folder else { return };
        let below = folder.directory.strip_prefix(&folder.root).and_then(|below| below.strip_prefix('/'));
        let Some(below) = below.map(|below| format!("{below}/")) else { return };
        if !plan.files.iter().any(|file| file.path.starts_with(below.as_bytes())) {
            folder.directory.clone_from(&folder.root);
            self.note("workspaceFolder", "no file in it is sent");
        }
    }

    /// Adds what the user can do about an image that is built.
    fn advise(&mut self, plan: &Plan, around: &Around) {
        let is_link = |path: &str| {
            plan.files.iter().any(|file| {
                let link = std::str::from_utf8(&file.path).ok().filter(|_| file.mode == SYMLINK);
                link.is_some_and(|link| path == link || path.starts_with(&format!("{link}/")))
            })
        };
        // A link may lead anywhere on the host.
        if let Some(build) = &mut self.build {
            for path in [&mut build.dockerfile, &mut build.context] {
                path.take_if(|path| is_link(path));
            }
        }
        let needs = Needs {
            file: &self.file,
            build: self.build.as_ref(),
            features: &self.features,
            hands_over: self.hands_over,
            repository: &around.repository,
            opened: &around.below,
        };
        let here = current_dir().unwrap_or_default();
        self.advice = needs.advice(|path| on_host(&plan.repository.root, &here, path));
    }
}

impl Around {
    fn of(plan: &Plan, found: &Found<'_>, wishes: Wishes<'_>) -> Self {
        Self {
            file: found.path.to_owned(),
            repository: plan.repository.root.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            below: found.opened.to_owned(),
            guest_path: wishes.guest_path.map(str::to_owned),
            passed: wishes.passed,
        }
    }
}

/// Writes a path of the repository for the directory in which the user types.
fn on_host(root: &Path, here: &Path, path: &str) -> String {
    let path: PathBuf = root.join(path).components().collect();
    match path.strip_prefix(here) {
        Ok(rest) if rest.as_os_str().is_empty() => ".".to_owned(),
        // It would be an option.
        Ok(rest) if rest.as_os_str().as_encoded_bytes().starts_with(b"-") => format!("./{}", rest.display()),
        Ok(rest) => rest.display().to_string(),
        Err(_) => path.display().to_string(),
    }
}
