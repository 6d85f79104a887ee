//! What can go wrong, as it is told to people: a sentence, the causes, and what to do next.

use std::{error::Error as _, io};

use banger_proto::{bus::ErrorName, guest::Failure};
use zbus::{DBusError, fdo};

use crate::{advice, attach, plain};

/// The status of a run or an exec when banger itself has failed, so that it is told from the command's.
pub const OWN_FAILURE: u8 = 125;
/// The status of any other command that has failed.
pub const FAILURE: u8 = 1;
/// The status when it was called the wrong way, which is also that of the argument parser.
const USAGE: u8 = 2;

/// What stands for the name of an object in a hint.
const PLACE: &str = "NAME";

/// An error of the client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The service refused, or failed, for a reason that we know by name.
    #[error("{message}")]
    Service {
        /// The name of the error.
        name: ErrorName,
        /// What the service says about it.
        message: String,
    },
    /// The bus or the service answered with an error that we do not know.
    #[error("{message} ({name})")]
    Foreign {
        /// The name of the error.
        name: String,
        /// What was said about it.
        message: String,
    },
    /// There is no system bus.
    #[error("cannot reach the system bus")]
    NoBus(#[source] Box<zbus::Error>),
    /// Nobody owns the name of the service, and nobody can be started for it.
    #[error("the banger service is not running and cannot be started: {message}")]
    NoService {
        /// What the bus says.
        message: String,
    },
    /// The service went away while it worked for us.
    #[error("the banger service ended before it answered")]
    ServiceEnded,
    /// The service does not know what we ask for.
    #[error("the banger service has another version than this command: {message}")]
    OtherVersion {
        /// What the service says.
        message: String,
    },
    /// The bus connection failed in another way.
    #[error("cannot talk to the banger service")]
    Bus(#[source] Box<zbus::Error>),
    /// The guest's agent refused the request.
    #[error("{}", .0.message)]
    Guest(Failure),
    /// A stream to the guest failed.
    #[error("lost the connection to the sandbox")]
    Attach(#[source] attach::Error),
    /// The operating system refused.
    #[error("cannot {doing}")]
    Io {
        /// What was tried.
        doing: String,
        /// Why it did not work.
        #[source]
        source: io::Error,
    },
    /// It cannot be done as things are.
    #[error("{0}")]
    Refused(String),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A signal ended us before we were done.
    #[error("interrupted")]
    Interrupted {
        /// The signal.
        signal: u8,
    },
    /// A second signal made us leave what goes on without us.
    #[error("detached after a second interrupt")]
    Left {
        /// The signal.
        signal: u8,
    },
    /// Another error, about which more is known here than where it happened.
    #[error("{error}")]
    Advised {
        /// The error.
        error: Box<Error>,
        /// What to do about it.
        hint: String,
    },
}

/// The result of most of the client.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// We could not do `doing` because of `source`.
    pub fn io(doing: impl Into<String>, source: io::Error) -> Self {
        Self::Io { doing: doing.into(), source }
    }

    /// The error with this name on the bus.
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

    /// This error with better advice.
    pub fn advise(self, hint: impl Into<String>) -> Self {
        Self::Advised { error: Box::new(self), hint: hint.into() }
    }

    /// This error with the advice that names the object which it is about.
    pub fn about(self, reference: &str) -> Self {
        match self.hint() {
            Some(hint) if hint.contains(PLACE) => self.advise(hint.replace(PLACE, reference)),
            _ => self,
        }
    }

    /// The name that the service gave to the error, if it did.
    pub fn name(&self) -> Option<ErrorName> {
        match self {
            Self::Service { name, .. } => Some(*name),
            Self::Advised { error, .. } => error.name(),
            _ => None,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Service { name, .. } => advice::hint(*name, advice::Membership::of_caller),
            Self::Advised { hint, .. } => Some(hint.clone()),
            Self::NoBus(_) => Some(advice::NO_BUS.to_owned()),
            Self::NoService { .. } => Some(advice::NO_SERVICE.to_owned()),
            Self::ServiceEnded => Some(advice::SERVICE_ENDED.to_owned()),
            Self::OtherVersion { .. } => Some(advice::OTHER_VERSION.to_owned()),
            Self::Attach(_) => Some(advice::LOST.to_owned()),
            Self::Left { .. } => Some(advice::LEFT.to_owned()),
            _ => None,
        }
    }

    /// The exit status; `own` where the error does not say.
    pub fn status(&self, own: u8) -> u8 {
        match self {
            // Only those that run commands tell of them by their statuses.
            Self::Guest(failure) if own == OWN_FAILURE => failure.kind.status(),
            Self::Usage(_) => USAGE,
            Self::Interrupted { signal } | Self::Left { signal } => 128u8.saturating_add(*signal),
            // As a program that does not catch SIGPIPE would end.
            _ if self.is_broken_pipe() => 128 + 13,
            Self::Advised { error, .. } => error.status(own),
            _ => own,
        }
    }

    /// Whether a second signal made us leave.
    pub fn is_left(&self) -> bool {
        match self {
            Self::Left { .. } => true,
            Self::Advised { error, .. } => error.is_left(),
            _ => false,
        }
    }

    /// Whether a signal ended us.
    pub fn is_interrupted(&self) -> bool {
        match self {
            Self::Interrupted { .. } => true,
            Self::Advised { error, .. } => error.is_interrupted(),
            _ => false,
        }
    }

    /// Whether nobody reads our output any more.
    fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Tells people on standard error; `about` is put before the sentence.
    pub fn print(&self, about: Option<&str>) {
        if self.is_broken_pipe() {
            return;
        }
        // There is nobody left to tell when standard error fails.
        let _ = io::Write::write_all(&mut io::stderr(), self.text(about).as_bytes());
    }

    /// The sentence, the causes and the hint, each on a line.
    fn text(&self, about: Option<&str>) -> String {
        let about = about.map(|about| format!("{about}: ")).unwrap_or_default();
        let mut text = format!("error: {about}{}\n", sentence(&self.to_string()));
        // Advice changes nothing about why it happened.
        let mut bare = self;
        while let Self::Advised { error, .. } = bare {
            bare = error;
        }
        let mut cause = bare.source();
        let mut told = self.to_string();
        while let Some(error) = cause {
            cause = error.source();
            // Some libraries tell the cause in their own sentence already.
            if told.contains(&error.to_string()) {
                continue;
            }
            told = error.to_string();
            text.push_str(&format!("  because: {}\n", sentence(&told)));
        }
        if let Some(hint) = self.hint() {
            text.push_str(&format!("hint: {hint}\n"));
        }
        text
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

/// One line that ends with a full stop. Parts of it may come from a guest.
fn sentence(text: &str) -> String {
    let line = plain::line(text);
    let line = line.trim();
    if line.ends_with(['.', '!', '?']) { line.to_owned() } else { format!("{line}.") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use banger_proto::guest::FailureKind;

    use super::*;

    fn check(name: &str, message: &str, expect: &str) {
        assert_eq!(Error::named(name, message).text(None), expect);
    }

    #[test]
    fn an_error_of_the_service_is_its_sentence_and_a_hint() {
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
    fn a_service_that_is_not_there_is_told_from_one_that_refuses() {
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
    fn a_hint_names_what_the_error_is_about() {
        let error = Error::named("dev.banger.Error.NotReady", "it boots").about("web");
        assert!(error.hint().unwrap().contains("`banger vm logs web`"), "{error:?}");
        assert_eq!(error.name(), Some(ErrorName::NotReady));
    }

    #[test]
    fn an_error_without_a_known_name_is_still_told() {
        check("com.example.Odd", "it is Tuesday", "error: it is Tuesday (com.example.Odd).\n");
    }

    #[test]
    fn causes_follow_the_sentence() {
        let error = Error::io("open /nowhere", io::Error::other("no such file"));
        let told = "error: a: cannot open /nowhere.\n  because: no such file.\n";
        assert_eq!(error.text(Some("a")), told);
        assert_eq!(error.advise("look again.").text(Some("a")), format!("{told}hint: look again.\n"));
    }

    #[test]
    fn what_a_guest_says_cannot_steer_the_terminal() {
        let failure = Failure { kind: FailureKind::NotFound, message: "\x1b[2Jno such\r\nprogram".into() };
        assert_eq!(Error::Guest(failure).text(None), "error: no such program.\n");
    }

    #[test]
    fn the_status_tells_who_has_failed() {
        let guest = |kind| Error::Guest(Failure { kind, message: String::new() });
        assert_eq!(guest(FailureKind::NotFound).status(OWN_FAILURE), 127);
        assert_eq!(guest(FailureKind::NotPermitted).status(OWN_FAILURE), 126);
        assert_eq!(Error::ServiceEnded.status(OWN_FAILURE), 125);
        assert_eq!(Error::ServiceEnded.advise("again").status(FAILURE), 1);
        assert_eq!(Error::Usage(String::new()).status(FAILURE), 2);
        assert_eq!(Error::Interrupted { signal: 2 }.status(FAILURE), 130);
    }

    #[test]
    fn output_that_nobody_reads_ends_us_silently() {
        let error = Error::io("write", io::ErrorKind::BrokenPipe.into());
        assert_eq!(error.status(FAILURE), 141);
    }
}
