//! Files of catalogs: documents, which are read whole, and what goes into the cache, from a server of the web or
//! from a file of the host.

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
    ask::{Asker, Sender},
    cache::{Pen, Verdict, Writing},
    download::ensure,
    patience::{Failure, Tries},
    place::{Base, NamedBy},
    session::from_byte,
    tell, tell_once, unkept,
};
use crate::{
    host::blocking::blocking,
    ports::{Error, Result, images::Progress},
};

/// What is read of a file at once.
const CHUNK: usize = 1 << 20;

impl Registries {
    /// A document of at most this many bytes. `from` is where somebody pointed to who decides what this host may ask.
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
        let mut tries = Tries::new(self.patience);
        loop {
            let read = async {
                let response = web.get(HeaderMap::new()).await?;
                web.asker.read(response, limit).await
            };
            match read.await {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => tries.again(failure).await?,
            }
        }
    }

    /// A file of a catalog by way of the cache, where `keeper` has a directory.
    pub(in crate::host) async fn file(
        &self,
        keeper: &str,
        from: &Location,
        at: &Location,
        content: Descriptor,
        progress: Arc<dyn Progress>,
    ) -> Result<OwnedFd> {
        let blobs = [self.blob_of(keeper, content).await?];
        let [blob] = &blobs;
        if !blob.is_whole() {
            let have = blob.level().borrow().bytes;
            self.check_room(content.size.0 - have).await?;
            let fetched = async {
                match at {
                    Location::Web(url) => ensure(&self.web(from, url).await?, blob).await,
                    Location::File(path) => match blob.pen().await {
                        Some(pen) => {
                            let path = path.clone();
                            blocking("copy a file of a catalog", move || copy(pen, &path)).await
                        }
                        None => Ok(()),
                    },
                }
            };
            tokio::select! {
                fetched = fetched => fetched?,
                never = tell(&blobs, &*progress) => match never {},
            }
        }
        tell_once(&blobs, &*progress);
        let file = blob.open().map_err(unkept)?;
        drop(blobs);
        self.trim().await;
        Ok(file.into())
    }

    async fn web(&self, from: &Location, url: &Url) -> Result<WebFile> {
        // What stands on the host may name what stands elsewhere, as an administrator may; a server may name itself
        // and what is neither the host nor near it.
        let base = match from {
            Location::Web(index) => index,
            Location::File(_) => url,
        };
        let host = url.host_str().unwrap_or_default().to_owned();
        let named_by = NamedBy::Administrator;
        let base = Base { url: base.clone(), is_loopback: is_this_host(base), named_by };
        let asker = Asker { clients: self.clients().await?, patience: self.patience, base, host };
        Ok(WebFile { asker, url: url.clone() })
    }
}

/// A file on a server.
struct WebFile {
    asker: Asker,
    url: Url,
}

impl WebFile {
    async fn get(&self, headers: HeaderMap) -> Result<Response, Failure> {
        let response = self.asker.follow(self.url.clone(), &headers, None).await?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Err(self.asker.passing(&response)),
            status if status.is_server_error() => Err(self.asker.passing(&response)),
            status => Err(self.asker.refused(&format!("{}: {status}", self.url.path())).into()),
        }
    }
}

#[async_trait]
impl Sender for WebFile {
    async fn blob(&self, _blob: Descriptor, from: u64) -> Result<Response, Failure> {
        self.get(from_byte(from)?).await
    }

    fn asker(&self) -> &Asker {
        &self.asker
    }
}

/// Opens a regular file that an administrator pointed to. Nothing else holds us up.
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
            Err(Error::Registry { message })
        }
    }
}

/// Copies a file into the cache. One of another size or content leaves nothing there.
fn copy(pen: Pen, path: &Path) -> Result<()> {
    let mut writing: Writing = pen.resume().map_err(unkept)?;
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
        writing.write(&Chunk::copy_from_slice(&buffer[..count])).map_err(unkept)?;
    }
    // Too many bytes would give another digest as well.
    let is_longer = file.read(&mut [0]).map_err(unread)? > 0;
    if writing.at < content.size.0 || is_longer {
        writing.blob().discard().map_err(unkept)?;
        return Err(differs());
    }
    match writing.finish().map_err(unkept)? {
        Verdict::Whole => Ok(()),
        Verdict::Wrong(_) => Err(differs()),
    }
}
