//! One service at a time: the state belongs to the process that holds the lock.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
};

use banger_domain::resource::Places;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::ports::{Error, Result};

/// The right to change what these places hold. It ends with the process, however that ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "the lock goes with the file")] File);

impl Lock {
    /// Takes the lock, or says that another service has it.
    pub fn take(places: &Places) -> Result<Self> {
        let path = places.lock();
        let os = |error: std::io::Error| Error::os(format!("lock {}", path.display()), error);
        DirBuilder::new().recursive(true).mode(0o711).create(&places.state).map_err(os)?;
        // Not to be inherited: a machine's shim must not hold it for a service that has ended.
        let options = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).clone();
        let file = options.open(&path).map_err(os)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self(file)),
            Err(Errno::WOULDBLOCK) => Err(Error::HostNotReady {
                message: format!("another banger-system already serves {}", places.state.display()),
            }),
            Err(error) => Err(os(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_second_one_is_refused_until_the_first_has_gone() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        let places = Places { state: at("state"), runtime: at("run"), libexec: at("libexec") };
        let first = Lock::take(&places).unwrap();
        let refused = Lock::take(&places).unwrap_err();
        assert!(refused.to_string().contains("another banger-system"), "{refused}");
        drop(first);
        Lock::take(&places).unwrap();
    }
}
