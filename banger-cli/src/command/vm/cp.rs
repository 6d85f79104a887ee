//! `banger vm cp`.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, BufWriter, IsTerminal, Read, Write},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Component, Path, PathBuf},
};

use banger_proto::guest::{FailureKind, Request, frame::MAX_DATA, message::Placement};
use clap::Args;
use tar::{Archive, Builder, EntryType};

use crate::{
    error::{Error, Result},
    guest::{Call, Guest, from_io},
    progress::{Meter, Metered, Progress, ProgressArgs},
    workspace::{
        bounded::Bounded,
        files::Exactly,
        sender::{append_link, header},
        source::os,
    },
};

/// Copy files and directories into a sandbox or out of it
///
/// One of the two is in a sandbox: its name, a colon, and a path. A directory is copied with all below it. What
/// goes in belongs to root there; what comes out belongs to you, and is there as a whole or not at all. A hyphen
/// is a tar archive on standard input or output.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  banger vm cp notes.txt web:/root/
  banger vm cp web:/var/log ./logs
  tar -c src | banger vm cp - web:/srv
  banger vm cp web:/etc - | tar -t

Into a directory that is there already it is copied under its own name, as `cp -r` does.")]
pub struct Cp {
    /// What is copied: a path, SANDBOX:PATH, or -
    #[arg(value_name = "FROM")]
    from: String,
    /// Where it goes: a path, SANDBOX:PATH, or -
    #[arg(value_name = "TO")]
    to: String,
    #[command(flatten)]
    progress: ProgressArgs,
}

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    Sandbox(&'a str, &'a str),
    Stream,
    Here(&'a Path),
}

impl<'a> Place<'a> {
    /// A path with a colon in it is written with a slash before the colon, as for scp.
    fn parse(text: &'a str) -> Self {
        match text.split_once(':') {
            _ if text == "-" => Self::Stream,
            Some((sandbox, path)) if !sandbox.is_empty() && !sandbox.contains('/') => {
                Self::Sandbox(sandbox, path)
            }
            _ => Self::Here(Path::new(text)),
        }
    }
}

impl Cp {
    pub async fn run(&self) -> Result<u8> {
        let progress = Progress::new(self.progress);
        match (Place::parse(&self.from), Place::parse(&self.to)) {
            (Place::Sandbox(..), Place::Sandbox(..)) => Err(Error::Usage("both are in a sandbox".to_owned())
                .advise("`banger vm cp A:/x - | banger vm cp - B:/y` goes through here.")),
            (from, Place::Sandbox(sandbox, path)) => {
                let path = absolute(path)?;
                let sent = self.send(&progress, from, sandbox, path).await;
                sent.map_err(|error| error.about(sandbox)).map(|()| 0)
            }
            (Place::Sandbox(sandbox, path), to) => {
                let path = absolute(path)?;
                let fetched = self.fetch(&progress, sandbox, path, to).await;
                fetched.map_err(|error| error.about(sandbox)).map(|()| 0)
            }
            _ => Err(Error::Usage("neither of them is in a sandbox".to_owned())
                .advise("name it and a path in it, such as `web:/root/`.")),
        }
    }

    async fn send(&self, progress: &Progress, from: Place<'_>, sandbox: &str, path: &str) -> Result<()> {
        if from == Place::Stream {
            let mut guest = Guest::of(sandbox).await?;
            let request = put(path);
            let track = progress.track(None);
            track.stage("copy", &format!("an archive to {sandbox}:{path}"));
            let meter = track.meter(0);
            return guest.call(request, move |call| send_stream(call, &mut io::stdin().lock(), &meter)).await;
        }
        let Place::Here(from) = from else { return Ok(()) };
        let failed = |source| Error::io(format!("read {}", from.display()), source);
        let metadata = fs::metadata(from).map_err(failed)?;
        let from = fs::canonicalize(from).map_err(failed)?;
        let mut guest = Guest::of(sandbox).await?;
        let (directory, name) =
            target(&mut guest, path, from.file_name().unwrap_or(OsStr::new("files"))).await?;
        let track = progress.track(None);
        track.stage("copy", &format!("{} to {sandbox}:{path}", from.display()));
        let meter = track.meter(measure(&from, &metadata));
        guest
            .call(put(&directory), move |call| {
                let mut archive = Builder::new(BufWriter::with_capacity(MAX_DATA, &mut *call));
                append(&mut archive, &from, &name, None, &meter)?;
                archive.into_inner().and_then(|mut writer| writer.flush()).map_err(from_io)?;
                call.end_input()?;
                call.finish()
            })
            .await
    }

