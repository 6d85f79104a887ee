//! Marks of what starts with the host. One is gone after a boot; `banger-autostart.service` looks for the other one.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use banger_domain::resource::Paths;

use super::blocking::blocking;
use crate::ports::{
    FromHost as _, HostError,
    host_boot::{HostBoot, Result},
};

/// Files that are there or not.
#[derive(Debug)]
pub struct BootMarks {
    is_first_run: bool,
    /// In a file system that is empty after a boot.
    has_run: PathBuf,
    wanted: PathBuf,
}

impl BootMarks {
    /// Looks whether the service has run since the host booted.
    pub fn new(paths: &Paths) -> Self {
        let (has_run, wanted) = (paths.has_run(), paths.wanted_at_boot());
        Self { is_first_run: !has_run.exists(), has_run, wanted }
    }
}

#[async_trait]
impl HostBoot for BootMarks {
    fn is_first_run(&self) -> bool {
        self.is_first_run
    }

    async fn note_run(&self) -> Result<()> {
        set(&self.has_run, true).await
    }

    async fn want_service(&self, wanted: bool) -> Result<()> {
        set(&self.wanted, wanted).await
    }
}

/// Makes a mark, or removes it.
async fn set(mark: &Path, wanted: bool) -> Result<()> {
    let mark = mark.to_owned();
    blocking("write a mark", move || {
        let done = match wanted {
            true => File::create(&mark).map(drop),
            false => fs::remove_file(&mark).or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            }),
        };
        done.map_err(|error| HostError::os(format!("write {}", mark.display()), error))
    })
    .await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn marks_are_made_and_removed_twice() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        let paths = Paths { state: at("state"), runtime: at("run"), libexec: at("libexec") };
        fs::create_dir(&paths.state).unwrap();
        fs::create_dir(&paths.runtime).unwrap();
        let marks = BootMarks::new(&paths);
        assert!(marks.is_first_run());
        for wanted in [true, true, false, false] {
            marks.want_service(wanted).await.unwrap();
            assert_eq!(paths.wanted_at_boot().exists(), wanted);
            marks.note_run().await.unwrap();
        }
        assert!(!BootMarks::new(&paths).is_first_run());
        fs::remove_file(paths.has_run()).unwrap();
        assert!(BootMarks::new(&paths).is_first_run());
        fs::remove_dir(&paths.state).unwrap();
        assert!(marks.want_service(true).await.is_err());
    }
}
