//! Mounts directories of the user in a sandbox, for as long as a command runs.
//!
//! ```text
//!   sandbox: program ──► kernel ──► agent ══ stream ══ this process: banger_mount::Server ──► files
//!            hostile
//! ```
//!
//! This process answers with the rights of the user; the service only opens the stream. What the sandbox can reach and use
//! up is bounded by `banger-mount` and by [`session`].

mod session;
mod spec;

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use banger_mount::Limits;
use banger_proto::{
    bus::{names::VM_INTERFACE, option::agent},
    guest::{
        Request,
        mount::{self, check_path},
    },
};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use zbus::OwnedObjectPath;

use self::session::Session;
pub use self::spec::{MountSpec, volume, volume_name};
use crate::{
    client::bus::Bus,
    error::{Error, Result},
    guest::{attach, relay::Relay},
    ui::{sanitize, terminal},
};

/// Limit on mounts of a command: each takes a stream.
const MAX_MOUNTS: usize = 8;
/// How long a mount waits for a stream.
const STREAM_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the agent may take to mount a directory. It first waits for the guest's early boot.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(300);
/// Descriptors that this process may have if it is not told. More would not be used.
const DESCRIPTORS: u64 = 1 << 16;

/// A directory that can be mounted.
#[derive(Debug)]
pub struct Source {
    /// As the user calls it.
    directory: PathBuf,
    opened: OwnedFd,
    /// The path in the sandbox.
    path: String,
    read_only: bool,
}

/// Directories that are mounted, as long as this is kept.
#[derive(Default)]
pub struct Mounts(JoinSet<()>);

/// Opens the directories, before anything is done for them. One that is mounted below another one comes after it.
pub fn open(specs: &[MountSpec]) -> Result<Vec<Source>> {
    if specs.len() > MAX_MOUNTS {
        return Err(Error::Usage(format!(
            "a command can have at most {MAX_MOUNTS} mounts, not {}",
            specs.len()
        )));
    }
    let mut sources: Vec<Source> = Vec::new();
    for spec in specs {
        let source = open_one(spec)?;
        if sources.iter().any(|other| Path::new(&other.path) == Path::new(&source.path)) {
            return Err(Error::Usage(format!("cannot mount two directories at {}", source.path)));
        }
        sources.push(source);
    }
    sources.sort_by_key(|source| Path::new(&source.path).components().count());
    Ok(sources)
}

fn open_one(spec: &MountSpec) -> Result<Source> {
    let failed = |source| Error::io(format!("mount {}", spec.directory.display()), source);
    let opened = banger_mount::open(&spec.directory).map_err(failed)?;
    let path = match &spec.path {
        Some(path) => path.clone(),
        None => {
            let own = spec.directory.canonicalize().map_err(failed)?;
            let checked = match own.to_str() {
                Some(own) => check_path(own).map(|()| own.to_owned()),
                None => Err("it is not valid UTF-8"),
            };
            checked.map_err(|reason| {
                let refused = Error::Refused(format!(
                    "cannot mount {} at its own path: {reason}",
                    spec.directory.display()
                ));
                refused
                    .with_hint(format!("choose another path: `--mount {}:/mnt`.", spec.directory.display()))
            })?
        }
    };
    Ok(Source { directory: spec.directory.clone(), opened, path, read_only: spec.read_only })
}

/// Returns the error for a command that would outlive its mounts, because of this option.
pub fn not_detached(option: &str) -> Error {
    Error::Refused(format!(
        "cannot use `--mount` with `{option}`: this command serves the directory, and may end first"
    ))
    .with_hint(format!("leave out `{option}` or `--mount`."))
}

impl Mounts {
    /// Mounts the directories. This user of the sandbox sees the files as their own.
    pub async fn start(
        (bus, vm): (&Bus, &OwnedObjectPath),
        sources: Vec<Source>,
        user: Option<&str>,
    ) -> Result<Self> {
        let mut this = Self::default();
        if sources.is_empty() {
            return Ok(this);
        }
        let sandbox = bus.properties(vm, VM_INTERFACE).await?.name().to_owned();
        let limits = Limits::of(raise_descriptors() / sources.len() as u64);
        let limits = Limits { nodes: limits.nodes / sources.len(), ..limits };
        // By default, a write beyond `ulimit -f` ends a process. With a handler, it fails.
        drop(signal(SignalKind::from_raw(Signal::XFSZ.as_raw())));
        for Source { directory, opened, path, read_only } in sources {
            let request = mount::Mount { path: path.clone(), read_only, user: user.map(str::to_owned) };
            let relay = begin((bus, vm), &sandbox, &Request::Mount(request)).await?;
            let full = tell_full(&directory, &sandbox, limits.nodes);
            let session = Session::begin(relay, opened, (read_only, limits), move || tell(&full)).await?;
            let sandbox = sandbox.clone();
            this.0.spawn(async move {
                let reason = match session.serve().await {
                    Ok(()) => "it was unmounted there".to_owned(),
                    Err(error) => error.to_string(),
                };
                let directory = directory.display();
                tell(&format!("{directory} is no longer mounted at {path} in {sandbox}: {reason}"));
            });
        }
        Ok(this)
    }
}

