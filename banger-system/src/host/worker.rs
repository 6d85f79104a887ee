//! Import workers: how one is started, told what to do, listened to, and ended.

use std::{
    fs::{DirBuilder, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt},
    },
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use banger_domain::{
    id::{ImageId, Uid},
    resource::Places,
};
use banger_image::importer::message::{
    Answer, Attempt, Export, Exported, Failure, Import, Made, MadeTree, ModuleTree, Order, Take, Task,
};
use banger_jail::{message, walls::Walls};
use banger_proto::size::Bytes;
use rustix::{
    fs::{MemfdFlags, memfd_create},
    net::sockopt::{Timeout, set_socket_timeout},
};

use super::{blocking::blocking, shim};
use crate::ports::{Ended, Error, Result, images::Progress};

/// How long to listen before looking whether anybody still wants the image.
const LISTEN: Duration = Duration::from_millis(100);
/// How long a worker may neither read nor write a byte: longer than a registry or a disk stands still before
/// those who watch them give up.
const PATIENCE: Duration = Duration::from_secs(120);

/// The work of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// The image that is made, or a number of its own.
    pub id: ImageId,
    /// The user who asked for it, with whose other processes it shares memory and processors.
    pub owner: Uid,
}

/// Starts workers, so that each is behind walls or is told to build them.
#[async_trait]
pub trait Workers: Send + Sync {
    /// Starts one, with this socket as its standard input. Returns the walls that it has to build itself.
    async fn start(&self, job: Job, socket: OwnedFd) -> Result<Option<Walls>>;
    /// Waits until nothing is left of the worker of an image, and tells how it ended. It is killed when that is
    /// wished, or when it does not end by itself. One that is not there is fine.
    async fn end(&self, image: ImageId, end: End) -> Result<Ended>;
}

/// How a worker is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// At once.
    Killed,
    /// By itself, which it was about to do.
    ByItself,
}

/// How long a worker may take that is about to end.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// Where the worker is.
pub(super) fn program(places: &Places) -> PathBuf {
    places.program("banger-import")
}

/// The empty directory that a worker's root is mounted in.
pub(super) fn make_jail(places: &Places) -> Result<PathBuf> {
    let jail = places.jail();
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&jail);
    made.map_err(|error| Error::os(format!("make {}", jail.display()), error))?;
    Ok(jail)
}

/// The files that a worker gets for an import.
#[derive(Debug)]
pub struct Files {
    /// A new file for the image.
    pub image: File,
    /// A new file that has no name any more.
    pub spool: File,
    /// The archives.
    pub archives: Vec<OwnedFd>,
}

/// Has a worker make an image.
pub async fn import(
    workers: &dyn Workers,
    job: Job,
    order: Import,
    files: Files,
    known_size: Option<Bytes>,
    progress: Arc<dyn Progress>,
) -> Result<Made> {
    // What nothing is said of, is a user's file, of which the worker alone sees the size.
    let sizes = order.archives.iter().map(|archive| archive.claim.as_ref().map(|claim| claim.size.0));
    let total = sizes.sum::<Option<u64>>().or(known_size.map(|size| size.0));
    let mut fds: Vec<OwnedFd> = vec![files.image.into(), files.spool.into()];
    fds.extend(files.archives);
    let patience = PATIENCE;
    let talk = move |socket: OwnedFd, walls| {
        say(&socket, &Order { walls, task: Task::Import(order) }, &fds)?;
        // From here on the worker's are the only ones: a pipe ends when it does.
        drop(fds);
        listen(&socket, &*progress, total.map(Bytes), patience)
    };
    match talk_to(workers, job, talk).await? {
        Answer::Made(made) => Ok(made),
        Answer::Failed(failure) => Err(failure.into()),
        _ => Err(nonsense()),
    }
}

/// Has a worker write an image into an archive.
pub async fn export(
    workers: &dyn Workers,
    job: Job,
    order: Export,
    (image, archive): (File, File),
    progress: Arc<dyn Progress>,
) -> Result<Exported> {
    let total = image.metadata().map_err(|error| Error::os("look at an image", error))?.blocks() * 512;
    let fds: Vec<OwnedFd> = vec![image.into(), archive.into()];
    let talk = move |socket: OwnedFd, walls| {
        say(&socket, &Order { walls, task: Task::Export(order) }, &fds)?;
        drop(fds);
        listen(&socket, &*progress, Some(Bytes(total)), PATIENCE)
    };
    match talk_to(workers, job, talk).await? {
        Answer::Exported(exported) => Ok(exported),
        Answer::Failed(failure) => Err(failure.into()),
        _ => Err(nonsense()),
    }
}

/// Has a worker write the modules in an archive into a new file, as a file system.
pub async fn module_tree(
    workers: &dyn Workers,
    job: Job,
    order: ModuleTree,
    (archive, image): (File, File),
) -> Result<MadeTree> {
    let fds: Vec<OwnedFd> = vec![archive.into(), image.into()];
    let talk = move |socket: OwnedFd, walls| {
        say(&socket, &Order { walls, task: Task::ModuleTree(order) }, &fds)?;
        drop(fds);
        listen(&socket, &crate::ports::images::NoProgress, None, PATIENCE)
    };
    match talk_to(workers, job, talk).await? {
        Answer::MadeTree(made) => Ok(made),
        Answer::Failed(failure) => Err(failure.into()),
        _ => Err(nonsense()),
    }
}

