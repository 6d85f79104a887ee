//! Puts the errors of each port into the engine's groups.

use super::error::Error;
use crate::ports::{
    captures, catalogs, disks, guest_link, image_files, kernel_files, network, registry, streams, supervisor,
    vmm,
};

impl From<captures::Error> for Error {
    fn from(error: captures::Error) -> Self {
        match error {
            captures::Error::Differs { what } => {
                Self::CannotResume { message: format!("{what} has changed since the sandbox was suspended") }
            }
            captures::Error::Damaged { message } => Self::CannotResume { message },
            captures::Error::Host(error) => error.into(),
        }
    }
}

impl From<catalogs::Error> for Error {
    fn from(error: catalogs::Error) -> Self {
        match error {
            catalogs::Error::Refused { message } => Self::Catalog { message },
            catalogs::Error::Fetch(error) => error.into(),
            catalogs::Error::Host(error) => error.into(),
        }
    }
}

impl From<disks::Error> for Error {
    fn from(error: disks::Error) -> Self {
        match error {
            disks::Error::Unsupported { message } => Self::Unsupported { message },
            error @ disks::Error::NotLayered => Self::Unsupported { message: error.to_string() },
            disks::Error::TooDeep => Self::TooDeep,
            disks::Error::Host(error) => error.into(),
        }
    }
}

impl From<guest_link::Error> for Error {
    fn from(error: guest_link::Error) -> Self {
        match error {
            guest_link::Error::Unavailable { message } | guest_link::Error::Refused { message } => {
                Self::Agent { message }
            }
            guest_link::Error::Timeout { .. } | guest_link::Error::TooOld => {
                Self::Agent { message: error.to_string() }
            }
            guest_link::Error::NoFreeStream => Self::AllStreamsInUse,
            guest_link::Error::Vmm(error) => error.into(),
            guest_link::Error::Host(error) => error.into(),
        }
    }
}

impl From<image_files::Error> for Error {
    fn from(error: image_files::Error) -> Self {
        match error {
            image_files::Error::Unsupported { message } => Self::Unsupported { message },
            image_files::Error::Mismatch { message } => Self::Mismatch { message },
            image_files::Error::BadFile { message } => Self::BadFile { message },
            image_files::Error::NoRoom(exceeded) => Self::Limit(exceeded),
            image_files::Error::Host(error) => error.into(),
        }
    }
}

impl From<kernel_files::Error> for Error {
    fn from(error: kernel_files::Error) -> Self {
        match error {
            kernel_files::Error::Unsupported { message } => Self::Unsupported { message },
            kernel_files::Error::BadFile { message } => Self::BadFile { message },
            kernel_files::Error::Host(error) => error.into(),
        }
    }
}

impl From<network::Error> for Error {
    fn from(error: network::Error) -> Self {
        match error {
            network::Error::Taken { message } => Self::Taken { message },
            network::Error::Limit(exceeded) => exceeded.into(),
            network::Error::Host(error) => error.into(),
        }
    }
}

impl From<registry::Error> for Error {
    fn from(error: registry::Error) -> Self {
        match error {
            registry::Error::Unreachable { message } => Self::Unreachable { message },
            registry::Error::AuthRequired { message } => Self::AuthRequired { message },
            registry::Error::Refused { message } => Self::Registry { message },
            registry::Error::Mismatch { message } => Self::Mismatch { message },
            registry::Error::Unsupported { message } => Self::Unsupported { message },
            registry::Error::BadFile { message } => Self::BadFile { message },
            registry::Error::Host(error) => error.into(),
        }
    }
}

impl From<streams::Error> for Error {
    fn from(error: streams::Error) -> Self {
        match error {
            streams::Error::TooMany(exceeded) => exceeded.into(),
            streams::Error::Host(error) => error.into(),
        }
    }
}

impl From<supervisor::Error> for Error {
    fn from(error: supervisor::Error) -> Self {
        match error {
            supervisor::Error::Exited { message } => Self::Vmm { message },
            supervisor::Error::Host(error) => error.into(),
        }
    }
}

impl From<vmm::Error> for Error {
    fn from(error: vmm::Error) -> Self {
        match error {
            vmm::Error::Failed { message } => Self::Vmm { message },
            vmm::Error::Host(error) => error.into(),
        }
    }
}
