//! Logs of sandboxes, copied from their ring files into a pipe for the client.
//!
//! Each copy is a task of its own, so a slow reader delays nobody. No thread waits: a file is read on a blocking
//! thread for a moment only, and inotify watches a log that is followed.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use banger_domain::{
    guest_end::{CONSOLE_TAIL, GuestEnd},
    id::VmId,
    resource::Paths,
};
use banger_jail::ring::{Reader, Writer};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::unix::pipe,
};

use super::changes::{Changes, Watched};
use crate::{
    host::blocking::blocking,
    ports::{
        FromHost as _,
        logs::{Error, Log, LogRange, Logs, ReaderGuard, Result},
    },
    tasks::Tasks,
};

/// The pause between two looks at a console for a halted guest, so that a busy console is not read all the time.
const STANDSTILL_PAUSE: Duration = Duration::from_secs(5);

/// Logs below [`Paths::vm_dir`].
pub struct RingLogs {
    paths: Paths,
    /// Made when the first log is followed.
    changes: Mutex<Option<Changes>>,
    tasks: Tasks,
}

impl RingLogs {
    /// Returns the logs below these paths.
    pub fn new(paths: Paths, tasks: Tasks) -> Self {
        Self { paths, changes: Mutex::default(), tasks }
    }

    fn path(&self, vm: VmId, log: Log) -> PathBuf {
        match log {
            Log::Console => self.paths.console_log(vm),
            Log::Vmm => self.paths.vmm_log(vm),
        }
    }

    fn changes(&self) -> io::Result<Changes> {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        match &*changes {
            Some(changes) => Ok(changes.clone()),
            None => Ok(changes.insert(Changes::new(&self.tasks)?).clone()),
        }
    }
}

#[async_trait]
impl Logs for RingLogs {
    async fn open(&self, vm: VmId, log: Log, reading: LogRange, hold: ReaderGuard) -> Result<OwnedFd> {
        let path = self.path(vm, log);
        let doing = format!("open the log {}", path.display());
        let os = |error: io::Error| Error::os(doing.clone(), error);
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| os(error.into()))?;
        // Before the first read, so that later writes are noticed.
        let watched = match reading.follow {
            true => match self.changes().and_then(|changes| changes.of(&path)) {
                // A sandbox that never ran has an empty log.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(read),
                watched => Some(watched.map_err(os)?),
            },
            false => None,
        };
        let failed = doing.clone();
        let opened = blocking("open a log", move || {
            let os = |error: io::Error| Error::os(failed.clone(), error);
            let file = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                other => other.map_err(os)?,
            };
            let mut reader = Reader::new(file).map_err(os)?;
            // A guest may write faster than this reads, and a reader that does not follow has to end.
            let written = reader.written().map_err(os)?;
            let until = match reading.until {
                Some(until) => reader.position_before(until.0).map_err(os)?.unwrap_or(written),
                None => written,
            };
            if let Some(since) = reading.since {
                reader.skip_before(since.0).map_err(os)?;
            }
            if let Some(lines) = reading.tail {
                reader.keep_last_lines(lines, until).map_err(os)?;
            }
            let end = if reading.follow { u64::MAX } else { until };
            Ok(Some((reader, end)))
        });
        let Some((reader, end)) = opened.await? else { return Ok(read) };
        rustix::io::ioctl_fionbio(&write, true).map_err(|error| os(error.into()))?;
        let pipe = pipe::Sender::from_owned_fd(write).map_err(os)?;
        tokio::spawn(async move {
            // The reader or the file is gone, which is no error.
            let _ = copy(reader, pipe, end, watched).await;
            drop(hold);
        });
        Ok(read)
    }

    async fn append(&self, vm: VmId, log: Log, line: String) -> Result<()> {
        let path = self.path(vm, log);
        blocking("append to a log", move || {
            let os = |error| Error::os(format!("append to the log {}", path.display()), error);
            let file = match File::options().read(true).write(true).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                file => file.map_err(os)?,
            };
            Writer::open(file).and_then(|mut log| log.write(line.as_bytes())).map_err(os)
        })
        .await
    }

    async fn guest_end(&self, vm: VmId) -> Result<Option<GuestEnd>> {
        let path = self.path(vm, Log::Console);
        let os = move |error: io::Error| Error::os("read the end of a console", error);
        blocking("read the end of a console", move || read_end(&path).map_err(os)).await
    }

    async fn wait_for_halt(&self, vm: VmId) -> Result<GuestEnd> {
        let path = self.path(vm, Log::Console);
        let os = |error: io::Error| Error::os(format!("watch the log {}", path.display()), error);
        loop {
            // Before the look, so that later writes are noticed.
            let watched = match self.changes().and_then(|changes| changes.of(&path)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                watched => Some(watched.map_err(os)?),
            };
            if let Some(end) = self.guest_end(vm).await?.filter(|end| end.is_halted()) {
                return Ok(end);
            }
            if let Some(mut watched) = watched {
                // A missing file is looked for again.
                let _ = watched.changed().await;
            }
            tokio::time::sleep(STANDSTILL_PAUSE).await;
        }
    }
}

