//! Paths in the user's home directory.

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

/// The directories of a user, after the XDG Base Directory Specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserDirs {
    /// The home directory.
    pub home: PathBuf,
    /// Directory for data of programs.
    data: PathBuf,
    /// Directory for configuration of programs.
    config: PathBuf,
    /// Directory for state of programs.
    state: PathBuf,
}

impl UserDirs {
    /// Returns the caller's directories.
    pub fn of_caller() -> Result<Self> {
        let none =
            || Error::Refused("cannot find your home directory: HOME is not an absolute path".to_owned());
        let home = env::home_dir().filter(|home| home.is_absolute()).ok_or_else(none)?;
        // The specification requires that relative paths are ignored.
        let named =
            |variable: &str| env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
        Ok(Self {
            data: named("XDG_DATA_HOME").unwrap_or_else(|| home.join(".local/share")),
            config: named("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config")),
            state: named("XDG_STATE_HOME").unwrap_or_else(|| home.join(".local/state")),
            home,
        })
    }

    /// Returns the default directories below a home.
    #[cfg(test)]
    pub fn below(home: &Path) -> Self {
        Self {
            home: home.to_owned(),
            data: home.join(".local/share"),
            config: home.join(".config"),
            state: home.join(".local/state"),
        }
    }

    /// Returns the directory with records of forwarding in the background, for users without a runtime directory.
    pub fn forwards(&self) -> PathBuf {
        self.state.join("banger/forwards")
    }

    /// Returns the directory of connections to other hosts, for users without a runtime directory.
    pub fn ssh_sockets(&self) -> PathBuf {
        self.state.join("banger/ssh")
    }

    /// Returns the directory with records of workspaces.
    pub fn workspaces(&self) -> PathBuf {
        self.state.join("banger/workspaces")
    }

    /// Returns the directory with records of workspaces on other hosts. It has a directory for each host.
    pub fn workspaces_elsewhere(&self) -> PathBuf {
        self.state.join("banger/remote-workspaces")
    }

    /// Returns the directory with the locks of builds.
    pub fn builds(&self) -> PathBuf {
        self.state.join("banger/builds")
    }

    /// Returns the file with the user's settings of this command.
    pub fn settings(&self) -> PathBuf {
        self.config.join("banger/config.toml")
    }

    /// Returns the directory with the user's presets of coding agents.
    pub fn agents(&self) -> PathBuf {
        self.configuration().join("agents")
    }

    /// Returns the directory with all of the user's configuration.
    pub fn configuration(&self) -> PathBuf {
        self.config.join("banger")
    }

    /// Returns the file with the user's names for hosts.
    pub fn contexts(&self) -> PathBuf {
        self.config.join("banger/contexts.toml")
    }

    /// Returns the directory of ssh.
    pub fn ssh(&self) -> PathBuf {
        self.home.join(".ssh")
    }

    /// Returns the user's ssh configuration.
    pub fn ssh_config(&self) -> PathBuf {
        self.ssh().join("config")
    }

    /// Returns banger's ssh configuration.
    pub fn our_config(&self) -> PathBuf {
        self.config.join("banger/ssh_config")
    }

    /// Returns banger's file with the keys of hosts.
    pub fn our_known_hosts(&self) -> PathBuf {
        self.config.join("banger/ssh_known_hosts")
    }

    /// Returns the key for sandboxes.
    pub fn identity(&self) -> PathBuf {
        self.data.join("banger/id_ed25519")
    }

    /// Returns a path in ssh's notation: `~/…` if it is in the home directory.
    pub fn short(&self, path: &Path) -> String {
        match path.strip_prefix(&self.home) {
            Ok(inside) => format!("~/{}", inside.display()),
            Err(_) => path.display().to_string(),
        }
    }
}
