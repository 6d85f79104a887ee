//! Captures as directories, named by the id of their sandbox:
//!
//! ```text
//!   captures/ID/manifest.json     what it depends on, its size, and the digest of the other file
//!               state             memory, processors and devices, as the VMM wrote them
//!   captures/.staging-ID          unfinished
//! ```
//!
//! The children of a fork each have a directory with a hard link to the same file, and so have those of a snapshot.
//!
//! Only root reads them. The file is read once for each resumption: it is verified while the VMM loads it, and the guest
//! does not run before its last byte was verified. A damaged one stays where it is, so that its owner decides about it.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use banger_domain::{
    id::{Timestamp, VmId},
    net::nic::Mac,
    vm::Token,
};
use banger_proto::size::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
};

use super::staging::{self, Staging};
use crate::{
    host::blocking::blocking,
    ports::{
        FromHost as _, HostError,
        captures::{Captures, Error, HostFacts, Origin, Result, Stored, Unfinished, difference},
    },
};

const MANIFEST: &str = "manifest.json";
const STATE: &str = "state";
/// How much is read and written at a time.
const CHUNK: usize = 1 << 20;
/// How long a VMM may take to read a chunk, also on a busy host.
const STALLED: Duration = Duration::from_secs(60);
/// What a capture leaves free: the disks of sandboxes grow on the same file system, and their guests fail on a full one.
const RESERVE: u64 = 256 << 20;
/// The longest manifest: the flags of a processor are the most of it.
const MAX_MANIFEST: u64 = 1 << 20;

/// Captures in a directory.
pub struct LocalCaptures {
    directory: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    facts: HostFacts,
    /// Microseconds since 1970.
    at: u64,
    length: u64,
    digest: String,
    #[serde(default)]
    origin: Option<StoredOrigin>,
}

#[derive(Clone, Serialize, Deserialize)]
struct StoredOrigin {
    token: String,
    mac: [u8; 6],
}

impl From<Origin> for StoredOrigin {
    fn from(origin: Origin) -> Self {
        Self { token: origin.token.as_str().to_owned(), mac: origin.mac.0 }
    }
}

impl From<StoredOrigin> for Origin {
    fn from(stored: StoredOrigin) -> Self {
        Self { token: Token::from_text(stored.token), mac: Mac(stored.mac) }
    }
}

struct Staged {
    staging: Staging,
    file: File,
    length: u64,
}

impl LocalCaptures {
    /// Returns the captures in a directory.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn path(&self, vm: VmId) -> PathBuf {
        self.directory.join(vm.to_string())
    }

    async fn manifest(&self, vm: VmId) -> Result<Option<Manifest>> {
        let path = self.path(vm).join(MANIFEST);
        blocking("read what is known of a suspended guest", move || match read_manifest(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).map(Some).map_err(|_| damaged("its manifest has changed"))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(os("read what is known of a suspended guest", error)),
        })
        .await
    }
}

fn read_manifest(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_MANIFEST).read_to_end(&mut text)?;
    Ok(text)
}

#[async_trait]
impl Captures for LocalCaptures {
    async fn receive(&self, vm: VmId, from: OwnedFd, most: Bytes) -> Result<Box<dyn Unfinished>> {
        let doing = "write the memory of a guest";
        let mut from = pipe::Receiver::from_owned_fd(from).map_err(|error| os(doing, error))?;
        let (directory, name) = (self.directory.clone(), vm.to_string());
        let begin = move || {
            staging::remove(&directory, &name)?;
            let staging = Staging::begin(&directory, &name)?;
            let file = staging.file(STATE, 0o600)?;
            Ok((staging, file))
        };
        let (staging, mut file) = blocking(doing, move || begin().map_err(|error| os(doing, error))).await?;
        // The guest stands still meanwhile, so one chunk is written while the next one is read, and the digest comes later.
        let mut spare = Vec::with_capacity(CHUNK);
        let mut chunk = fill(&mut from, Vec::with_capacity(CHUNK)).await?;
        let mut length = 0;
        while !chunk.is_empty() {
            length += chunk.len() as u64;
            if length > most.0 {
                return Err(HostError::other(doing, format!("it is more than {most}")).into());
            }
            let write = move || {
                require_room(&file)
                    .and_then(|()| file.write_all(&chunk))
                    .map_err(|error| os(doing, error))?;
                Ok::<_, Error>((file, chunk))
            };
            ((file, spare), chunk) = tokio::try_join!(blocking(doing, write), fill(&mut from, spare))?;
        }
        Ok(Box::new(Staged { staging, file, length }))
    }

    async fn check(&self, vm: VmId, facts: &HostFacts) -> Result<()> {
        let manifest = self.manifest(vm).await?.ok_or_else(|| damaged("its memory is missing"))?;
        match difference(&manifest.facts, facts) {
            Some(what) => Err(Error::Differs { what }),
            None => Ok(()),
        }
    }

