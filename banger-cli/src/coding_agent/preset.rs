//! Parses presets.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    path::{Component, Path, PathBuf},
};

use banger_proto::size::Bytes;
use serde::Deserialize;

use crate::{
    build::{self, Recipe},
    command::vm::size_args::{SizeArgs, size},
    error::{Error, Result},
    mcp::egress_bound::EgressBound,
    ui::suggest,
};

/// The keys of a preset, and of a file in it.
const KEYS: [&str; 12] = [
    "description",
    "command",
    "image",
    "recipe",
    "egress",
    "pass_env",
    "env",
    "file",
    "vcpus",
    "memory",
    "root_size",
    "disk_size",
];
const FILE_KEYS: [&str; 2] = ["path", "secret"];
/// How the names of images begin that are built from presets.
const IMAGE_PREFIX: &str = "agent-";

/// A preset.
#[derive(Debug, Clone, PartialEq)]
pub struct Preset {
    /// Its name.
    pub name: String,
    /// For people.
    pub description: String,
    /// The program and its first arguments.
    pub command: Vec<String>,
    /// Where the image of the sandbox comes from.
    pub image: Image,
    /// The entries of the egress policy.
    pub egress: Vec<String>,
    /// Names of variables whose values the user's environment has.
    pub pass_env: Vec<String>,
    /// Variables with their values.
    pub env: BTreeMap<String, String>,
    /// Files of the user.
    pub files: Vec<FileOfUser>,
    /// The sizes of the sandbox.
    pub sizes: Sizes,
}

/// Where the image of a sandbox comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Image {
    /// The default image.
    Default,
    /// A name or a reference.
    Named(String),
    /// It is built.
    Recipe(Box<Recipe>),
}

/// A file or a directory in the user's home, which has the same path in the home of the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileOfUser {
    /// `~/` and its path.
    pub path: String,
    /// Whether it has secrets.
    pub secret: bool,
}

/// The sizes of a sandbox; those of the service where absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    pub vcpus: Option<u32>,
    pub memory: Option<Bytes>,
    pub root_size: Option<Bytes>,
    pub disk_size: Option<Bytes>,
}

impl Sizes {
    /// Returns them as options of a command.
    pub fn args(&self) -> SizeArgs {
        SizeArgs::new(self.vcpus, self.memory, self.root_size, self.disk_size)
    }
}

/// The format of a preset; packaging/agents/schema.json describes it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    description: String,
    command: Vec<String>,
    image: Option<String>,
    recipe: Option<toml::Table>,
    #[serde(default)]
    egress: Vec<String>,
    #[serde(default)]
    pass_env: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    file: Vec<RawFile>,
    vcpus: Option<u32>,
    memory: Option<String>,
    root_size: Option<String>,
    disk_size: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    path: String,
    #[serde(default)]
    secret: bool,
}

impl Preset {
    /// Parses the preset of this name.
    pub fn parse(name: &str, text: &str, file: &Path) -> Result<Self> {
        let raw = from_toml(text).map_err(|(line, why)| build::refused(file, line, why))?;
        let image = match (raw.image, raw.recipe) {
            (None, None) => Image::Default,
            (Some(image), None) if !image.is_empty() => Image::Named(image),
            (None, Some(recipe)) => Image::Recipe(Box::new(build::part(recipe, file)?)),
            (Some(_), None) => return Err(build::refused(file, 0, "image is empty")),
            (Some(_), Some(_)) => return Err(build::refused(file, 0, "it has both an image and a recipe")),
        };
        let check = || {
            if raw.command.iter().any(|word| word.is_empty() || word.contains('\0')) || raw.command.is_empty()
            {
                return Err("command needs a program, as in command = [\"PROGRAM\"]".to_owned());
            }
            EgressBound::of(&raw.egress).map_err(|error| format!("egress is invalid: {error}"))?;
            let names = raw.pass_env.iter().chain(raw.env.keys());
            if let Some(name) = names.into_iter().find(|name| !build::is_variable(name)) {
                return Err(format!("\"{name}\" is not the name of a variable"));
            }
            if raw.vcpus == Some(0) {
                return Err("vcpus must be more than 0".to_owned());
            }
            let size_of = |key: &str, text: &Option<String>| {
                let parsed = text.as_deref().map(size).transpose();
                parsed.map_err(|why| format!("{key} is invalid: {why}"))
            };
            let sizes = Sizes {
                vcpus: raw.vcpus,
                memory: size_of("memory", &raw.memory)?,
                root_size: size_of("root_size", &raw.root_size)?,
                disk_size: size_of("disk_size", &raw.disk_size)?,
            };
            let files = raw.file.iter().map(FileOfUser::read).collect::<Result<Vec<_>, String>>()?;
            Ok((sizes, files))
        };
        let (sizes, files) = check().map_err(|why| build::refused(file, 0, why))?;
        Ok(Self {
            name: name.to_owned(),
            description: raw.description,
            command: raw.command,
            image,
            egress: raw.egress,
            pass_env: raw.pass_env,
            env: raw.env,
            files,
            sizes,
        })
    }