/// Asks the agent for a mount.
async fn begin((bus, vm): (&Bus, &OwnedObjectPath), sandbox: &str, request: &Request) -> Result<Relay> {
    let stream = bus.open_agent(vm, agent::CONNECTION, Some(STREAM_TIMEOUT)).await?;
    let old = |reason: &str| {
        let hint =
            format!("a sandbox that was started by an earlier version needs `banger vm restart {sandbox}`.");
        Error::Refused(format!("{sandbox} {reason}")).with_hint(hint)
    };
    match tokio::time::timeout(MOUNT_TIMEOUT, Relay::begin(stream, request)).await {
        Ok(Err(Error::Guest(failure))) => Err(Error::Refused(failure.message)),
        Ok(Err(Error::Attach(attach::Error::HungUp))) => Err(old("cannot mount directories")),
        Ok(begun) => begun,
        Err(_) => Err(old("does not mount the directory")),
    }
}

/// Lets this process have as many descriptors as it may. Returns how many that is.
fn raise_descriptors() -> u64 {
    let limits = getrlimit(Resource::Nofile);
    let wanted = limits.maximum.unwrap_or(DESCRIPTORS).min(DESCRIPTORS);
    let now = limits.current.unwrap_or(DESCRIPTORS);
    if now >= wanted {
        return now;
    }
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limits.maximum });
    if raised.is_ok() { wanted } else { now }
}

/// Returns what to tell when the guest's kernel knows as many files as it may.
fn tell_full(directory: &Path, sandbox: &str, limit: usize) -> String {
    format!(
        "{sandbox} cannot use more than {limit} files of {} at a time. Programs there get \"Too many open files in \
         system\" until root runs `echo 2 > /proc/sys/vm/drop_caches`; mount a smaller directory",
        directory.display()
    )
}

/// Tells the user, also with `--quiet`. A command may have put the terminal into raw mode.
fn tell(what: &str) {
    terminal::line_in_raw_mode(&sanitize::line(&format!("note: {what}.")));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    use super::*;

    #[test]
    fn what_cannot_be_mounted_is_refused_before_anything_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().to_str().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let shown = |words: &[&str]| {
            let specs: Vec<MountSpec> = words.iter().map(|word| word.parse().unwrap()).collect();
            let error = open(&specs).unwrap_err();
            let causes = error.causes();
            (error.to_string(), causes.concat())
        };
        let (file, missing) = (format!("{name}/file"), format!("{name}/missing"));
        assert_eq!(shown(&[&file]).0, format!("cannot mount {file}"));
        assert!(shown(&[&file]).1.to_lowercase().contains("not a directory"), "{:?}", shown(&[&file]));
        assert!(shown(&[&missing]).1.to_lowercase().contains("no such file"));
        assert!(shown(&["/proc:/mnt"]).1.contains("has no files of users"), "{:?}", shown(&["/proc:/mnt"]));
        assert_eq!(shown(&["/"]).0, "cannot mount / at its own path: the guest needs what is there");
        let unusual = dir.path().join(OsStr::from_bytes(b"\xff"));
        std::fs::create_dir(&unusual).unwrap();
        let spec = MountSpec { directory: unusual.clone(), path: None, read_only: false };
        let expect = format!("cannot mount {} at its own path: it is not valid UTF-8", unusual.display());
        assert_eq!(open(&[spec]).unwrap_err().to_string(), expect);
        let twice = [format!("{name}:/a"), format!("{name}:/a/")];
        assert_eq!(shown(&[&twice[0], &twice[1]]).0, "cannot mount two directories at /a/");
        let many: Vec<String> = (0..9).map(|number| format!("{name}:/{number}a")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(shown(&many).0, "a command can have at most 8 mounts, not 9");
        let sources = open(&[name.parse().unwrap()]).unwrap();
        assert_eq!(sources[0].path, dir.path().canonicalize().unwrap().to_str().unwrap());
    }

    #[test]
    fn a_directory_is_mounted_before_those_below_it() {
        let dir = tempfile::tempdir().unwrap();
        let specs: Vec<MountSpec> = ["/srv/a/b", "/srv", "/x", "/srv//a/", "/srv/a/c"]
            .iter()
            .map(|path| format!("{}:{path}", dir.path().display()).parse().unwrap())
            .collect();
        let sources = open(&specs).unwrap();
        let order: Vec<&str> = sources.iter().map(|source| source.path.as_str()).collect();
        assert_eq!(order, ["/srv", "/x", "/srv//a/", "/srv/a/b", "/srv/a/c"]);
    }
}
