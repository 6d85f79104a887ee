//! The messages that frames carry.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{mount::Mount, terminfo::TerminalType};

/// Heartbeats that may be missed before the agent counts as gone.
const MISSED_HEARTBEATS: u64 = 6;

/// A request of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Run a command. Answered by `Started`, output, and `Exit`; or by `Failed`.
    Exec(Exec),
    /// Write all data to the disks, say `Done`, and power off.
    Shutdown,
    /// Report facts about the guest. Answered by `Info`.
    Info,
    /// Unpack the tar archive that follows as input into this directory. Answered by `Done`.
    PutTar {
        /// An absolute path; created if missing.
        directory: String,
        /// What happens to existing files.
        #[serde(default, skip_serializing_if = "Placement::is_default")]
        placement: Placement,
    },
    /// Unpack the tar archive that follows as input, as a copy. Answered by notes, one per line of error output, and
    /// `Done`.
    CopyIn(CopyIn),
    /// Send a file or directory as a tar archive. Answered by output, notes, one per line of error output, and
    /// `Done`.
    CopyOut(CopyOut),
    /// List everything below this directory, except `.git`. Answered by output, a sequence of
    /// [`super::listing::Entry`], and `Done`.
    List {
        /// An absolute path.
        directory: String,
    },
    /// Send the digests of the files whose names follow as input, each terminated by a zero byte. Answered by output,
    /// one line with `DIGEST` or `-` for each name in the same order, and `Done`.
    Digest {
        /// An absolute path; the names are relative to it.
        directory: String,
        /// The hash.
        algorithm: Algorithm,
    },
    /// Send the files whose names follow as input, as a tar archive. Missing files are left out. Answered by output
    /// and `Done`.
    GetFiles {
        /// An absolute path; the names are relative to it.
        directory: String,
    },
    /// Remove the files whose names follow as input, and directories that become empty. Answered by `Done`.
    Remove {
        /// An absolute path; the names are relative to it.
        directory: String,
    },
    /// Connect to this endpoint. Answered by `Started` with the process id 0, then bytes in both directions until
    /// both sides have ended, and `Done`; or by `Failed`, also later if the connection was reset. A host that hangs
    /// up before both sides have ended resets the connection.
    Connect(Endpoint),
    /// Listen on this endpoint. Answered by `Started`, and by one line of output with a number for each incoming
    /// connection, which waits for an `Accept`. Ends with the stream.
    Listen(Endpoint),
    /// Take over the incoming connection with this number. Answered as `Connect` is.
    Accept(u64),
    /// Offer a credential helper to clients of registries. Answered by `Started`. It goes with the stream.
    RegistryHelper(RegistryHelper),
    /// List listening sockets. Answered by output, an array of [`super::facts::ListeningPort`] in JSON, and `Done`.
    Ports,
    /// Report resource usage. Answered by output, a [`super::facts::Stats`] in JSON, and `Done`.
    Stats,
    /// Report whether anybody uses the guest. Answered by output, a [`super::facts::Use`] in JSON, and `Done`.
    Use,
    /// Set the clock. Answered by `Done`.
    SetTime {
        /// Microseconds since the Unix epoch.
        unix_usec: u64,
    },
    /// Wait until the guest has reached this phase. Answered by `Done`, or by `Failed` after a timeout.
    Wait(Phase),
    /// Report the time, so that the host can compare it with its own. Answered by output: microseconds since the Unix
    /// epoch in decimal digits, at once and again for each empty input. Other input is a [`Correction`] in JSON,
    /// which the agent applies and answers with `Done`. The end of the input is answered by `Done`, too.
    Clock,
    /// Make programs in the guest know a terminal. Answered by output, the value of `TERM` for commands, and `Done`.
    Terminal(TerminalType),
    /// List detached commands. Answered by output, an array of [`super::facts::Detached`] in JSON, and `Done`.
    Detached,
    /// Attach to a session: a detached command with a name and an input. Another attached host gets `Failed`. Answered as
    /// `Exec` is, with the end of the earlier output first. When the host hangs up, the command runs on.
    Attach(Attach),
    /// Send the output of a detached command. Answered by output, notes about dropped output, one per line of error
    /// output, and `Done`.
    DetachedLog(DetachedLog),
    /// Wait until the detached command with this number has ended. Answered by `Exit`.
    WaitDetached(u64),
    /// Stop the detached command with this number, and everything that it started. Answered by `Done` once it has
    /// ended.
    StopDetached(u64),
    /// Freeze all processes but the agent, the first one and threads of the kernel, and write all data to the disks.
    /// Answered by `Done`; by `Failed` if that takes too long, and then nothing is frozen. Stays in effect until `Thaw`,
    /// also in the children of a capture. A repeat is safe.
    Freeze,
    /// Let the processes continue that `Freeze` has stopped. Answered by `Done`. A repeat is safe.
    Thaw,
    /// Prepare the system disk for an image: copy the work disk to the directory that it hides, and remove what
    /// identifies this guest. Answered by `Done`. The guest should be shut down next.
    PrepareCommit,
    /// List the entries of a directory whose names begin with a text. Answered by output, a bounded array of names in
    /// JSON, directories with a slash at the end, and `Done`. A directory that cannot be read has none.
    Complete {
        /// A path as in [`CopyOut`]; the text is what follows its last slash.
        path: String,
    },
    /// Mount a directory that the host serves. Answered by `Started` with the process id 0, then by output: a line with
    /// an [`Owner`](super::mount::Owner) in JSON, and messages of FUSE, which the host answers by input. Ends with the
    /// stream; then the directory is unmounted, and files that are open there fail.
    Mount(Mount),
}

