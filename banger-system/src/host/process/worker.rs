//! Starts import workers, gives them orders, reads their answers, and ends them.

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
    resource::Paths,
};
use banger_image::importer::message::{
    Answer, Attempt, CopyFile, Export, Exported, Failure, Flatten, Import, Made, MadeTree, ModuleTree, Order,
    Task,
};
use banger_jail::{jail::Jail, message};
use banger_proto::size::Bytes;
use rustix::{
    fs::{MemfdFlags, memfd_create},
    net::sockopt::{Timeout, set_socket_timeout},
};

use super::shim;
use crate::{
    host::blocking::blocking,
    ports::{
        FileError as Error, FromHost as _, HostError, NoProgress, Progress, host_error, image_files,
        supervisor::Ended,
    },
};

/// How long to wait for an answer before checking for cancellation.
const LISTEN: Duration = Duration::from_millis(100);
/// How long a worker may neither read nor write a byte. Registries and disks have shorter timeouts of their own.
const STALL_TIMEOUT: Duration = Duration::from_secs(120);

type Result<T, E = Error> = std::result::Result<T, E>;

/// The work of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// The image that is made, or an id of the job's own.
    pub id: ImageId,
    /// The user who asked for it, whose limits of memory and processor time apply.
    pub owner: Uid,
}

/// Starts workers, each confined or ordered to build its own jail.
#[async_trait]
pub trait Workers: Send + Sync {
    /// Starts a worker with this socket as its standard input. Returns the jail that it has to build itself, if any.
    async fn start(&self, job: Job, socket: OwnedFd) -> host_error::Result<Option<Jail>>;
    /// Waits until nothing is left of an image's worker, and returns how it ended. Kills it if that is requested or
    /// if it does not end by itself. A missing worker is fine.
    async fn end(&self, image: ImageId, end: End) -> host_error::Result<Ended>;
}

/// How a worker ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It is killed.
    Killed,
    /// By itself, which it is about to do.
    ByItself,
}

/// How long a worker that is about to end may take.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// Makes the empty directory over which the root of a worker's jail is mounted.
pub(super) fn make_jail(paths: &Paths) -> host_error::Result<PathBuf> {
    let jail = paths.jail();
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&jail);
    made.map_err(|error| HostError::os(format!("make {}", jail.display()), error))?;
    Ok(jail)
}

/// The files of an import.
#[derive(Debug)]
pub struct Files {
    /// A new file for the image.
    pub image: File,
    /// A new file without a name.
    pub spool: File,
    /// The archives.
    pub archives: Vec<OwnedFd>,
}

/// Orders a worker to make an image.
pub async fn import(
    workers: &dyn Workers,
    job: Job,
    order: Import,
    files: Files,
    known_size: Option<Bytes>,
    progress: Arc<dyn Progress>,
) -> Result<Made> {
    // An archive without a claim is a user's file, whose size only the worker sees.
    let sizes = order.archives.iter().map(|archive| archive.claim.as_ref().map(|claim| claim.size.0));
    let total = sizes.sum::<Option<u64>>().or(known_size.map(|size| size.0));
    let mut fds: Vec<OwnedFd> = vec![files.image.into(), files.spool.into()];
    fds.extend(files.archives);
    let timeout = STALL_TIMEOUT;
    let exchange = move |socket: OwnedFd, jail| {
        send_order(&socket, &Order { jail, task: Task::Import(order) }, &fds)?;
        // From here on only the worker has them, so a pipe ends when the worker does.
        drop(fds);
        listen(&socket, &*progress, total.map(Bytes), timeout)
    };
    match run_worker(workers, job, exchange).await? {
        Answer::Made(made) => Ok(made),
        Answer::Failed(failure) => Err(failure.into()),
        _ => Err(nonsense()),
    }
}

/// Orders a worker to write an image into an archive.
pub async fn export(
    workers: &dyn Workers,
    job: Job,
    order: Export,
    (image, archive): (File, File),
    progress: Arc<dyn Progress>,
) -> Result<Exported> {
    let total = image.metadata().map_err(|error| Error::os("look at an image", error))?.blocks() * 512;
    let fds: Vec<OwnedFd> = vec![image.into(), archive.into()];
    let exchange = move |socket: OwnedFd, jail| {
        send_order(&socket, &Order { jail, task: Task::Export(order) }, &fds)?;
        drop(fds);
        listen(&socket, &*progress, Some(Bytes(total)), STALL_TIMEOUT)
    };
    match run_worker(workers, job, exchange).await? {
        Answer::Exported(exported) => Ok(exported),
        Answer::Failed(failure) => Err(failure.into()),
        _ => Err(nonsense()),
    }
}

/// Orders a worker to write the modules in an archive into a new file, as a file system.
pub async fn module_tree(
    workers: &dyn Workers,
    job: Job,
    order: ModuleTree,
    (archive, image): (File, File),
) -> Result<MadeTree> {
    let fds: Vec<OwnedFd> = vec![archive.into(), image.into()];
    let exchange = move |socket: OwnedFd, jail| {
        send_order(&socket, &Order { jail, task: Task::ModuleTree(order) }, &fds)?;
        drop(fds);
        listen(&socket, &NoProgress, None, STALL_TIMEOUT)
    };
    match run_worker(workers, job, exchange).await? {
        Answer::MadeTree(made) => Ok(made),
        Answer::Failed(failure) => Err(failure.into()),
        _ => Err(nonsense()),
    }
}

