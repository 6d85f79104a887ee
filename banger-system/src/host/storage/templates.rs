//! Templates as directories, named by the digest of their key:
//!
//! ```text
//!   templates/DIGEST/manifest.json    the key, and the digests of the two files
//!                    state            of the processors and devices
//!                    memory           of the guest, sparse
//!   templates/.staging-DIGEST         unfinished
//!   templates/damaged                 the last one that did not verify, or that a start failed with
//! ```
//!
//! A template is loaded into memory for the first start that needs it, verified there, and forgotten when it was not
//! used for a while. The VMMs that run from it keep its pages as long as they need them.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use banger_image::holes::{BLOCK, CHUNK, chunks, next_data};
use banger_proto::size::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::{sparse, staging};
use crate::{
    host::{blocking::blocking, memory},
    ports::{
        Check, FromHost as _, HostError, Status,
        templates::{Kept, Result, TemplateKey, Templates},
        vmm::Capture,
    },
};

/// How long a template stays in memory after the last start from it.
const IDLE: Duration = Duration::from_secs(10 * 60);
/// The most templates in memory. Each takes what its guest had used, about 100 MiB.
const MOST_LOADED: usize = 4;
const MANIFEST: &str = "manifest.json";
const STATE: &str = "state";
const MEMORY: &str = "memory";
const DAMAGED: &str = "damaged";

/// Templates in a directory.
pub struct LocalTemplates {
    files: Files,
    loaded: Arc<Mutex<BTreeMap<String, Loaded>>>,
    /// Held while a template is loaded, so that starts at the same time load it once.
    loading: tokio::sync::Mutex<()>,
}

struct Loaded {
    capture: Arc<Capture>,
    used: Instant,
}

#[derive(Clone)]
struct Files {
    directory: PathBuf,
    most: Bytes,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    key: TemplateKey,
    state: String,
    memory: String,
}

impl LocalTemplates {
    /// Returns the templates in a directory, which take at most this room.
    pub fn new(directory: PathBuf, most: Bytes) -> Self {
        Self {
            files: Files { directory, most },
            loaded: Arc::default(),
            loading: tokio::sync::Mutex::default(),
        }
    }

    /// Returns a template that is in memory.
    fn in_memory(&self, id: &str) -> Option<Arc<Capture>> {
        let mut loaded = lock(&self.loaded);
        let found = loaded.get_mut(id)?;
        found.used = Instant::now();
        Some(Arc::clone(&found.capture))
    }

    fn remember(&self, id: String, capture: &Arc<Capture>) {
        let mut loaded = lock(&self.loaded);
        if loaded.len() >= MOST_LOADED
            && let Some(oldest) = loaded.iter().min_by_key(|(_, one)| one.used).map(|(id, _)| id.clone())
        {
            loaded.remove(&oldest);
        }
        loaded.insert(id.clone(), Loaded { capture: Arc::clone(capture), used: Instant::now() });
        drop(loaded);
        tokio::spawn(forget_when_idle(Arc::clone(&self.loaded), id));
    }
}

/// Forgets a template once it was not used for a while.
async fn forget_when_idle(loaded: Arc<Mutex<BTreeMap<String, Loaded>>>, id: String) {
    loop {
        tokio::time::sleep(IDLE).await;
        let mut loaded = lock(&loaded);
        if loaded.get(&id).is_none_or(|one| one.used.elapsed() >= IDLE) {
            loaded.remove(&id);
            return;
        }
    }
}

fn lock(loaded: &Mutex<BTreeMap<String, Loaded>>) -> MutexGuard<'_, BTreeMap<String, Loaded>> {
    loaded.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Templates for LocalTemplates {
    async fn tidy(&self) -> Result<usize> {
        let files = self.files.clone();
        blocking("tidy the templates", move || files.tidy().map_err(|error| os("tidy the templates", error)))
            .await
    }

    async fn load(&self, key: &TemplateKey) -> Result<Option<Arc<Capture>>> {
        let id = id_of(key);
        if let Some(capture) = self.in_memory(&id) {
            let (files, id) = (self.files.clone(), id);
            // Else those that are used all the time would be the first to go.
            blocking("use a template", move || {
                files.touch(&id);
                Ok::<_, HostError>(())
            })
            .await?;
            return Ok(Some(capture));
        }
        let _loading = self.loading.lock().await;
        if let Some(capture) = self.in_memory(&id) {
            return Ok(Some(capture));
        }
        let (files, key, name) = (self.files.clone(), key.clone(), id.clone());
        let capture = blocking("load a template", move || {
            files.load(&name, &key).map_err(|error| os("load a template", error))
        });
        let capture = capture.await?.map(Arc::new);
        if let Some(capture) = &capture {
            self.remember(id, capture);
        }
        Ok(capture)
    }

    async fn keep(&self, key: &TemplateKey, capture: &Capture) -> Result<Kept> {
        let (files, key) = (self.files.clone(), key.clone());
        let doing = "store a template";
        let share = |file: &OwnedFd| file.try_clone().map(File::from).map_err(|error| os(doing, error));
        let (state, memory) = (share(&capture.state)?, share(&capture.memory)?);
        blocking(doing, move || files.keep(&key, &state, &memory).map_err(|error| os(doing, error))).await
    }

    async fn quarantine(&self, key: &TemplateKey) -> Result<()> {
        let (files, id) = (self.files.clone(), id_of(key));
        lock(&self.loaded).remove(&id);
        let doing = "move a template aside";
        blocking(doing, move || files.quarantine(&id).map_err(|error| os(doing, error))).await
    }

    async fn checks(&self) -> Vec<Check> {
        let files = self.files.clone();
        let checked = blocking("look at the templates", move || {
            files.check().map_err(|error| os("look at the templates", error))
        });
        let failed = |error: HostError| Check {
            name: "templates",
            status: Status::Warn,
            message: error.to_string(),
            hint: String::new(),
        };
        vec![checked.await.unwrap_or_else(failed)]
    }
}

