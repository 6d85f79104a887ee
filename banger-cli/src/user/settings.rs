//! The user's settings for this command, from a file of their own and the environment.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use clap::ValueEnum;

use crate::{
    command::vm::Wait,
    error::{Error, Result},
    ui::suggest,
    user::{
        defaults::{self, Defaults, Key},
        dirs::UserDirs,
        settings_file::SettingsFile,
        timezone,
    },
};

/// The variable that chooses a profile.
const PROFILE: &str = "BANGER_PROFILE";
const COMMAND_LINE: &str = "--profile";

/// The settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Whether a command in a workspace first sends what has changed on the host.
    pub auto_prepare: bool,
    /// Whether sandboxes get the user's git identity, unless they have one.
    pub git_identity: bool,
    /// Files that every sandbox gets.
    pub file_sync: Vec<FileSync>,
    /// The time zone of new sandboxes: a name, `host`, or `image`.
    pub timezone: String,
    /// The boot phase that commands without `--wait` wait for.
    pub wait: Wait,
    /// The defaults of options, and where they come from.
    pub defaults: Defaults,
    /// The profile in effect, and where it was chosen.
    pub profile: Option<(String, &'static str)>,
}

/// A file or a directory that every sandbox gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSync {
    /// Path on the host: absolute, or `~/…`.
    pub host: String,
    /// Path in the sandbox: absolute, or `~/…` for a path in `/root`.
    pub guest: String,
    /// Permissions in the sandbox, in octal; those of the original when absent.
    pub mode: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            auto_prepare: false,
            git_identity: true,
            file_sync: Vec::new(),
            timezone: timezone::HOST.to_owned(),
            wait: Wait::default(),
            defaults: Defaults::default(),
            profile: None,
        }
    }
}

impl Settings {
    /// Reads the caller's settings.
    pub fn of_caller() -> Result<Self> {
        Self::with_profile(None)
    }

    /// Reads the caller's settings with this profile, or the one that the environment chooses.
    pub fn with_profile(profile: Option<&str>) -> Result<Self> {
        let path = UserDirs::of_caller()?.settings();
        Self::resolve(read(&path)?, &path, profile, defaults::of_caller)
    }

    /// Returns the entries of the egress policy for new sandboxes; an empty list allows nothing. `None` if the settings
    /// have no policy, except that they may turn `nat` off.
    pub fn egress(&self) -> Option<Vec<String>> {
        match (self.defaults.switch(Key::Nat), self.defaults.text(Key::Egress)) {
            (Some(true), _) => Some(vec!["all".to_owned()]),
            (_, Some(text)) => {
                let words = egress_words(text);
                Some(if words == ["none"] { Vec::new() } else { words })
            }
            (_, None) => self.defaults.hides_egress().then(Vec::new),
        }
    }

