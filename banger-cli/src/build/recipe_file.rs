//! Parses recipes: TOML files that say what an image is made of.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;

use super::{
    instruction::{Instruction, Recipe, Text, What, digest, refused},
    template::is_name,
};
use crate::{
    error::{Error, Result},
    ui::suggest,
};

/// The keys of each table.
const KEYS: [&str; 7] = ["name", "description", "base", "packages", "file", "commands", "image"];
const FILE_KEYS: [&str; 5] = ["path", "content", "source", "mode", "owner"];
const IMAGE_KEYS: [&str; 8] =
    ["env", "user", "workdir", "entrypoint", "cmd", "labels", "expose", "stop_signal"];
/// Permissions of a file without `mode`.
const MODE: u32 = 0o644;

/// Installs the packages that are its arguments, with the package manager that the base image has.
const INSTALL: &str = "\
set -e
if command -v apt-get > /dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update
    apt-get install --yes --no-install-recommends \"$@\"
    apt-get clean
    rm -rf /var/lib/apt/lists/*
elif command -v apk > /dev/null; then
    apk add --no-cache \"$@\"
elif command -v dnf > /dev/null; then
    dnf install --assumeyes --setopt=install_weak_deps=False \"$@\"
    dnf clean all
elif command -v zypper > /dev/null; then
    zypper --non-interactive install --no-recommends \"$@\"
    zypper clean --all
elif command -v pacman > /dev/null; then
    pacman --sync --refresh --noconfirm --needed \"$@\"
    pacman --sync --clean --clean --noconfirm
else
    echo 'the base image has none of apt-get, apk, dnf, zypper and pacman' >&2
    exit 1
fi";

/// The format of a recipe; packaging/recipes/schema.json describes it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: Option<String>,
    /// For people.
    #[serde(rename = "description", default)]
    _description: String,
    base: String,
    #[serde(default)]
    packages: Vec<String>,
    #[serde(default)]
    file: Vec<RawFile>,
    #[serde(default)]
    commands: Vec<String>,
    #[serde(default)]
    image: RawImage,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    path: String,
    content: Option<String>,
    source: Option<String>,
    mode: Option<String>,
    owner: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawImage {
    env: BTreeMap<String, String>,
    user: Option<String>,
    workdir: Option<String>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    labels: BTreeMap<String, String>,
    expose: Vec<String>,
    stop_signal: Option<String>,
}

/// Parses a recipe.
pub fn parse(text: &str, file: &Path, context: &Path) -> Result<Recipe> {
    let raw = from_toml(text).map_err(|(line, why)| refused(file, line, why))?;
    recipe(raw, digest(text), file, context)
}

/// Reads a recipe that is a part of another file, which names the image.
pub fn part(table: toml::Table, file: &Path) -> Result<Recipe> {
    let unusable = |why: String| refused(file, 0, format!("its recipe: {why}"));
    check_keys(&table).map_err(unusable)?;
    if table.contains_key("name") {
        return Err(unusable("it has a name, but its image has the name of the preset".to_owned()));
    }
    // The keys of a table are in order.
    let digest = digest(&serde_json::to_string(&table).map_err(|error| unusable(error.to_string()))?);
    let raw = table.try_into::<Raw>();
    let raw = raw.map_err(|error| unusable(error.message().trim_end().to_owned()))?;
    recipe(raw, digest, file, &super::parent(file))
}

fn recipe(raw: Raw, digest: String, file: &Path, context: &Path) -> Result<Recipe> {
    let unusable = |why: String| refused(file, 0, why);
    if raw.base.is_empty() {
        return Err(unusable("the base has no name".to_owned()));
    }
    let mut instructions = Vec::new();
    let mut add = |shown: String, what: What| instructions.push(Instruction { line: 0, shown, what });
    let image = raw.image;
    if !image.env.is_empty() {
        if let Some(name) = image.env.keys().find(|name| !is_name(name)) {
            return Err(unusable(format!("\"{name}\" is not the name of a variable")));
        }
        let literal = |(name, value)| (name, Text::Literal(value));
        add("env".to_owned(), What::Env(image.env.into_iter().map(literal).collect()));
    }
    if !raw.packages.is_empty() {
        raw.packages.iter().try_for_each(|name| package(name)).map_err(unusable)?;
        let mut argv = ["/bin/sh", "-c", INSTALL, "install"].map(str::to_owned).to_vec();
        let count = raw.packages.len();
        argv.extend(raw.packages);
        add(
            format!("install {count} {}", if count == 1 { "package" } else { "packages" }),
            What::RunAsRoot(argv),
        );
    }
    for file in raw.file {
        let path = file.path.clone();
        let what = written(file).map_err(|why| unusable(format!("the file {path}: {why}")))?;
        add(format!("write {path}"), what);
    }
    for command in raw.commands {
        let shown = command.lines().next().unwrap_or_default().trim().to_owned();
        add(
            format!("run {shown}"),
            What::RunAsRoot(["/bin/sh", "-ec", &command].map(str::to_owned).to_vec()),
        );
    }
    let setting = |text: Option<String>| text.map(Text::Literal);
    let settings = [
        setting(image.user).map(What::User),
        setting(image.workdir).map(What::Workdir),
        setting(image.stop_signal).map(What::StopSignal),
        image.entrypoint.map(What::Entrypoint),
        image.cmd.map(What::Cmd),
    ];
    settings.into_iter().flatten().for_each(|what| add("image".to_owned(), what));
    let literal = |(key, value)| (Text::Literal(key), Text::Literal(value));
    add("image".to_owned(), What::Label(image.labels.into_iter().map(literal).collect()));
    add("image".to_owned(), What::Expose(image.expose.into_iter().map(Text::Literal).collect()));
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    Ok(Recipe {
        file: file.to_owned(),
        digest,
        context: context.to_owned(),
        name: raw.name.or(stem),
        base: Text::Literal(raw.base),
        base_line: 0,
        base_arguments: Vec::new(),
        instructions,
    })
}

/// Parses the text.
fn from_toml(text: &str) -> Result<Raw, (usize, String)> {
    let line = |error: &toml::de::Error| match error.span() {
        Some(span) => text[..span.start.min(text.len())].matches('\n').count() + 1,
        None => 0,
    };
    let said = |error: toml::de::Error| (line(&error), error.message().trim_end().to_owned());
    let table: toml::Table = toml::from_str(text).map_err(said)?;
    check_keys(&table).map_err(|why| (0, why))?;
    toml::from_str(text).map_err(said)
}

/// Refuses unknown keys, and suggests the known one that is most similar.
fn check_keys(table: &toml::Table) -> Result<(), String> {
    let files = table.get("file").and_then(toml::Value::as_array).into_iter().flatten();
    let tables =
        [(Some(table), &KEYS[..]), (table.get("image").and_then(toml::Value::as_table), &IMAGE_KEYS[..])];
    let files = files.map(|file| (file.as_table(), &FILE_KEYS[..]));
    for (table, known) in tables.into_iter().chain(files) {
        let unknown =
            table.into_iter().flat_map(toml::Table::keys).find(|key| !known.contains(&key.as_str()));
        if let Some(key) = unknown {
            let alike = suggest::closest(key, known.iter().copied());
            let suggestion = alike.map(|key| format!("; did you mean {key}")).unwrap_or_default();
            return Err(format!("there is no key {key}{suggestion}"));
        }
    }
    match table.contains_key("base") {
        true => Ok(()),
        false => Err("it has no base; add base = \"IMAGE\"".to_owned()),
    }
}

/// Checks that the package manager takes a name for one, and not for an option or a list.
fn package(name: &str) -> Result<(), String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"+-._:=~/@*".contains(&b);
    let begins = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'@');
    match begins && name.bytes().all(allowed) {
        true => Ok(()),
        false => Err(format!("\"{name}\" is not the name of a package")),
    }
}

fn written(file: RawFile) -> Result<What, String> {
    if !file.path.starts_with('/') || file.path.ends_with('/') || file.path.contains("/../") {
        return Err("its path must be absolute and without `..`".to_owned());
    }
    let has_mode = file.mode.is_some();
    let mode = match file.mode {
        None => MODE,
        Some(mode) => u32::from_str_radix(&mode, 8)
            .ok()
            .filter(|mode| *mode <= 0o777)
            .ok_or_else(|| format!("mode = \"{mode}\" is not octal, such as \"0644\""))?,
    };
    match (file.content, file.source) {
        (Some(content), None) if file.owner.is_none() => {
            Ok(What::Write { path: file.path, mode, content: content.into_bytes() })
        }
        (Some(_), None) => Err("owner needs source; a file with content belongs to root".to_owned()),
        (None, Some(_)) if has_mode => Err("mode needs content; a copy keeps its permissions".to_owned()),
        (None, Some(source)) => Ok(What::Copy {
            sources: vec![Text::Literal(source)],
            to: Text::Literal(file.path),
            owner: file.owner.map(Text::Literal),
        }),
        _ => Err("it needs either content or source".to_owned()),
    }
}

/// Returns the error about a recipe that does not exist.
pub fn missing(name: &str, known: &[String]) -> Error {
    let error =
        Error::Refused(format!("cannot build {name}: there is no such file, and no recipe of that name"));
    let alike = suggest::closest(name, known.iter().map(String::as_str));
    match (alike, known.is_empty()) {
        (Some(alike), _) => error.with_hint(format!("did you mean {alike}?")),
        (None, false) => error.with_hint(format!("the recipes on this host are {}.", known.join(", "))),
        (None, true) => {
            error.with_hint("give the path of a recipe, of a Dockerfile, or of a directory with one.")
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn recipe(text: &str) -> Result<Recipe> {
        parse(text, Path::new("/x/tool.toml"), Path::new("/x"))
    }

    #[test]
    fn a_recipe_is_done_in_a_fixed_order() {
        let recipe = recipe(
            "base = \"alpine:3.20\"\npackages = [\"git\", \"g++\"]\ncommands = [\"\"\"\n  make\n\"\"\"]\n\
             [[file]]\npath = \"/etc/a\"\ncontent = \"x\"\nmode = \"0600\"\n\
             [[file]]\npath = \"/srv/b\"\nsource = \"b\"\nowner = \"ann\"\n\
             [image]\nuser = \"ann\"\nenv = { A = \"$1\" }\ncmd = [\"sh\"]\n",
        )
        .unwrap();
        assert_eq!(
            (recipe.name.as_deref(), recipe.base),
            (Some("tool"), Text::Literal("alpine:3.20".to_owned()))
        );
        let shown: Vec<&str> = recipe.instructions.iter().map(|one| one.shown.as_str()).collect();
        assert_eq!(shown[..5], ["env", "install 2 packages", "write /etc/a", "write /srv/b", "run make"]);
        let What::RunAsRoot(argv) = &recipe.instructions[1].what else {
            panic!("{:?}", recipe.instructions[1])
        };
        assert_eq!(argv[3..], ["install", "git", "g++"]);
        let write = What::Write { path: "/etc/a".to_owned(), mode: 0o600, content: b"x".to_vec() };
        assert_eq!(recipe.instructions[2].what, write);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expect) in [
            ("", "it has no base; add base"),
            ("base = \"\"", "the base has no name"),
            ("base = \"a\"\nbase =", "line 2"),
            ("base = 1", "line 1"),
            ("base = \"a\"\npackage = []", "there is no key package; did you mean packages"),
            ("base = \"a\"\n[image]\nusr = \"x\"", "there is no key usr; did you mean user"),
            ("base = \"a\"\n[[file]]\npth = \"x\"", "there is no key pth; did you mean path"),
            ("base = \"a\"\npackages = [\"--option\"]", "\"--option\" is not the name of a package"),
            ("base = \"a\"\npackages = [\"a b\"]", "\"a b\" is not the name of a package"),
            ("base = \"a\"\n[[file]]\npath = \"x\"\ncontent = \"\"", "the file x: its path must be absolute"),
            ("base = \"a\"\n[[file]]\npath = \"/x\"", "the file /x: it needs either content or source"),
            (
                "base = \"a\"\n[[file]]\npath = \"/x\"\ncontent = \"\"\nmode = \"9\"",
                "mode = \"9\" is not octal",
            ),
            (
                "base = \"a\"\n[[file]]\npath = \"/x\"\nsource = \"x\"\nmode = \"0644\"",
                "the file /x: mode needs content",
            ),
            ("base = \"a\"\n[image.env]\n\"a b\" = \"\"", "\"a b\" is not the name of a variable"),
        ] {
            let message = recipe(text).unwrap_err().to_string();
            assert!(message.contains(expect), "{text:?}: {message}");
        }
    }

    #[test]
    fn the_shipped_recipe_and_the_schema_are_right() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let text = std::fs::read_to_string(root.join("packaging/recipes/debian-bookworm.toml")).unwrap();
        let shipped = parse(&text, Path::new("debian-bookworm.toml"), Path::new("/")).unwrap();
        assert_eq!(shipped.name.as_deref(), Some("debian-bookworm"));
        let Text::Literal(base) = &shipped.base else { panic!("{:?}", shipped.base) };
        assert!(base.contains("/") && base.contains("@sha256:"), "{base}");
        let schema = std::fs::read_to_string(root.join("packaging/recipes/schema.json")).unwrap();
        let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
        let value: serde_json::Value = toml::from_str(&text).unwrap();
        assert!(jsonschema::is_valid(&schema, &value));
        let keys = |at: &str| {
            let properties = schema.pointer(at).and_then(serde_json::Value::as_object).unwrap();
            properties.keys().cloned().collect::<std::collections::BTreeSet<_>>()
        };
        let known = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect();
        assert_eq!(keys("/properties"), known(&KEYS));
        assert_eq!(keys("/properties/file/items/properties"), known(&FILE_KEYS));
        assert_eq!(keys("/properties/image/properties"), known(&IMAGE_KEYS));
    }
}