fn os(doing: &str, error: io::Error) -> HostError {
    HostError::os(doing, error)
}

/// A stored template.
struct Stored {
    id: String,
    bytes: u64,
    used: SystemTime,
}

impl Files {
    fn tidy(&self) -> io::Result<usize> {
        let mut removed = 0;
        for name in names(&self.directory)? {
            let path = self.directory.join(&name);
            let is_unfinished = name.starts_with('.');
            if is_unfinished || (name != DAMAGED && !is_current(&path)) {
                staging::remove_tree(&path)?;
                removed += 1;
            }
        }
        // The room may have been made smaller, or taken away.
        Ok(removed + self.make_room(0)?)
    }

    fn load(&self, id: &str, key: &TemplateKey) -> io::Result<Option<Capture>> {
        let path = self.directory.join(id);
        if !path.exists() {
            return Ok(None);
        }
        match read(&path, key) {
            Ok(capture) => Ok(Some(capture)),
            Err(error) => {
                tracing::warn!(template = id, %error, "a template does not verify; it is not used");
                self.quarantine(id)?;
                Ok(None)
            }
        }
    }

    fn keep(&self, key: &TemplateKey, state: &File, memory: &File) -> io::Result<Kept> {
        if memory::size_of(state)?.0 + memory::size_of(memory)?.0 > self.most.0 {
            return Ok(Kept::TooLarge);
        }
        let id = id_of(key);
        let staged = staging::Staging::begin(&self.directory, &id)?;
        let copy = |of: &File, name| {
            let file = staged.file(name, 0o600)?;
            sparse::copy(of, &file)?;
            file.sync_all()?;
            let (wanted, found) = (digest(of)?, digest(&file)?);
            if wanted != found {
                return Err(io::Error::other("what was written is not what was captured"));
            }
            Ok((found, file.metadata()?.blocks() * 512))
        };
        let ((state, state_size), (memory, memory_size)) = (copy(state, STATE)?, copy(memory, MEMORY)?);
        let size = state_size + memory_size;
        if size > self.most.0 {
            return Ok(Kept::TooLarge);
        }
        let manifest = serde_json::to_vec(&Manifest { key: key.clone(), state, memory })?;
        staged.file(MANIFEST, 0o600)?.write_all_at(&manifest, 0)?;
        self.make_room(size)?;
        // There may be one that was made before a crash.
        staging::remove_tree(&self.directory.join(&id))?;
        staged.finish()?;
        Ok(Kept::Yes)
    }

    /// Removes the templates that were not used for longest, until one of this size fits. Returns how many were removed.
    fn make_room(&self, size: u64) -> io::Result<usize> {
        let mut removed = 0;
        let mut stored = self.stored()?;
        stored.sort_by_key(|template| (template.id != DAMAGED, template.used));
        let mut taken: u64 = stored.iter().map(|template| template.bytes).sum();
        for template in stored {
            if taken + size <= self.most.0 {
                break;
            }
            staging::remove_tree(&self.directory.join(&template.id))?;
            taken -= template.bytes;
            removed += 1;
        }
        Ok(removed)
    }

    /// Returns what is stored, whole or damaged.
    fn stored(&self) -> io::Result<Vec<Stored>> {
        let mut stored = Vec::new();
        for id in names(&self.directory)?.into_iter().filter(|name| !name.starts_with('.')) {
            let path = self.directory.join(&id);
            let mut bytes = 0;
            for file in fs::read_dir(&path)? {
                bytes += file?.metadata()?.blocks() * 512;
            }
            let used = fs::metadata(path.join(MANIFEST)).and_then(|manifest| manifest.modified());
            stored.push(Stored { id, bytes, used: used.unwrap_or(SystemTime::UNIX_EPOCH) });
        }
        Ok(stored)
    }

