//! Uploads what a registry does not have. A layer goes as one request, which every registry takes; after a broken connection,
//! the upload continues where the registry says that it stopped, or begins again.

use std::{
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use futures_util::stream;
use reqwest::{
    Body, Method, Response, StatusCode, Url,
    header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE},
};

use super::{
    Pushed,
    layout::{Blob, Image, MANIFEST},
    retry::{Failure, Retries},
    session::{Sent, Session},
};
use crate::{error::Result, ui::progress::Track};

/// How much is sent at a time.
const PIECE: usize = 256 << 10;
/// Progress that allows as many attempts again.
const PROGRESS: u64 = 1 << 20;
/// The header with the digest that a registry computed.
const DIGEST: &str = "docker-content-digest";

/// Uploads the blobs that the registry does not have, and then the manifest.
pub async fn image(session: &Session, image: &Image, track: &Arc<Track>) -> Result<Pushed> {
    let total = image.size();
    track.stage("push", &format!("pushing to {}", session.reference()));
    track.bytes(Some(0), Some(total));
    let (mut done, mut uploaded) = (0, 0);
    for blob in &image.blobs {
        let upload = Upload { session, blob, track, before: done };
        uploaded += if upload.run().await? { blob.size } else { 0 };
        done += blob.size;
        track.bytes(Some(done), None);
    }
    let mut retries = Retries::default();
    while let Err(failure) = manifest(session, image).await {
        retries.wait_to_retry(&session.reference().to_string(), failure).await?;
    }
    track.bytes(Some(total), None);
    Ok(Pushed { size: total, uploaded: uploaded + image.manifest.len() as u64 })
}

async fn manifest(session: &Session, image: &Image) -> Result<(), Failure> {
    let url = session.address(&format!("manifests/{}", session.reference().wanted()))?;
    let build = |request: reqwest::RequestBuilder| {
        request.header(CONTENT_TYPE, MANIFEST).body(image.manifest.clone())
    };
    let response = session.send(Method::PUT, url, build, &Sent::default()).await?;
    if !response.status().is_success() {
        return Err(session.failure(response).await);
    }
    let stored = response.headers().get(DIGEST).and_then(|digest| digest.to_str().ok());
    match stored {
        Some(stored) if stored != image.digest => {
            Err(session.refused("it has stored another manifest than was sent").into())
        }
        _ => Ok(()),
    }
}

/// The upload of one blob.
struct Upload<'a> {
    session: &'a Session,
    blob: &'a Blob,
    track: &'a Arc<Track>,
    /// The bytes of earlier blobs.
    before: u64,
}

/// An upload that the registry knows of.
struct Open {
    url: Url,
    /// How many bytes it has.
    from: u64,
}

