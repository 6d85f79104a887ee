//! The contexts of a user: names for hosts, and which of them is used.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::server::Server;
use crate::{
    error::{Error, Result},
    ui::suggest,
    user::dirs::UserDirs,
};

/// The context of the local host, which always exists.
pub const DEFAULT: &str = "default";
/// Limit on the length of a name.
const MAX_NAME: usize = 63;

/// The file with the contexts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    /// The context in use; the local host when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<String>,
    /// The address of each host, by name.
    #[serde(default)]
    contexts: BTreeMap<String, String>,
}

impl Contexts {
    /// Reads the contexts of the caller.
    pub fn of_caller() -> Result<Self> {
        Self::read(&UserDirs::of_caller()?.contexts())
    }

    fn read(path: &Path) -> Result<Self> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(Error::io(format!("read {}", path.display()), source)),
        };
        let damaged = |why: &str| {
            Error::Refused(format!("cannot use {}: {why}", path.display())).with_hint(
                "`banger context add NAME ssh://HOST` adds a host once the file is corrected or removed.",
            )
        };
        let read: Self = toml::from_str(&text).map_err(|error| damaged(error.message()))?;
        for (name, address) in &read.contexts {
            check_name(name).map_err(|why| damaged(&format!("{name:?}: {why}")))?;
            address.parse::<Server>().map_err(|why| damaged(&format!("{name}: {why}")))?;
        }
        Ok(read)
    }

    /// Changes the contexts of the caller. Commands that change them at once wait for each other.
    pub fn change(act: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        Self::change_in(&UserDirs::of_caller()?.contexts(), act)
    }

    fn change_in(path: &Path, act: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let lock = path.with_extension("lock");
        let failed = |source| Error::io(format!("lock {}", lock.display()), source);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).map_err(failed)?;
        let file = OpenOptions::new().create(true).append(true).open(&lock).map_err(failed)?;
        flock(&file, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        let mut contexts = Self::read(path)?;
        act(&mut contexts)?;
        contexts.write(path)
    }

    /// A reader sees the old file or the new one.
    fn write(&self, path: &Path) -> Result<()> {
        let failed = |source| Error::io(format!("write {}", path.display()), source);
        let directory = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory).map_err(failed)?;
        let text = toml::to_string(self).map_err(|error| failed(std::io::Error::other(error)))?;
        let mut file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)?;
        file.persist(path).map_err(|error| failed(error.error))?;
        Ok(())
    }

    /// Returns the name of the context in use.
    pub fn current(&self) -> &str {
        self.current.as_deref().unwrap_or(DEFAULT)
    }

    /// Returns the names and addresses of all contexts but the local host's.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.contexts.iter().map(|(name, address)| (name.as_str(), address.as_str()))
    }

    /// Returns the host of a context; `None` for the local one.
    pub fn server(&self, name: &str) -> Result<Option<Server>> {
        if name == DEFAULT {
            return Ok(None);
        }
        let address = self.contexts.get(name).ok_or_else(|| self.missing(name))?;
        address.parse().map(Some).map_err(|why| Error::Refused(format!("{address} is not a host: {why}")))
    }

    /// Adds a context.
    pub fn add(&mut self, name: &str, server: &Server) -> Result<()> {
        check_name(name)
            .map_err(|why| Error::Usage(format!("{name:?} cannot be the name of a context: {why}")))?;
        if self.contexts.contains_key(name) {
            let error = Error::Refused(format!("there already is a context {name}"));
            return Err(error.with_hint(format!("`banger context delete {name}` deletes it.")));
        }
        self.contexts.insert(name.to_owned(), server.to_string());
        Ok(())
    }

    /// Uses a context from now on.
    pub fn choose(&mut self, name: &str) -> Result<()> {
        self.server(name)?;
        self.current = (name != DEFAULT).then(|| name.to_owned());
        Ok(())
    }

    /// Deletes a context that is not in use.
    pub fn delete(&mut self, name: &str) -> Result<()> {
        if name == DEFAULT {
            return Err(Error::Refused("cannot delete the context default: it is the local host".to_owned()));
        }
        if self.current() == name {
            let error = Error::Refused(format!("cannot delete the context {name}: it is in use"));
            return Err(error.with_hint("`banger context use default` returns to the local host."));
        }
        self.contexts.remove(name).map(drop).ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> Error {
        let known = self.contexts.keys().map(String::as_str).chain([DEFAULT]);
        let suggestion = suggest::closest(name, known);
        let suggestion = suggestion.map(|name| format!("did you mean {name}? ")).unwrap_or_default();
        Error::Refused(format!("there is no context {name}"))
            .with_hint(format!("{suggestion}`banger context list` shows them."))
    }
}

