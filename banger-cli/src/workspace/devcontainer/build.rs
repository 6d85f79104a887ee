//! Images that a devcontainer.json wants to be built, and what a user can do until banger builds images.
//!
//! The commands are made to be pasted into a shell of the host, and the file may come from somebody the user does not
//! trust. So paths are quoted and never lead out of the repository, and options of the build are left out: they could
//! pass secrets of the user to it. `devcontainer build` would not leave them out, so then it is not suggested.

use serde_json::{Map, Value};

use super::{Ignored, find::listed};
use crate::workspace::{record::shell_word, source::DisplayPath};

/// Limit on the arguments of a build that are shown.
const MAX_ARGUMENTS: usize = 16;

/// An image to build.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Build {
    /// The Dockerfile, relative to the repository; `None` if it is outside.
    pub dockerfile: Option<String>,
    /// The directory of its files, relative to the repository, empty for all of it; `None` if it is outside.
    pub context: Option<String>,
    /// The stage to build.
    target: Option<String>,
    /// Arguments.
    arguments: Vec<String>,
}

impl Build {
    /// Reads `build`, `dockerFile` and `context`. `directory` is that of the devcontainer.json.
    pub fn read(
        fields: &Map<String, Value>,
        directory: &str,
        fill: &impl Fn(&str) -> Result<String, String>,
        ignored: &mut Vec<Ignored>,
    ) -> Option<Self> {
        let build = fields.get("build").and_then(Value::as_object);
        let of_build = |key: &str| build.and_then(|build| build.get(key));
        let dockerfile = fields.get("dockerFile").or(of_build("dockerfile"))?;
        let context = fields.get("context").or(of_build("context")).and_then(Value::as_str).unwrap_or(".");
        let mut arguments = Vec::new();
        for (name, value) in of_build("args").and_then(Value::as_object).into_iter().flatten() {
            match fill(value.as_str().unwrap_or_default()) {
                Ok(value) if arguments.len() < MAX_ARGUMENTS => arguments.push(format!("{name}={value}")),
                Ok(_) => ignored.push(Ignored::new(format!("build.args.{name}"), "")),
                Err(why) => ignored.push(Ignored::new(format!("build.args.{name}"), &why)),
            }
        }
        for key in ["options", "cacheFrom"] {
            if of_build(key).is_some() {
                ignored.push(Ignored::new(format!("build.{key}"), ""));
            }
        }
        Some(Self {
            dockerfile: dockerfile.as_str().and_then(|path| below(directory, path)),
            context: below(directory, context),
            target: of_build("target").and_then(Value::as_str).map(str::to_owned),
            arguments,
        })
    }

    /// Returns `docker build` for it, with the paths as `path` writes them.
    fn command(&self, image: &str, path: &impl Fn(&str) -> String) -> Option<String> {
        let (dockerfile, context) = (self.dockerfile.as_deref()?, self.context.as_deref()?);
        let (dockerfile, context) = (path(dockerfile), path(context));
        let mut words = vec!["docker", "build", "-t", image, "-f", &dockerfile];
        words.extend(self.target.iter().flat_map(|target| ["--target", target]));
        words.extend(self.arguments.iter().flat_map(|argument| ["--build-arg", argument]));
        words.push(&context);
        pasteable(&words)
    }
}

