//! Shared code of the commands that pass files to the service.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use banger_proto::bus::{option::import, proxy::Options};
use clap::Args;
use rustix::fs::OFlags;
use zbus::{OwnedObjectPath, Variant};

use crate::{
    client::{bus::Bus, job::Jobs, service::Kind},
    error::{Error, Result},
    ui::{
        output,
        progress::{Progress, ProgressArgs},
        signals::Signals,
    },
};

/// The options of a command that imports something.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Share it with all users of this host (needs an administrator)
    #[arg(long)]
    shared: bool,
    /// Print it as a JSON object instead of its name
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    progress: ProgressArgs,
}

impl ImportArgs {
    /// Returns the options as options of the call.
    pub fn options(&self) -> Options<'static> {
        match self.shared {
            true => Options::from([(import::SHARED, Variant::from(true))]),
            false => Options::new(),
        }
    }

    /// Returns where to show progress.
    pub fn progress(&self) -> Progress {
        Progress::new(self.progress)
    }

    /// Runs the job that `begin` starts to create an object with this name.
    pub async fn make(
        &self,
        bus: &Bus,
        kind: Kind,
        name: &str,
        begin: impl Future<Output = Result<OwnedObjectPath>>,
    ) -> Result<OwnedObjectPath> {
        let progress = self.progress();
        let jobs = Jobs::of(bus);
        let job = begin.await?;
        let mut listener = Signals::catch()?.listen();
        jobs.finish(bus, &job, progress.track(None), &mut listener).await?;
        bus.find(kind, name).await
    }

    /// Runs the job that `begin` starts to create an object with this name, and prints the result.
    pub async fn run(
        &self,
        bus: &Bus,
        kind: Kind,
        name: &str,
        begin: impl Future<Output = Result<OwnedObjectPath>>,
    ) -> Result<u8> {
        let made = self.make(bus, kind, name, begin).await?;
        let made = bus.properties(&made, kind.interface()).await?;
        if self.json {
            output::json(&made.json())?;
        } else {
            output::text(&format!("{}\n", made.name()))?;
        }
        Ok(0)
    }
}

/// Opens a regular file for reading.
pub fn open_file(path: &Path) -> Result<File> {
    let failed = |source| Error::io(format!("open {}", path.display()), source);
    // Opening a FIFO must not block.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(Error::Usage(format!("{} is not a regular file", path.display())));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        for path in [dir.path(), &fifo, Path::new("/dev/null"), Path::new("/nonexistent")] {
            assert!(open_file(path).is_err(), "{}", path.display());
        }
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(open_file(&file).is_ok());
    }
}