fn check_name(name: &str) -> Result<(), &'static str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    match name {
        DEFAULT => Err("it is the local host"),
        _ if name.is_empty() || name.len() > MAX_NAME => Err("it needs 1 to 63 characters"),
        _ if !name.bytes().all(is_plain) => {
            Err("it can have only letters, digits, dots, hyphens and underscores")
        }
        _ if !name.as_bytes()[0].is_ascii_alphanumeric() => Err("it must begin with a letter or a digit"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn lab() -> Contexts {
        let mut contexts = Contexts::default();
        contexts.add("lab", &"ssh://alice@lab".parse().unwrap()).unwrap();
        contexts
    }

    #[test]
    fn one_context_is_in_use_and_stays_until_another_is() {
        let mut contexts = lab();
        assert_eq!((contexts.current(), contexts.server(contexts.current()).unwrap()), (DEFAULT, None));
        contexts.choose("lab").unwrap();
        assert_eq!(contexts.server(contexts.current()).unwrap().unwrap().to_string(), "ssh://alice@lab");
        assert!(contexts.delete("lab").unwrap_err().hint().unwrap().contains("use default"));
        contexts.choose(DEFAULT).unwrap();
        contexts.delete("lab").unwrap();
        assert_eq!(contexts, Contexts::default());
    }

    #[test]
    fn a_missing_context_is_refused_with_a_similar_one() {
        let mut contexts = lab();
        assert!(contexts.choose("lap").unwrap_err().hint().unwrap().starts_with("did you mean lab?"));
        assert!(contexts.delete("other").is_err() && contexts.delete(DEFAULT).is_err());
        assert_eq!(contexts, lab());
    }

    #[test]
    fn names_are_words() {
        let mut contexts = lab();
        for name in ["", "default", "-x", "a b", "a/b", &"a".repeat(64), "lab"] {
            assert!(contexts.add(name, &"ssh://x".parse().unwrap()).is_err(), "{name}");
        }
        assert_eq!(contexts, lab());
    }

    #[test]
    fn changes_at_once_lose_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("new/contexts.toml");
        std::thread::scope(|scope| {
            for number in 0..16 {
                let path = &path;
                scope.spawn(move || {
                    let add = |contexts: &mut Contexts| {
                        // Long enough for the others to read the same file, if they could.
                        std::thread::yield_now();
                        contexts.add(&format!("host-{number}"), &"ssh://lab".parse().unwrap())
                    };
                    Contexts::change_in(path, add).unwrap();
                });
            }
        });
        assert_eq!(Contexts::read(&path).unwrap().iter().count(), 16);
        // A change that is refused writes nothing.
        let before = fs::read(&path).unwrap();
        assert!(Contexts::change_in(&path, |contexts| contexts.delete("nope")).is_err());
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn a_damaged_file_is_refused_and_not_overwritten() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("contexts.toml");
        assert_eq!(Contexts::read(&path).unwrap(), Contexts::default());
        for text in ["current = ", "[contexts]\nlab = 'lab'", "[contexts]\n'-x' = 'ssh://lab'", "x = 1"] {
            fs::write(&path, text).unwrap();
            assert!(Contexts::read(&path).is_err(), "{text}");
        }
        fs::write(&path, toml::to_string(&lab()).unwrap()).unwrap();
        assert_eq!(Contexts::read(&path).unwrap(), lab());
    }
}
