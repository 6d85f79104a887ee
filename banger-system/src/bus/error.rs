//! D-Bus errors: a name from the table, and a one-line message.

use std::error::Error as StdError;

use banger_domain::limits::Exceeded;
use banger_proto::bus::ErrorName;
use zbus::{DBusError, Message, message::Header};

use crate::{
    engine::error::{Error as EngineError, Kind},
    ports,
};

/// The longest message. It is cut beyond that, and the journal has all of it.
const MAX_MESSAGE: usize = 512;

/// An error reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub name: ErrorName,
    pub message: String,
}

/// The result of a method.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(name: ErrorName, message: impl Into<String>) -> Self {
        Self { name, message: one_line(&message.into()) }
    }

    /// Returns the error with its causes.
    pub fn of(name: ErrorName, error: &dyn StdError) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if !message.ends_with(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            source = cause.source();
        }
        Self::new(name, message)
    }

    pub fn invalid_option(message: impl Into<String>) -> Self {
        Self::new(ErrorName::InvalidOption, message)
    }
}

fn one_line(message: &str) -> String {
    let mut line: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE - 3).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
        line.truncate(end);
        line.push('…');
    }
    line
}

/// Returns the D-Bus name of an engine error.
pub fn name_of(error: &EngineError) -> ErrorName {
    match error {
        EngineError::NoSuch { kind: Kind::Vm, .. } | EngineError::Deleted { .. } => ErrorName::NoSuchVm,
        EngineError::NoSuch { kind: Kind::Image, .. } => ErrorName::NoSuchImage,
        EngineError::NoSuch { kind: Kind::Kernel, .. } => ErrorName::NoSuchKernel,
        EngineError::NoSuch { kind: Kind::Job, .. } => ErrorName::NoSuchJob,
        EngineError::NotInCatalogs { kind: Kind::Kernel, .. } => ErrorName::NoSuchKernel,
        EngineError::NotInCatalogs { .. } => ErrorName::NoSuchImage,
        EngineError::NotPublished { .. } => ErrorName::NotPublished,
        EngineError::Dependency { why } => name_of(why),
        EngineError::Ambiguous { .. } => ErrorName::AmbiguousRef,
        EngineError::NameTaken { .. } => ErrorName::NameTaken,
        EngineError::Name(_) => ErrorName::InvalidName,
        EngineError::InvalidOption { .. } => ErrorName::InvalidOption,
        EngineError::Limit(Exceeded::Impossible { .. }) => ErrorName::InvalidOption,
        EngineError::Limit(Exceeded::Smaller { .. }) => ErrorName::DiskTooSmall,
        EngineError::Limit(Exceeded::Quota { .. }) => ErrorName::QuotaExceeded,
        EngineError::Limit(Exceeded::Requests { .. }) => ErrorName::TooManyRequests,
        EngineError::NoAddress => ErrorName::NoAddress,
        EngineError::State(_) | EngineError::NotRunning { .. } | EngineError::NotStopped { .. } => {
            ErrorName::InvalidState
        }
        EngineError::InUse { kind: Kind::Image, .. } => ErrorName::ImageInUse,
        EngineError::InUse { kind: Kind::Kernel, .. } => ErrorName::KernelInUse,
        EngineError::InUse { kind: Kind::Vm | Kind::Job, .. } => ErrorName::Busy,
        EngineError::NoFreeStream { .. } | EngineError::QueueFull { .. } => ErrorName::TooManyRequests,
        EngineError::NoAnswer { .. } => ErrorName::NotReady,
        EngineError::GuestTimeout { .. } => ErrorName::GuestTimeout,
        EngineError::EndedEarly { .. } => ErrorName::VmmFailed,
        EngineError::Canceled => ErrorName::Canceled,
        EngineError::NotCancelable => ErrorName::NotCancelable,
        EngineError::Port(error) => match error {
            ports::Error::HostNotReady { .. } => ErrorName::HostNotReady,
            ports::Error::Taken { .. } => ErrorName::AlreadyInUse,
            ports::Error::NoSpace { .. } => ErrorName::NoSpace,
            ports::Error::Unsupported { .. } => ErrorName::UnsupportedImage,
            ports::Error::Mismatch { .. } => ErrorName::DigestMismatch,
            ports::Error::Unreachable { .. } => ErrorName::RegistryUnreachable,
            ports::Error::AuthRequired { .. } => ErrorName::RegistryAuthRequired,
            ports::Error::Registry { .. } => ErrorName::RegistryError,
            ports::Error::Catalog { .. } => ErrorName::CatalogRefused,
            ports::Error::BadFile { .. } => ErrorName::BadFileDescriptor,
            ports::Error::Vmm { .. } => ErrorName::VmmFailed,
            ports::Error::Agent { .. } => ErrorName::AgentUnavailable,
            ports::Error::NoFreeStream => ErrorName::TooManyRequests,
            ports::Error::Timeout { .. } => ErrorName::AgentUnavailable,
            ports::Error::Os { .. } | ports::Error::Other { .. } => ErrorName::Internal,
        },
    }
}

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Self {
        (&error).into()
    }
}

impl From<&EngineError> for Error {
    fn from(error: &EngineError) -> Self {
        Self::of(name_of(error), error)
    }
}

/// A failure of the bus itself.
impl From<zbus::Error> for Error {
    fn from(error: zbus::Error) -> Self {
        tracing::error!(%error, "the bus failed");
        Self::new(ErrorName::Internal, "the bus failed; see the journal of banger-system")
    }
}

impl DBusError for Error {
    fn create_reply(&self, call: &Header<'_>) -> zbus::Result<Message> {
        Message::error(call, self.name.as_str()).build(&(self.message.as_str(),))
    }

    fn name(&self) -> zbus::names::ErrorName<'_> {
        zbus::names::ErrorName::from_static_str_unchecked(self.name.as_str())
    }

    fn description(&self) -> Option<&str> {
        Some(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_bounded_line_with_its_causes() {
        let source = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let error = EngineError::Port(ports::Error::os("open /x", source));
        let reply = Error::from(error);
        assert_eq!(reply.name, ErrorName::Internal);
        assert_eq!(reply.message, "cannot open /x: permission denied");
        let long = Error::new(ErrorName::Internal, format!("a\n\u{1b}[31m{}", "é".repeat(600)));
        assert!(long.message.len() <= MAX_MESSAGE && !long.message.chars().any(char::is_control));
    }
}
