//! `banger image export`.

use std::{
    fs::{self, File, OpenOptions},
    io::{Seek, SeekFrom},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use banger_proto::bus::proxy::Facts;
use clap::Args;
use serde_json::json;
use zbus::Fd;

use crate::{
    client::{bus::Bus, job::Jobs, object::Object, service::Kind},
    error::{Error, Result},
    ui::{
        output,
        progress::{Progress, ProgressArgs},
        signals::Signals,
    },
};

/// The extension of an archive.
const ARCHIVE: &str = "tar";

/// Export an image as an OCI image layout
///
/// The layout has one uncompressed layer, and the environment, user and command of the image. Holes in files
/// become zeros. The same image always gives the same bytes.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger image export debian --oci debian.tar   one file, for `podman load -i debian.tar`
  banger image export debian --oci ./debian     a directory, for `skopeo copy oci:./debian …`
  banger image register --name copy --oci debian.tar")]
pub struct Export {
    /// Name, id or id prefix
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Path to create: a directory, or a tar archive if it ends in .tar
    #[arg(long, value_name = "PATH")]
    oci: PathBuf,
    /// Print a JSON object with the digest and the size instead of the digest
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    progress: ProgressArgs,
}

impl Export {
    pub async fn run(&self) -> Result<u8> {
        let is_archive = self.oci.extension().is_some_and(|extension| extension == ARCHIVE);
        if self.oci.symlink_metadata().is_ok() {
            return Err(Error::Refused(format!("{} already exists", self.oci.display())));
        }
        let bus = Bus::connect().await?;
        let image = bus.find(Kind::Image, &self.image).await?;
        let facts = if is_archive {
            let failed = |source| Error::io(format!("create {}", self.oci.display()), source);
            let file =
                OpenOptions::new().read(true).write(true).create_new(true).open(&self.oci).map_err(failed)?;
            let written = self.write(&bus, &image, &file).await;
            if written.is_err() {
                // It was just created, and contains nothing useful.
                let _ = fs::remove_file(&self.oci);
            }
            written?
        } else {
            let parent = self.oci.parent().filter(|parent| !parent.as_os_str().is_empty());
            let file = tempfile::tempfile_in(parent.unwrap_or(Path::new(".")))
                .map_err(|source| Error::io(format!("write next to {}", self.oci.display()), source))?;
            let facts = self.write(&bus, &image, &file).await?;
            let unpacked = unpack(file, &self.oci);
            if unpacked.is_err() {
                let _ = fs::remove_dir_all(&self.oci);
            }
            unpacked.map_err(|source| Error::io(format!("write {}", self.oci.display()), source))?;
            facts
        };
        let facts = Object::new(facts);
        if self.json {
            output::json(&json!({ "digest": facts.text("digest"), "bytes": facts.number("bytes") }))?;
        } else {
            output::text(&format!("{}\n", facts.text("digest")))?;
        }
        Ok(0)
    }

    async fn write(&self, bus: &Bus, image: &zbus::ObjectPath<'_>, file: &File) -> Result<Facts> {
        let jobs = Jobs::of(bus);
        let progress = Progress::new(self.progress);
        let mut listener = Signals::catch()?.listen();
        let job = bus.export_image(image, Fd::from(file.as_fd())).await?;
        jobs.finish(bus, &job, progress.track(None), &mut listener).await
    }
}

/// Unpacks the archive of a layout into a new directory.
fn unpack(mut archive: File, directory: &Path) -> std::io::Result<()> {
    fs::create_dir(directory)?;
    archive.seek(SeekFrom::Start(0))?;
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        entry.unpack_in(directory)?;
    }
    Ok(())
}
