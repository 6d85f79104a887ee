//! `banger image export`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal, Seek, SeekFrom},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use banger_proto::bus::proxy::Facts;
use clap::Args;
use serde_json::json;
use zbus::Fd;

use super::saved;
use crate::{
    client::{bus::Bus, job::Jobs, object::Object, service::Kind},
    error::{Error, Result},
    ui::{
        output,
        progress::{Progress, ProgressArgs},
        signals::{Listener, Signals, unless_ended},
    },
};

/// Standard output as a path.
const STANDARD_OUTPUT: &str = "-";
/// Endings of archives that are not written.
const OTHER_ARCHIVES: [&str; 5] = [".zip", ".7z", ".txz", ".tbz2", ".tbz"];

/// Export an image into a file or a directory
///
/// It is an OCI image layout and a Docker archive at once, so `docker load`, `podman load` and `banger image
/// register` read it. It has one layer, and the environment, user and command of the image. Holes in files become
/// zeros. The same image always gives the same bytes.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger image export debian debian.tar.zst     one file
  banger image export debian - | docker load
  banger image export debian ./debian           a directory, for `skopeo copy oci:./debian …`
  banger image register --name copy debian.tar.zst")]
pub struct Export {
    /// Name, id or id prefix
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Path to create: an archive if it ends in .tar, .tar.gz or .tar.zst, else a directory; `-` writes a tar archive
    /// to standard output
    #[arg(value_name = "PATH", required_unless_present = "oci")]
    path: Option<PathBuf>,
    /// The same as PATH
    #[arg(short = 'o', long, visible_alias = "output", value_name = "PATH", conflicts_with = "path")]
    oci: Option<PathBuf>,
    /// Print a JSON object with the digest and the size instead of the digest
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    progress: ProgressArgs,
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Directory,
    Tar,
    Gzip,
    Zstd,
    /// A tar archive to standard output.
    Stream,
}

impl Form {
    /// Returns the form that a path stands for.
    fn of(path: &Path) -> Result<Self> {
        let name = path.to_string_lossy();
        let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
        if name == STANDARD_OUTPUT {
            Ok(Self::Stream)
        } else if ends(&[".tar"]) {
            Ok(Self::Tar)
        } else if ends(&[".tar.gz", ".tgz"]) {
            Ok(Self::Gzip)
        } else if ends(&[".tar.zst", ".tzst"]) {
            Ok(Self::Zstd)
        } else if name.contains(".tar.") || ends(&OTHER_ARCHIVES) {
            let message = format!("cannot export to {name}: archives end in .tar, .tar.gz or .tar.zst");
            Err(Error::Usage(message))
        } else {
            Ok(Self::Directory)
        }
    }
}

impl Export {
    pub async fn run(&self) -> Result<u8> {
        let path = self.path.as_ref().or(self.oci.as_ref());
        let path = path.ok_or_else(|| Error::Usage("cannot export an image: no path is given".to_owned()))?;
        let form = Form::of(path)?;
        if form == Form::Stream {
            self.check_output()?;
        } else if path.symlink_metadata().is_ok() {
            return Err(Error::Refused(format!("{} already exists", path.display())));
        }
        let bus = Bus::connect().await?;
        let image = bus.find(Kind::Image, &self.image).await?;
        let mut listener = Signals::catch()?.listen();
        let (facts, size) = match form {
            Form::Tar => {
                let file = create(path)?;
                let written = self.write(&bus, &image, &file, &mut listener).await;
                let written = or_remove(written, || fs::remove_file(path))?;
                let size = written.number("bytes");
                (written, size)
            }
            _ => {
                let archive = temporary(form, path)?;
                let facts = self.write(&bus, &image, &archive, &mut listener).await?;
                let size = convert(archive, form, path, &mut listener).await?;
                let size = size.unwrap_or(facts.number("bytes"));
                (facts, size)
            }
        };
        match (form, self.json) {
            (Form::Stream, _) => {}
            (_, true) => output::json(&json!({ "digest": facts.text("digest"), "bytes": size }))?,
            (_, false) => output::text(&format!("{}\n", facts.text("digest")))?,
        }
        Ok(0)
    }

    /// Refuses to mix an archive with other output.
    fn check_output(&self) -> Result<()> {
        if self.json {
            return Err(Error::Usage("--json needs standard output, where the archive goes".to_owned()));
        }
        match io::stdout().is_terminal() {
            true => Err(Error::Usage("refusing to write an archive to a terminal".to_owned())
                .with_hint("pipe it into `docker load` or into a file.")),
            false => Ok(()),
        }
    }

    /// Has the service write the archive.
    async fn write(
        &self,
        bus: &Bus,
        image: &zbus::ObjectPath<'_>,
        file: &File,
        listener: &mut Listener,
    ) -> Result<Object> {
        let jobs = Jobs::of(bus);
        let progress = Progress::new(self.progress);
        let (job, filled) = bus.export_image(image, Fd::from(file.as_fd())).await?;
        let facts: Facts = jobs.finish(bus, &job, progress.track(None), listener).await?;
        if let Some(filled) = filled {
            unless_ended(listener, filled.fetch(file)).await?;
        }
        Ok(Object::new(facts))
    }
}

fn create(path: &Path) -> Result<File> {
    let created = OpenOptions::new().read(true).write(true).create_new(true).open(path);
    created.map_err(|source| Error::io(format!("create {}", path.display()), source))
}

