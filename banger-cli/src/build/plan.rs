//! What a build does, once the configuration of its base image is known: steps in the guest, and the configuration of
//! the image that it makes.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use serde_json::Value;

use super::{
    context::Context,
    instruction::{Instruction, Recipe, Text, What, refused},
    template::{Variables, is_name},
};
use crate::error::{Error, Result};

/// The user that a step has without any other.
const ROOT: &str = "0";

/// A step in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its line, or 0.
    pub line: usize,
    /// What progress shows.
    pub shown: String,
    /// What to do.
    pub act: Act,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Runs a program.
    Run {
        /// The program and its arguments.
        argv: Vec<String>,
        /// Its variables.
        env: Vec<(String, String)>,
        /// Its directory.
        directory: String,
        /// Its user.
        user: String,
    },
    /// Copies files of the context.
    Copy {
        /// Paths on the host.
        sources: Vec<PathBuf>,
        /// The destination.
        to: String,
        /// `USER[:GROUP]`.
        owner: String,
    },
    /// Writes a file.
    Write {
        /// Its path.
        path: String,
        /// Its permissions.
        mode: u32,
        /// Its content.
        content: Vec<u8>,
    },
    /// Creates a directory.
    Directory(String),
}

/// The configuration of the new image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// `NAME=VALUE` each.
    pub env: Vec<String>,
    /// The user.
    pub user: String,
    /// The working directory.
    pub working_dir: String,
    /// The entry point.
    pub entrypoint: Vec<String>,
    /// The default arguments.
    pub cmd: Vec<String>,
    /// Ports.
    pub exposed_ports: Vec<String>,
    /// The signal that ends the program.
    pub stop_signal: String,
    /// Labels to add.
    pub labels: BTreeMap<String, String>,
}

impl Config {
    /// Reads the configuration of an image, as `image show --json` prints it.
    pub fn of_image(config: &Value) -> Self {
        let text = |key: &str| config[key].as_str().unwrap_or_default().to_owned();
        let list = |key: &str| {
            let items = config[key].as_array().into_iter().flatten();
            items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
        };
        Self {
            env: list("env"),
            user: text("user"),
            working_dir: text("working-dir"),
            entrypoint: list("entrypoint"),
            cmd: list("cmd"),
            exposed_ports: list("exposed-ports"),
            stop_signal: text("stop-signal"),
            labels: BTreeMap::new(),
        }
    }
}

/// What a build does.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// The configuration of the image.
    pub config: Config,
    /// The files that steps copy.
    pub context: Context,
}

/// Returns the base image of a recipe.
pub fn base(recipe: &Recipe, given: &[(String, String)]) -> Result<String> {
    let at = |why: String| refused(&recipe.file, recipe.base_line, why);
    let mut variables = Variables::default();
    for (name, default) in &recipe.base_arguments {
        if let Some(value) = argument(name, default.as_ref(), given, &variables).map_err(at)? {
            variables.set(name, value);
        }
    }
    let base = recipe.base.value(&variables).map_err(at)?;
    match base.is_empty() {
        true => Err(at("the base image has no name".to_owned())),
        false => Ok(base),
    }
}

/// Checks that every given argument is one of the recipe.
pub fn check_arguments(recipe: &Recipe, given: &[(String, String)]) -> Result<()> {
    let declared = recipe.instructions.iter().filter_map(|instruction| match &instruction.what {
        What::Arg(name, _) => Some(name),
        _ => None,
    });
    let known: Vec<&String> = recipe.base_arguments.iter().map(|(name, _)| name).chain(declared).collect();
    match given.iter().find(|(name, _)| !known.contains(&name)) {
        Some((name, _)) => {
            Err(Error::Refused(format!("cannot use {}: it has no argument {name}", recipe.file.display())))
        }
        None => Ok(()),
    }
}