/// Joins a path to a directory of the repository. Returns `None` if the result is outside.
fn below(directory: &str, path: &str) -> Option<String> {
    if path.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in directory.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Joins words to a command line. Returns `None` if a word cannot be shown on one line.
fn pasteable(words: &[&str]) -> Option<String> {
    const MAX_LENGTH: usize = 1000;
    let line = words.iter().map(|word| shell_word(word)).collect::<Vec<_>>().join(" ");
    (!line.contains(char::is_control) && line.len() <= MAX_LENGTH).then_some(line)
}

/// Returns whether the reference implementation would pass something of the host to the build of the image: options such
/// as `--ssh`, variables of the user's environment, or what Compose files name.
pub fn hands_over(fields: &Map<String, Value>) -> bool {
    let build = fields.get("build");
    let texts = [build, fields.get("features")].map(|value| value.map(Value::to_string).unwrap_or_default());
    build.is_some_and(|build| build.get("options").is_some())
        || fields.contains_key("dockerComposeFile")
        || texts.iter().any(|text| ["${localEnv:", "${env:"].iter().any(|variable| text.contains(variable)))
}

/// What a file asks for that only an image can have.
#[derive(Debug, Clone, Copy)]
pub struct Needs<'a> {
    /// The devcontainer.json.
    pub file: &'a str,
    /// An image to build.
    pub build: Option<&'a Build>,
    /// Features to install.
    pub features: &'a [String],
    /// Whether the reference implementation would pass something of the host to the build.
    pub hands_over: bool,
    /// The directory of the repository on the host, whose name the image gets.
    pub repository: &'a str,
    /// The directory on the host that was opened.
    pub opened: &'a str,
}

impl Needs<'_> {
    /// Says what the sandbox does not have, and which commands make an image that has it. `path` writes a path of the
    /// repository for the caller's directory.
    pub fn advice(&self, path: impl Fn(&str) -> String) -> Option<String> {
        let file = DisplayPath(self.file.as_bytes());
        let image = image_name(self.repository);
        let features = listed(&self.features.iter().map(String::as_str).collect::<Vec<_>>());
        let missing = match (self.build, self.features.is_empty()) {
            (None, true) => return None,
            (Some(_), true) => {
                format!("`vm run` does not build the image of {file}; the sandbox gets the default image.")
            }
            (Some(_), false) => format!(
                "`vm run` neither builds the image of {file} nor installs its features ({features}); the sandbox gets \
                 the default image."
            ),
            (None, false) => format!("banger does not install the features of {file}: {features}."),
        };
        Some(match self.commands(&image, &path) {
            None => format!("note: {missing} `--image NAME` chooses another one."),
            Some([build, run]) => format!(
                "note: {missing} To use the image of this file:\n  {build}\n  docker save -o {image}.tar {image}\n  \
                 banger image register --name {image} {image}.tar\n  {run}",
            ),
        })
    }

    /// Returns the commands that build the image and use it, unless the build could see more than the repository.
    fn commands(&self, image: &str, path: &impl Fn(&str) -> String) -> Option<[String; 2]> {
        let opened = path(self.opened);
        let build = match self.build {
            Some(Build { dockerfile: None, .. } | Build { context: None, .. }) => return None,
            Some(build) if self.features.is_empty() => build.command(image, path)?,
            _ if self.hands_over => return None,
            _ => pasteable(&[
                "devcontainer",
                "build",
                "--workspace-folder",
                &opened,
                "--config",
                &path(self.file),
                "--image-name",
                image,
            ])?,
        };
        Some([build, pasteable(&["banger", "vm", "run", "--image", image, &opened])?])
    }
}

/// Returns a name for the image of a repository, valid for Docker and for banger.
fn image_name(repository: &str) -> String {
    const MAX_LENGTH: usize = 40;
    let letters = repository.chars().take(MAX_LENGTH).map(|letter| match letter.to_ascii_lowercase() {
        letter @ ('a'..='z' | '0'..='9') => letter,
        _ => '-',
    });
    let name: String = letters.collect();
    let words: Vec<&str> = name.split('-').filter(|word| !word.is_empty()).chain(["devcontainer"]).collect();
    words.join("-")
}

/// Returns the short name of a feature: `ghcr.io/devcontainers/features/node:1` is `node:1`.
pub fn feature_name(id: &str) -> String {
    match id.starts_with('.') {
        true => id.to_owned(),
        false => id.rsplit('/').next().unwrap_or(id).to_owned(),
    }
}