impl Request {
    /// Returns whether a client asks for facts that the agent has at once. Such a request does not use the guest.
    pub const fn is_question(&self) -> bool {
        matches!(self, Self::Info | Self::Ports | Self::Stats | Self::Detached | Self::Complete { .. })
    }
}

/// A credential helper for docker, podman and skopeo, which asks the host over the socket file `socket` in its directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RegistryHelper {
    /// An absolute path in a file system in memory; nothing may be there.
    pub directory: String,
    /// The keys of registries in configurations.
    pub registries: Vec<String>,
    /// The user who may use it, by name or number.
    pub user: String,
}

/// A session to attach to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Attach {
    /// Its name.
    pub session: String,
    /// The size of the host's terminal, if it has one.
    #[serde(default)]
    pub size: Option<WindowSize>,
}

/// Which output of a detached command to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DetachedLog {
    /// The number of the command.
    pub id: u64,
    /// Only this many of the last lines; everything that is kept when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<u32>,
    /// Whether to continue with new output until the command has ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follow: bool,
}

/// A phase of the guest's boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The agent answers.
    Agent,
    /// The early part of the boot is over: file systems are mounted, and `/tmp` is cleaned.
    #[default]
    Init,
    /// The init has started everything that it starts at boot.
    Boot,
}

impl Phase {
    /// Returns whether this is the default phase that commands wait for.
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// When a guest reached its phases, in microseconds since the kernel started. Absent for phases not reached yet.
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

/// A change of the guest's clock. It is relative, so that the duration of the request does not matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Correction {
    /// Microseconds to add to the guest's time.
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

/// The destination of a copy. A path is absolute, or begins with `~` or `~USER` for the home of the default user or
/// of another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CopyIn {
    /// The path. The copy goes into it if it is an existing directory or ends in a slash, and else gets this path.
    pub to: String,
    /// The name that all names in the archive begin with; absent if the archive is the content of a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top: Option<String>,
    /// Who owns the copy.
    #[serde(default)]
    pub owner: CopyOwner,
}