/// Plans a build.
pub fn plan(recipe: &Recipe, base: Config, given: &[(String, String)]) -> Result<Plan> {
    let context = Context::open(&recipe.context)?;
    let mut planner = Planner::new(base, given, context, &recipe.base_arguments);
    for instruction in &recipe.instructions {
        planner.add(instruction).map_err(|why| refused(&recipe.file, instruction.line, why))?;
    }
    Ok(Plan { steps: planner.steps, config: planner.config, context: planner.context })
}

struct Planner<'a> {
    given: &'a [(String, String)],
    /// Arguments before the base image, which a later ARG without a default repeats.
    base_arguments: &'a [(String, Option<Text>)],
    context: Context,
    variables: Variables,
    /// Arguments, which programs get and the image does not keep.
    arguments: Vec<(String, String)>,
    has_cmd: bool,
    config: Config,
    steps: Vec<Step>,
}

impl<'a> Planner<'a> {
    fn new(
        base: Config,
        given: &'a [(String, String)],
        context: Context,
        base_arguments: &'a [(String, Option<Text>)],
    ) -> Self {
        let mut variables = Variables::default();
        for (name, value) in base.env.iter().filter_map(|pair| pair.split_once('=')) {
            variables.set(name, value.to_owned());
        }
        Self {
            given,
            base_arguments,
            context,
            variables,
            arguments: Vec::new(),
            has_cmd: false,
            config: base,
            steps: Vec::new(),
        }
    }

    fn add(&mut self, instruction: &Instruction) -> Result<(), String> {
        let act = match &instruction.what {
            What::Run(argv) => Some(self.run(argv, &self.config.user)),
            What::RunAsRoot(argv) => Some(self.run(argv, "")),
            What::Copy { sources, to, owner } => Some(self.copy(sources, to, owner.as_ref())?),
            What::Write { path, mode, content } => {
                Some(Act::Write { path: path.clone(), mode: *mode, content: content.clone() })
            }
            What::Workdir(directory) => {
                let directory = self.absolute(&directory.value(&self.variables)?);
                self.config.working_dir.clone_from(&directory);
                Some(Act::Directory(directory))
            }
            other => {
                self.configure(other)?;
                None
            }
        };
        if let Some(act) = act {
            self.steps.push(Step { line: instruction.line, shown: instruction.shown.clone(), act });
        }
        Ok(())
    }

