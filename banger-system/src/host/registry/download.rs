//! Fetches blobs into the cache, and streams them out of it meanwhile.

use std::{io, os::unix::fs::FileExt, sync::Arc};

use bytes::Bytes as Chunk;
use reqwest::{Response, StatusCode, header::CONTENT_RANGE};
use tokio::{
    io::AsyncWriteExt,
    net::unix::pipe,
    sync::mpsc,
    time::{Instant, timeout},
};

use super::{
    cache::{Blob, BlobState, Verdict, Writing},
    http::{Sender, broken},
    retry::{Failure, Retries},
    session::Session,
};
use crate::ports::{
    FromHost as _,
    registry::{Error, Result},
};

/// How many received pieces may wait to be written.
const QUEUE: usize = 64;
/// How much is copied from the cache into a pipe at a time.
const CHUNK: usize = 256 << 10;
/// After this many bytes the count of failures starts again.
const STEP: u64 = 1 << 20;

/// Fetches a blob into the cache from the first server that delivers it. Each one resumes where the last one stopped.
pub(super) async fn ensure_from(sessions: &[Session], blob: &Arc<Blob>) -> Result<()> {
    let mut left = sessions.iter().peekable();
    while let Some(session) = left.next() {
        match ensure(session, blob).await {
            Err(error) if left.peek().is_some() => session.log_fallback(&error),
            ended => return ended,
        }
    }
    Ok(())
}

/// Fetches a blob into the cache, unless it is there or somebody else fetches it.
pub(super) async fn ensure(sender: &dyn Sender, blob: &Arc<Blob>) -> Result<()> {
    let Some(write_lock) = blob.write_lock().await else { return Ok(()) };
    let failed = |error| unwritten(blob, error);
    let mut writing = blocking(move || write_lock.resume()).await?.map_err(failed)?;
    let (size, mut retries) = (blob.descriptor.size.0, Retries::new(sender.peer().timeouts));
    while writing.at < size {
        let before = writing.at;
        let (back, end) = download_once(sender, writing).await?;
        writing = back;
        if writing.at - before >= STEP {
            retries.reset();
        }
        match end {
            Ok(()) => {}
            Err(failure) => retries.wait_to_retry(failure).await?,
        }
    }
    match blocking(move || writing.finish()).await?.map_err(failed)? {
        Verdict::Whole => Ok(()),
        Verdict::Wrong(digest) => Err(Error::Mismatch {
            message: format!(
                "{} sent data with the digest {digest} instead of {}",
                sender.peer().host,
                blob.descriptor.digest
            ),
        }),
    }
}

/// Receives as much as one connection delivers.
async fn download_once(sender: &dyn Sender, mut writing: Writing) -> Result<(Writing, Result<(), Failure>)> {
    let (from, descriptor) = (writing.at, writing.blob().descriptor);
    let response = match sender.blob(descriptor, from).await {
        Ok(response) => response,
        Err(failure) => return Ok((writing, Err(failure))),
    };
    let skip = match begin(sender, &response, from) {
        Ok(skip) => skip,
        Err(failure) => return Ok((writing, Err(failure))),
    };
    let (chunks, mut pending) = mpsc::channel::<Chunk>(QUEUE);
    // The thread keeps the write lock while it writes, even if nobody waits for it any more.
    let writer = tokio::task::spawn_blocking(move || {
        while let Some(chunk) = pending.blocking_recv() {
            if let Err(error) = writing.write(&chunk) {
                return (writing, Err(error));
            }
        }
        (writing, Ok(()))
    });
    let end = receive(sender, response, skip, descriptor.size.0 - from, chunks).await;
    let (writing, written) = writer.await.map_err(|error| Error::other("write a blob", error))?;
    if let Err(error) = written {
        return Err(unwritten(writing.blob(), error));
    }
    Ok((writing, end))
}

/// Returns how many bytes of the response are in the cache already.
fn begin(sender: &dyn Sender, response: &Response, from: u64) -> Result<u64, Failure> {
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return Ok(from);
    }
    let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let first = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
    match first {
        Some(first) if first <= from => Ok(from - first),
        _ => Err(sender.peer().refused("it sent another part of a layer than requested").into()),
    }
}

/// Passes on what arrives, without the first `skip` bytes and at most `room`.
async fn receive(
    sender: &dyn Sender,
    mut response: Response,
    mut skip: u64,
    mut room: u64,
    chunks: mpsc::Sender<Chunk>,
) -> Result<(), Failure> {
    let (host, timeouts) = (&sender.peer().host, sender.peer().timeouts);
    let (mut window, mut in_window) = (Instant::now(), 0);
    loop {
        let chunk = match timeout(timeouts.silence, response.chunk()).await {
            Ok(Ok(chunk)) => chunk,
            Ok(Err(error)) => return Err(broken(host, &error)),
            Err(_) => {
                let seconds = timeouts.silence.as_secs();
                return Err(Failure::transient(format!(
                    "{host} was silent for {seconds} s in the middle of a layer"
                )));
            }
        };
        let Some(mut chunk) = chunk else {
            return match room {
                0 => Ok(()),
                _ => {
                    Err(Failure::transient(format!("{host} closed the connection in the middle of a layer")))
                }
            };
        };
        in_window += chunk.len() as u64;
        if window.elapsed() >= timeouts.window {
            if in_window < timeouts.slowest {
                return Err(Failure::transient(format!("{host} sent a layer too slowly")));
            }
            (window, in_window) = (Instant::now(), 0);
        }
        let known = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
        skip -= known as u64;
        let chunk = chunk.split_off(known);
        let new = chunk.len() as u64;
        if new > room {
            let message = format!("{host} sent more of a layer than its manifest says");
            return Err(Error::Mismatch { message }.into());
        }
        room -= new;
        // If the writer is gone, it reports why.
        if !chunk.is_empty() && chunks.send(chunk).await.is_err() {
            return Ok(());
        }
    }
}

/// Copies a blob into a pipe while it arrives. Returns without an error if the reader is gone.
pub(super) async fn stream_into(blob: Arc<Blob>, mut pipe: pipe::Sender) -> Result<()> {
    let mut state = blob.state();
    let failed = |error| unwritten(&blob, error);
    let first = *state.wait_for(|state| state.bytes > 0).await.map_err(|_| gone())?;
    let file = Arc::new(blob.open().map_err(failed)?);
    let (mut at, mut buffer) = (0, vec![0; CHUNK]);
    loop {
        let BlobState { bytes, whole, edition } = *state.borrow_and_update();
        if edition != first.edition {
            let message = format!("the data received for {} was wrong", blob.descriptor.digest);
            return Err(Error::Mismatch { message });
        }
        if at == bytes {
            if whole {
                return Ok(());
            }
            state.changed().await.map_err(|_| gone())?;
            continue;
        }
        let length = usize::try_from(bytes - at).unwrap_or(CHUNK).min(CHUNK);
        let source = Arc::clone(&file);
        buffer = blocking(move || {
            source.read_exact_at(&mut buffer[..length], at)?;
            io::Result::Ok(buffer)
        })
        .await?
        .map_err(failed)?;
        if pipe.write_all(&buffer[..length]).await.is_err() {
            return Ok(());
        }
        at += length as u64;
    }
}

fn gone() -> Error {
    Error::not_ready("the download of a layer was stopped")
}

fn unwritten(blob: &Blob, error: io::Error) -> Error {
    Error::os(format!("keep the layer {}", blob.descriptor.digest), error)
}

async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(act).await.map_err(|error| Error::other("use the cache", error))
}