    fn resolve(
        file: SettingsFile,
        path: &Path,
        profile: Option<&str>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self> {
        let chosen = variable(PROFILE).filter(|name| !name.is_empty());
        let profile = match (profile, chosen) {
            (Some(name), _) => Some((name.to_owned(), COMMAND_LINE)),
            (None, Some(name)) => Some((name.to_string_lossy().into_owned(), PROFILE)),
            (None, None) => None,
        };
        let mut sources = defaults::of_environment(variable)?;
        if let Some((name, _)) = &profile {
            let values = file.profiles.get(name).ok_or_else(|| no_profile(name, &file, path))?;
            sources.push((values.clone(), format!("{}, [profiles.{name}]", path.display())));
        }
        sources.push((file.defaults, format!("{}, [defaults]", path.display())));
        sources.push((file.top, path.display().to_string()));
        let (defaults, usual) = (Defaults::of(sources), Self::default());
        let wait = defaults.text(Key::Wait).and_then(|word| Wait::from_str(word, false).ok());
        Ok(Self {
            auto_prepare: defaults.switch(Key::AutoPrepare).unwrap_or(usual.auto_prepare),
            git_identity: file.git_identity.unwrap_or(usual.git_identity),
            file_sync: file.file_sync.unwrap_or_default(),
            timezone: defaults.text(Key::Timezone).map_or(usual.timezone, str::to_owned),
            wait: wait.unwrap_or_default(),
            defaults,
            profile,
        })
    }
}

/// Returns the words of a policy in a text.
pub fn egress_words(text: &str) -> Vec<String> {
    text.split([' ', ',']).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Reads the file. A missing one is empty.
pub fn read(path: &Path) -> Result<SettingsFile> {
    match fs::read_to_string(path) {
        Ok(text) => SettingsFile::parse(&text).map_err(|source| {
            let error = Error::io(format!("read {}", path.display()), io::Error::other(source));
            error.with_hint("`banger config show` lists the keys; docs/configuration.md explains them.")
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(SettingsFile::default()),
        Err(source) => Err(Error::io(format!("read {}", path.display()), source)),
    }
}

fn no_profile(name: &str, file: &SettingsFile, path: &Path) -> Error {
    let suggestion = suggest::closest(name, file.profiles.keys().map(String::as_str));
    let suggestion = suggestion.map(|known| format!("; did you mean {known}?")).unwrap_or_default();
    Error::Refused(format!("there is no profile {name}{suggestion}"))
        .with_hint(format!("a section [profiles.{name}] in {} adds it.", path.display()))
}

impl FileSync {
    /// Checks its paths and its permissions.
    pub fn check(&self) -> Result<(), String> {
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
    use std::collections::BTreeMap;

    use super::*;

    fn resolve(text: &str, profile: Option<&str>, environment: &[(&str, &str)]) -> Result<Settings> {
        let set: BTreeMap<_, _> = environment.iter().copied().collect();
        let file = SettingsFile::parse(text).unwrap();
        Settings::resolve(file, Path::new("/c"), profile, |name| set.get(name).map(OsString::from))
    }

    #[test]
    fn paths_are_relative_to_both_homes() {
        let settings = resolve(
            "git_identity = false\n[[file_sync]]\nhost = '~/.netrc'\nguest = '~/.netrc'\nmode = '0600'\n\
             [[file_sync]]\nhost = '/etc/hosts'\nguest = '/etc/hosts.mine'\n",
            None,
            &[],
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
    }

    #[test]
    fn the_environment_counts_before_the_profile_and_that_before_the_defaults() {
        let text = "timezone = 'UTC'\nwait = 'agent'\nauto_prepare = true\n\
                    [defaults]\nimage = 'debian'\nuser = 'dev'\nwait = 'boot'\n\
                    [profiles.work]\nimage = 'work'\nuser = 'me'\n[profiles.home]\nimage = 'home'\n";
        let of = |profile, environment: &[(&str, &str)]| {
            let settings = resolve(text, profile, environment).unwrap();
            let text = |key| settings.defaults.text(key).unwrap_or_default().to_owned();
            format!("{} {}", text(Key::Image), text(Key::User))
        };
        assert_eq!(of(None, &[]), "debian dev");
        assert_eq!(of(Some("home"), &[]), "home dev");
        assert_eq!(of(None, &[(PROFILE, "work")]), "work me");
        assert_eq!(of(None, &[(PROFILE, "")]), "debian dev");
        assert_eq!(of(Some("home"), &[(PROFILE, "work")]), "home dev");
        assert_eq!(of(Some("work"), &[("BANGER_USER", "root")]), "work root");
        let settings = resolve(text, None, &[]).unwrap();
        assert_eq!((settings.wait, settings.timezone.as_str()), (Wait::Boot, "UTC"));
        assert!(settings.auto_prepare);
        let origin = |key| settings.defaults.get(key).unwrap().1;
        assert_eq!((origin(Key::Timezone), origin(Key::Image)), ("/c", "/c, [defaults]"));
        assert_eq!(resolve("", None, &[]).unwrap(), Settings::default());
    }

    #[test]
    fn an_unknown_profile_is_refused_with_a_suggestion() {
        let error = resolve("[profiles.work]", Some("wrok"), &[]).unwrap_err();
        assert_eq!(
            error.text(None),
            "error: there is no profile wrok; did you mean work?\n\
             hint: a section [profiles.wrok] in /c adds it.\n"
        );
        assert!(resolve("", None, &[(PROFILE, "work")]).is_err());
    }
}
