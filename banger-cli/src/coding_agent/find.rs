//! Finds presets: the user's first, then the administrator's, then the package's.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::preset::Preset;
use crate::{
    build,
    error::{Error, Result},
    ui::suggest,
    user::dirs::UserDirs,
};

const OF_ADMINISTRATOR: &str = "/etc/banger/agents.d";
const OF_PACKAGE: &str = "/usr/share/banger/agents";
const SUFFIX: &str = ".toml";
/// The longest name: that of the image has it as well, after its prefix.
const MAX_NAME: usize = 48;
/// Words that are no presets, because they are verbs.
const RESERVED: [&str; 5] = ["list", "ls", "show", "inspect", "help"];

/// Where a preset comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    User,
    Administrator,
    Package,
}

impl Origin {
    /// Returns it in one word.
    pub fn word(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Administrator => "administrator",
            Self::Package => "package",
        }
    }
}

/// A preset, and where it is.
#[derive(Debug)]
pub struct Found {
    pub preset: Preset,
    pub origin: Origin,
    pub file: PathBuf,
}

type Directories = [(Origin, PathBuf); 3];

fn directories() -> Result<Directories> {
    Ok([
        (Origin::User, UserDirs::of_caller()?.agents()),
        (Origin::Administrator, OF_ADMINISTRATOR.into()),
        (Origin::Package, OF_PACKAGE.into()),
    ])
}

/// Reads the preset of this name.
pub fn named(name: &str) -> Result<Found> {
    named_in(name, &directories()?)
}

/// Reads all presets. One whose file is wrong is an error.
pub fn all() -> Result<Vec<Result<Found>>> {
    let found = files(&directories()?);
    Ok(found.into_iter().map(|(name, (origin, file))| read(&name, origin, file)).collect())
}

/// Returns the names of all presets, also of those whose files are wrong.
pub fn names() -> Result<Vec<String>> {
    Ok(files(&directories()?).into_keys().collect())
}

fn named_in(name: &str, directories: &Directories) -> Result<Found> {
    let mut files = files(directories);
    if let Some((origin, file)) = files.remove(name) {
        return read(name, origin, file);
    }
    let error = Error::Refused(format!("there is no preset {name} for a coding agent"));
    let alike = suggest::closest(name, files.keys().map(String::as_str));
    Err(match alike {
        Some(alike) => error.with_hint(format!("did you mean {alike}?")),
        None => error.with_hint("`banger agent list` shows the presets."),
    })
}

fn read(name: &str, origin: Origin, file: PathBuf) -> Result<Found> {
    let text = build::read_text(&file)?;
    Ok(Found { preset: Preset::parse(name, &text, &file)?, origin, file })
}

/// Returns the file that counts for each name.
fn files(directories: &Directories) -> BTreeMap<String, (Origin, PathBuf)> {
    let mut found = BTreeMap::new();
    for (origin, directory) in directories {
        for file in paths(directory) {
            let name = file.file_name().and_then(|name| name.to_str()?.strip_suffix(SUFFIX));
            if let Some(name) = name.filter(|name| is_name(name)) {
                found.entry(name.to_owned()).or_insert((*origin, file));
            }
        }
    }
    found
}

fn paths(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect()
}

/// Returns whether a preset can have this name: the name of an image has it as well.
fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_plain =
        name.len() <= MAX_NAME && name.bytes().all(allowed) && !name.starts_with('-') && !name.ends_with('-');
    !name.is_empty() && is_plain && !RESERVED.contains(&name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_users_file_counts_before_the_administrators_and_that_before_the_packages() {
        let directory = tempfile::tempdir().unwrap();
        let below = |name: &str| directory.path().join(name);
        let places = [
            (Origin::User, below("user")),
            (Origin::Administrator, below("etc")),
            (Origin::Package, below("usr")),
        ];
        let write = |place: usize, name: &str, text: &str| {
            fs::create_dir_all(&places[place].1).unwrap();
            fs::write(places[place].1.join(name), text).unwrap();
        };
        let program = |name: &str| named_in(name, &places).map(|found| found.preset.command[0].clone());
        assert!(program("one").is_err());
        for name in ["one.toml", "two.toml", "three.toml"] {
            write(2, name, "command = ['package']");
        }
        write(1, "one.toml", "command = ['administrator']");
        write(1, "two.toml", "command = ['administrator']");
        write(0, "one.toml", "command = ['user']");
        for (name, expect) in [("one", "user"), ("two", "administrator"), ("three", "package")] {
            let found = named_in(name, &places).unwrap();
            assert_eq!((found.origin.word(), found.preset.command[0].as_str()), (expect, expect));
        }
        // A wrong file of the user is not replaced silently.
        write(0, "two.toml", "comand = ['user']");
        assert!(program("two").unwrap_err().to_string().contains("did you mean command?"));
        for name in ["README", "list.toml", "-x.toml", "A.toml", "a b.toml", ".toml"] {
            write(0, name, "command = ['x']");
        }
        assert_eq!(files(&places).into_keys().collect::<Vec<_>>(), ["one", "three", "two"]);
        let error = named_in("thre", &places).unwrap_err();
        assert_eq!(
            error.text(None),
            "error: there is no preset thre for a coding agent.\nhint: did you mean three?\n"
        );
        assert!(named_in("../usr/three", &places).is_err());
    }
}