impl Upload<'_> {
    /// Returns whether the blob had to be sent.
    async fn run(&self) -> Result<bool> {
        let (mut retries, mut open, mut best) = (Retries::default(), None, 0);
        loop {
            match self.attempt(&mut open).await {
                Ok(sent) => return Ok(sent),
                Err(failure) => {
                    if let Some(Open { from, .. }) = &open
                        && *from >= best + PROGRESS
                    {
                        best = *from;
                        retries.reset();
                    }
                    let what = self.session.reference().to_string();
                    retries.wait_to_retry(&what, failure).await?;
                }
            }
        }
    }

    /// Makes an attempt, which continues an earlier upload if there is one, and leaves it there when it breaks.
    async fn attempt(&self, open: &mut Option<Open>) -> Result<bool, Failure> {
        if self.exists().await? {
            return Ok(false);
        }
        let known = match open {
            // It stays when the question fails.
            Some(Open { url, .. }) => self.received(url.clone()).await?,
            None => None,
        };
        *open = None;
        let Open { url, from } = match known {
            Some(known) => known,
            None => match self.begin().await? {
                Some(url) => Open { url, from: 0 },
                // Another repository of the registry has it.
                None => return Ok(false),
            },
        };
        *open = Some(Open { url: url.clone(), from });
        let response = match from {
            0 => self.send(Method::PUT, self.complete(url), 0).await?,
            from if from < self.blob.size => {
                let earlier = url.clone();
                let response = self.send(Method::PATCH, url, from).await?;
                match response.status().is_success() {
                    true => {
                        let next = self.session.location(&response).unwrap_or(earlier);
                        self.send(Method::PUT, self.complete(next), self.blob.size).await?
                    }
                    false => response,
                }
            }
            from => self.send(Method::PUT, self.complete(url), from).await?,
        };
        match response.status() {
            status if status.is_success() => Ok(true),
            // What it knew of an earlier attempt is not usable: the next one begins again.
            StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE
                if from > 0 =>
            {
                *open = None;
                let message = format!("{} cannot continue the upload", self.session.host());
                Err(Failure::transient(message))
            }
            _ => Err(self.session.failure(response).await),
        }
    }

    async fn exists(&self) -> Result<bool, Failure> {
        let url = self.session.address(&format!("blobs/{}", self.blob.digest))?;
        let response = self.session.send(Method::HEAD, url, |request| request, &Sent::default()).await?;
        match response.status() {
            StatusCode::OK => Ok(true),
            status if is_refusal(status) => Err(self.session.failure(response).await),
            // A store behind the registry may not answer this; then the blob is sent.
            _ => Ok(false),
        }
    }

    /// Begins an upload. Returns `None` if the registry has found the blob in another repository.
    async fn begin(&self) -> Result<Option<Url>, Failure> {
        let mut url = self.session.address("blobs/uploads/")?;
        url.query_pairs_mut().append_pair("mount", &self.blob.digest);
        if let Some(other) = &self.session.mount_from {
            url.query_pairs_mut().append_pair("from", other);
        }
        let empty = |request: reqwest::RequestBuilder| request.header(CONTENT_LENGTH, 0);
        let response = self.session.send(Method::POST, url, empty, &Sent::default()).await?;
        match response.status() {
            StatusCode::CREATED => Ok(None),
            StatusCode::ACCEPTED => Ok(Some(self.session.location(&response)?)),
            _ => Err(self.session.failure(response).await),
        }
    }

    /// Asks how much the registry has of an earlier upload. Returns `None` if it does not say.
    async fn received(&self, earlier: Url) -> Result<Option<Open>, Failure> {
        let sent = Sent::default();
        let response = self.session.send(Method::GET, earlier.clone(), |request| request, &sent).await?;
        if response.status().is_server_error() || response.status() == StatusCode::TOO_MANY_REQUESTS {
            return Err(self.session.failure(response).await);
        }
        let from = if response.status() == StatusCode::NO_CONTENT { received(&response) } else { None };
        let from = from.filter(|from| *from > 0 && *from <= self.blob.size);
        // Some registries repeat no address; then it is the same.
        let url = self.session.location(&response).unwrap_or(earlier);
        Ok(from.map(|from| Open { url, from }))
    }

    fn complete(&self, mut url: Url) -> Url {
        url.query_pairs_mut().append_pair("digest", &self.blob.digest);
        url
    }

    /// Sends the blob from this byte on.
    async fn send(&self, method: Method, url: Url, from: u64) -> Result<Response, Failure> {
        let sent = Sent::default();
        let is_part = method == Method::PATCH;
        let build = |request: reqwest::RequestBuilder| {
            let length = self.blob.size - from;
            let request =
                request.header(CONTENT_TYPE, "application/octet-stream").header(CONTENT_LENGTH, length);
            let request = match is_part {
                true => request.header(CONTENT_RANGE, format!("{from}-{}", self.blob.size.saturating_sub(1))),
                false => request,
            };
            if length == 0 { request } else { request.body(self.body(from, &sent)) }
        };
        self.session.send(method, url, build, &sent).await
    }

    /// Returns the bytes of the blob from here on, counted as they are taken.
    fn body(&self, from: u64, sent: &Sent) -> Body {
        let (blob, track, before, sent) =
            (self.blob.clone(), Arc::clone(self.track), self.before, Arc::clone(sent));
        Body::wrap_stream(stream::try_unfold(from, move |at| {
            let (blob, track, sent) = (blob.clone(), Arc::clone(&track), Arc::clone(&sent));
            async move {
                let read = tokio::task::spawn_blocking(move || {
                    let mut piece = vec![0; PIECE];
                    let length = blob.read_at(&mut piece, at)?;
                    piece.truncate(length);
                    Ok::<_, io::Error>(piece)
                });
                let piece = read.await.map_err(io::Error::other)??;
                let end = at + piece.len() as u64;
                sent.fetch_add(piece.len() as u64, Relaxed);
                track.bytes(Some(before + end), None);
                Ok::<_, io::Error>((!piece.is_empty()).then_some((piece, end)))
            }
        }))
    }
}

/// Returns whether a status means that the user may not push, or that the registry may answer later.
fn is_refusal(status: StatusCode) -> bool {
    let known = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::TOO_MANY_REQUESTS];
    known.contains(&status) || status.is_server_error()
}

/// Returns how many bytes an upload has, by the header `Range`, whose end is inclusive.
fn received(response: &Response) -> Option<u64> {
    number_of_bytes(response.headers().get(RANGE)?.to_str().ok()?)
}

fn number_of_bytes(range: &str) -> Option<u64> {
    let range = range.trim().trim_start_matches("bytes=");
    let last: u64 = range.strip_prefix("0-")?.parse().ok()?;
    // `0-0` is also what registries say when they have nothing.
    Some(if last == 0 { 0 } else { last.checked_add(1)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_says_how_much_was_received() {
        for (range, bytes) in [
            ("0-99", Some(100)),
            ("bytes=0-99", Some(100)),
            ("0-0", Some(0)),
            ("1-99", None),
            ("0--1", None),
            ("0-18446744073709551615", None),
            ("", None),
        ] {
            assert_eq!(number_of_bytes(range), bytes, "{range}");
        }
    }
}
