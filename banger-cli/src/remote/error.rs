//! What can go wrong on the way to a remote host.

use std::{fmt, io};

use super::{server::Server, wire};
use crate::ui::sanitize;

/// What ssh said, in its own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said(String);

/// How much of it is shown.
const MAX_SAID: usize = 1000;

impl Said {
    /// Returns what is in the standard error of a process.
    pub fn new(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let lines: Vec<String> = text
            .lines()
            .map(|line| sanitize::line(line).trim().to_owned())
            .filter(|line| !line.trim_matches('@').is_empty())
            .collect();
        let mut said = lines.join("; ");
        if let Some((cut, _)) = said.char_indices().nth(MAX_SAID) {
            said.truncate(cut);
        }
        if said.is_empty() {
            said.push_str("ssh did not say why");
        }
        Self(said)
    }

    /// Returns whether this is part of it.
    pub fn contains(&self, text: &str) -> bool {
        self.0.contains(text)
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Said {}

/// An error on the way to a remote host.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no ssh.
    #[error("cannot run ssh")]
    NoSsh(#[source] io::Error),
    /// ssh cannot connect or log in.
    #[error("cannot reach {server}")]
    Unreachable {
        /// The host.
        server: Server,
        /// Why.
        #[source]
        said: Said,
    },
    /// There is no banger.
    #[error("banger is not installed on {0}")]
    NotInstalled(Server),
    /// banger there knows nothing of remote hosts.
    #[error("banger on {0} is too old to be used from another host")]
    TooOld(Server),
    /// banger there has another version of the protocol.
    #[error(
        "banger on {server} has version {version}, which the local version {} cannot talk to",
        env!("CARGO_PKG_VERSION")
    )]
    OtherVersion {
        /// The host.
        server: Server,
        /// The version there.
        version: String,
    },
    /// The service there lacks what was asked for.
    #[error(
        "the banger service on {server} cannot do this: it has version {version} (API level {level}), and this \
         command {}",
        env!("CARGO_PKG_VERSION")
    )]
    OtherService {
        /// The host.
        server: Server,
        /// The version there.
        version: String,
        /// Its level.
        level: u64,
    },
    /// The login shell printed something.
    #[error("unexpected output of the login shell on {server}: {line}")]
    Noise {
        /// The host.
        server: Server,
        /// The line.
        line: String,
    },
    /// The connection broke.
    #[error("lost the connection to {server}")]
    Lost {
        /// The host.
        server: Server,
        /// Why.
        #[source]
        said: Said,
    },
    /// There is no system bus.
    #[error("cannot reach the system bus of {server}: {message}")]
    NoBus {
        /// The host.
        server: Server,
        /// Why.
        message: String,
    },
    /// Data of a call could not be sent or received.
    #[error("cannot pass {what} {to_or_from} {server}")]
    Passing {
        /// The data.
        what: &'static str,
        /// The direction.
        to_or_from: &'static str,
        /// The host.
        server: Server,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// An object there has a name, an id or a key that none can have.
    #[error("{0} sent an invalid name, id or key of an object")]
    NotPlain(Server),
    /// There is no place for the socket of ssh.
    #[error("cannot keep the socket of ssh in {directory}")]
    NoPlace {
        /// The directory.
        directory: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Returns the error for the end of a channel before its greeting.
    pub fn of_end(server: &Server, status: Option<i32>, said: Said) -> Self {
        let server = server.clone();
        match status {
            // Its own status for failures of its own (ssh(1)).
            Some(255) => Self::Unreachable { server, said },
            // A shell that finds no program (POSIX, 2.8.2).
            Some(127) => Self::NotInstalled(server),
            Some(2) if said.contains("remote-proxy") => Self::TooOld(server),
            _ => Self::Lost { server, said },
        }
    }

    /// Returns what can be done.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoSsh(_) => {
                "install the ssh client: the package openssh-client or openssh-clients.".to_owned()
            }
            Self::Unreachable { server, said } => unreachable(server, said),
            Self::NotInstalled(server) => format!(
                "install the package banger there; `ssh {} banger version` shows whether it is found.",
                server.login()
            ),
            Self::TooOld(_) | Self::OtherVersion { .. } => {
                "install the same version of banger on both hosts; `banger version` shows the local one."
                    .to_owned()
            }
            Self::Noise { server, .. } => format!(
                "`ssh {} true` must print nothing: keep the shell's start files silent without a terminal.",
                server.login()
            ),
            Self::Lost { server, .. } => format!(
                "sandboxes there keep running, except those that end with this command; try again, or see \
                 `ssh {} banger doctor`.",
                server.login()
            ),
            Self::OtherService { server, .. } => format!(
                "upgrade banger there; after an upgrade, `ssh -t {} sudo systemctl restart banger-system` starts the new \
                 service, and sandboxes keep running.",
                server.login()
            ),
            Self::NoBus { server, .. } => {
                format!("`ssh {} systemctl status dbus` shows whether it is running.", server.login())
            }
            Self::NoPlace { .. } => {
                "set XDG_RUNTIME_DIR to a directory of yours with a short path.".to_owned()
            }
            Self::NotPlain(server) => {
                format!(
                    "make sure that you trust the host; `ssh {} banger version` shows its version.",
                    server.login()
                )
            }
            Self::Passing { .. } => return None,
        };
        Some(hint)
    }
}