    /// Changes the configuration of the image.
    fn configure(&mut self, what: &What) -> Result<(), String> {
        match what {
            What::Env(pairs) => {
                // All of a line see the values from before it.
                let values = pairs.iter().map(|(name, value)| Ok((name, value.value(&self.variables)?)));
                for (name, value) in values.collect::<Result<Vec<_>, String>>()? {
                    self.set(name, value);
                }
            }
            What::Arg(name, default) => {
                let earlier = self.base_arguments.iter().find(|(known, _)| known == name);
                let default = default.as_ref().or(earlier.and_then(|(_, default)| default.as_ref()));
                let is_env = self.config.env.iter().any(|pair| pair.split('=').next() == Some(name.as_str()));
                if let Some(value) = argument(name, default, self.given, &self.variables)?
                    && !is_env
                {
                    self.variables.set(name, value.clone());
                    self.arguments.retain(|(known, _)| known != name);
                    self.arguments.push((name.clone(), value));
                }
            }
            What::User(user) => self.config.user = user.value(&self.variables)?,
            What::Label(pairs) => {
                for (key, value) in pairs {
                    self.config.labels.insert(key.value(&self.variables)?, value.value(&self.variables)?);
                }
            }
            What::Cmd(words) => {
                self.has_cmd = true;
                self.config.cmd.clone_from(words);
            }
            What::Entrypoint(words) => {
                self.config.entrypoint.clone_from(words);
                // The base's arguments are for the base's program.
                if !self.has_cmd {
                    self.config.cmd.clear();
                }
            }
            What::Expose(ports) => {
                for port in ports {
                    let port = port.value(&self.variables)?;
                    let port = if port.contains('/') { port } else { format!("{port}/tcp") };
                    if !self.config.exposed_ports.contains(&port) {
                        self.config.exposed_ports.push(port);
                    }
                }
            }
            What::StopSignal(signal) => self.config.stop_signal = signal.value(&self.variables)?,
            What::Run(_) | What::RunAsRoot(_) | What::Copy { .. } | What::Write { .. } | What::Workdir(_) => {
            }
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: String) {
        self.config.env.retain(|pair| pair.split('=').next() != Some(name));
        self.config.env.push(format!("{name}={value}"));
        self.arguments.retain(|(known, _)| known != name);
        self.variables.set(name, value);
    }

    /// Returns the step for a program; without a user, it runs as root.
    fn run(&self, argv: &[String], user: &str) -> Act {
        let pair =
            |pair: &String| pair.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        let env = self.arguments.iter().cloned().chain(self.config.env.iter().filter_map(pair));
        Act::Run {
            argv: argv.to_vec(),
            env: env.collect(),
            directory: self.directory().to_owned(),
            user: if user.is_empty() { ROOT } else { user }.to_owned(),
        }
    }

    fn copy(&self, sources: &[Text], to: &Text, owner: Option<&Text>) -> Result<Act, String> {
        let to = to.value(&self.variables)?;
        let mut found = Vec::new();
        for source in sources {
            found.extend(self.context.find(&source.value(&self.variables)?)?);
        }
        if found.len() > 1 && !to.ends_with('/') && to != "." {
            return Err(format!("several files go to {to}, which must end in a slash"));
        }
        let keeps_slash = to.ends_with('/') || to == "." || to == "..";
        let mut to = self.absolute(&to);
        if keeps_slash && !to.ends_with('/') {
            to.push('/');
        }
        let owner = owner.map(|owner| owner.value(&self.variables)).transpose()?;
        Ok(Act::Copy { sources: found, to, owner: owner.unwrap_or_else(|| "0:0".to_owned()) })
    }

    fn directory(&self) -> &str {
        if self.config.working_dir.is_empty() { "/" } else { &self.config.working_dir }
    }

    /// Returns a path of the guest without `.` and `..`, relative to the working directory.
    fn absolute(&self, path: &str) -> String {
        let mut absolute = PathBuf::from("/");
        for component in Path::new(self.directory()).join(path).components() {
            match component {
                Component::Normal(name) => absolute.push(name),
                Component::ParentDir => drop(absolute.pop()),
                Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            }
        }
        absolute.to_string_lossy().into_owned()
    }
}

/// Returns the value of an argument: what the user gave, else its default.
fn argument(
    name: &str,
    default: Option<&Text>,
    given: &[(String, String)],
    variables: &Variables,
) -> Result<Option<String>, String> {
    match given.iter().rev().find(|(known, _)| known == name) {
        Some((_, value)) => Ok(Some(value.clone())),
        None => default.map(|default| default.value(variables)).transpose(),
    }
}

/// Parses `NAME=VALUE` of the command line.
pub fn build_arg(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if is_name(name) => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::build::{dockerfile, recipe_file};

    fn planned(text: &str, base: Config, given: &[(&str, &str)]) -> Result<Plan, String> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a"), "").unwrap();
        std::fs::write(directory.path().join("b"), "").unwrap();
        let recipe = dockerfile::parse(text, Path::new("Dockerfile"), directory.path()).unwrap();
        let given: Vec<_> =
            given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        plan(&recipe, base, &given).map_err(|error| error.to_string())
    }

    fn based() -> Config {
        Config {
            env: vec!["PATH=/bin".to_owned(), "A=0".to_owned()],
            working_dir: "/srv".to_owned(),
            entrypoint: vec!["old".to_owned()],
            cmd: vec!["arguments".to_owned()],
            ..Config::default()
        }
    }