    /// Returns the name of its image, if that is built from its recipe.
    pub fn image_name(&self) -> String {
        format!("{IMAGE_PREFIX}{}", self.name)
    }

    /// Returns the variables of the command, given those of the user, and the names of those that are the user's.
    pub fn variables(
        &self,
        of_user: impl Fn(&str) -> Option<String>,
    ) -> (Vec<(String, String)>, Vec<String>) {
        let passed: Vec<(String, String)> =
            self.pass_env.iter().filter_map(|name| Some((name.clone(), of_user(name)?))).collect();
        let names = passed.iter().map(|(name, _)| name.clone()).collect();
        let own = self.env.iter().map(|(name, value)| (name.clone(), value.clone()));
        (own.chain(passed).collect(), names)
    }
}

impl FileOfUser {
    fn read(raw: &RawFile) -> Result<Self, String> {
        let path = &raw.path;
        let below = path.strip_prefix("~/").unwrap_or_default();
        let is_plain = Path::new(below).components().all(|part| matches!(part, Component::Normal(_)));
        match !below.is_empty() && is_plain && !below.contains('\0') && !below.ends_with('/') {
            true => Ok(Self { path: path.clone(), secret: raw.secret }),
            false => Err(format!("the file \"{path}\" is not below your home; write it as ~/PATH")),
        }
    }

    /// Returns the file on the host. Returns `None` if it does not exist, and an error if a link in its path leads out of
    /// the home.
    pub fn on_host(&self, home: &Path) -> Result<Option<PathBuf>> {
        let Some(below) = self.path.strip_prefix("~/") else { return Ok(None) };
        let found = match home.join(below).canonicalize() {
            Ok(found) => found,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(source) => return Err(Error::io(format!("read {}", self.path), source)),
        };
        let home =
            home.canonicalize().map_err(|source| Error::io(format!("read {}", home.display()), source))?;
        match found.starts_with(&home) && found != home {
            true => Ok(Some(found)),
            false => {
                let found = found.display();
                Err(Error::Refused(format!("{} leads to {found}, which is not below your home", self.path)))
            }
        }
    }
}

