//! Files of catalogs, from a web server or from a file of the host. Documents are read whole; everything else goes
//! into the cache.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::Path,
    sync::Arc,
};

use async_trait::async_trait;
use banger_image::{
    catalog::location::{Location, is_this_host},
    oci::Descriptor,
};
use bytes::Bytes as Chunk;
use reqwest::{Response, StatusCode, Url, header::HeaderMap};
use rustix::fs::OFlags;

use super::{
    Registries,
    cache::{Verdict, WriteLock, Writing},
    cache_error,
    download::ensure,
    egress_policy::{Destination, NamedBy},
    http::{Peer, Sender},
    report_once, report_progress,
    retry::{Failure, Retries},
    session::from_byte,
};
use crate::{
    host::blocking::blocking,
    ports::{
        FromHost as _, Progress,
        registry::{Error, Result},
    },
};

/// How much of a file is read at a time.
const CHUNK: usize = 1 << 20;

impl Registries {
    /// Returns a document of at most this many bytes. `from` is a location that an administrator chose.
    pub(in crate::host) async fn document(
        &self,
        from: &Location,
        at: &Location,
        limit: u64,
    ) -> Result<Vec<u8>> {
        let url = match at {
            Location::Web(url) => url,
            Location::File(path) => {
                let path = path.clone();
                return blocking("read a catalog", move || read_file(&path, limit)).await;
            }
        };
        let web = self.web(from, url).await?;
        let mut retries = Retries::new(self.timeouts);
        loop {
            let read = async {
                let response = web.get(HeaderMap::new()).await?;
                web.peer.read(response, limit).await
            };
            match read.await {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => retries.wait_to_retry(failure).await?,
            }
        }
    }

    /// Returns a catalog's file through the cache, where it is below `namespace`.
    pub(in crate::host) async fn file(
        &self,
        namespace: &str,
        from: &Location,
        at: &Location,
        content: Descriptor,
        progress: Arc<dyn Progress>,
    ) -> Result<OwnedFd> {
        let blobs = [self.blob_of(namespace, content).await?];
        let [blob] = &blobs;
        if !blob.is_whole() {
            let have = blob.state().borrow().bytes;
            self.check_space(content.size.0 - have).await?;
            let fetched = async {
                match at {
                    Location::Web(url) => ensure(&self.web(from, url).await?, blob).await,
                    Location::File(path) => match blob.write_lock().await {
                        Some(write_lock) => {
                            let path = path.clone();
                            blocking("copy a file of a catalog", move || copy(write_lock, &path)).await
                        }
                        None => Ok(()),
                    },
                }
            };
            tokio::select! {
                fetched = fetched => fetched?,
                never = report_progress(&blobs, &*progress) => match never {},
            }
        }
        report_once(&blobs, &*progress);
        let file = blob.open().map_err(cache_error)?;
        drop(blobs);
        self.trim().await;
        Ok(file.into())
    }

    async fn web(&self, from: &Location, url: &Url) -> Result<WebFile> {
        // A catalog on the host may name other servers, as an administrator may. A server may name itself, and
        // servers that are neither the host nor near it.
        let base = match from {
            Location::Web(index) => index,
            Location::File(_) => url,
        };
        let host = url.host_str().unwrap_or_default().to_owned();
        let named_by = NamedBy::Administrator;
        let base = Destination { url: base.clone(), is_loopback: is_this_host(base), named_by };
        let peer = Peer { clients: self.clients().await?, timeouts: self.timeouts, base, host };
        Ok(WebFile { peer, url: url.clone() })
    }
}

/// A file on a web server.
struct WebFile {
    peer: Peer,
    url: Url,
}

impl WebFile {
    async fn get(&self, headers: HeaderMap) -> Result<Response, Failure> {
        let response = self.peer.follow(self.url.clone(), &headers, None).await?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                Err(self.peer.transient(&response))
            }
            status if status.is_server_error() => Err(self.peer.transient(&response)),
            status => Err(self.peer.refused(&format!("{}: {status}", self.url.path())).into()),
        }
    }
}

#[async_trait]
impl Sender for WebFile {
    async fn blob(&self, _blob: Descriptor, from: u64) -> Result<Response, Failure> {
        self.get(from_byte(from)?).await
    }

    fn peer(&self) -> &Peer {
        &self.peer
    }
}

/// Opens a regular file that an administrator chose, without waiting for a pipe or device.
fn open(path: &Path) -> Result<File> {
    let failed = |error| Error::os(format!("open {}", path.display()), error);
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    match file.metadata().map_err(failed)?.is_file() {
        true => Ok(file),
        false => Err(Error::BadFile { message: format!("{} is not a regular file", path.display()) }),
    }
}

fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = open(path)?.take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|error| Error::os(format!("read {}", path.display()), error))?;
    match bytes.len() as u64 <= limit {
        true => Ok(bytes),
        false => {
            let message = format!("{} is larger than {limit} bytes", path.display());
            Err(Error::Refused { message })
        }
    }
}

/// Copies a file into the cache. One of another size or digest leaves nothing there.
fn copy(write_lock: WriteLock, path: &Path) -> Result<()> {
    let mut writing: Writing = write_lock.resume().map_err(cache_error)?;
    let content = writing.blob().descriptor;
    let unread = |error| Error::os(format!("read {}", path.display()), error);
    let differs = || Error::Mismatch { message: format!("{} does not match its catalog", path.display()) };
    let mut file = open(path)?;
    file.seek(SeekFrom::Start(writing.at)).map_err(unread)?;
    let mut buffer = vec![0; CHUNK];
    while writing.at < content.size.0 {
        let most = usize::try_from(content.size.0 - writing.at).unwrap_or(CHUNK).min(CHUNK);
        let count = match file.read(&mut buffer[..most]) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(unread(error)),
        };
        writing.write(&Chunk::copy_from_slice(&buffer[..count])).map_err(cache_error)?;
    }
    // Too many bytes would give another digest as well.
    let is_longer = file.read(&mut [0]).map_err(unread)? > 0;
    if writing.at < content.size.0 || is_longer {
        writing.blob().discard().map_err(cache_error)?;
        return Err(differs());
    }
    match writing.finish().map_err(cache_error)? {
        Verdict::Whole => Ok(()),
        Verdict::Wrong(_) => Err(differs()),
    }
}
