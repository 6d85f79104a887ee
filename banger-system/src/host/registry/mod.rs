//! Registries of images, and the cache of what was fetched from them.
//!
//! Every answer of a registry is hostile until its digest is verified. Documents are small and read whole; layers go
//! into the cache, and from there to the importer while they arrive.

mod cache;
mod download;
mod egress_policy;
mod http;
mod proxy;
mod resolve;
mod retry;
mod session;
mod token;
mod web;

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use banger_proto::size::Bytes;
use futures_util::{StreamExt, TryStreamExt, future::try_join_all, stream};
use rustix::{
    fs::{SealFlags, fcntl_get_seals},
    pipe::{PipeFlags, fcntl_setpipe_size, pipe_with},
};
use tokio::net::unix::pipe;

use self::{
    cache::{Blob, Cache},
    download::{ensure_from, stream_into},
    egress_policy::Guests,
    http::Clients,
    proxy::ProxyRule,
    session::Session,
};
pub use self::{egress_policy::LocalPorts, retry::Timeouts};
use super::blocking::blocking;

use banger_domain::net::subnet::Subnet;
use banger_image::oci::{
    Descriptor, LayerFacts, RemoteImage,
    credentials::{Credentials, MAX_CREDENTIALS},
    reach::{Mirror, Proxy},
};

use crate::ports::{
    FromHost as _, Progress,
    registry::{Error, Fetch, Prune, Pruned, Registry, Result, Source},
};

/// How many layers of an image are fetched at a time. More are no faster, and registries limit connections.
const PARALLEL: usize = 4;
/// The size of the pipe to an importer: the most that is possible without privilege.
const PIPE: usize = 1 << 20;
/// How much space a fetch leaves on the file system of the cache.
const SPARE: u64 = 64 << 20;
/// How often progress is reported.
const TICK: Duration = Duration::from_millis(100);

/// Registries, with a cache in a directory.
#[derive(Debug, Clone)]
pub struct Registries {
    /// Made on first use, since that reads the host's certificates.
    clients: Arc<OnceLock<Clients>>,
    guests: Guests,
    local: LocalPorts,
    cache: Cache,
    timeouts: Timeouts,
    proxy: Option<ProxyRule>,
    mirrors: Arc<[Mirror]>,
}

impl Registries {
    /// Returns registries with a cache in this directory, of at most this many bytes. On the host itself, only ports
    /// that are `local` may be used.
    pub fn new(cache: &Path, limit: Bytes, timeouts: Timeouts, local: LocalPorts) -> Self {
        let cache = Cache::new(cache, limit);
        Self {
            clients: Arc::default(),
            guests: Guests::default(),
            local,
            cache,
            timeouts,
            proxy: None,
            mirrors: Arc::default(),
        }
    }

    /// Returns the same registries, reached through a proxy and by mirrors.
    pub fn reached_by(self, proxy: Option<&Proxy>, mirrors: Vec<Mirror>) -> Self {
        Self { clients: Arc::default(), proxy: proxy.map(ProxyRule::new), mirrors: mirrors.into(), ..self }
    }

    async fn clients(&self) -> Result<Clients> {
        if let Some(clients) = self.clients.get() {
            return Ok(clients.clone());
        }
        let (timeouts, guests, local) = (self.timeouts, self.guests.clone(), self.local.clone());
        let proxy = self.proxy.clone();
        let made =
            blocking("read certificates", move || Clients::new(timeouts, guests, local, proxy)).await?;
        Ok(self.clients.get_or_init(|| made).clone())
    }

    /// Returns whom to ask for an image, in order: the mirrors of its registry, then the registry unless a mirror
    /// is the only source.
    async fn sessions(&self, source: &Source) -> Result<Vec<Session>> {
        let (clients, reference) = (self.clients().await?, &source.reference);
        let mirrors: Vec<&Mirror> =
            self.mirrors.iter().filter(|mirror| mirror.registry == *reference.registry()).collect();
        let has_registry = !mirrors.iter().any(|mirror| mirror.only);
        let mut sessions: Vec<Session> = Vec::new();
        for (index, mirror) in mirrors.iter().enumerate() {
            // The next one is asked instead of the same one again.
            let is_last = !has_registry && index + 1 == mirrors.len();
            let attempts = if is_last { self.timeouts.attempts } else { 1 };
            let timeouts = Timeouts { attempts, ..self.timeouts };
            sessions.push(Session::with_mirror(clients.clone(), timeouts, reference.clone(), mirror));
        }
        if has_registry {
            let credentials = source.credentials.clone();
            sessions.push(Session::new(clients, self.timeouts, reference.clone(), credentials)?);
        }
        Ok(sessions)
    }

    async fn blob(&self, source: &Source, descriptor: Descriptor) -> Result<Arc<Blob>> {
        self.blob_of(source.reference.registry().as_str(), descriptor).await
    }

    async fn blob_of(&self, namespace: &str, descriptor: Descriptor) -> Result<Arc<Blob>> {
        let (cache, namespace) = (self.cache.clone(), namespace.to_owned());
        blocking("read the cache", move || cache.blob(&namespace, descriptor).map_err(cache_error)).await
    }

