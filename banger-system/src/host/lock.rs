//! Ensures that only one service runs: the state belongs to the process that holds the lock.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
};

use banger_domain::resource::Paths;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::ports::{FromHost as _, HostError, host_error::Result};

/// The right to change the state below these paths. It ends with the process.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "the lock goes with the file")] File);

impl Lock {
    /// Takes the lock, or fails if another service has it.
    pub fn take(paths: &Paths) -> Result<Self> {
        let path = paths.lock();
        let os = |error: std::io::Error| HostError::os(format!("lock {}", path.display()), error);
        DirBuilder::new().recursive(true).mode(0o711).create(&paths.state).map_err(os)?;
        // Close-on-exec: a shim must not hold the lock for a service that has ended.
        let options = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).clone();
        let file = options.open(&path).map_err(os)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self(file)),
            Err(Errno::WOULDBLOCK) => Err(HostError::not_ready(format!(
                "another banger-system already serves {}",
                paths.state.display()
            ))),
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
        let paths = Paths { state: at("state"), runtime: at("run"), libexec: at("libexec") };
        let first = Lock::take(&paths).unwrap();
        let refused = Lock::take(&paths).unwrap_err();
        assert!(refused.to_string().contains("another banger-system"), "{refused}");
        drop(first);
        Lock::take(&paths).unwrap();
    }
}
