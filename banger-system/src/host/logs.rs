//! Logs of machines, copied out of their ring files into a pipe that the client reads.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use rustix::pipe::{PipeFlags, pipe_with};

use super::{blocking::blocking, ring::Reader};
use crate::{
    domain::{
        guest_end::{GuestEnd, LAST_WORDS},
        id::VmId,
        resource::Places,
    },
    ports::{Error, Log, Logs, Reading, Result},
};

/// Between two looks at a log that is followed.
const FOLLOW_POLL: Duration = Duration::from_millis(100);

/// Between two looks at a console for the word that nothing runs in its guest any more.
const STANDSTILL_POLL: Duration = Duration::from_secs(5);

/// Logs under [`Places::vm_dir`].
pub struct RingLogs {
    places: Places,
}

impl RingLogs {
    /// The logs under these places.
    pub fn new(places: Places) -> Self {
        Self { places }
    }

    fn path(&self, vm: VmId, log: Log) -> PathBuf {
        match log {
            Log::Console => self.places.console_log(vm),
            Log::Vmm => self.places.vmm_log(vm),
        }
    }
}

#[async_trait]
impl Logs for RingLogs {
    async fn open(&self, vm: VmId, log: Log, reading: Reading) -> Result<OwnedFd> {
        let path = self.path(vm, log);
        blocking("open a log", move || {
            let os = |error: io::Error| Error::os(format!("open the log {}", path.display()), error);
            let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| os(error.into()))?;
            let file = match File::open(&path) {
                // A machine that never ran has said nothing.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(read),
                other => other.map_err(os)?,
            };
            let mut reader = Reader::new(file).map_err(os)?;
            if let Some(lines) = reading.tail {
                reader.keep_last_lines(lines).map_err(os)?;
            }
            // A guest may write faster than this is read, and a reader that does not follow is to come to an end.
            let end = if reading.follow { u64::MAX } else { reader.written().map_err(os)? };
            let copying = std::thread::Builder::new().name("log".to_owned()).stack_size(64 << 10);
            // A thread of its own: a reader that is slow, or stands still, holds up nothing else.
            copying.spawn(move || copy(reader, write.into(), end)).map_err(os)?;
            Ok(read)
        })
        .await
    }

    async fn guest_end(&self, vm: VmId) -> Result<Option<GuestEnd>> {
        let path = self.path(vm, Log::Console);
        let os = move |error: io::Error| Error::os("read the end of a console", error);
        blocking("read the end of a console", move || read_end(&path).map_err(os)).await
    }

    async fn stood_still(&self, vm: VmId) -> Result<GuestEnd> {
        loop {
            tokio::time::sleep(STANDSTILL_POLL).await;
            if let Some(end) = self.guest_end(vm).await?.filter(|end| end.stands_still()) {
                return Ok(end);
            }
        }
    }
}

/// How the guest ended whose console is this file.
fn read_end(path: &Path) -> io::Result<Option<GuestEnd>> {
    let mut reader = match File::open(path).and_then(Reader::new) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        reader => reader?,
    };
    let written = reader.written()?;
    reader.keep_last(LAST_WORDS as u64)?;
    let mut bytes = Vec::new();
    // The writer may be faster than we are.
    while bytes.len() <= LAST_WORDS && reader.read_until(written, &mut bytes)? {}
    Ok(GuestEnd::read(&bytes))
}

/// Copies what stands before the end, or, when that never comes, until the client is gone.
fn copy(mut reader: Reader, mut pipe: File, end: u64) {
    let (mut bytes, follow) = (Vec::new(), end == u64::MAX);
    loop {
        match reader.read_until(end, &mut bytes) {
            Ok(true) => {
                if pipe.write_all(&bytes).is_err() {
                    return;
                }
                bytes.clear();
            }
            Ok(false) if follow && !reader_is_gone(&pipe) => std::thread::sleep(FOLLOW_POLL),
            Ok(false) | Err(_) => return,
        }
    }
}

/// A pipe without a reader is in error for its writer (poll(2)).
fn reader_is_gone(pipe: &File) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(pipe, PollFlags::empty())];
    let looked = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    looked.is_err() || fds[0].revents().contains(PollFlags::ERR)
}
