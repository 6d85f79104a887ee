//! The messages that frames carry.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Signs of life that may be missed.
const MISSED: u64 = 6;

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
        /// What becomes of what is there.
        #[serde(default, skip_serializing_if = "Placement::is_default")]
        placement: Placement,
    },
    /// Unpack the tar archive that follows as input, as a copy. Answered by remarks, which are lines of error output,
    /// and `Done`.
    CopyIn(CopyIn),
    /// Send a file or directory as a tar archive. Answered by output, remarks, which are lines of error output, and
    /// `Done`.
    CopyOut(CopyOut),
    /// Tell what is below this directory, but for what is called `.git`. Answered by output, an
    /// [`super::listing::Entry`] after the other, and `Done`.
    List {
        /// An absolute path.
        directory: String,
    },
    /// Tell the digests of the files whose names follow as input, each with a zero byte behind it. Answered by
    /// output, a line of `DIGEST` or `-` for each name in its order, and `Done`.
    Digest {
        /// An absolute path; the names are relative to it.
        directory: String,
        /// The hash.
        algorithm: Algorithm,
    },
    /// Send the files whose names follow as input, as a tar archive. Those that are not there are left out.
    /// Answered by output and `Done`.
    GetFiles {
        /// An absolute path; the names are relative to it.
        directory: String,
    },
    /// Remove the files whose names follow as input, and directories that are empty then. Answered by `Done`.
    Remove {
        /// An absolute path; the names are relative to it.
        directory: String,
    },
    /// Connect to this. Answered by `Started` with the process id 0, then bytes both ways until both sides have
    /// ended, and `Done`; or by `Failed`, also later when the connection was reset. A host that hangs up before both
    /// sides have ended resets the connection.
    Connect(Endpoint),
    /// Listen on this. Answered by `Started`, and by a line of output with a number for each connection that
    /// comes, which waits for an `Accept`. Ends with the stream.
    Listen(Endpoint),
    /// Take the connection of this number. Answered as `Connect` is.
    Accept(u64),
    /// Tell what listens. Answered by output, an array of [`super::facts::ListeningPort`] in JSON, and `Done`.
    Ports,
    /// Tell how the guest is. Answered by output, a [`super::facts::Stats`] in JSON, and `Done`.
    Stats,
    /// Set the clock. Answered by `Done`.
    SetTime {
        /// Microseconds since the Unix epoch.
        unix_usec: u64,
    },
    /// Wait until the guest has come so far. Answered by `Done`; or by `Failed`, when that takes too long.
    Wait(Phase),
    /// Tell the time, so that the host can compare it with its own. Answered by output: microseconds since the Unix
    /// epoch in decimal digits, at once and again for each empty input. Other input is a [`Correction`] in JSON,
    /// which is applied. Its answer, and that to the end of the input, is `Done`.
    Clock,
    /// Tell of the commands that were detached. Answered by output, an array of [`super::facts::Detached`] in JSON, and
    /// `Done`.
    Detached,
    /// Send what a detached command wrote. Answered by output, remarks on what is not kept, which are lines of error
    /// output, and `Done`.
    DetachedLog(DetachedLog),
    /// End the detached command of this number, and all that it started. Answered by `Done` once it has ended.
    StopDetached(u64),
}

/// What is read of what a detached command wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DetachedLog {
    /// The number of the command.
    pub id: u64,
    /// The last so many lines; all that is kept when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<u32>,
    /// Whether to go on with what it writes, until it has ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follow: bool,
}

/// How far a guest has come since its kernel began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Its agent answers.
    Agent,
    /// The early part of its boot is over: file systems are mounted, and what was left in `/tmp` is gone.
    #[default]
    Init,
    /// Its init has started everything that it starts at boot.
    Boot,
}

impl Phase {
    /// Whether this is what a command waits for when nobody says.
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// When a guest reached its phases, in microseconds since its kernel began. Absent for those that it has not reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Phases {
    /// [`Phase::Agent`].
    #[serde(default)]
    pub agent: Option<u64>,
    /// [`Phase::Init`].
    #[serde(default)]
    pub init: Option<u64>,
    /// [`Phase::Boot`].
    #[serde(default)]
    pub boot: Option<u64>,
}

/// A change of the guest's clock, relative, so that the time that the request takes does not matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Correction {
    /// What is added to the guest's time, in microseconds.
    pub offset_usec: i64,
    /// How fast.
    pub pace: Pace,
}

/// How fast a clock is corrected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pace {
    /// At once.
    Step,
    /// By half a millisecond each second, as adjtime(3) does, so that time never runs backwards.
    Slew,
}

/// Where a copy goes. A path is absolute, or begins with `~` or `~USER` for the home of the user that commands run as,
/// or of another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CopyIn {
    /// Where: below a directory that exists or whose path ends in a slash, else under this very path.
    pub to: String,
    /// The one name that all names in the archive begin with; absent where the archive is the content of a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top: Option<String>,
    /// Who owns the copy.
    #[serde(default)]
    pub owner: CopyOwner,
}

