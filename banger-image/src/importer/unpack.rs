//! Reads, counts, hashes and decompresses an archive on one thread, for another thread that parses the content.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, ErrorKind, Read},
    os::unix::fs::FileExt,
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    thread,
};

use banger_domain::digest::Digest;
use banger_proto::{count::counted, size::Bytes};
use sha2::{Digest as _, Sha256};

use super::{
    Meter,
    message::{Archive, Failure},
};
use crate::packing::{self, Foreign, Gzip, Packing};

/// How much one thread passes to the other at a time.
const CHUNK: usize = 256 << 10;
/// How many chunks may be queued: enough to even out the speed of both threads.
const WAITING: usize = 8;
/// How much of a file is read at a time.
const READ: usize = 128 << 10;
/// The largest accepted window of zstd, the default limit of `zstd` itself: 128 MiB.
const MAX_WINDOW_LOG: u32 = 27;
/// How much larger than the file system all archives of an image may be, for hidden files and headers.
const MOST_OF_SIZE: u64 = 4;

/// Passes the decompressed bytes of an archive to `work`, and returns their digest if the archive matches its claim.
/// One that does not is refused, whatever `work` returns.
pub(super) fn with(
    file: File,
    archive: &Archive,
    size: Bytes,
    meter: &Meter,
    work: impl FnOnce(&mut Unpacked) -> Result<(), Failure>,
) -> Result<Digest, Failure> {
    let (full, chunks) = sync_channel(WAITING);
    let (empties, reused) = sync_channel(WAITING + 2);
    let most = size.0.saturating_mul(MOST_OF_SIZE);
    let mut blob = Blob::open(file, archive, meter)?;
    thread::scope(|scope| {
        let unpacking = thread::Builder::new().name("unpack".to_owned()).spawn_scoped(scope, move || {
            let unpacked = unpack(&mut blob, most, &full, &reused);
            // The other thread learns that this was the last chunk.
            drop(full);
            blob.verdict(unpacked)
        });
        let unpacking = unpacking.map_err(|error| Failure::os("start a thread", error))?;
        let mut unpacked = Unpacked { chunks, empties, chunk: Vec::new(), at: 0, digest: Sha256::new() };
        let worked = work(&mut unpacked).and_then(|()| unpacked.skip_rest());
        let found = Digest::from_bytes(unpacked.digest.clone().finalize().into());
        // A thread that waits to pass on a chunk learns that nobody reads it.
        drop(unpacked);
        let unpacked = unpacking.join().unwrap_or_else(|_| {
            Err(Failure::Broken {
                doing: "unpack an archive".to_owned(),
                why: "the thread failed".to_owned(),
            })
        });
        unpacked.and(worked)?;
        match &archive.claim {
            Some(claim) if claim.diff_id != found.to_string() => Err(Failure::refused(format!(
                "a layer unpacks to the digest {found} instead of {}",
                claim.diff_id
            ))),
            _ => Ok(found),
        }
    })
}

/// Why decompression stopped before the end.
enum Stop {
    /// The bytes cannot be read, or are not compressed like this.
    Unread(Packing, io::Error),
    /// They are compressed in another way.
    Foreign(Foreign),
    /// There are more decompressed bytes than this limit.
    TooLarge(u64),
    /// The reader does not want the rest.
    Unwanted,
}

/// Decompresses everything, in chunks. The first bytes tell how it is compressed.
fn unpack(
    blob: &mut Blob<'_>,
    most: u64,
    full: &SyncSender<Vec<u8>>,
    reused: &Receiver<Vec<u8>>,
) -> Result<(), Stop> {
    let head = packing::head(&mut *blob).map_err(|error| Stop::Unread(Packing::Plain, error))?;
    let packing = packing::of(&head).map_err(Stop::Foreign)?.unwrap_or(Packing::Plain);
    let unread = |error| Stop::Unread(packing, error);
    let whole = io::Cursor::new(head).chain(blob);
    match packing {
        Packing::Plain => pass_on(whole, unread, most, full, reused),
        Packing::Gzip => {
            let unpacked = Gzip::new(BufReader::with_capacity(READ, whole));
            pass_on(unpacked, unread, most, full, reused)
        }
        Packing::Zstd => {
            let mut unpacked = zstd::stream::read::Decoder::new(whole).map_err(unread)?;
            unpacked.window_log_max(MAX_WINDOW_LOG).map_err(unread)?;
            pass_on(unpacked, unread, most, full, reused)
        }
    }
}

