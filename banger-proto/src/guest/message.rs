//! The messages that frames carry.

use serde::{Deserialize, Serialize};

/// What the host wants of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Run a command. Answered by `Started`, output, and `Exit`; or by `Failed`.
    Exec(Exec),
    /// Write all data to the disks, say `Done`, and power off.
    Shutdown,
    /// Tell about the guest. Answered by `Info`.
    Info,
    /// Unpack the tar archive that follows as input below this directory. Answered by `Done`.
    PutTar {
        /// An absolute path; it is made where it is missing.
        directory: String,
    },
    /// Send this file or directory as a tar archive. Answered by output and `Done`.
    GetTar {
        /// An absolute path.
        path: String,
    },
    /// Set the clock. Answered by `Done`.
    SetTime {
        /// Microseconds since the Unix epoch.
        unix_usec: u64,
    },
}

/// A command.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Exec {
    /// The program and its arguments; the user's login shell when empty.
    pub argv: Vec<String>,
    /// Variables beyond those of a login.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Where it runs; the user's home when absent.
    #[serde(default)]
    pub cwd: Option<String>,
    /// A login name or number; root when absent.
    #[serde(default)]
    pub user: Option<String>,
    /// The terminal that it runs in; pipes when absent.
    #[serde(default)]
    pub terminal: Option<Terminal>,
    /// Whether it goes on without us: no input, no output, `Done` once it runs.
    #[serde(default)]
    pub detach: bool,
}

/// A terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Terminal {
    /// Its kind, for `TERM`.
    pub term: String,
    /// Its size.
    pub size: WindowSize,
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

/// The command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its process id in the guest.
    pub pid: u32,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// With this status.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

impl Exit {
    /// The status that a shell would report.
    pub const fn status(self) -> u8 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128u8.saturating_add(signal),
        }
    }
}

/// The facts of a guest. The host trusts none of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GuestInfo {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// What `uname -r` prints.
    pub kernel_release: String,
    /// The agent's version.
    pub agent_version: String,
    /// What went wrong on the way up; empty when all went well.
    #[serde(default)]
    pub problems: Vec<String>,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Failure {
    /// What kind of failure.
    pub kind: FailureKind,
    /// One line for people.
    pub message: String,
}

/// A kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// There is no such program, user or file.
    NotFound,
    /// It is there, and cannot be run or read.
    NotPermitted,
    /// The request makes no sense.
    BadRequest,
    /// Something else.
    Other,
}

impl FailureKind {
    /// The status with which a shell would end for this failure of a command.
    pub const fn status(self) -> u8 {
        match self {
            FailureKind::NotFound => 127,
            _ => 126,
        }
    }
}