/// Returns how the guest with this console ended.
fn read_end(path: &Path) -> io::Result<Option<GuestEnd>> {
    let mut reader = match File::open(path).and_then(Reader::new) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        reader => reader?,
    };
    let written = reader.written()?;
    reader.keep_last(CONSOLE_TAIL as u64)?;
    let mut bytes = Vec::new();
    // The writer may be faster than we are.
    while bytes.len() <= CONSOLE_TAIL && reader.read_until(written, &mut bytes)? {}
    Ok(GuestEnd::read(&bytes))
}

/// Copies everything before `end`, or until the client is gone if there is no end.
async fn copy(
    mut reader: Reader,
    mut pipe: pipe::Sender,
    end: u64,
    mut watched: Option<Watched>,
) -> Result<()> {
    let os = |error| Error::os("copy a log", error);
    loop {
        let (read, bytes);
        (reader, read, bytes) = blocking("read a log", move || {
            let mut bytes = Vec::new();
            let read = reader.read_until(end, &mut bytes).map_err(os)?;
            Ok((reader, read, bytes))
        })
        .await?;
        if read {
            pipe.write_all(&bytes).await.map_err(os)?;
            continue;
        }
        let Some(watched) = &mut watched else { return Ok(()) };
        tokio::select! {
            changed = watched.changed() => changed.map_err(os)?,
            // For its writer, a pipe without a reader is in error (poll(2)).
            _ = pipe.ready(Interest::ERROR) => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        fs,
        io::{Read, Write},
        sync::Arc,
        time::Duration,
    };

    use tempfile::TempDir;

    use super::*;

    const VM: VmId = VmId::from_bits(7);
    const FOLLOW: LogRange = LogRange { tail: None, since: None, until: None, follow: true };
    const TIMEOUT: Duration = Duration::from_secs(60);
    const BLOCKING_THREADS: usize = 4;

    struct Scratch {
        _home: TempDir,
        logs: RingLogs,
        writer: Writer,
    }

    fn scratch(capacity: u64) -> Scratch {
        let home = tempfile::tempdir().unwrap();
        let at = |name| home.path().join(name);
        let paths = Paths { state: at("state"), runtime: at("run"), libexec: at("libexec") };
        fs::create_dir_all(paths.vm_dir(VM)).unwrap();
        let file = File::options().read(true).write(true).create_new(true).open(paths.console_log(VM));
        let writer = Writer::create(file.unwrap(), capacity).unwrap();
        Scratch { _home: home, logs: RingLogs::new(paths, Tasks::default()), writer }
    }

    /// Returns an object to see whether a reader's place is free again.
    fn hold() -> (Arc<()>, ReaderGuard) {
        let held = Arc::new(());
        (Arc::clone(&held), Box::new(held))
    }

    async fn until(condition: impl Fn() -> bool) {
        let wait = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(TIMEOUT, wait).await.unwrap();
    }

    fn threads() -> usize {
        fs::read_dir("/proc/self/task").unwrap().count()
    }

    #[tokio::test]
    async fn a_follower_gets_what_is_there_and_what_comes_and_ends_with_its_reader() {
        let mut scratch = scratch(1000);
        scratch.writer.write(b"one\n").unwrap();
        let (held, hold) = hold();
        let mut pipe = File::from(scratch.logs.open(VM, Log::Console, FOLLOW, hold).await.unwrap());
        let read = async |expect: &'static str| {
            let mut pipe = pipe.try_clone().unwrap();
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = vec![0; expect.len()];
                pipe.read_exact(&mut bytes).unwrap();
                assert_eq!(String::from_utf8(bytes).unwrap(), expect);
            });
            tokio::time::timeout(TIMEOUT, read).await.unwrap().unwrap();
        };
        read("one\n").await;
        scratch.writer.write(b"two\n").unwrap();
        read("two\n").await;
        assert_eq!(Arc::strong_count(&held), 2);
        pipe.flush().unwrap();
        drop(pipe);
        until(|| Arc::strong_count(&held) == 1).await;
    }

    #[test]
    fn many_followers_need_no_threads_and_a_slow_one_holds_up_nobody() {
        // A read of a file takes one of these for a moment. A follower that kept one would hold up all others.
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().max_blocking_threads(BLOCKING_THREADS).build().unwrap();
        runtime.block_on(follow_without_threads());
    }

    async fn follow_without_threads() {
        let mut scratch = scratch(1 << 20);
        scratch.writer.write(&[b'x'; 1 << 19]).unwrap();
        let before = threads();
        let (held, mut pipes) = (Arc::new(()), Vec::new());
        for _ in 0..60 {
            // Nobody reads: each has a full pipe.
            pipes.push(
                scratch.logs.open(VM, Log::Console, FOLLOW, Box::new(Arc::clone(&held))).await.unwrap(),
            );
        }
        let once = LogRange { tail: Some(1), ..LogRange::default() };
        scratch.writer.write(b"\nlast").unwrap();
        let pipe = scratch.logs.open(VM, Log::Console, once, Box::new(())).await.unwrap();
        let mut text = String::new();
        let text = tokio::task::spawn_blocking(move || {
            File::from(pipe).read_to_string(&mut text).unwrap();
            text
        });
        assert_eq!(tokio::time::timeout(TIMEOUT, text).await.unwrap().unwrap(), "last");
        assert!(threads() <= before + BLOCKING_THREADS, "{} threads", threads());
        drop(pipes);
        until(|| Arc::strong_count(&held) == 1).await;
    }

    #[tokio::test]
    async fn a_line_is_appended_to_the_last_log_and_not_to_a_missing_one() {
        let mut scratch = scratch(1000);
        scratch.writer.write(b"one\n").unwrap();
        scratch.logs.append(VM, Log::Console, "two\n".to_owned()).await.unwrap();
        scratch.logs.append(VM, Log::Vmm, "lost\n".to_owned()).await.unwrap();
        for (log, expect) in [(Log::Console, "one\ntwo\n"), (Log::Vmm, "")] {
            let pipe = scratch.logs.open(VM, log, LogRange::default(), Box::new(())).await.unwrap();
            let read = tokio::task::spawn_blocking(|| io::read_to_string(File::from(pipe)).unwrap());
            assert_eq!(tokio::time::timeout(TIMEOUT, read).await.unwrap().unwrap(), expect);
        }
    }

    #[tokio::test]
    async fn a_vm_that_never_ran_has_an_empty_log() {
        let scratch = scratch(100);
        for reading in [FOLLOW, LogRange::default()] {
            let pipe = scratch.logs.open(VmId::from_bits(8), Log::Vmm, reading, Box::new(())).await.unwrap();
            let mut bytes = Vec::new();
            assert_eq!(File::from(pipe).read_to_end(&mut bytes).unwrap(), 0);
        }
    }
}