/// Creates an unnamed file for the archive, where there is room for what is made of it.
fn temporary(form: Form, path: &Path) -> Result<File> {
    if form == Form::Stream {
        return saved::temporary().map_err(|source| Error::io("create a temporary file", source));
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let failed = |source| Error::io(format!("write next to {}", path.display()), source);
    tempfile::tempfile_in(parent.unwrap_or(Path::new("."))).map_err(failed)
}

/// Removes what was just created and is incomplete.
fn or_remove<T>(written: Result<T>, remove: impl FnOnce() -> io::Result<()>) -> Result<T> {
    if written.is_err() {
        // The error that is reported explains more than one of the removal.
        let _ = remove();
    }
    written
}

/// Makes an archive what the user wants. Returns the size of a packed file. What has appeared at the path since it was
/// checked is left alone.
async fn convert(archive: File, form: Form, path: &Path, listener: &mut Listener) -> Result<Option<u64>> {
    let target = match form {
        Form::Gzip | Form::Zstd => Some(create(path)?),
        Form::Directory => {
            let created = fs::create_dir(path);
            created.map_err(|source| Error::io(format!("create {}", path.display()), source))?;
            None
        }
        Form::Tar | Form::Stream => None,
    };
    let name = path.to_owned();
    let work = tokio::task::spawn_blocking(move || match target {
        Some(target) => pack(archive, target, form).map(Some),
        None if form == Form::Stream => print(archive).map(|()| None),
        None => unpack(archive, &name).map(|()| None),
    });
    let doing = match form {
        Form::Stream => "write to standard output".to_owned(),
        _ => format!("write {}", path.display()),
    };
    let done = unless_ended(listener, async {
        let done = work.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        done.map_err(|source| Error::io(doing, source))
    });
    or_remove(done.await, || match form {
        Form::Stream => Ok(()),
        Form::Directory => fs::remove_dir_all(path),
        _ => fs::remove_file(path),
    })
}

fn pack(mut archive: File, target: File, form: Form) -> io::Result<u64> {
    archive.seek(SeekFrom::Start(0))?;
    let target = match form {
        Form::Zstd => {
            let mut packed = zstd::Encoder::new(target, zstd::DEFAULT_COMPRESSION_LEVEL)?;
            io::copy(&mut archive, &mut packed)?;
            packed.finish()?
        }
        _ => {
            let mut packed = flate2::write::GzEncoder::new(target, flate2::Compression::default());
            io::copy(&mut archive, &mut packed)?;
            packed.finish()?
        }
    };
    Ok(target.metadata()?.len())
}

fn print(mut archive: File) -> io::Result<()> {
    archive.seek(SeekFrom::Start(0))?;
    io::copy(&mut archive, &mut io::stdout().lock()).map(drop)
}

/// Unpacks the archive of a layout into an empty directory.
fn unpack(mut archive: File, directory: &Path) -> io::Result<()> {
    archive.seek(SeekFrom::Start(0))?;
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        entry.unpack_in(directory)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn the_ending_of_a_path_says_what_it_becomes() {
        for (path, form) in [
            ("debian.tar", Form::Tar),
            ("a/b.tar.gz", Form::Gzip),
            ("b.tgz", Form::Gzip),
            ("b.tar.zst", Form::Zstd),
            ("-", Form::Stream),
            ("debian", Form::Directory),
            ("debian-12.5", Form::Directory),
        ] {
            assert_eq!(Form::of(Path::new(path)).unwrap(), form, "{path}");
        }
        for path in ["b.tar.xz", "b.zip", "b.txz"] {
            let error = Form::of(Path::new(path)).unwrap_err();
            assert!(error.to_string().ends_with("archives end in .tar, .tar.gz or .tar.zst"), "{error}");
        }
    }

    #[tokio::test]
    async fn what_appears_at_the_path_meanwhile_is_left_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let mut listener = Signals::catch().unwrap().listen();
        let (directory, file) = (scratch.path().join("directory"), scratch.path().join("file"));
        fs::create_dir(&directory).unwrap();
        for path in [&directory.join("theirs"), &file] {
            fs::write(path, "theirs").unwrap();
        }
        for (form, path) in [(Form::Directory, &directory), (Form::Directory, &file), (Form::Zstd, &file)] {
            let archive = tempfile::tempfile().unwrap();
            let error = convert(archive, form, path, &mut listener).await.unwrap_err();
            assert!(error.to_string().starts_with(&format!("cannot create {}", path.display())), "{error}");
        }
        for path in [&directory.join("theirs"), &file] {
            assert_eq!(fs::read_to_string(path).unwrap(), "theirs");
        }
        // What it has made itself does not stay after a failure.
        let mut damaged = tempfile::tempfile().unwrap();
        damaged.write_all(&[1; 1024]).unwrap();
        let ours = scratch.path().join("ours");
        convert(damaged, Form::Directory, &ours, &mut listener).await.unwrap_err();
        assert!(!ours.exists());
    }

    #[test]
    fn a_packed_archive_has_the_same_content() {
        let mut archive = tempfile::tempfile().unwrap();
        archive.write_all(b"content").unwrap();
        for form in [Form::Gzip, Form::Zstd] {
            let mut packed = tempfile::tempfile().unwrap();
            let size = pack(archive.try_clone().unwrap(), packed.try_clone().unwrap(), form).unwrap();
            assert_eq!(size, packed.metadata().unwrap().len());
            packed.seek(SeekFrom::Start(0)).unwrap();
            let mut content = String::new();
            match form {
                Form::Zstd => zstd::Decoder::new(packed).unwrap().read_to_string(&mut content),
                _ => flate2::read::GzDecoder::new(packed).read_to_string(&mut content),
            }
            .unwrap();
            assert_eq!(content, "content");
        }
    }
}