/// What is copied; paths are those of [`CopyIn`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CopyOut {
    /// What.
    pub path: String,
    /// The one name that all names in the archive begin with; absent for the content of a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top: Option<String>,
    /// Whether what symbolic links lead to is sent instead of the links.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follow: bool,
}

/// Who owns a copy in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyOwner {
    /// The user that commands run as.
    #[default]
    Login,
    /// `USER` or `USER:GROUP`, by name or number.
    User(String),
    /// The users and groups in the archive.
    Archive,
}

/// What becomes of what is in a directory when an archive is unpacked there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// It stays, but for files of the same names.
    #[default]
    Merge,
    /// There must be nothing. The directory is there when all of the archive is.
    New,
    /// It is gone when all of the archive is there, and stays as it was until then.
    Replace,
}

impl Placement {
    /// Whether an agent that knows of no placement does the same.
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A hash, as git names blobs with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// SHA-1, of most repositories.
    Sha1,
    /// SHA-256.
    Sha256,
}

/// Where a stream begins or ends in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoint {
    /// A host, a name or an address, and a port.
    Tcp(String, u16),
    /// A socket file, an absolute path.
    Unix(String),
}

/// A command.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Exec {
    /// The program and its arguments; the user's login shell when empty.
    pub argv: Vec<String>,
    /// Whether `argv` are arguments of the image's own program, in the place of those that the image has for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub of_image: bool,
    /// Variables beyond those of a login.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Where it runs; the image's directory, else the user's home, when absent.
    #[serde(default)]
    pub cwd: Option<String>,
    /// A login name or number; the image's user, else root, when absent.
    #[serde(default)]
    pub user: Option<String>,
    /// The terminal that it runs in; pipes when absent.
    #[serde(default)]
    pub terminal: Option<Terminal>,
    /// Whether it goes on without us. It has no input, and what it writes is kept in the guest. Answered by output, its
    /// number in decimal digits, and `Done` once it runs.
    #[serde(default)]
    pub detach: bool,
    /// `LANG` and `LC_*` of the user. Those that the guest does not have are left out, as are all when the image or
    /// `env` has any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locale: Vec<(String, String)>,
    /// How far the guest must have come before it begins.
    #[serde(default, skip_serializing_if = "Phase::is_default")]
    pub wait: Phase,
}

impl Exec {
    /// Variables in `locale` that are heeded at most.
    pub const MAX_LOCALE: usize = 16;
}

/// Whether this can be in [`Exec::locale`]: `LANG` or `LC_*`, and a name such as `de_DE.UTF-8@euro`.
pub fn is_locale(name: &str, value: &str) -> bool {
    let is_category =
        |rest: &str| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    let is_name = name == "LANG" || name.strip_prefix("LC_").is_some_and(is_category);
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_-.@+".contains(&b);
    // A name that is one of a directory's own would be found everywhere.
    let is_value = (1..=64).contains(&value.len()) && value.bytes().all(allowed) && !value.starts_with('.');
    is_name && name.len() <= 32 && is_value
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
    /// The agent sends something at least this often, in seconds, if only an empty `Window`; 0 where it does not promise
    /// that.
    #[serde(default)]
    pub alive_sec: u32,
}

impl Started {
    /// The command or connection runs, and the agent promises nothing.
    pub const fn new(pid: u32) -> Self {
        Self { pid, alive_sec: 0 }
    }

    /// How long nothing may come before the agent counts as gone: several signs of life may be missed, because the guest
    /// may be busy, and so may its host.
    pub fn patience(self) -> Option<Duration> {
        (self.alive_sec > 0).then(|| Duration::from_secs(u64::from(self.alive_sec) * MISSED))
    }
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
    /// Whether the guest is shutting down.
    #[serde(default)]
    pub stopping: bool,
    /// When it reached its phases; an agent of an earlier version tells none.
    #[serde(default)]
    pub phases: Phases,
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
    /// The other side of a connection has reset it.
    Reset,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_of_locales_are_plain() {
        for (name, value, expect) in [
            ("LANG", "en_US.UTF-8", true),
            ("LC_ALL", "C", true),
            ("LC_MONETARY", "de_DE.ISO-8859-15@euro", true),
            ("LANGUAGE", "de:en", false),
            ("LC_", "C", false),
            ("LC_ALL", "", false),
            ("LC_ALL", "../../etc", false),
            ("LC_ALL", "..", false),
            ("LC_ALL", "a b", false),
            ("LC_all", "C", false),
            ("PATH", "C", false),
        ] {
            assert_eq!(is_locale(name, value), expect, "{name}={value}");
        }
    }
}
