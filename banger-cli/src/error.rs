//! Errors of the client, printed as a sentence, the causes, and a hint.

use std::{error::Error as _, io};

use banger_proto::{
    bus::ErrorName,
    causes::without_codes,
    guest::{Failure, FailureKind},
};
use zbus::{DBusError, fdo};

use crate::{
    error_file,
    guest::attach,
    remote,
    ui::{hint, sanitize},
};

/// Exit status of `run` and `exec` when banger itself fails, to distinguish that from the command's status.
pub const OWN_FAILURE: u8 = 125;
/// Exit status of any other command that fails.
pub const FAILURE: u8 = 1;
/// Exit status for an invalid command line, the same as the argument parser's.
const USAGE: u8 = 2;

/// Placeholder for the name of an object in a hint.
const PLACEHOLDER: &str = "NAME";

/// An error of the client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The service refused or failed, with a known error name.
    #[error("{message}")]
    Service {
        /// The name of the error.
        name: ErrorName,
        /// The message of the service.
        message: String,
    },
    /// The bus or the service replied with an unknown error.
    #[error("{message} ({name})")]
    Foreign {
        /// The name of the error.
        name: String,
        /// The message.
        message: String,
    },
    /// There is no system bus.
    #[error("cannot reach the system bus")]
    NoBus(#[source] Box<zbus::Error>),
    /// The service is not running and cannot be started.
    #[error("the banger service is not running and cannot be started: {message}")]
    NoService {
        /// The message of the bus.
        message: String,
    },
    /// The service ended during a call.
    #[error("the banger service ended before it answered")]
    ServiceEnded,
    /// The service does not support the call.
    #[error("the banger service has another version than this command: {message}")]
    OtherVersion {
        /// The message of the service.
        message: String,
    },
    /// The bus connection failed in another way.
    #[error("cannot talk to the banger service")]
    Bus(#[source] Box<zbus::Error>),
    /// A remote host cannot be used.
    #[error(transparent)]
    Remote(#[from] remote::error::Error),
    /// The guest's agent refused the request.
    #[error("{}", .0.message)]
    Guest(Failure),
    /// A stream to the guest failed.
    #[error("lost the connection to the sandbox")]
    Attach(#[source] attach::Error),
    /// The operating system refused.
    #[error("cannot {doing}")]
    Io {
        /// What was attempted, such as `open FILE`.
        doing: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is not possible in the current state.
    #[error("{0}")]
    Refused(String),
    /// The arguments are invalid: those of a call of a coding agent, or those that the parser refuses.
    #[error("{0}")]
    Arguments(String),
    /// The options of this process forbid it.
    #[error("{0}")]
    NotAllowed(String),
    /// The command line is invalid.
    #[error("{0}")]
    Usage(String),
    /// A signal interrupted the command.
    #[error("interrupted")]
    Interrupted {
        /// The signal.
        signal: u8,
    },
    /// A second signal detached the command from a job of the service.
    #[error("detached after a second interrupt")]
    Detached {
        /// The signal.
        signal: u8,
    },
    /// An error with a more specific hint.
    #[error("{error}")]
    WithHint {
        /// The error.
        error: Box<Error>,
        /// The hint.
        hint: String,
    },
}

/// The result of most of the client.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Returns the error that `doing` failed because of `source`.
    pub fn io(doing: impl Into<String>, source: io::Error) -> Self {
        Self::Io { doing: doing.into(), source }
    }

    /// Returns the error with this name on the bus.
    pub fn named(name: &str, message: impl Into<String>) -> Self {
        let message = message.into();
        if let Some(name) = ErrorName::parse(name) {
            return Self::Service { name, message };
        }
        let standard = name.strip_prefix("org.freedesktop.DBus.Error.").unwrap_or_default();
        match standard {
            "ServiceUnknown" | "NameHasNoOwner" | "TimedOut" => Self::NoService { message },
            _ if standard.starts_with("Spawn.") => Self::NoService { message },
            "NoReply" | "Disconnected" => Self::ServiceEnded,
            "UnknownMethod" | "UnknownInterface" | "UnknownProperty" | "InvalidSignature" => {
                Self::OtherVersion { message }
            }
            _ if name.starts_with("org.freedesktop.systemd1.") => Self::NoService { message },
            _ => Self::Foreign { name: name.to_owned(), message },
        }
    }

    /// Adds a hint, which replaces the default one.
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self::WithHint { error: Box::new(self), hint: hint.into() }
    }

    /// Puts the name of the object into the hint.
    pub fn about(self, reference: &str) -> Self {
        match self.hint() {
            Some(hint) if hint.contains(PLACEHOLDER) => self.with_hint(hint.replace(PLACEHOLDER, reference)),
            _ => self,
        }
    }

    /// Returns whether the hint is about a sandbox, whose name it does not have yet.
    pub fn hints_at_sandbox(&self) -> bool {
        self.hint().is_some_and(|hint| hint.contains(PLACEHOLDER))
    }

    /// Returns the error name of the service, if there is one.
    pub fn name(&self) -> Option<ErrorName> {
        match self {
            Self::Service { name, .. } => Some(*name),
            Self::WithHint { error, .. } => error.name(),
            _ => None,
        }
    }

    /// Returns the hint.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Service { name, .. } => hint::hint(*name, hint::Membership::of_caller),
            Self::WithHint { hint, .. } => Some(hint.clone()),
            Self::NoBus(_) => Some(hint::NO_BUS.to_owned()),
            Self::NoService { .. } => Some(hint::NO_SERVICE.to_owned()),
            Self::ServiceEnded => Some(hint::SERVICE_ENDED.to_owned()),
            Self::OtherVersion { .. } => Some(hint::OTHER_VERSION.to_owned()),
            Self::Attach(_) => Some(hint::STREAM_LOST.to_owned()),
            Self::Detached { .. } => Some(hint::DETACHED.to_owned()),
            Self::Remote(error) => error.hint(),
            _ => None,
        }
    }

    /// Returns the code of the error for programs: its name on the bus, or one of the client.
    pub fn code(&self) -> &str {
        match self.bare() {
            Self::Service { name, .. } => name.as_str(),
            Self::Foreign { name, .. } => name,
            Self::Guest(failure) => code_of_guest(failure.kind),
            Self::NoBus(_) | Self::NoService { .. } | Self::Bus(_) => "service-unavailable",
            Self::ServiceEnded => "service-ended",
            Self::OtherVersion { .. } => "other-version",
            Self::Remote(
                remote::error::Error::OtherService { .. } | remote::error::Error::OtherVersion { .. },
            ) => "other-version",
            Self::Attach(_) => "connection-lost",
            Self::Remote(_) => "host-unreachable",
            Self::Io { .. } => "io",
            Self::Refused(_) | Self::WithHint { .. } => "refused",
            Self::NotAllowed(_) => "not-allowed",
            Self::Arguments(_) | Self::Usage(_) => "invalid-arguments",
            Self::Interrupted { .. } | Self::Detached { .. } => "cancelled",
        }
    }

    /// Returns the exit status; `own` unless the error has one of its own.
    pub fn status(&self, own: u8) -> u8 {
        match self {
            // Only commands that run something in the guest use the guest's statuses.
            Self::Guest(failure) if own == OWN_FAILURE => failure.kind.status(),
            Self::Usage(_) => USAGE,
            Self::Interrupted { signal } | Self::Detached { signal } => 128u8.saturating_add(*signal),
            // Like a program that does not catch SIGPIPE.
            _ if self.is_broken_pipe() => 128 + 13,
            Self::WithHint { error, .. } => error.status(own),
            _ => own,
        }
    }

    /// Returns whether the service refused, or could not be asked.
    pub fn is_of_service(&self) -> bool {
        matches!(
            self,
            Self::Service { .. }
                | Self::NoBus(_)
                | Self::NoService { .. }
                | Self::ServiceEnded
                | Self::OtherVersion { .. }
                | Self::Bus(_)
                | Self::Remote(_)
                | Self::Foreign { .. }
        )
    }

    /// Returns whether the service does not support the call.
    pub fn is_of_other_version(&self) -> bool {
        use remote::error::Error::OtherService;
        matches!(self.bare(), Self::OtherVersion { .. } | Self::Remote(OtherService { .. }))
    }

    /// Returns whether a second signal detached the command.
    pub fn is_detached(&self) -> bool {
        match self {
            Self::Detached { .. } => true,
            Self::WithHint { error, .. } => error.is_detached(),
            _ => false,
        }
    }

    /// Returns whether a signal interrupted the command.
    pub fn is_interrupted(&self) -> bool {
        match self {
            Self::Interrupted { .. } => true,
            Self::WithHint { error, .. } => error.is_interrupted(),
            _ => false,
        }
    }

    /// Returns whether the reader of the output has gone.
    fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Prints the error to standard error, prefixed with `about`.
    pub fn print(&self, about: Option<&str>) {
        if self.is_broken_pipe() {
            return;
        }
        error_file::add(self, about);
        // If standard error fails, there is nowhere to report it.
        let _ = io::Write::write_all(&mut io::stderr(), self.text(about).as_bytes());
    }

    /// Returns what happened, as one sentence.
    pub fn sentence(&self) -> String {
        without_codes(&sentence(&self.to_string()))
    }

    /// Returns the error without its hint.
    pub fn bare(&self) -> &Self {
        match self {
            Self::WithHint { error, .. } => error.bare(),
            error => error,
        }
    }

    /// Returns the causes, a sentence each.
    pub fn causes(&self) -> Vec<String> {
        let mut causes = Vec::new();
        let mut cause = self.bare().source();
        let mut shown = self.to_string();
        while let Some(error) = cause {
            cause = error.source();
            // Some libraries include the cause in their own message.
            if shown.contains(&error.to_string()) {
                continue;
            }
            shown = error.to_string();
            causes.push(without_codes(&sentence(&shown)));
        }
        causes
    }

    /// Formats the sentence, the causes and the hint, one per line.
    pub fn text(&self, about: Option<&str>) -> String {
        let about = about.map(|about| format!("{about}: ")).unwrap_or_default();
        let mut text = format!("error: {about}{}\n", sentence(&self.to_string()));
        self.causes().iter().for_each(|cause| text.push_str(&format!("  because: {cause}\n")));
        if let Some(hint) = self.hint() {
            text.push_str(&format!("hint: {}\n", sanitize::line(&hint)));
        }
        without_codes(&text)
    }
}