    async fn trim(&self) {
        let cache = self.cache.clone();
        let trimmed = blocking("trim the cache", move || cache.trim().map_err(cache_error)).await;
        match trimmed {
            Ok(Pruned { blobs: 0, .. }) => {}
            Ok(Pruned { blobs, bytes }) => {
                tracing::info!(blobs, %bytes, "removed layers because the cache was too large")
            }
            Err(error) => tracing::warn!(%error, "cannot trim the cache"),
        }
    }

    async fn check_space(&self, missing: u64) -> Result<()> {
        let cache = self.cache.clone();
        blocking("read the cache", move || {
            let stat = rustix::fs::statvfs(cache.root()).map_err(|error| cache_error(error.into()))?;
            match stat.f_bavail.saturating_mul(stat.f_frsize) < missing.saturating_add(SPARE) {
                true => Err(Error::no_space(format!("fetch {}", Bytes(missing)))),
                false => Ok(()),
            }
        })
        .await
    }
}

#[async_trait]
impl Registry for Registries {
    fn forbid_guests(&self, guests: Subnet) {
        self.guests.are_in(guests);
    }

    fn credentials(&self, file: OwnedFd) -> Result<Credentials> {
        read_sealed(file)
    }

    async fn resolve(&self, source: &Source) -> Result<RemoteImage> {
        self.find_image(source).await
    }

    async fn fetch(
        &self,
        source: &Source,
        layers: &[LayerFacts],
        progress: Arc<dyn Progress>,
    ) -> Result<Fetch> {
        let sessions = self.sessions(source).await?;
        let (mut found, mut blobs, mut feeds) = (Vec::new(), Vec::new(), Vec::new());
        for layer in layers {
            found.push(self.blob(source, layer.blob).await?);
        }
        let missing = found.iter().filter(|blob| !blob.is_whole());
        self.check_space(missing.map(|blob| blob.descriptor.size.0 - blob.state().borrow().bytes).sum())
            .await?;
        for blob in &found {
            if blob.is_whole() {
                blobs.push(OwnedFd::from(blob.open().map_err(cache_error)?));
            } else {
                let (reader, writer) = follower()?;
                blobs.push(reader);
                feeds.push(stream_into(Arc::clone(blob), writer));
            }
        }
        let this = self.clone();
        let work = async move {
            let download = async {
                let each: Vec<_> = found.iter().map(|blob| ensure_from(&sessions, blob)).collect();
                stream::iter(each).buffer_unordered(PARALLEL).try_collect::<Vec<()>>().await
            };
            let fetched = async { tokio::try_join!(download, try_join_all(feeds)) };
            tokio::select! {
                fetched = fetched => { fetched?; }
                never = report_progress(&found, &*progress) => match never {},
            }
            report_once(&found, &*progress);
            // Blobs in use are never removed.
            drop(found);
            this.trim().await;
            Ok(())
        };
        Ok(Fetch { blobs, work: Box::pin(work) })
    }

    async fn forget(&self, source: &Source, layers: &[LayerFacts]) -> Result<()> {
        for layer in layers {
            let blob = self.blob(source, layer.blob).await?;
            blocking("forget a layer", move || blob.discard().map_err(cache_error)).await?;
        }
        Ok(())
    }

    async fn prune(&self, prune: Prune) -> Result<Pruned> {
        let cache = self.cache.clone();
        blocking("prune the cache", move || cache.prune(prune).map_err(cache_error)).await
    }
}

/// Reads credentials from a sealed memory file: it cannot be changed or truncated any more, and reading it never
/// waits.
fn read_sealed(file: OwnedFd) -> Result<Credentials> {
    let bad = |why: &str| Error::BadFile { message: format!("the credentials {why}") };
    let seals = fcntl_get_seals(&file).map_err(|_| bad("are not in a memory file"))?;
    if !seals.contains(SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW) {
        return Err(bad("are in a memory file that is not sealed"));
    }
    let file = File::from(file);
    let length = file.metadata().map_err(|_| bad("cannot be read"))?.len();
    let length = usize::try_from(length).ok().filter(|length| *length <= MAX_CREDENTIALS);
    let mut bytes = vec![0; length.ok_or_else(|| bad("are too long"))?];
    file.read_exact_at(&mut bytes, 0).map_err(|_| bad("cannot be read"))?;
    Credentials::parse(&bytes).map_err(|error| Error::BadFile { message: error.to_string() })
}

/// Returns a pipe whose one end blocks, for a process, and whose other end does not, for us.
fn follower() -> Result<(OwnedFd, pipe::Sender)> {
    let failed = |error: io::Error| Error::os("make a pipe for a layer", error);
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
    // A smaller pipe is only slower.
    let _ = fcntl_setpipe_size(&writer, PIPE);
    rustix::io::ioctl_fionbio(&writer, true).map_err(|error| failed(error.into()))?;
    Ok((reader, pipe::Sender::from_owned_fd(writer).map_err(failed)?))
}

async fn report_progress(blobs: &[Arc<Blob>], progress: &dyn Progress) -> std::convert::Infallible {
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        report_once(blobs, progress);
    }
}

fn report_once(blobs: &[Arc<Blob>], progress: &dyn Progress) {
    let done = blobs.iter().map(|blob| blob.state().borrow().bytes).sum();
    let total = blobs.iter().map(|blob| blob.descriptor.size.0).sum();
    progress.advanced(Bytes(done), Some(Bytes(total)));
}

fn cache_error(error: io::Error) -> Error {
    Error::os("use the cache of layers", error)
}