    async fn fetch(&self, progress: &Progress, sandbox: &str, path: &str, to: Place<'_>) -> Result<()> {
        let mut guest = Guest::of(sandbox).await?;
        let request = Request::GetTar { path: path.trim_end_matches('/').to_owned() };
        if to == Place::Stream {
            if io::stdout().is_terminal() {
                return Err(Error::Usage("an archive on a terminal helps nobody".to_owned())
                    .advise("pipe it into `tar -t` or into a file."));
            }
            let track = progress.track(None);
            track.stage("copy", &format!("{sandbox}:{path} as an archive"));
            let meter = track.meter(0);
            return guest
                .call(request, move |call| {
                    let mut output = io::stdout().lock();
                    while let Some(bytes) = call.output()? {
                        meter.add(bytes.len() as u64);
                        output
                            .write_all(&bytes)
                            .map_err(|source| Error::io("write to the standard output", source))?;
                    }
                    output.flush().map_err(|source| Error::io("write to the standard output", source))
                })
                .await;
        }
        let Place::Here(to) = to else { return Ok(()) };
        let name = Path::new(path)
            .file_name()
            .ok_or_else(|| Error::Usage("the whole of / is not copied".to_owned()))?;
        let place = if to.is_dir() { to.join(name) } else { to.to_owned() };
        let name = name.to_owned();
        let track = progress.track(None);
        track.stage("copy", &format!("{sandbox}:{path} to {}", place.display()));
        let meter = track.meter(0);
        guest.call(request, move |call| receive(call, &name, &place, &meter)).await
    }
}

fn absolute(path: &str) -> Result<&str> {
    match path.starts_with('/') {
        true => Ok(path),
        false => Err(Error::Usage(format!("{path:?} is no absolute path in a sandbox"))
            .advise("begin it with a slash, such as `web:/root/`.")),
    }
}

fn put(directory: &str) -> Request {
    Request::PutTar { directory: directory.to_owned(), placement: Placement::Merge }
}

fn send_stream(call: &mut Call, from: &mut impl Read, meter: &Meter) -> Result<()> {
    io::copy(&mut Metered { from, meter }, call).map_err(from_io)?;
    call.end_input()?;
    call.finish()
}

/// Into which directory of the sandbox, and under which name there.
async fn target(guest: &mut Guest, path: &str, own: &OsStr) -> Result<(String, PathBuf)> {
    if path.ends_with('/') || is_directory(guest, path).await? {
        return Ok((path.to_owned(), own.into()));
    }
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    Ok((if parent.is_empty() { "/".to_owned() } else { parent.to_owned() }, name.into()))
}