/// The source of a copy; paths are those of [`CopyIn`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CopyOut {
    /// The path.
    pub path: String,
    /// The name that all names in the archive begin with; absent for the content of a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top: Option<String>,
    /// Whether to follow symbolic links instead of sending them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follow: bool,
}

/// Who owns a copy in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyOwner {
    /// The default user of commands.
    #[default]
    Login,
    /// `USER` or `USER:GROUP`, by name or number.
    User(String),
    /// The users and groups in the archive.
    Archive,
}

/// What happens to existing files when an archive is unpacked into a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// They stay, except for files with the same names.
    #[default]
    Merge,
    /// The directory must be missing or empty. It appears when the whole archive has arrived.
    New,
    /// They are replaced when the whole archive has arrived, and stay until then.
    Replace,
}

impl Placement {
    /// Returns whether an agent without support for placements does the same.
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A hash function that git uses for object names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// SHA-1, of most repositories.
    Sha1,
    /// SHA-256.
    Sha256,
}

/// An endpoint of a connection in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoint {
    /// A host, as name or address, and a port.
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
    /// Whether `argv` are arguments for the image's entry point, instead of the image's own arguments.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub of_image: bool,
    /// Variables in addition to those of a login.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Variables of a login or of the image that it does not get, unless `env` sets them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unset: Vec<String>,
    /// Directories that its search path begins with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub path: Vec<String>,
    /// The working directory; the image's directory, else the user's home, when absent.
    #[serde(default)]
    pub cwd: Option<String>,
    /// A login name or number; the image's user, else root, when absent.
    #[serde(default)]
    pub user: Option<String>,
    /// The terminal to run in; pipes when absent.
    #[serde(default)]
    pub terminal: Option<Terminal>,
    /// Whether to detach it. It has no input, and its output is kept in the guest. Answered by output, its number in
    /// decimal digits, and `Done` once it runs.
    #[serde(default)]
    pub detach: bool,
    /// Whether the guest powers off once the detached command has ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub power_off: bool,
    /// `LANG` and `LC_*` of the user. Locales that the guest does not have are left out; all are left out if the
    /// image or `env` sets any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locale: Vec<(String, String)>,
    /// The boot phase to wait for.
    #[serde(default, skip_serializing_if = "Phase::is_default")]
    pub wait: Phase,
    /// The name of the session to run it in, which continues when the host hangs up. Without `argv`, the host is attached
    /// to a session of this name that runs already. Its errors are part of its output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

impl Exec {
    /// Limit on the variables in `locale`; more are ignored.
    pub const MAX_LOCALE: usize = 16;
}

/// Limit on the name of a session.
const MAX_SESSION_NAME: usize = 64;

/// Returns whether this is valid in [`Exec::session`]: letters, digits, and `.`, `_`, `-` after the first of them.
pub fn is_session_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    name.len() <= MAX_SESSION_NAME
        && name.bytes().all(allowed)
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
}

/// Returns whether this is valid in [`Exec::locale`]: `LANG` or `LC_*`, and a name such as `de_DE.UTF-8@euro`.
pub fn is_locale(name: &str, value: &str) -> bool {
    let is_category =
        |rest: &str| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    let is_name = name == "LANG" || name.strip_prefix("LC_").is_some_and(is_category);
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_-.@+".contains(&b);
    // The names `.` and `..` would be found everywhere.
    let is_value = (1..=64).contains(&value.len()) && value.bytes().all(allowed) && !value.starts_with('.');
    is_name && name.len() <= 32 && is_value
}

/// A terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Terminal {
    /// The value of `TERM`.
    pub term: String,
    /// Its size.
    pub size: WindowSize,
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct WindowSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// The reply to a command or connection that has started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its process id in the guest.
    pub pid: u32,
    /// The agent sends a frame at least this often, in seconds, if only an empty `Window`; 0 if it does not promise
    /// that.
    #[serde(default)]
    pub alive_sec: u32,
}

impl Started {
    /// Creates a reply without a heartbeat promise.
    pub const fn new(pid: u32) -> Self {
        Self { pid, alive_sec: 0 }
    }