/// Returns an empty file in memory, for a copy of a user's file.
pub(in crate::host) fn memory_file() -> host_error::Result<File> {
    let file = memfd_create("banger", MemfdFlags::CLOEXEC);
    file.map(File::from).map_err(|error| HostError::os("make a file in memory", error))
}

/// Orders a worker to copy a user's file, or parts of it, into an empty file of ours. Returns the size of the
/// original.
pub async fn copy_file(
    workers: &dyn Workers,
    job: Job,
    order: CopyFile,
    (original, copy): (OwnedFd, File),
    total: Option<Bytes>,
    progress: Arc<dyn Progress>,
) -> Result<Bytes> {
    let fds: Vec<OwnedFd> = vec![original, copy.into()];
    let exchange = move |socket: OwnedFd, jail| {
        send_order(&socket, &Order { jail, task: Task::CopyFile(order) }, &fds)?;
        drop(fds);
        listen(&socket, &*progress, total, STALL_TIMEOUT)
    };
    match run_worker(workers, job, exchange).await? {
        Answer::Copied(size) => Ok(Bytes(size)),
        Answer::Failed(failure) => Err(failure.into()),
        _ => Err(nonsense()),
    }
}

/// Orders a worker to copy the system disk of a sandbox into an empty file. The files are the copy, the disk, and the
/// disk below it if it is an overlay. Returns the size of the disk, or none if there is no room for it.
pub async fn flatten(
    workers: &dyn Workers,
    job: Job,
    order: Flatten,
    files: Vec<File>,
    total: Bytes,
    progress: Arc<dyn Progress>,
) -> Result<Option<Bytes>> {
    let fds: Vec<OwnedFd> = files.into_iter().map(OwnedFd::from).collect();
    let exchange = move |socket: OwnedFd, jail| {
        send_order(&socket, &Order { jail, task: Task::Flatten(order) }, &fds)?;
        drop(fds);
        listen(&socket, &*progress, Some(total), STALL_TIMEOUT)
    };
    match run_worker(workers, job, exchange).await? {
        Answer::Copied(size) => Ok(Some(Bytes(size))),
        Answer::Failed(Failure::NoRoom) => Ok(None),
        Answer::Failed(failure) => Err(failure.into()),
        _ => Err(nonsense()),
    }
}

/// Orders a worker to try what it must not be able to do.
pub async fn probe(workers: &dyn Workers, job: Job) -> Result<Vec<Attempt>> {
    let exchange = |socket: OwnedFd, jail| {
        send_order(&socket, &Order { jail, task: Task::Probe }, &[])?;
        listen(&socket, &NoProgress, None, STALL_TIMEOUT)
    };
    match run_worker(workers, job, exchange).await? {
        Answer::Probed(attempts) => Ok(attempts),
        Answer::Failed(failure) => Err(failure.into()),
        _ => Err(nonsense()),
    }
}

/// Starts a worker, runs a conversation with it, and ends it, whatever the result.
async fn run_worker(
    workers: &dyn Workers,
    job: Job,
    exchange: impl FnOnce(OwnedFd, Option<Jail>) -> Result<Option<Answer>> + Send + 'static,
) -> Result<Answer> {
    let (ours, theirs) = shim::socket_pair()?;
    let jail = workers.start(job, theirs).await?;
    let talked = blocking("talk to an import worker", move || exchange(ours, jail)).await;
    // After its last answer, or after it hung up, the worker has nothing left to do.
    let end = if talked.is_ok() { End::ByItself } else { End::Killed };
    let ended = workers.end(job.id, end).await;
    let answer = match (talked, &ended) {
        (Ok(answer), _) => answer,
        // The reason to cancel says more.
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

fn send_order(socket: &OwnedFd, order: &Order, files: &[OwnedFd]) -> Result<()> {
    let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    match message::send(socket, order, &files) {
        // If the worker ended before it read the order, its exit status says why.
        Err(error) if is_hung_up(&error) => Ok(()),
        sent => sent.map_err(|error| Error::os("send an order to an import worker", error)),
    }
}

/// Waits for the last answer of a worker. `None` if it ended without one.
fn listen(
    socket: &OwnedFd,
    progress: &dyn Progress,
    total: Option<Bytes>,
    timeout: Duration,
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
        if moved.elapsed() > timeout {
            return Err(Error::timeout("the next step of an import", timeout));
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
            Failure::NoRoom => nonsense(),
            Failure::NoSpace { doing } => Self::no_space(doing),
            Failure::Broken { doing, why } => Self::other(doing, why),
        }
    }
}

impl From<Error> for image_files::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Unsupported { message } => Self::Unsupported { message },
            Error::BadFile { message } => Self::BadFile { message },
            Error::Host(error) => error.into(),
        }
    }
}

/// A worker on a thread of a test, without a jail: it copies files and makes file systems of modules.
#[cfg(test)]
pub(in crate::host) mod in_process {
    use super::*;

    pub(in crate::host) struct InProcess;

    #[async_trait]
    impl Workers for InProcess {
        async fn start(&self, _job: Job, socket: OwnedFd) -> host_error::Result<Option<Jail>> {
            std::thread::spawn(move || banger_image::importer::execute_one(&socket));
            Ok(None)
        }

        async fn end(&self, _image: ImageId, _end: End) -> host_error::Result<Ended> {
            Ok(Ended::Clean)
        }
    }
}