async fn is_directory(guest: &mut Guest, path: &str) -> Result<bool> {
    let algorithm = banger_proto::guest::message::Algorithm::Sha1;
    match guest.digests(path, algorithm, Vec::new()).await {
        Ok(_) => Ok(true),
        Err(Error::Guest(failure)) if matches!(failure.kind, FailureKind::NotFound | FailureKind::Other) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// All bytes of a file or of what is below a directory, as far as they can be seen.
fn measure(path: &Path, metadata: &fs::Metadata) -> u64 {
    if !metadata.is_dir() {
        return metadata.len();
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(measure(&entry.path(), &entry.metadata().ok()?))).sum()
}

/// Adds a file, or a directory with all below it, to an archive under this name. Permissions that are given are
/// those of every file in it.
pub fn append(
    archive: &mut Builder<impl Write>,
    path: &Path,
    name: &Path,
    permissions: Option<u32>,
    meter: &Meter,
) -> Result<()> {
    let mut waiting = vec![(path.to_owned(), name.to_owned())];
    while let Some((path, name)) = waiting.pop() {
        let failed = |source| Error::io(format!("read {}", path.display()), source);
        let metadata = fs::symlink_metadata(&path).map_err(failed)?;
        let bytes = name.as_os_str().as_bytes();
        let mut head = header(metadata.mode() & 0o777, 0, metadata.mtime());
        if metadata.is_dir() {
            head.set_entry_type(EntryType::Directory);
            archive.append_data(&mut head, &name, &[][..]).map_err(from_io)?;
            for entry in fs::read_dir(&path).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                waiting.push((entry.path(), name.join(entry.file_name())));
            }
        } else if metadata.is_symlink() {
            let target = fs::read_link(&path).map_err(failed)?;
            append_link(archive, bytes, target.as_os_str().as_bytes(), metadata.mtime())?;
        } else if metadata.is_file() {
            let file = File::open(&path).map_err(failed)?;
            let size = file.metadata().map_err(failed)?.len();
            head.set_size(size);
            head.set_mode(permissions.unwrap_or(metadata.mode() & 0o777));
            let content = Metered { from: Exactly::new(file, size), meter };
            archive.append_data(&mut head, os(bytes), content).map_err(from_io)?;
        }
    }
    Ok(())
}

/// Unpacks what comes beside the place where it is to be, and puts it there as a whole. An archive of a guest may
/// hold anything: only files, directories and links below its one top are taken.
fn receive(call: &mut Call, name: &OsStr, place: &Path, meter: &Meter) -> Result<()> {
    let failed = |source| Error::io(format!("write {}", place.display()), source);
    let parent = place.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let staging = tempfile::Builder::new().prefix(".banger-").tempdir_in(parent).map_err(failed)?;
    let mut archive = Archive::new(Bounded::new(Metered { from: &mut *call, meter }));
    for entry in archive.entries().map_err(from_io)? {
        let mut entry = entry.map_err(from_io)?;
        let path = entry.path().map_err(from_io)?.into_owned();
        let wanted = matches!(
            entry.header().entry_type(),
            EntryType::Regular | EntryType::Directory | EntryType::Symlink
        );
        let below = path.components().next() == Some(Component::Normal(name));
        if wanted && below {
            entry.unpack_in(staging.path()).map_err(from_io)?;
        }
    }
    call.finish()?;
    let come = staging.path().join(name);
    match (come.is_dir() && !come.is_symlink(), place.is_dir() && !place.is_symlink()) {
        (true, true) => merge(&come, place).map_err(failed),
        (false, true) => Err(Error::Refused(format!("{} is a directory", place.display()))),
        _ => fs::rename(&come, place).map_err(failed),
    }
}

/// Moves what is below a directory into another one that is there.
fn merge(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let place = to.join(entry.file_name());
        let both = entry.file_type()?.is_dir() && place.is_dir() && !place.is_symlink();
        if both { merge(&entry.path(), &place)? } else { fs::rename(entry.path(), place)? }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_a_sandbox_when_a_name_stands_before_a_colon() {
        assert_eq!(Place::parse("web:/root/x:y"), Place::Sandbox("web", "/root/x:y"));
        assert_eq!(Place::parse("./a:b"), Place::Here(Path::new("./a:b")));
        assert_eq!(Place::parse(":x"), Place::Here(Path::new(":x")));
        assert_eq!(Place::parse("x"), Place::Here(Path::new("x")));
        assert_eq!(Place::parse("-"), Place::Stream);
    }
}