    /// Returns how long the agent may be silent before it counts as gone. Several heartbeats may be missed, because
    /// the guest or its host may be busy.
    pub fn silence_limit(self) -> Option<Duration> {
        (self.alive_sec > 0).then(|| Duration::from_secs(u64::from(self.alive_sec) * MISSED_HEARTBEATS))
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
    /// Returns the status that a shell would report.
    pub const fn status(self) -> u8 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128u8.saturating_add(signal),
        }
    }
}

/// Facts about a guest. The host trusts none of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GuestInfo {
    /// `/proc/sys/kernel/random/boot_id`. Empty before the configuration has arrived: the kernel draws it when it is
    /// first read.
    pub boot_id: String,
    /// What `uname -r` prints.
    pub kernel_release: String,
    /// The agent's version.
    pub agent_version: String,
    /// Problems during the boot; empty if there were none.
    #[serde(default)]
    pub problems: Vec<String>,
    /// Whether the guest is shutting down.
    #[serde(default)]
    pub stopping: bool,
    /// When it reached its phases; older agents do not report them.
    #[serde(default)]
    pub phases: Phases,
    /// Whether drivers have found a disk or a network interface before the configuration arrived. An agent that is
    /// configured reports `false`.
    #[serde(default)]
    pub early_devices: bool,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Failure {
    /// What kind of failure.
    pub kind: FailureKind,
    /// A message in one line.
    pub message: String,
}

/// A kind of failure, for programs: they act on it and never on the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The program, user or file does not exist.
    NotFound,
    /// It exists, but cannot be run or read.
    NotPermitted,
    /// The request is invalid.
    BadRequest,
    /// The peer has reset the connection.
    Reset,
    /// Something exists where nothing may be.
    AlreadyExists,
    /// The working directory of a command does not exist.
    NoDirectory,
    /// A disk of the guest is full.
    NoSpace,
    /// Something else; also any kind of a newer agent that this program does not know.
    #[serde(other)]
    Other,
}

impl FailureKind {
    /// Returns the exit status of a shell for this failure of a command.
    pub const fn status(self) -> u8 {
        match self {
            FailureKind::NotFound => 127,
            _ => 126,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn kinds_of_failures_have_fixed_names_and_unknown_ones_are_general() {
        let read = |kind: &str| {
            let failure: Failure =
                serde_json::from_str(&format!(r#"{{"kind":"{kind}","message":"m"}}"#)).unwrap();
            assert_eq!(failure.message, "m");
            failure.kind
        };
        for (name, kind, status) in [
            ("not-found", FailureKind::NotFound, 127),
            ("not-permitted", FailureKind::NotPermitted, 126),
            ("bad-request", FailureKind::BadRequest, 126),
            ("reset", FailureKind::Reset, 126),
            ("already-exists", FailureKind::AlreadyExists, 126),
            ("no-directory", FailureKind::NoDirectory, 126),
            ("no-space", FailureKind::NoSpace, 126),
            ("other", FailureKind::Other, 126),
        ] {
            assert_eq!(read(name), kind);
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("{name:?}"));
            assert_eq!(kind.status(), status, "{name}");
        }
        assert_eq!(read("of-a-newer-agent"), FailureKind::Other);
    }

    #[test]
    fn names_of_sessions_are_checked() {
        let (longest, longer) = ("x".repeat(64), "x".repeat(65));
        for (name, expect) in [
            ("work", true),
            ("3", true),
            ("a.b_c-D", true),
            (longest.as_str(), true),
            (longer.as_str(), false),
            ("", false),
            ("-d", false),
            (".", false),
            ("a b", false),
            ("a/b", false),
            ("a\n", false),
            ("é", false),
        ] {
            assert_eq!(is_session_name(name), expect, "{name:?}");
        }
    }

    #[test]
    fn names_and_values_of_locales_are_checked() {
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