/// Passes everything on in chunks.
fn pass_on(
    mut unpacked: impl Read,
    unread: impl Fn(io::Error) -> Stop,
    most: u64,
    full: &SyncSender<Vec<u8>>,
    reused: &Receiver<Vec<u8>>,
) -> Result<(), Stop> {
    let mut sum = 0;
    loop {
        let mut chunk: Vec<u8> = reused.try_recv().unwrap_or_default();
        chunk.resize(CHUNK, 0);
        let mut filled = 0;
        while filled < CHUNK {
            match unpacked.read(&mut chunk[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(unread(error)),
            }
        }
        if filled == 0 {
            return Ok(());
        }
        sum += filled as u64;
        if sum > most {
            return Err(Stop::TooLarge(most));
        }
        chunk.truncate(filled);
        full.send(chunk).map_err(|_| Stop::Unwanted)?;
    }
}

/// The compressed bytes.
struct Blob<'a> {
    file: File,
    /// The offset of the next read; `None` for a pipe.
    at: Option<u64>,
    count: u64,
    digest: Sha256,
    archive: &'a Archive,
    meter: &'a Meter,
}

impl<'a> Blob<'a> {
    fn open(file: File, archive: &'a Archive, meter: &'a Meter) -> Result<Self, Failure> {
        let looked = file.metadata().map_err(|error| Failure::os("look at an archive", error))?;
        // Another process with the file may have moved its offset.
        let at = looked.is_file().then_some(archive.offset.unwrap_or_default());
        Ok(Self { file, at, count: 0, digest: Sha256::new(), archive, meter })
    }

    /// Decides about the archive after decompression ended like this. A wrong digest comes first, since it explains
    /// everything else.
    fn verdict(mut self, unpacked: Result<(), Stop>) -> Result<(), Failure> {
        let archive = self.archive;
        if let Some(claim) = &archive.claim {
            if let Err(error) = io::copy(&mut self, &mut io::sink())
                && error.kind() != ErrorKind::FileTooLarge
            {
                return Err(Failure::os("read a layer", error));
            }
            let (count, size) = (Bytes(self.count), claim.size);
            if count > size {
                return Err(Failure::refused(format!(
                    "the layer {} has more than {}",
                    claim.digest,
                    counted(size.0, "byte")
                )));
            }
            if count < size {
                let found = counted(count.0, "byte");
                let message = format!("the layer {} has {found} instead of {}", claim.digest, size.0);
                return Err(Failure::refused(message));
            }
            let found = Digest::from_bytes(self.digest.finalize().into());
            if found.to_string() != claim.digest {
                return Err(Failure::refused(format!(
                    "a layer has the digest {found} instead of {}",
                    claim.digest
                )));
            }
        }
        match unpacked {
            Ok(()) | Err(Stop::Unwanted) => Ok(()),
            Err(Stop::TooLarge(most)) => Err(Failure::refused(format!(
                "cannot use the image: an archive of it unpacks to more than {}",
                Bytes(most)
            ))),
            Err(Stop::Foreign(foreign)) => {
                Err(Failure::refused(format!("the image cannot be taken: {foreign}")))
            }
            Err(Stop::Unread(packing, error)) => match (packing, error.raw_os_error()) {
                (Packing::Plain, _) | (_, Some(_)) => Err(Failure::os("read an archive", error)),
                (packing, None) => {
                    let name = match packing {
                        Packing::Gzip => "gzip",
                        _ => "zstd",
                    };
                    Err(Failure::refused(format!(
                        "cannot use the image: it is not valid {name} data: {error}"
                    )))
                }
            },
        }
    }
}

impl Read for Blob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.archive.claim.as_ref().map_or(u64::MAX, |claim| claim.size.0);
        if self.count > most {
            return Err(ErrorKind::FileTooLarge.into());
        }
        let left = match self.archive.offset {
            // The rest of the file is something else.
            Some(_) => usize::try_from(most - self.count).unwrap_or(usize::MAX),
            None => usize::MAX,
        };
        let length = buffer.len().min(left);
        let buffer = &mut buffer[..length];
        let count = match self.at {
            Some(at) => self.file.read_at(buffer, at)?,
            None => self.file.read(buffer)?,
        };
        self.at = self.at.map(|at| at + count as u64);
        self.count += count as u64;
        self.meter.add_read(count);
        self.digest.update(&buffer[..count]);
        Ok(count)
    }
}

/// The decompressed bytes.
pub(super) struct Unpacked {
    chunks: Receiver<Vec<u8>>,
    empties: SyncSender<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
    digest: Sha256,
}

impl Unpacked {
    /// Skips the rest, which only counts for the digest.
    fn skip_rest(&mut self) -> Result<(), Failure> {
        loop {
            let count = self.fill_buf().map_err(|error| Failure::os("read an archive", error))?.len();
            if count == 0 {
                return Ok(());
            }
            self.consume(count);
        }
    }
}

impl BufRead for Unpacked {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.chunk.len() {
            self.at = 0;
            // If the other thread ended early, it reports why.
            let next = self.chunks.recv().unwrap_or_default();
            self.digest.update(&next);
            let last = std::mem::replace(&mut self.chunk, next);
            if let Err(TrySendError::Full(_)) = self.empties.try_send(last) {
                // Enough bytes are buffered.
            }
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

impl Read for Unpacked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let count = bytes.len().min(buffer.len());
        buffer[..count].copy_from_slice(&bytes[..count]);
        self.consume(count);
        Ok(count)
    }
}
