//! Where things of ssh are in the user's home.

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

/// The directories of a user, after the XDG Base Directory Specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The home.
    pub home: PathBuf,
    /// For data of programs.
    data: PathBuf,
    /// For configuration of programs.
    config: PathBuf,
    /// For what programs remember.
    state: PathBuf,
}

impl Places {
    /// Those of the caller.
    pub fn of_caller() -> Result<Self> {
        let none =
            || Error::Usage("cannot find your home directory: HOME is not an absolute path".to_owned());
        let home = env::home_dir().filter(|home| home.is_absolute()).ok_or_else(none)?;
        // A relative path is to be ignored, says the specification.
        let named =
            |variable: &str| env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
        Ok(Self {
            data: named("XDG_DATA_HOME").unwrap_or_else(|| home.join(".local/share")),
            config: named("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config")),
            state: named("XDG_STATE_HOME").unwrap_or_else(|| home.join(".local/state")),
            home,
        })
    }

    /// Those below a home where nothing else is said.
    #[cfg(test)]
    pub fn below(home: &Path) -> Self {
        Self {
            home: home.to_owned(),
            data: home.join(".local/share"),
            config: home.join(".config"),
            state: home.join(".local/state"),
        }
    }

    /// Where we remember what was sent into sandboxes.
    pub fn workspaces(&self) -> PathBuf {
        self.state.join("banger/workspaces")
    }

    /// The user's settings of this command.
    pub fn settings(&self) -> PathBuf {
        self.config.join("banger/config.toml")
    }

    /// The directory of ssh.
    pub fn ssh(&self) -> PathBuf {
        self.home.join(".ssh")
    }

    /// The configuration of ssh, which is the user's.
    pub fn ssh_config(&self) -> PathBuf {
        self.ssh().join("config")
    }

    /// What we say to ssh.
    pub fn our_config(&self) -> PathBuf {
        self.config.join("banger/ssh_config")
    }

    /// The key by which sandboxes know their owner.
    pub fn identity(&self) -> PathBuf {
        self.data.join("banger/id_ed25519")
    }

    /// A path in the words of ssh: `~/…` where it is below the home.
    pub fn short(&self, path: &Path) -> String {
        match path.strip_prefix(&self.home) {
            Ok(inside) => format!("~/{}", inside.display()),
            Err(_) => path.display().to_string(),
        }
    }
}
