//! The names of the errors that the service answers with.

use std::fmt;

/// The prefix of the errors of our own.
pub const PREFIX: &str = "dev.banger.Error.";

macro_rules! error_names {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)+) => {
        /// An error name, ours or one of the standard names that we use.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorName {
            $($(#[$doc])* $variant,)+
        }

        impl ErrorName {
            /// Every name.
            pub const ALL: &[ErrorName] = &[$(ErrorName::$variant),+];

            /// The full name on the bus.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(ErrorName::$variant => $name,)+
                }
            }
        }
    };
}

error_names! {
    /// No machine has this reference, or the caller may not know of it.
    NoSuchVm = "dev.banger.Error.NoSuchVM",
    /// No image has this reference.
    NoSuchImage = "dev.banger.Error.NoSuchImage",
    /// No kernel has this reference.
    NoSuchKernel = "dev.banger.Error.NoSuchKernel",
    /// No job has this id, or it was forgotten.
    NoSuchJob = "dev.banger.Error.NoSuchJob",
    /// The reference fits several objects.
    AmbiguousRef = "dev.banger.Error.AmbiguousRef",
    /// The caller already has an object of this name.
    NameTaken = "dev.banger.Error.NameTaken",
    /// The text is no valid name.
    InvalidName = "dev.banger.Error.InvalidName",
    /// An option is unknown, has the wrong type, or an impossible value.
    InvalidOption = "dev.banger.Error.InvalidOption",
    /// The machine's state does not allow this.
    InvalidState = "dev.banger.Error.InvalidState",
    /// A file descriptor is of the wrong kind, mode or size.
    BadFileDescriptor = "dev.banger.Error.BadFileDescriptor",
    /// A limit of the caller would be exceeded.
    QuotaExceeded = "dev.banger.Error.QuotaExceeded",
    /// The caller has too many requests under way.
    TooManyRequests = "dev.banger.Error.TooManyRequests",
    /// The image is used by machines.
    ImageInUse = "dev.banger.Error.ImageInUse",
    /// The kernel is used by images or machines.
    KernelInUse = "dev.banger.Error.KernelInUse",
    /// The guest is not ready for this yet.
    NotReady = "dev.banger.Error.NotReady",
    /// The guest agent cannot be reached, or speaks nonsense.
    AgentUnavailable = "dev.banger.Error.AgentUnavailable",
    /// The guest did not become ready in time.
    GuestTimeout = "dev.banger.Error.GuestTimeout",
    /// The command did not end in time.
    CommandTimeout = "dev.banger.Error.CommandTimeout",
    /// The command printed more than was asked for.
    OutputTooLarge = "dev.banger.Error.OutputTooLarge",
    /// The job was canceled.
    Canceled = "dev.banger.Error.Canceled",
    /// The job has passed the point of no return.
    NotCancelable = "dev.banger.Error.NotCancelable",
    /// The service was restarted during the job.
    Interrupted = "dev.banger.Error.Interrupted",
    /// The file is no image, or no kernel, that we can use.
    UnsupportedImage = "dev.banger.Error.UnsupportedImage",
    /// The content does not have the expected digest.
    DigestMismatch = "dev.banger.Error.DigestMismatch",
    /// The registry cannot be reached, or does not answer in time.
    RegistryUnreachable = "dev.banger.Error.RegistryUnreachable",
    /// The registry wants to know who asks, or does not let them have it.
    RegistryAuthRequired = "dev.banger.Error.RegistryAuthRequired",
    /// The registry refuses, or says what a registry must not say.
    RegistryError = "dev.banger.Error.RegistryError",
    /// No catalog can be used, or what is in it cannot: it is not signed by who may, too old, or not understood.
    CatalogRefused = "dev.banger.Error.CatalogRefused",
    /// A catalog has it, and it was not published for this host yet.
    NotPublished = "dev.banger.Error.NotPublished",
    /// The storage of the service is full.
    NoSpace = "dev.banger.Error.NoSpace",
    /// The host lacks something that a machine needs.
    HostNotReady = "dev.banger.Error.HostNotReady",
    /// The machine monitor did not start, or ended at once.
    VmmFailed = "dev.banger.Error.VmmFailed",
    /// Another operation on the same object is under way.
    Busy = "dev.banger.Error.Busy",
    /// Every address that a guest can have is taken.
    NoAddress = "dev.banger.Error.NoAddress",
    /// Something went wrong that the caller cannot mend.
    Internal = "dev.banger.Error.Internal",
    /// The caller may not do this.
    AccessDenied = "org.freedesktop.DBus.Error.AccessDenied",
    /// The caller may do this after authentication, and did not allow us to ask.
    InteractiveAuthorizationRequired = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
    /// An argument is not of the documented form.
    InvalidArgs = "org.freedesktop.DBus.Error.InvalidArgs",
    /// No such object.
    UnknownObject = "org.freedesktop.DBus.Error.UnknownObject",
    /// The service does not do this on this host.
    NotSupported = "org.freedesktop.DBus.Error.NotSupported",
}

impl ErrorName {
    /// The error with this full name; `None` for a name that is not in the table.
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
    fn every_name_reads_back_and_is_a_valid_error_name() {
        for name in ErrorName::ALL {
            assert_eq!(ErrorName::parse(name.as_str()), Some(*name));
            assert!(zbus::names::ErrorName::try_from(name.as_str()).is_ok(), "{name}");
        }
        assert_eq!(ErrorName::parse("dev.banger.Error.Nonsense"), None);
    }
}