/// An empty file in memory, for what a worker reads of a user's file.
pub(super) fn memory_file() -> Result<File> {
    let file = memfd_create("banger", MemfdFlags::CLOEXEC);
    file.map(File::from).map_err(|error| Error::os("make a file in memory", error))
}

/// Has a worker copy a user's file, or parts of it, into an empty file of ours. Returns the size of the original.
pub async fn take(
    workers: &dyn Workers,
    job: Job,
    order: Take,
    (original, copy): (OwnedFd, File),
    total: Option<Bytes>,
    progress: Arc<dyn Progress>,
) -> Result<Bytes> {
    let fds: Vec<OwnedFd> = vec![original, copy.into()];
    let talk = move |socket: OwnedFd, walls| {
        say(&socket, &Order { walls, task: Task::Take(order) }, &fds)?;
        drop(fds);
        listen(&socket, &*progress, total, PATIENCE)
    };
    match talk_to(workers, job, talk).await? {
        Answer::Taken(size) => Ok(Bytes(size)),
        Answer::Failed(failure) => Err(failure.into()),
        _ => Err(nonsense()),
    }
}

/// Has a worker try what it must not be able to do.
pub async fn probe(workers: &dyn Workers, job: Job) -> Result<Vec<Attempt>> {
    let talk = |socket: OwnedFd, walls| {
        say(&socket, &Order { walls, task: Task::Probe }, &[])?;
        listen(&socket, &crate::ports::images::NoProgress, None, PATIENCE)
    };
    match talk_to(workers, job, talk).await? {
        Answer::Probed(attempts) => Ok(attempts),
        Answer::Failed(failure) => Err(failure.into()),
        _ => Err(nonsense()),
    }
}

/// Starts a worker, talks to it, and ends it, whatever came of the talk.
async fn talk_to(
    workers: &dyn Workers,
    job: Job,
    talk: impl FnOnce(OwnedFd, Option<Walls>) -> Result<Option<Answer>> + Send + 'static,
) -> Result<Answer> {
    let (ours, theirs) = shim::socket_pair()?;
    let walls = workers.start(job, theirs).await?;
    let talked = blocking("talk to an import worker", move || talk(ours, walls)).await;
    // After its last word, and when it has hung up, there is nothing left for it to do.
    let end = if talked.is_ok() { End::ByItself } else { End::Killed };
    let ended = workers.end(job.id, end).await;
    let answer = match (talked, &ended) {
        (Ok(answer), _) => answer,
        // Why nobody waits for it any more tells more.
        (Err(why), Err(error)) => {
            tracing::warn!(%error, "a worker does not end");
            return Err(why);
        }
        (Err(why), Ok(_)) => return Err(why),
    };
    let how = match ended? {
        Ended::Failed(how) => format!(" ({how})"),
        Ended::Clean | Ended::Unknown => String::new(),
    };
    answer.ok_or_else(|| Error::other("import an image", format!("the worker ended before it was done{how}")))
}

fn say(socket: &OwnedFd, order: &Order, files: &[OwnedFd]) -> Result<()> {
    let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    match message::send(socket, order, &files) {
        // What the worker did not live to hear, it does not answer.
        Err(error) if is_hung_up(&error) => Ok(()),
        said => said.map_err(|error| Error::os("tell an import worker what to do", error)),
    }
}

/// Waits for the last answer of a worker. `None` when it ended without one.
fn listen(
    socket: &OwnedFd,
    progress: &dyn Progress,
    total: Option<Bytes>,
    patience: Duration,
) -> Result<Option<Answer>> {
    let os = |error: io::Error| Error::os("listen to an import worker", error);
    set_socket_timeout(socket, Timeout::Recv, Some(LISTEN)).map_err(|error| os(error.into()))?;
    let (mut last, mut moved) = ((0, 0), Instant::now());
    loop {
        if progress.is_canceled() {
            return Err(Error::other("import an image", "nobody wants it any more"));
        }
        match message::receive::<Answer>(socket) {
            Ok(Some((Answer::Works { read, written }, _))) => {
                if (read, written) != last {
                    (last, moved) = ((read, written), Instant::now());
                    progress.advanced(Bytes(read), total);
                }
            }
            Ok(answer) => return Ok(answer.map(|(answer, _)| answer)),
            Err(error) if is_hung_up(&error) => return Ok(None),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(os(error)),
        }
        if moved.elapsed() > patience {
            let what = "the next step of an import".to_owned();
            return Err(Error::Timeout { what, after: patience });
        }
    }
}

fn is_hung_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

fn nonsense() -> Error {
    Error::other("import an image", "the worker answered what it was not asked")
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused { message } => Self::Unsupported { message },
            Failure::BadFile { message } => Self::BadFile { message },
            Failure::NoSpace { doing } => Self::NoSpace { doing },
            Failure::Broken { doing, why } => Self::other(doing, why),
        }
    }
}

/// A worker without walls, on a thread of a test: it copies files and makes file systems of modules.
#[cfg(test)]
pub(super) mod in_process {
    use super::*;

    pub(in crate::host) struct InProcess;

    #[async_trait]
    impl Workers for InProcess {
        async fn start(&self, _job: Job, socket: OwnedFd) -> Result<Option<Walls>> {
            std::thread::spawn(move || banger_image::importer::obey_one(&socket));
            Ok(None)
        }

        async fn end(&self, _image: ImageId, _end: End) -> Result<Ended> {
            Ok(Ended::Clean)
        }
    }
}
