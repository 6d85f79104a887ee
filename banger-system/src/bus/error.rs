//! D-Bus errors: a name from the table, and a one-line message.

use std::error::Error as StdError;

use banger_domain::limits::Exceeded;
use banger_proto::{
    bus::ErrorName,
    causes::{with_causes, without_codes},
};
use zbus::{DBusError, Message, message::Header};

use crate::{
    engine::error::{Error as EngineError, Kind},
    ports::HostError,
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
        Self { name, message: one_line(&without_codes(&message.into())) }
    }

    /// Returns the error with its causes.
    pub fn of(name: ErrorName, error: &dyn StdError) -> Self {
        Self::new(name, with_causes(error))
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
        EngineError::NoSuchSnapshot { .. } => ErrorName::NoSuchSnapshot,
        EngineError::HasSnapshots { .. } => ErrorName::HasSnapshots,
        EngineError::NotInCatalogs { kind: Kind::Kernel, .. } => ErrorName::NoSuchKernel,
        EngineError::NotInCatalogs { .. } => ErrorName::NoSuchImage,
        EngineError::NotPublished { .. } => ErrorName::NotPublished,
        EngineError::Dependency { why } => name_of(why),
        EngineError::NotReleased { why, .. } => name_of(why),
        EngineError::Ambiguous { .. } => ErrorName::AmbiguousRef,
        EngineError::NameTaken { .. } | EngineError::SnapshotExists { .. } => ErrorName::NameTaken,
        EngineError::Name(_) => ErrorName::InvalidName,
        EngineError::InvalidOption { .. } => ErrorName::InvalidOption,
        EngineError::BeyondCeiling { .. } => ErrorName::QuotaExceeded,
        EngineError::Limit(Exceeded::Impossible { .. }) => ErrorName::InvalidOption,
        EngineError::Limit(Exceeded::Smaller { .. }) => ErrorName::DiskTooSmall,
        EngineError::Limit(Exceeded::Quota { .. } | Exceeded::Host { .. } | Exceeded::Room { .. }) => {
            ErrorName::QuotaExceeded
        }
        EngineError::Limit(Exceeded::Requests { .. }) => ErrorName::TooManyRequests,
        EngineError::NoAddress => ErrorName::NoAddress,
        EngineError::State(_) | EngineError::NotRunning { .. } | EngineError::NotStopped { .. } => {
            ErrorName::InvalidState
        }
        EngineError::StillWriting { .. } => ErrorName::InvalidState,
        EngineError::BeingCommitted { .. } | EngineError::DisksBusy { .. } => ErrorName::Busy,
        EngineError::TooDeep => ErrorName::TooDeep,
        EngineError::GrownSince { .. } | EngineError::DeletedAtStop { .. } => ErrorName::InvalidOption,
        EngineError::InUse { kind: Kind::Image, .. } => ErrorName::ImageInUse,
        EngineError::InUse { kind: Kind::Kernel, .. } => ErrorName::KernelInUse,
        EngineError::InUse { kind: Kind::Vm | Kind::Job, .. } => ErrorName::Busy,
        EngineError::NoFreeStream { .. } | EngineError::QueueFull { .. } => ErrorName::TooManyRequests,
        EngineError::Paused { .. } => ErrorName::Paused,
        EngineError::Suspended { .. } => ErrorName::Suspended,
        EngineError::CannotResume { .. } => ErrorName::CannotResume,
        EngineError::NoAnswer { .. } | EngineError::NotReady { .. } | EngineError::DoesNotContinue { .. } => {
            ErrorName::NotReady
        }
        EngineError::GuestTimeout { .. } => ErrorName::GuestTimeout,
        EngineError::EndedEarly { .. } => ErrorName::VmmFailed,
        EngineError::Bug => ErrorName::Internal,
        EngineError::Canceled => ErrorName::Canceled,
        EngineError::NotCancelable => ErrorName::NotCancelable,
        EngineError::Taken { .. } => ErrorName::AlreadyInUse,
        EngineError::Unsupported { .. } => ErrorName::UnsupportedImage,
        EngineError::Mismatch { .. } => ErrorName::DigestMismatch,
        EngineError::BadFile { .. } => ErrorName::BadFileDescriptor,
        EngineError::Unreachable { .. } => ErrorName::RegistryUnreachable,
        EngineError::AuthRequired { .. } => ErrorName::RegistryAuthRequired,
        EngineError::Registry { .. } => ErrorName::RegistryError,
        EngineError::Catalog { .. } => ErrorName::CatalogRefused,
        EngineError::Vmm { .. } => ErrorName::VmmFailed,
        EngineError::Agent { .. } => ErrorName::AgentUnavailable,
        EngineError::AllStreamsInUse => ErrorName::TooManyRequests,
        EngineError::Host(error) => match error {
            HostError::NotReady { .. } | HostError::Timeout { .. } => ErrorName::HostNotReady,
            HostError::NoSpace { .. } => ErrorName::NoSpace,
            HostError::Os { .. } | HostError::Other { .. } => ErrorName::Internal,
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
    #![allow(clippy::unwrap_used)]
    use std::{io::ErrorKind, time::Duration};

    use banger_domain::limits::Limits;
    use banger_proto::size::Bytes;

    use super::*;
    use crate::ports::{
        FromHost, captures, catalogs, disks, guest_link, image_files, kernel_files, logs, network, registry,
        streams, supervisor, vmm,
    };

    #[test]
    fn clients_tell_errors_with_different_remedies_apart() {
        let sizes = Limits::of_host(4, Bytes::gib(8));
        let smaller = sizes.check_root_size(Bytes::gib(1), Bytes::gib(2)).unwrap_err();
        let larger = sizes.check_root_size(Bytes::gib(9_000_000), Bytes::gib(2)).unwrap_err();
        let taken = network::Error::Taken { message: "port 80 of the host is in use".to_owned() };
        for (error, expect) in [
            (EngineError::Limit(smaller), ErrorName::DiskTooSmall),
            (EngineError::Limit(larger), ErrorName::InvalidOption),
            (taken.into(), ErrorName::AlreadyInUse),
        ] {
            assert_eq!(name_of(&error), expect, "{error}");
        }
    }

    #[test]
    fn a_message_is_one_bounded_line_with_its_causes() {
        let source = std::io::Error::from(ErrorKind::PermissionDenied);
        let error = EngineError::from(HostError::os("open /x", source));
        let reply = Error::from(error);
        assert_eq!(reply.name, ErrorName::Internal);
        assert_eq!(reply.message, "cannot open /x: permission denied");
        let text = std::io::Error::from_raw_os_error(13).to_string();
        assert_eq!(Error::new(ErrorName::Internal, text).message, "Permission denied");
        let long = Error::new(ErrorName::Internal, format!("a\n\u{1b}[31m{}", "é".repeat(600)));
        assert!(long.message.len() <= MAX_MESSAGE && !long.message.chars().any(char::is_control));
    }

    /// Checks the name and the message of the reply to a port's error.
    fn check(error: impl Into<EngineError>, name: ErrorName, message: &str) {
        let reply = Error::from(error.into());
        assert_eq!((reply.name, reply.message.as_str()), (name, message));
    }

    #[test]
    fn every_error_of_a_port_has_its_name_on_the_bus() {
        use ErrorName as Name;
        let why = || "why".to_owned();
        let (what, after) = (|| "waiting".to_owned(), Duration::from_secs(3));

        let differs = captures::Error::Differs { what: "the VMM".to_owned() };
        let message = "the VMM has changed since the sandbox was suspended; a cold start keeps the disks";
        check(differs, Name::CannotResume, message);
        let damaged = captures::Error::Damaged { message: why() };
        check(damaged, Name::CannotResume, "why; a cold start keeps the disks");

        check(catalogs::Error::Refused { message: why() }, Name::CatalogRefused, "why");
        let unreachable = registry::Error::Unreachable { message: why() };
        check(catalogs::Error::Fetch(unreachable), Name::RegistryUnreachable, "why");

        check(disks::Error::Unsupported { message: why() }, Name::UnsupportedImage, "why");
        let message = "its disks have 8 frozen layers, the limit";
        check(disks::Error::TooDeep, Name::TooDeep, message);

        check(guest_link::Error::Unavailable { message: why() }, Name::AgentUnavailable, "why");
        check(guest_link::Error::Refused { message: why() }, Name::AgentUnavailable, "why");
        let message = "the guest was started by an earlier version of banger; restart the sandbox";
        check(guest_link::Error::TooOld, Name::AgentUnavailable, message);
        check(guest_link::Error::NoFreeStream, Name::TooManyRequests, "all streams to the guest are in use");
        let late = guest_link::Error::Timeout { what: what(), after };
        check(late, Name::AgentUnavailable, "waiting took longer than 3 s");
        let refused = vmm::Error::Failed { message: why() };
        check(guest_link::Error::Vmm(refused), Name::VmmFailed, "why");

        check(image_files::Error::Unsupported { message: why() }, Name::UnsupportedImage, "why");
        check(image_files::Error::Mismatch { message: why() }, Name::DigestMismatch, "why");
        check(image_files::Error::BadFile { message: why() }, Name::BadFileDescriptor, "why");
        let exceeded = Exceeded::Room { room: Bytes::mib(3) };
        let message = "the image needs more than the 3 MiB that are left of your quota";
        check(image_files::Error::NoRoom(exceeded), Name::QuotaExceeded, message);

        check(kernel_files::Error::Unsupported { message: why() }, Name::UnsupportedImage, "why");
        check(kernel_files::Error::BadFile { message: why() }, Name::BadFileDescriptor, "why");

        check(network::Error::Taken { message: why() }, Name::AlreadyInUse, "why");

        check(registry::Error::Unreachable { message: why() }, Name::RegistryUnreachable, "why");
        check(registry::Error::AuthRequired { message: why() }, Name::RegistryAuthRequired, "why");
        check(registry::Error::Refused { message: why() }, Name::RegistryError, "why");
        check(registry::Error::Mismatch { message: why() }, Name::DigestMismatch, "why");
        check(registry::Error::Unsupported { message: why() }, Name::UnsupportedImage, "why");
        check(registry::Error::BadFile { message: why() }, Name::BadFileDescriptor, "why");

        let too_many = Exceeded::Requests { what: "streams", limit: 2 };
        let message = too_many.to_string();
        check(streams::Error::TooMany(too_many), Name::TooManyRequests, &message);

        check(supervisor::Error::Exited { message: why() }, Name::VmmFailed, "why");
        check(vmm::Error::Failed { message: why() }, Name::VmmFailed, "why");
    }

    #[test]
    fn a_failed_call_to_the_host_has_the_same_name_on_the_bus_whichever_port_made_it() {
        fn of<E: FromHost + Into<EngineError>>() {
            let full = || std::io::Error::from(ErrorKind::StorageFull);
            check(E::not_ready("why"), ErrorName::HostNotReady, "why");
            check(E::os("write x", full()), ErrorName::NoSpace, "cannot write x: no space is left");
            let late = E::timeout("waiting", Duration::from_secs(3));
            check(late, ErrorName::HostNotReady, "waiting took longer than 3 s");
            check(
                E::os("open x", ErrorKind::NotFound),
                ErrorName::Internal,
                "cannot open x: entity not found",
            );
            check(E::other("read x", "why"), ErrorName::Internal, "cannot read x: why");
        }
        of::<captures::Error>();
        of::<catalogs::Error>();
        of::<disks::Error>();
        of::<guest_link::Error>();
        of::<image_files::Error>();
        of::<kernel_files::Error>();
        of::<logs::Error>();
        of::<network::Error>();
        of::<registry::Error>();
        of::<streams::Error>();
        of::<supervisor::Error>();
        of::<vmm::Error>();
    }
}
