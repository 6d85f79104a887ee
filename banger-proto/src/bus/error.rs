//! Names of the errors that the service returns.

use std::fmt;

/// Prefix of banger's own error names.
pub const PREFIX: &str = "dev.banger.Error.";

macro_rules! error_names {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)+) => {
        /// An error name, banger's own or one of the standard names that it uses.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorName {
            $($(#[$doc])* $variant,)+
        }

        impl ErrorName {
            /// Every name.
            pub const ALL: &[ErrorName] = &[$(ErrorName::$variant),+];

            /// Returns the full name on the bus.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(ErrorName::$variant => $name,)+
                }
            }
        }
    };
}

error_names! {
    /// No sandbox has this reference, or the caller may not see it.
    NoSuchVm = "dev.banger.Error.NoSuchVM",
    /// No image has this reference.
    NoSuchImage = "dev.banger.Error.NoSuchImage",
    /// No kernel has this reference.
    NoSuchKernel = "dev.banger.Error.NoSuchKernel",
    /// No job has this id, or it was forgotten.
    NoSuchJob = "dev.banger.Error.NoSuchJob",
    /// The sandbox has no snapshot of this name.
    NoSuchSnapshot = "dev.banger.Error.NoSuchSnapshot",
    /// The reference matches several objects.
    AmbiguousRef = "dev.banger.Error.AmbiguousRef",
    /// The caller already has an object of this name, or the sandbox a snapshot.
    NameTaken = "dev.banger.Error.NameTaken",
    /// The text is not a valid name.
    InvalidName = "dev.banger.Error.InvalidName",
    /// An option is unknown, has the wrong type, or an impossible value.
    InvalidOption = "dev.banger.Error.InvalidOption",
    /// A disk would become smaller than what is in it.
    DiskTooSmall = "dev.banger.Error.DiskTooSmall",
    /// The state of the sandbox does not allow this.
    InvalidState = "dev.banger.Error.InvalidState",
    /// A file descriptor is of the wrong kind, mode or size.
    BadFileDescriptor = "dev.banger.Error.BadFileDescriptor",
    /// A limit of the caller would be exceeded.
    QuotaExceeded = "dev.banger.Error.QuotaExceeded",
    /// The caller has too many requests in progress.
    TooManyRequests = "dev.banger.Error.TooManyRequests",
    /// The sandbox has snapshots, which would be deleted with it.
    HasSnapshots = "dev.banger.Error.HasSnapshots",
    /// The image is used by sandboxes.
    ImageInUse = "dev.banger.Error.ImageInUse",
    /// The kernel is used by images or sandboxes.
    KernelInUse = "dev.banger.Error.KernelInUse",
    /// The sandbox is paused.
    Paused = "dev.banger.Error.Paused",
    /// The sandbox is suspended.
    Suspended = "dev.banger.Error.Suspended",
    /// The memory of a suspended sandbox cannot be loaded; it stays suspended.
    CannotResume = "dev.banger.Error.CannotResume",
    /// The guest is not ready for this yet.
    NotReady = "dev.banger.Error.NotReady",
    /// The guest agent cannot be reached, or sends an invalid reply.
    AgentUnavailable = "dev.banger.Error.AgentUnavailable",
    /// The guest did not become ready in time.
    GuestTimeout = "dev.banger.Error.GuestTimeout",
    /// The job was cancelled.
    Canceled = "dev.banger.Error.Canceled",
    /// The job can no longer be cancelled.
    NotCancelable = "dev.banger.Error.NotCancelable",
    /// The file is not a usable image or kernel.
    UnsupportedImage = "dev.banger.Error.UnsupportedImage",
    /// The content does not have the expected digest.
    DigestMismatch = "dev.banger.Error.DigestMismatch",
    /// The registry cannot be reached, or does not answer in time.
    RegistryUnreachable = "dev.banger.Error.RegistryUnreachable",
    /// The registry requires authentication, or denies access.
    RegistryAuthRequired = "dev.banger.Error.RegistryAuthRequired",
    /// The registry refuses, or sends an invalid reply.
    RegistryError = "dev.banger.Error.RegistryError",
    /// No catalog is usable, or the entry is not: the signature is not trusted, it is too old, or its format is
    /// unknown.
    CatalogRefused = "dev.banger.Error.CatalogRefused",
    /// A catalog lists it, but it is not yet published for this host.
    NotPublished = "dev.banger.Error.NotPublished",
    /// The storage of the service is full.
    NoSpace = "dev.banger.Error.NoSpace",
    /// The host lacks something that a sandbox needs.
    HostNotReady = "dev.banger.Error.HostNotReady",
    /// The VMM did not start, or exited at once.
    VmmFailed = "dev.banger.Error.VmmFailed",
    /// Another job on the same object is in progress.
    Busy = "dev.banger.Error.Busy",
    /// Something else on the host uses a port, address or interface that this needs.
    AlreadyInUse = "dev.banger.Error.AlreadyInUse",
    /// The disks of the sandbox have too many frozen layers.
    TooDeep = "dev.banger.Error.TooDeep",
    /// All guest addresses are in use.
    NoAddress = "dev.banger.Error.NoAddress",
    /// An internal error that the caller cannot fix.
    Internal = "dev.banger.Error.Internal",
    /// The caller may not do this.
    AccessDenied = "org.freedesktop.DBus.Error.AccessDenied",
    /// The caller may do this after authentication, but did not allow an interactive prompt.
    InteractiveAuthorizationRequired = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
    /// An argument is not of the documented form.
    InvalidArgs = "org.freedesktop.DBus.Error.InvalidArgs",
    /// No such object.
    UnknownObject = "org.freedesktop.DBus.Error.UnknownObject",
    /// The bus does not do this, such as passing file descriptors.
    NotSupported = "org.freedesktop.DBus.Error.NotSupported",
}

impl ErrorName {
    /// Returns the error with this full name, or `None` if the table does not have it.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|known| known.as_str() == name)
    }
}

impl fmt::Display for ErrorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_round_trips_and_is_a_valid_error_name() {
        for name in ErrorName::ALL {
            assert_eq!(ErrorName::parse(name.as_str()), Some(*name));
            assert!(zbus::names::ErrorName::try_from(name.as_str()).is_ok(), "{name}");
        }
        assert_eq!(ErrorName::parse("dev.banger.Error.Nonsense"), None);
    }
}