    async fn send(&self, vm: VmId, to: OwnedFd) -> Result<()> {
        let doing = "read the memory of a guest";
        let manifest = self.manifest(vm).await?.ok_or_else(|| damaged("its memory is missing"))?;
        let mut to = Some(pipe::Sender::from_owned_fd(to).map_err(|error| os(doing, error))?);
        let path = self.path(vm).join(STATE);
        let open = move || File::open(path).map_err(|error| os(doing, error));
        let mut file = blocking(doing, open).await?;
        let (mut sha256, mut length) = (Sha256::new(), 0);
        let (mut chunk, mut spare) = (Vec::new(), Vec::new());
        // The VMM reads one chunk while the next one is read from the disk.
        loop {
            let read = move || {
                spare.clear();
                (&mut file).take(CHUNK as u64).read_to_end(&mut spare).map_err(|error| os(doing, error))?;
                sha256.update(&spare);
                Ok::<_, Error>((sha256, file, spare))
            };
            let write = async {
                let Some(pipe) = &mut to else { return };
                let written = tokio::time::timeout(STALLED, pipe.write_all(&chunk)).await;
                if let Err(error) = written.unwrap_or_else(|late| Err(late.into())) {
                    tracing::warn!(%vm, %error, "a VMM stopped loading the memory of a guest");
                    to = None;
                }
            };
            let (next, ()) = tokio::join!(blocking(doing, read), write);
            (sha256, file, spare) = next?;
            (chunk, spare) = (spare, chunk);
            length += chunk.len() as u64;
            if chunk.is_empty() || length > manifest.length {
                break;
            }
        }
        match length == manifest.length && text_of(sha256) == manifest.digest {
            true => Ok(()),
            false => Err(damaged("its memory on disk has changed")),
        }
    }

    async fn share(&self, of: VmId, with: VmId, facts: &HostFacts) -> Result<Stored> {
        let mut manifest = self.manifest(of).await?.ok_or_else(|| damaged("its memory is missing"))?;
        manifest.facts.extend(facts.clone());
        let (directory, name, state) = (self.directory.clone(), with.to_string(), self.path(of).join(STATE));
        let share = move || {
            staging::remove(&directory, &name)?;
            let staging = Staging::begin(&directory, &name)?;
            staging.link(&state, STATE)?;
            finish(staging, &manifest)?;
            stored(&state, manifest.at)
        };
        let doing = "share the memory of a guest";
        blocking(doing, move || share().map_err(|error| os(doing, error))).await
    }

    async fn origin(&self, vm: VmId) -> Result<Option<Origin>> {
        Ok(self.manifest(vm).await?.and_then(|manifest| manifest.origin).map(Origin::from))
    }

    async fn stored(&self, vm: VmId) -> Result<Option<Stored>> {
        let Some(manifest) = self.manifest(vm).await? else { return Ok(None) };
        let state = self.path(vm).join(STATE);
        let doing = "look at a suspended guest";
        let look = move || stored(&state, manifest.at).map_err(|error| os(doing, error));
        Ok(Some(blocking(doing, look).await?))
    }

    async fn remove(&self, vm: VmId) -> Result<()> {
        let (directory, name) = (self.directory.clone(), vm.to_string());
        let doing = "remove the memory of a guest";
        blocking(doing, move || staging::remove(&directory, &name).map_err(|error| os(doing, error))).await
    }

    async fn found(&self) -> Result<Vec<VmId>> {
        let (directory, doing) = (self.directory.clone(), "look for suspended guests");
        blocking(doing, move || staging::found(&directory).map_err(|error| os(doing, error))).await
    }
}

#[async_trait]
impl Unfinished for Staged {
    async fn finish(
        self: Box<Self>,
        facts: &HostFacts,
        at: Timestamp,
        origin: Option<Origin>,
    ) -> Result<Stored> {
        let Staged { staging, file, length } = *self;
        let (facts, origin) = (facts.clone(), origin.map(StoredOrigin::from));
        let finish = move || {
            let (hashed, digest) = digest_of(&file)?;
            if hashed != length {
                return Err(io::Error::other("what was written is not on the disk"));
            }
            let manifest = Manifest { facts, at: at.0, length, digest, origin };
            finish(staging, &manifest)?;
            Ok(describe(&file.metadata()?, manifest.at))
        };
        let doing = "store the memory of a guest";
        blocking(doing, move || finish().map_err(|error| os(doing, error))).await
    }
}

/// Fills a buffer from a pipe. It has less than a chunk only at the end, and nothing after it.
async fn fill(from: &mut pipe::Receiver, mut chunk: Vec<u8>) -> Result<Vec<u8>> {
    chunk.clear();
    let mut rest = from.take(CHUNK as u64);
    let read = rest.read_to_end(&mut chunk).await;
    read.map_err(|error| os("write the memory of a guest", error))?;
    Ok(chunk)
}

/// Returns the length of a whole file and its digest, wherever its position is.
fn digest_of(mut file: &File) -> io::Result<(u64, String)> {
    file.rewind()?;
    let mut sha256 = Sha256::new();
    let length = io::copy(&mut io::BufReader::with_capacity(CHUNK, file), &mut sha256)?;
    Ok((length, text_of(sha256)))
}

/// Adds the manifest to a directory that has the memory, and gives it its name.
fn finish(staging: Staging, manifest: &Manifest) -> io::Result<()> {
    staging.file(MANIFEST, 0o600)?.write_all_at(&serde_json::to_vec(manifest)?, 0)?;
    staging.finish()
}

fn stored(state: &Path, at: u64) -> io::Result<Stored> {
    Ok(describe(&fs::metadata(state)?, at))
}

fn describe(state: &fs::Metadata, at: u64) -> Stored {
    Stored { size: Bytes(state.blocks() * 512), at: Timestamp(at), file: Some(state.ino()) }
}

/// Fails as a write to a full file system does if only the reserve is left.
fn require_room(file: &File) -> io::Result<()> {
    let stat = rustix::fs::fstatvfs(file)?;
    match stat.f_bavail.saturating_mul(stat.f_frsize) < RESERVE {
        true => Err(io::ErrorKind::StorageFull.into()),
        false => Ok(()),
    }
}

fn text_of(sha256: Sha256) -> String {
    format!("sha256:{:x}", sha256.finalize())
}

fn damaged(message: &str) -> Error {
    Error::Damaged { message: message.to_owned() }
}

fn os(doing: &str, error: io::Error) -> Error {
    Error::os(doing, error)
}

#[cfg(test)]
mod tests;