    /// Notes that a template was used. It may have been removed meanwhile.
    fn touch(&self, id: &str) {
        let manifest = File::options().write(true).open(self.directory.join(id).join(MANIFEST));
        if let Err(error) = manifest.and_then(|manifest| manifest.set_modified(SystemTime::now()))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(template = id, %error, "cannot note the use of a template");
        }
    }

    fn quarantine(&self, id: &str) -> io::Result<()> {
        let damaged = self.directory.join(DAMAGED);
        staging::remove_tree(&damaged)?;
        match fs::rename(self.directory.join(id), damaged) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed,
        }
    }

    fn check(&self) -> io::Result<Check> {
        let stored = self.stored()?;
        let bytes = Bytes(stored.iter().map(|template| template.bytes).sum());
        let count = stored.iter().filter(|template| template.id != DAMAGED).count();
        let is_damaged = count != stored.len();
        let noun = if count == 1 { "template takes" } else { "templates take" };
        let mut message = format!("{count} {noun} {bytes} of {}", self.most);
        let mut hint = String::new();
        if is_damaged {
            message.push_str("; one was damaged and is not used");
            hint = format!("check the disk, then remove {}", self.directory.join(DAMAGED).display());
        }
        let status = if is_damaged { Status::Warn } else { Status::Pass };
        Ok(Check { name: "templates", status, message, hint })
    }
}

/// Reads a template into memory and verifies it there.
fn read(path: &Path, key: &TemplateKey) -> io::Result<Capture> {
    let manifest = manifest(path)?;
    if manifest.key != *key {
        return Err(io::Error::other("it has another key"));
    }
    let load = |name: &str, wanted: &str| {
        let copy = memory::sealed_copy(&File::open(path.join(name))?)?;
        if digest(&copy)? == wanted {
            Ok(copy)
        } else {
            Err(io::Error::other(format!("its {name} has changed")))
        }
    };
    let capture = Capture {
        state: load(STATE, &manifest.state)?.into(),
        memory: load(MEMORY, &manifest.memory)?.into(),
    };
    File::options().write(true).open(path.join(MANIFEST))?.set_modified(SystemTime::now())?;
    Ok(capture)
}

fn manifest(path: &Path) -> io::Result<Manifest> {
    Ok(serde_json::from_slice(&fs::read(path.join(MANIFEST))?)?)
}

/// Returns whether the files that a template was booted from are still the same.
fn is_current(path: &Path) -> bool {
    let Ok(manifest) = manifest(path) else { return false };
    manifest.key.files.iter().all(|(file, wanted)| stamp(file).is_ok_and(|stamp| stamp == *wanted))
}

/// Returns a text that changes with the content of a file.
pub(in crate::host) fn stamp(file: &Path) -> io::Result<String> {
    let file = fs::metadata(file)?;
    Ok(format!("{}-{}-{}.{:09}", file.ino(), file.len(), file.mtime(), file.mtime_nsec()))
}

fn id_of(key: &TemplateKey) -> String {
    let mut sha256 = Sha256::new();
    let mut add = |word: &[u8]| {
        sha256.update((word.len() as u64).to_le_bytes());
        sha256.update(word);
    };
    for (path, stamp) in &key.files {
        add(path.as_os_str().as_encoded_bytes());
        add(stamp.as_bytes());
    }
    for words in [&key.host, &key.arguments] {
        add(b"");
        words.iter().for_each(|word| add(word.as_bytes()));
    }
    format!("{:x}", sha256.finalize())
}

/// Returns the digest of a file, which does not depend on where its holes are.
fn digest(file: &File) -> io::Result<String> {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let (len, block) = (file.metadata()?.len(), BLOCK as u64);
    let mut sha256 = Sha256::new();
    sha256.update(len.to_le_bytes());
    let (mut buffer, mut at) = (vec![0; CHUNK], 0);
    while let Some(data) = next_data(file, at, len)? {
        let (start, end) = (data.start / block * block, data.end.next_multiple_of(block));
        for (chunk_at, length) in chunks(start..end.min(len)) {
            let chunk = &mut buffer[..length];
            file.read_exact_at(chunk, chunk_at)?;
            for (offset, bytes) in (chunk_at..).step_by(BLOCK).zip(chunk.chunks(BLOCK)) {
                if *bytes != ZEROS[..bytes.len()] {
                    sha256.update(offset.to_le_bytes());
                    sha256.update(bytes);
                }
            }
        }
        at = end;
    }
    Ok(format!("sha256:{:x}", sha256.finalize()))
}

fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().to_str().map(str::to_owned));
    }
    Ok(names)
}

#[cfg(test)]
mod tests;