/// Parses the text, and suggests the known key that is most similar to an unknown one.
fn from_toml(text: &str) -> Result<Raw, (usize, String)> {
    let said = |error: toml::de::Error| {
        let line =
            error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        (line, error.message().trim_end().to_owned())
    };
    let table: toml::Table = toml::from_str(text).map_err(said)?;
    let files = table.get("file").and_then(toml::Value::as_array).into_iter().flatten();
    let files = files.filter_map(|file| Some((file.as_table()?, &FILE_KEYS[..], " in [[file]]")));
    for (table, known, place) in [(&table, &KEYS[..], "")].into_iter().chain(files) {
        if let Some(key) = table.keys().find(|key| !known.contains(&key.as_str())) {
            let alike = suggest::closest(key, known.iter().copied());
            let suggestion = alike.map(|key| format!("; did you mean {key}?")).unwrap_or_default();
            return Err((0, format!("there is no key {key}{place}{suggestion}")));
        }
    }
    if !table.contains_key("command") {
        return Err((0, "it has no command; add command = [\"PROGRAM\"]".to_owned()));
    }
    toml::from_str(text).map_err(said)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{collections::BTreeSet, fs, os::unix::fs::symlink};

    use super::*;

    fn parse(text: &str) -> Result<Preset> {
        Preset::parse("tool", text, Path::new("/x/tool.toml"))
    }

    #[test]
    fn a_preset_is_read_whole() {
        let preset = parse(
            "description = 'Tool'\ncommand = ['tool', '--quiet']\nimage = 'debian'\negress = ['a.example:443', 'packages']\n\
             pass_env = ['TOOL_KEY', 'NONE']\nvcpus = 2\nmemory = '4GiB'\ndisk_size = '8GiB'\n[env]\nMODE = 'sandbox'\n\
             [[file]]\npath = '~/.tool/settings'\n[[file]]\npath = '~/.tool/key'\nsecret = true\n",
        )
        .unwrap();
        assert_eq!((preset.name.as_str(), preset.image_name().as_str()), ("tool", "agent-tool"));
        assert_eq!(preset.image, Image::Named("debian".to_owned()));
        assert_eq!((preset.sizes.vcpus, preset.sizes.memory), (Some(2), Some(Bytes::gib(4))));
        assert_eq!((preset.sizes.root_size, preset.sizes.disk_size), (None, Some(Bytes::gib(8))));
        assert_eq!(preset.files.iter().map(|file| file.secret).collect::<Vec<_>>(), [false, true]);
        let (variables, passed) = preset.variables(|name| (name == "TOOL_KEY").then(|| "secret".to_owned()));
        assert_eq!(
            variables,
            [("MODE", "sandbox"), ("TOOL_KEY", "secret")].map(|(a, b)| (a.to_owned(), b.to_owned()))
        );
        assert_eq!(passed, ["TOOL_KEY"]);
        assert_eq!(parse("command = ['x']").unwrap().image, Image::Default);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expect) in [
            ("", "it has no command; add command"),
            ("command = []", "command needs a program"),
            ("command = ['']", "command needs a program"),
            ("command = 'x'", "line 1"),
            ("command = ['x']\nimage = ''", "image is empty"),
            ("command = ['x']\nimage = 'a'\n[recipe]\nbase = 'b'", "it has both an image and a recipe"),
            ("command = ['x']\n[recipe]\n", "it has no base"),
            (
                "command = ['x']\n[recipe]\nbase = 'b'\npackges = []",
                "there is no key packges; did you mean packages",
            ),
            ("command = ['x']\n[recipe]\nbase = 'b'\nname = 'c'", "its image has the name of the preset"),
            ("comand = ['x']", "there is no key comand; did you mean command?"),
            ("command = ['x']\n[[file]]\npth = '~/x'", "there is no key pth in [[file]]; did you mean path?"),
            ("command = ['x']\negress = ['a,b']", "egress is invalid: \"a,b\" is neither a preset"),
            ("command = ['x']\negress = ['']", "egress is invalid: \"\" is neither a preset"),
            ("command = ['x']\negress = ['all', 'git']", "`none` and `all` cannot be combined"),
            ("command = ['x']\npass_env = ['A=b']", "\"A=b\" is not the name of a variable"),
            ("command = ['x']\n[env]\n'1' = 'x'", "\"1\" is not the name of a variable"),
            ("command = ['x']\nmemory = 'lots'", "memory is invalid"),
            ("command = ['x']\nvcpus = 0", "vcpus must be more than 0"),
            ("command = ['x']\ncommand =", "line 2"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains("/x/tool.toml") && message.contains(expect), "{text:?}: {message}");
        }
    }

    #[test]
    fn files_are_below_the_home() {
        for path in [
            "/etc/shadow",
            "~",
            "~/",
            "~/../x",
            "~/a/../../x",
            "~root/x",
            "x",
            "",
            "~/a/",
            "~//etc/x",
            "~/./x",
        ] {
            let wrong = parse(&format!("command = ['x']\n[[file]]\npath = '{path}'"));
            assert!(wrong.unwrap_err().to_string().contains("is not below your home"), "{path}");
        }
        let home = tempfile::tempdir().unwrap();
        let file = |name: &str| FileOfUser { path: format!("~/{name}"), secret: false };
        fs::create_dir(home.path().join("dotfiles")).unwrap();
        fs::write(home.path().join("dotfiles/real"), "x").unwrap();
        symlink("dotfiles/real", home.path().join("link")).unwrap();
        symlink("/etc", home.path().join("out")).unwrap();
        symlink(".", home.path().join("all")).unwrap();
        assert_eq!(file("none").on_host(home.path()).unwrap(), None);
        let real = home.path().canonicalize().unwrap().join("dotfiles/real");
        assert_eq!(file("link").on_host(home.path()).unwrap(), Some(real));
        for name in ["out", "out/passwd", "all"] {
            assert!(file(name).on_host(home.path()).is_err(), "{name}");
        }
    }

    #[test]
    fn the_presets_of_the_package_and_the_schema_are_right() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/agents");
        let schema = fs::read_to_string(directory.join("schema.json")).unwrap();
        let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
        let mut names = BTreeSet::new();
        for path in fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()) {
            let name = path.file_stem().unwrap().to_str().unwrap();
            if path.extension().unwrap() != "toml" {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let preset = Preset::parse(name, &text, &path).unwrap();
            assert!(!preset.description.is_empty() && text.starts_with("# "), "{name}");
            assert!(matches!(preset.image, Image::Recipe(_)), "{name}");
            assert!(preset.files.iter().any(|file| file.secret), "{name}");
            let value: serde_json::Value = toml::from_str(&text).unwrap();
            assert!(jsonschema::is_valid(&schema, &value), "{name}");
            names.insert(name.to_owned());
        }
        assert_eq!(names, ["claude", "codex", "gemini", "opencode"].map(str::to_owned).into());
        let keys = |at: &str| {
            let properties = schema.pointer(at).and_then(serde_json::Value::as_object).unwrap();
            properties.keys().cloned().collect::<BTreeSet<_>>()
        };
        let known = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect();
        assert_eq!(keys("/properties"), known(&KEYS));
        assert_eq!(keys("/properties/file/items/properties"), known(&FILE_KEYS));
    }
}
