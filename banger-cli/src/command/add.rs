//! Shared code of the commands that add an image or a kernel: pull, register and import.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use banger_proto::bus::{
    option::{import, pull as option},
    proxy::Options,
};
use clap::Args;
use rustix::fs::OFlags;
use zbus::{OwnedObjectPath, Variant};

use crate::{
    client::{bus::Bus, job::Jobs, pull, service::Kind},
    error::{Error, Result},
    ui::{
        output,
        progress::{Progress, ProgressArgs},
        signals::Signals,
    },
};

/// The options of a command that adds an image or a kernel.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// Share it with all users of this host (needs an administrator)
    #[arg(long)]
    shared: bool,
    /// Print it as a JSON object instead of its name
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    progress: ProgressArgs,
}

impl AddArgs {
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
        let ended = jobs.finish(bus, &job, progress.track(None), &mut listener).await;
        ended.map_err(|error| pull::explain_signal(error, kind))?;
        bus.find(kind, name).await
    }

    /// Runs the job that `begin` starts to create an object with this name, and prints the object.
    pub async fn run(
        &self,
        bus: &Bus,
        kind: Kind,
        name: &str,
        begin: impl Future<Output = Result<OwnedObjectPath>>,
    ) -> Result<u8> {
        let made = self.make(bus, kind, name, begin).await?;
        print(bus, kind, &made, self.json).await
    }
}

/// Prints the name of an object that was added, or all of it in JSON. Returns the exit status.
pub async fn print(bus: &Bus, kind: Kind, added: &OwnedObjectPath, json: bool) -> Result<u8> {
    let added = bus.properties(added, kind.interface()).await?;
    if json {
        output::json(&added.json())?;
    } else {
        output::text(&format!("{}\n", added.name()))?;
    }
    Ok(0)
}

/// The options of a command that pulls an image, or a kernel with help of its own.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// Name for the image [default: derived from its name in the catalog or registry]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Replace another image of the same name
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    add: AddArgs,
}

impl PullArgs {
    /// Pulls what the reference names, with more options of the call, and prints it. Returns the exit status.
    pub async fn run<'a>(&'a self, kind: Kind, reference: &str, mut options: Options<'a>) -> Result<u8> {
        options.extend(self.options());
        let progress = self.add.progress();
        let bus = Bus::connect().await?;
        let jobs = Jobs::of(&bus);
        let mut listener = Signals::catch()?.listen();
        let pulled = match kind {
            Kind::Kernel => pull::kernel(&bus, &jobs, &progress, &mut listener, reference, options).await?,
            _ => pull::image(&bus, &jobs, &progress, &mut listener, reference, options).await?.0,
        };
        print(&bus, kind, &pulled, self.add.json).await
    }

    fn options(&self) -> Options<'_> {
        let mut options = self.add.options();
        if let Some(name) = &self.name {
            options.insert(option::NAME, Variant::from(name.as_str()));
        }
        if self.force {
            options.insert(option::FORCE, Variant::from(true));
        }
        options
    }
}

/// Opens a regular file for reading.
pub fn open_file(path: &Path) -> Result<File> {
    let failed = |source| Error::io(format!("open {}", path.display()), source);
    // Opening a FIFO must not block.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(Error::Refused(format!("{} is not a regular file", path.display())));
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