fn unreachable(server: &Server, said: &Said) -> String {
    let login = server.login();
    match () {
        () if said.contains("REMOTE HOST IDENTIFICATION HAS CHANGED") => {
            format!(
                "make sure that it is the right host before you remove its old key with `ssh-keygen -R {}`.",
                server.host()
            )
        }
        () if said.contains("Host key verification failed") => {
            format!("`ssh {login}` shows the key of the host and asks whether to accept it.")
        }
        () if said.contains("Permission denied") => format!(
            "`ssh-copy-id {login}` installs a key; `ssh-add` unlocks it where ssh cannot ask for its passphrase."
        ),
        () if said.contains("Could not resolve hostname") => {
            "check the name of the host; `banger context list` shows your contexts.".to_owned()
        }
        () => format!("`ssh -v {login}` shows more."),
    }
}

/// Returns the hint for a call that needs a password or another group there.
pub fn access_hint(server: &Server) -> String {
    let login = server.login();
    format!(
        "members of the group banger on that host need no password: there, `sudo usermod -aG banger USER` adds one. \
         `ssh -t {login} banger COMMAND` can ask for a password."
    )
}

/// Makes the commands of a hint that are about the host run there.
pub fn hint_there(server: &Server, hint: &str) -> String {
    let login = server.login();
    ["sudo ", "journalctl ", "systemctl "].into_iter().fold(hint.to_owned(), |hint, command| {
        hint.replace(&format!("`{command}"), &format!("`ssh -t {login} {command}"))
    })
}

/// Returns the error for a greeting with another protocol.
pub fn check_protocol(server: &Server, greeting: &wire::Greeting) -> Result<(), Error> {
    match greeting.protocol {
        wire::PROTOCOL => Ok(()),
        _ => {
            let version = sanitize::line(&greeting.version);
            Err(Error::OtherVersion { server: server.clone(), version })
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ui::wording::{check, shown};

    #[test]
    fn errors_of_remote_hosts() {
        let server = || "ssh://alice@lab".parse::<Server>().unwrap();
        let ended = |status, said: &str| {
            crate::error::Error::from(Error::of_end(&server(), status, Said::new(said.as_bytes())))
        };
        let errors = [
            ("no ssh", Error::NoSsh(io::ErrorKind::NotFound.into()).into()),
            (
                "no such host",
                ended(Some(255), "ssh: Could not resolve hostname lab: Name or service not known\r\n"),
            ),
            ("refused", ended(Some(255), "ssh: connect to host lab port 22: Connection refused\r\n")),
            ("no key", ended(Some(255), "Warning: x.\nalice@lab: Permission denied (publickey).\n")),
            ("unknown host key", ended(Some(255), "Host key verification failed.\n")),
            ("silent", ended(Some(255), "")),
            ("no banger", ended(Some(127), "sh: 1: banger: not found\n")),
            ("old banger", ended(Some(2), "error: unrecognized subcommand 'remote-proxy'\n")),
            ("killed", ended(None, "Connection to lab closed by remote host.\n")),
            ("other version", Error::OtherVersion { server: server(), version: "9.0.0".to_owned() }.into()),
            (
                "other service",
                Error::OtherService { server: server(), version: "0.0.9".to_owned(), level: 3 }.into(),
            ),
            ("no bus", Error::NoBus { server: server(), message: "Connection refused".to_owned() }.into()),
            ("noise", Error::Noise { server: server(), line: "Welcome!".to_owned() }.into()),
            (
                "no place",
                Error::NoPlace {
                    directory: "/long".to_owned(),
                    source: io::Error::other("its path is too long"),
                }
                .into(),
            ),
        ];
        check("errors_of_remote_hosts", &shown(errors));
    }

    #[test]
    fn hints_about_the_host_are_about_that_host() {
        let server = "ssh://alice@lab:2222".parse().unwrap();
        assert_eq!(
            hint_there(&server, crate::ui::hint::NO_SERVICE),
            "`ssh -t -p 2222 alice@lab sudo systemctl start banger-system` starts it; `ssh -t -p 2222 alice@lab journalctl -u \
             banger-system` shows why it does not start."
        );
        assert_eq!(hint_there(&server, "`banger vm list` shows them."), "`banger vm list` shows them.");
    }

    #[test]
    fn another_protocol_is_refused_with_its_version() {
        let greeting =
            |protocol| wire::Greeting { protocol, version: "9.0.0".to_owned(), uid: 1, architecture: None };
        let server = "ssh://lab".parse().unwrap();
        assert!(check_protocol(&server, &greeting(wire::PROTOCOL)).is_ok());
        let error = check_protocol(&server, &greeting(wire::PROTOCOL + 1)).unwrap_err();
        assert!(error.to_string().contains("9.0.0"), "{error}");
        assert_eq!(crate::error::Error::from(error).code(), "other-version");
    }
}