    #[test]
    fn the_base_is_chosen_by_arguments() {
        let recipe =
            dockerfile::parse("ARG D=debian\nARG V\nFROM $D:${V:-12}", Path::new("x"), Path::new("."))
                .unwrap();
        assert_eq!(base(&recipe, &[]).unwrap(), "debian:12");
        let given = [("V".to_owned(), "13".to_owned())];
        assert_eq!(base(&recipe, &given).unwrap(), "debian:13");
        check_arguments(&recipe, &given).unwrap();
        assert!(check_arguments(&recipe, &[("W".to_owned(), String::new())]).is_err());
    }

    #[test]
    fn steps_see_what_comes_before_them() {
        let text = "ARG V=1\nFROM x\nARG V\nARG PATH=no\nENV A=1 B=$A\nRUN first\nWORKDIR sub\nUSER ann\n\
                    ENV A=2$V\nRUN [\"second\"]\nCOPY a ../x\nCOPY a b ./\n";
        let plan = planned(text, based(), &[("V", "7")]).unwrap();
        let pairs = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
        };
        let Act::Run { env, directory, user, .. } = &plan.steps[0].act else { panic!("{:?}", plan.steps) };
        assert_eq!((directory.as_str(), user.as_str()), ("/srv", "0"));
        assert_eq!(*env, pairs(&[("V", "7"), ("PATH", "/bin"), ("A", "1"), ("B", "0")]));
        assert_eq!(plan.steps[1].act, Act::Directory("/srv/sub".to_owned()));
        let Act::Run { argv, env, directory, user } = &plan.steps[2].act else { panic!("{:?}", plan.steps) };
        assert_eq!((argv[0].as_str(), directory.as_str(), user.as_str()), ("second", "/srv/sub", "ann"));
        assert!(env.contains(&("A".to_owned(), "27".to_owned())), "{env:?}");
        let copies: Vec<_> = plan.steps[3..]
            .iter()
            .map(|step| match &step.act {
                Act::Copy { sources, to, owner } => (sources.len(), to.as_str(), owner.as_str()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(copies, [(1, "/srv/x", "0:0"), (2, "/srv/sub/", "0:0")]);
        assert_eq!(plan.config.env, ["PATH=/bin", "B=0", "A=27"]);
        assert!(planned("FROM x\nCOPY a b /c", based(), &[]).unwrap_err().contains("line 2: several files"));
    }

    #[test]
    fn the_image_keeps_what_the_base_says_unless_it_is_replaced() {
        let config = |text: &str| planned(text, based(), &[]).unwrap().config;
        let kept = config("FROM x\nLABEL a=$A\nEXPOSE 80 53/udp 80\nSTOPSIGNAL SIGINT");
        assert_eq!((kept.entrypoint, kept.cmd), (based().entrypoint, based().cmd));
        assert_eq!(kept.exposed_ports, ["80/tcp", "53/udp"]);
        assert_eq!((kept.labels["a"].as_str(), kept.stop_signal.as_str()), ("0", "SIGINT"));
        assert_eq!(config("FROM x\nENTRYPOINT [\"new\"]").cmd, [] as [&str; 0]);
        assert_eq!(config("FROM x\nCMD [\"b\"]\nENTRYPOINT [\"new\"]").cmd, ["b"]);
    }

    #[test]
    fn a_recipe_runs_its_commands_as_root_and_keeps_the_user_of_the_base() {
        let directory = tempfile::tempdir().unwrap();
        let text = "base = \"x\"\npackages = [\"git\"]\ncommands = [\"make\"]\n";
        let recipe = recipe_file::parse(text, Path::new("x.toml"), directory.path()).unwrap();
        let base = Config { user: "node".to_owned(), ..Config::default() };
        let plan = plan(&recipe, base, &[]).unwrap();
        let user = |step: &Step| match &step.act {
            Act::Run { user, .. } => user.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(plan.steps.iter().map(user).collect::<Vec<_>>(), ["0", "0"]);
        assert_eq!(plan.config.user, "node");
    }
}
