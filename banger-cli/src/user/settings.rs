//! The user's settings for this command, in a file of their own.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{
    command::vm::Wait,
    error::{Error, Result},
    ui::suggest,
    user::{dirs::UserDirs, timezone},
};

/// The keys of the file.
const KEYS: [&str; 5] = ["auto_prepare", "git_identity", "file_sync", "timezone", "wait"];

/// The settings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Whether a command in a workspace first sends what has changed on the host.
    #[serde(default)]
    pub auto_prepare: bool,
    /// Whether sandboxes get the user's git identity, unless they have one.
    #[serde(default = "yes")]
    pub git_identity: bool,
    /// Files that every sandbox gets.
    #[serde(default)]
    pub file_sync: Vec<FileSync>,
    /// The time zone of new sandboxes: a name, `host`, or `image`.
    #[serde(default = "host")]
    pub timezone: String,
    /// The boot phase that commands without `--wait` wait for.
    #[serde(default)]
    pub wait: Wait,
}

/// A file or a directory that every sandbox gets.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSync {
    /// Path on the host: absolute, or `~/…`.
    pub host: String,
    /// Path in the sandbox: absolute, or `~/…` for a path in `/root`.
    pub guest: String,
    /// Permissions in the sandbox, in octal; those of the original when absent.
    pub mode: Option<String>,
}

fn host() -> String {
    timezone::HOST.to_owned()
}

const fn yes() -> bool {
    true
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            auto_prepare: false,
            git_identity: true,
            file_sync: Vec::new(),
            timezone: host(),
            wait: Wait::default(),
        }
    }
}

impl Settings {
    /// Reads the caller's settings.
    pub fn of_caller() -> Result<Self> {
        let path = UserDirs::of_caller()?.settings();
        match fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text).map_err(|source| {
                let error = Error::io(format!("read {}", path.display()), io::Error::other(source));
                error.with_hint("`banger config show` lists the keys; docs/configuration.md explains them.")
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(Error::io(format!("read {}", path.display()), source)),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        if let Ok(toml::Value::Table(table)) = text.parse::<toml::Table>().map(toml::Value::Table)
            && let Some(unknown) = table.keys().find(|key| !KEYS.contains(&key.as_str()))
        {
            let alike = suggest::closest(unknown, KEYS);
            let suggestion = alike.map(|key| format!("; did you mean {key}")).unwrap_or_default();
            return Err(format!("there is no key {unknown}{suggestion}"));
        }
        let settings: Self = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        settings.file_sync.iter().try_for_each(FileSync::check)?;
        Ok(settings)
    }
}

impl FileSync {
    fn check(&self) -> Result<(), String> {
        for (side, path) in [("host", &self.host), ("guest", &self.guest)] {
            if !(path.starts_with('/') || path.starts_with("~/"))
                || path.contains("/../")
                || path.ends_with('/')
            {
                return Err(format!("{side} = {path:?} is neither an absolute path nor below ~/"));
            }
        }
        self.permissions().map(drop)
    }

    /// Returns the permissions that are set.
    pub fn permissions(&self) -> Result<Option<u32>, String> {
        let Some(mode) = &self.mode else { return Ok(None) };
        match u32::from_str_radix(mode, 8) {
            Ok(bits) if bits <= 0o777 => Ok(Some(bits)),
            _ => Err(format!("mode = {mode:?} is not an octal number such as \"0600\"")),
        }
    }

    /// Returns the path on the host.
    pub fn host_path(&self, home: &Path) -> PathBuf {
        match self.host.strip_prefix("~/") {
            Some(below) => home.join(below),
            None => PathBuf::from(&self.host),
        }
    }

    /// Returns the path in the sandbox, relative to its root.
    pub fn guest_path(&self) -> PathBuf {
        match self.guest.strip_prefix("~/") {
            Some(below) => Path::new("root").join(below),
            None => PathBuf::from(self.guest.trim_start_matches('/')),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn paths_are_relative_to_both_homes() {
        let settings = Settings::parse(
            "git_identity = false\n[[file_sync]]\nhost = '~/.netrc'\nguest = '~/.netrc'\nmode = '0600'\n\
             [[file_sync]]\nhost = '/etc/hosts'\nguest = '/etc/hosts.mine'\n",
        );
        let settings = settings.unwrap();
        assert!(!settings.git_identity);
        let home = Path::new("/home/ann");
        let [first, second] = settings.file_sync.as_slice() else { panic!("{settings:?}") };
        assert_eq!(
            (first.host_path(home), first.guest_path()),
            ("/home/ann/.netrc".into(), "root/.netrc".into())
        );
        assert_eq!(
            (second.host_path(home), second.guest_path()),
            ("/etc/hosts".into(), "etc/hosts.mine".into())
        );
        assert_eq!((first.permissions(), second.permissions()), (Ok(Some(0o600)), Ok(None)));
        assert_eq!(Settings::parse("").unwrap(), Settings::default());
        assert!(Settings::parse("auto_prepare = true").unwrap().auto_prepare);
        assert_eq!(Settings::parse("wait = 'agent'").unwrap().wait, Wait::Agent);
    }

    #[test]
    fn invalid_files_are_refused() {
        let refused = |text: &str| Settings::parse(text).unwrap_err();
        assert_eq!(refused("git_identiti = true"), "there is no key git_identiti; did you mean git_identity");
        assert_eq!(refused("colour = true"), "there is no key colour");
        assert!(refused("wait = 'soon'").contains("agent"));
        assert!(refused("[[file_sync]]\nhost = 'x'\nguest = '/x'").starts_with("host = \"x\" is neither"));
        assert!(refused("[[file_sync]]\nhost = '/x'\nguest = '/a/../b'").starts_with("guest = "));
        assert!(refused("[[file_sync]]\nhost = '/x'\nguest = '/x'\nmode = 'rw'").starts_with("mode = "));
        assert!(refused("[[file_sync]]\nhost = '/x'\n").contains("guest"));
    }
}