impl From<zbus::Error> for Error {
    fn from(error: zbus::Error) -> Self {
        match error {
            zbus::Error::MethodError(name, message, _) => {
                Self::named(name.as_str(), message.unwrap_or_default())
            }
            zbus::Error::FDO(error) => match *error {
                fdo::Error::ZBus(error) => error.into(),
                error => {
                    let message = DBusError::description(&error).unwrap_or_default();
                    Self::named(error.name().as_str(), message)
                }
            },
            error @ zbus::Error::Connection(..) => Self::NoBus(Box::new(error)),
            zbus::Error::InputOutput(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                Self::ServiceEnded
            }
            error => Self::Bus(Box::new(error)),
        }
    }
}

fn code_of_guest(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::NotFound => "guest.not-found",
        FailureKind::NotPermitted => "guest.not-permitted",
        FailureKind::BadRequest => "guest.bad-request",
        FailureKind::Reset => "guest.reset",
        FailureKind::AlreadyExists => "guest.already-exists",
        FailureKind::NoDirectory => "guest.no-directory",
        FailureKind::NoSpace => "guest.no-space",
        FailureKind::Other => "guest.other",
    }
}

/// Returns one line that ends with a full stop. Parts of it may come from a guest.
fn sentence(text: &str) -> String {
    let line = sanitize::line(text);
    let line = line.trim();
    if line.ends_with(['.', '!', '?']) { line.to_owned() } else { format!("{line}.") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(name: &str, message: &str, expect: &str) {
        assert_eq!(Error::named(name, message).text(None), expect);
    }

    #[test]
    fn an_error_of_the_service_is_its_message_and_a_hint() {
        check(
            "dev.banger.Error.NoSuchVM",
            "there is no sandbox calm-otter",
            "error: there is no sandbox calm-otter.\nhint: `banger vm list` shows your sandboxes.\n",
        );
        check(
            "dev.banger.Error.Canceled",
            "the operation was canceled",
            "error: the operation was canceled.\n",
        );
    }

    #[test]
    fn a_hint_has_no_control_sequences() {
        let error = Error::Refused("no".to_owned()).with_hint("`banger vm attach web x\u{1b}[2J\n`");
        assert_eq!(error.text(None), "error: no.\nhint: `banger vm attach web x `\n");
    }

    #[test]
    fn a_missing_service_differs_from_a_refusal() {
        for name in [
            "org.freedesktop.DBus.Error.ServiceUnknown",
            "org.freedesktop.DBus.Error.NameHasNoOwner",
            "org.freedesktop.DBus.Error.Spawn.ExecFailed",
            "org.freedesktop.systemd1.NoSuchUnit",
        ] {
            let error = Error::named(name, "no");
            assert!(matches!(error, Error::NoService { .. }), "{name}");
            assert!(error.hint().unwrap().contains("systemctl start banger-system"), "{name}");
        }
        assert!(matches!(Error::named("org.freedesktop.DBus.Error.NoReply", ""), Error::ServiceEnded));
    }

    #[test]
    fn a_hint_names_the_object() {
        let error = Error::named("dev.banger.Error.NotReady", "it boots").about("web");
        assert!(error.hint().unwrap().contains("`banger vm logs web`"), "{error:?}");
        assert_eq!(error.name(), Some(ErrorName::NotReady));
    }

    #[test]
    fn an_unknown_error_is_printed_with_its_name() {
        check("com.example.Odd", "it is Tuesday", "error: it is Tuesday (com.example.Odd).\n");
    }

    #[test]
    fn causes_follow_the_sentence() {
        let error = Error::io("open /nowhere", io::Error::other("no such file"));
        let shown = "error: a: cannot open /nowhere.\n  because: no such file.\n";
        assert_eq!(error.text(Some("a")), shown);
        assert_eq!(error.with_hint("look again.").text(Some("a")), format!("{shown}hint: look again.\n"));
    }

    #[test]
    fn errors_of_the_operating_system_have_no_numbers() {
        let error = Error::io("read a", io::Error::from_raw_os_error(2));
        assert_eq!(error.text(None), "error: cannot read a.\n  because: No such file or directory.\n");
    }

    #[test]
    fn messages_of_a_guest_have_no_control_sequences() {
        let failure = Failure { kind: FailureKind::NotFound, message: "\x1b[2Jno such\r\nprogram".into() };
        assert_eq!(Error::Guest(failure).text(None), "error: no such program.\n");
    }

    #[test]
    fn every_exit_status_is_documented() {
        let page = include_str!("../../docs/exit-status.md");
        let guest = |kind| Error::Guest(Failure { kind, message: String::new() });
        let refused = || Error::Refused("x is not a regular file".to_owned());
        for (error, own, expect, row) in [
            (refused(), FAILURE, 1, "1"),
            (Error::ServiceEnded.with_hint("again"), FAILURE, 1, "1"),
            (guest(FailureKind::NotFound), FAILURE, 1, "1"),
            (Error::Usage(String::new()), FAILURE, 2, "2"),
            (Error::Usage(String::new()).with_hint("so"), OWN_FAILURE, 2, "2"),
            (Error::Interrupted { signal: 2 }, FAILURE, 130, "128+N"),
            (Error::Detached { signal: 15 }, OWN_FAILURE, 143, "128+N"),
            (refused(), OWN_FAILURE, 125, "125"),
            (guest(FailureKind::NotPermitted), OWN_FAILURE, 126, "126"),
            (guest(FailureKind::NoDirectory), OWN_FAILURE, 126, "126"),
            (guest(FailureKind::NotFound), OWN_FAILURE, 127, "127"),
        ] {
            assert_eq!(error.status(own), expect, "{error:?}");
            assert!(page.contains(&format!("\n| {row} | ")), "{row}");
        }
    }

    #[test]
    fn a_closed_output_ends_the_command_silently() {
        let error = Error::io("write", io::ErrorKind::BrokenPipe.into());
        assert_eq!(error.status(FAILURE), 141);
    }
}
