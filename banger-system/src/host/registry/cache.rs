//! The cache of blobs, shared by all users: `REGISTRY/DIGITS` for a whole blob, and `REGISTRY/DIGITS.partial` for a
//! part of one. Blobs of a catalog are below `@CATALOG`, which cannot be the name of a registry.
//!
//! A registry's blobs are only for users to whom that registry gives a manifest that names them. Otherwise a user
//! could run a registry with a manifest that names any cached blob, and so read it. A blob gets its name only after
//! its digest is verified and it is on the disk.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::SystemTime,
};

use banger_domain::digest::Digest;
use banger_image::oci::Descriptor;
use banger_proto::size::Bytes;
use bytes::Bytes as Chunk;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedMutexGuard, watch};

use crate::ports::registry::{Prune, Pruned};

const PARTIAL: &str = "partial";
/// How much of a file is read at a time.
const CHUNK: usize = 1 << 20;

/// The cache. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    root: Arc<Path>,
    limit: Bytes,
    /// Blobs that somebody fetches or reads at the moment.
    used: Arc<Mutex<HashMap<PathBuf, Weak<Blob>>>>,
}

/// A blob, whole or in part.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) descriptor: Descriptor,
    path: PathBuf,
    state: watch::Sender<BlobState>,
    /// Held by the task that may write.
    write_lock: Arc<tokio::sync::Mutex<()>>,
}

/// How much of a blob is in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlobState {
    pub(super) bytes: u64,
    /// Whether it is whole, with the right digest.
    pub(super) whole: bool,
    /// Incremented whenever the cached bytes turned out to be wrong.
    pub(super) edition: u32,
}

impl Cache {
    pub(super) fn new(root: &Path, limit: Bytes) -> Self {
        Self { root: root.into(), limit, used: Arc::default() }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns a blob of a registry or catalog. It is not removed while somebody holds it.
    pub(super) fn blob(&self, namespace: &str, descriptor: Descriptor) -> io::Result<Arc<Blob>> {
        let directory = self.root.join(namespace);
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let path = directory.join(descriptor.digest.hex());
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.retain(|_, blob| blob.strong_count() > 0);
        if let Some(blob) = used.get(&path).and_then(Weak::upgrade) {
            return Ok(blob);
        }
        let state = match fs::metadata(&path) {
            Ok(metadata) if metadata.len() == descriptor.size.0 => {
                let now = SystemTime::now();
                // The time of the last use is only a hint.
                let _ = File::open(&path).and_then(|file| file.set_modified(now));
                BlobState { bytes: metadata.len(), whole: true, edition: 0 }
            }
            // A blob of another size was never this one.
            Ok(_) => {
                forget(&path)?;
                BlobState { bytes: 0, whole: false, edition: 0 }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                BlobState { bytes: 0, whole: false, edition: 0 }
            }
            Err(error) => return Err(error),
        };
        let blob =
            Arc::new(Blob { descriptor, path, state: watch::channel(state).0, write_lock: Arc::default() });
        used.insert(blob.path.clone(), Arc::downgrade(&blob));
        Ok(blob)
    }

    /// Removes unused blobs: all, or the old ones.
    pub(super) fn prune(&self, prune: Prune) -> io::Result<Pruned> {
        let age = |file: &CachedBlob| SystemTime::now().duration_since(file.used).unwrap_or_default();
        self.remove(prune.dry_run, self.blobs()?, |file, _| {
            prune.older_than.is_none_or(|least| age(file) >= least)
        })
    }

    /// Removes the least recently used blobs until the cache is within its limit.
    pub(super) fn trim(&self) -> io::Result<Pruned> {
        let blobs = self.blobs()?;
        let mut total: u64 = blobs.iter().map(|file| file.bytes).sum();
        let limit = self.limit.0;
        self.remove(false, blobs, |file, removed| {
            let is_over = total > limit;
            total -= if is_over && removed() { file.bytes } else { 0 };
            is_over
        })
    }

    /// Returns the whole cache, the least recently used blob first.
    fn blobs(&self) -> io::Result<Vec<CachedBlob>> {
        let mut blobs = Vec::new();
        for directory in entries(&self.root)? {
            if !directory.file_type()?.is_dir() {
                continue;
            }
            for entry in entries(&directory.path())? {
                match entry.metadata() {
                    Ok(metadata) if metadata.is_file() => {
                        let used = metadata.modified()?;
                        blobs.push(CachedBlob { path: entry.path(), bytes: metadata.len(), used });
                    }
                    _ => {}
                }
            }
        }
        blobs.sort_by_key(|file| file.used);
        Ok(blobs)
    }

    fn remove(
        &self,
        dry_run: bool,
        blobs: Vec<CachedBlob>,
        mut goes: impl FnMut(&CachedBlob, &dyn Fn() -> bool) -> bool,
    ) -> io::Result<Pruned> {
        let mut pruned = Pruned::default();
        for file in blobs {
            // Nobody starts to use a blob while this is held.
            let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            let whole = file.path.with_extension("");
            used.retain(|_, blob| blob.strong_count() > 0);
            let is_free = !used.contains_key(&whole);
            if !goes(&file, &|| is_free) || !is_free {
                continue;
            }
            if !dry_run {
                forget(&file.path)?;
            }
            pruned.blobs += 1;
            pruned.bytes = Bytes(pruned.bytes.0 + file.bytes);
        }
        Ok(pruned)
    }
}

struct CachedBlob {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

fn entries(directory: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.collect(),
    }
}

fn forget(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

impl Blob {
    pub(super) fn state(&self) -> watch::Receiver<BlobState> {
        self.state.subscribe()
    }

    pub(super) fn is_whole(&self) -> bool {
        self.state.borrow().whole
    }

    /// Opens the bytes that are there. More of them are appended to the same file.
    pub(super) fn open(&self) -> io::Result<File> {
        // It may be renamed between the first two attempts.
        let partial = self.partial();
        let mut opened = Err(ErrorKind::NotFound.into());
        for path in [&self.path, &partial, &self.path] {
            opened = File::open(path);
            if !opened.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
                break;
            }
        }
        opened
    }

    /// Waits until nobody else writes. Returns `None` if the blob is whole then.
    pub(super) async fn write_lock(self: &Arc<Self>) -> Option<WriteLock> {
        let held = Arc::clone(&self.write_lock).lock_owned().await;
        (!self.is_whole()).then(|| WriteLock { blob: Arc::clone(self), _held: held })
    }

    /// Discards the content, which was not the right one.
    pub(super) fn discard(&self) -> io::Result<()> {
        forget(&self.path)?;
        forget(&self.partial())?;
        self.state.send_modify(|state| {
            *state = BlobState { bytes: 0, whole: false, edition: state.edition + 1 };
        });
        Ok(())
    }

    fn partial(&self) -> PathBuf {
        self.path.with_extension(PARTIAL)
    }
}

/// The right to write a blob.
pub(super) struct WriteLock {
    blob: Arc<Blob>,
    _held: OwnedMutexGuard<()>,
}

/// A blob that is being written. Dropping this keeps the bytes written so far.
pub(super) struct Writing {
    write_lock: WriteLock,
    file: File,
    sha256: Sha256,
    pub(super) at: u64,
}

impl WriteLock {
    /// Continues where an earlier attempt ended.
    pub(super) fn resume(self) -> io::Result<Writing> {
        let options = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            options
        };
        let file = options().open(self.blob.partial())?;
        let have = file.metadata()?.len();
        let mut writing = Writing { write_lock: self, file, sha256: Sha256::new(), at: 0 };
        if have > writing.blob().descriptor.size.0 {
            writing.file.set_len(0)?;
            return Ok(writing);
        }
        let mut buffer = vec![0; CHUNK];
        let mut old = &writing.file;
        loop {
            let read = old.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            writing.sha256.update(&buffer[..read]);
            writing.at += read as u64;
        }
        writing.report_progress();
        Ok(writing)
    }
}

/// The result for a blob of the right length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Whole,
    /// The digest was wrong, and the bytes are gone.
    Wrong(Digest),
}

impl Writing {
    pub(super) fn blob(&self) -> &Blob {
        &self.write_lock.blob
    }

    pub(super) fn write(&mut self, chunk: &Chunk) -> io::Result<()> {
        self.file.write_all_at(chunk, self.at)?;
        self.sha256.update(chunk);
        self.at += chunk.len() as u64;
        self.report_progress();
        Ok(())
    }

    fn report_progress(&self) {
        self.blob().state.send_modify(|state| state.bytes = self.at);
    }

    /// Verifies the digest of all bytes, and gives the blob its name.
    pub(super) fn finish(self) -> io::Result<Verdict> {
        let digest = Digest::from_bytes(self.sha256.clone().finalize().into());
        let blob = self.blob();
        if digest != blob.descriptor.digest {
            blob.discard()?;
            return Ok(Verdict::Wrong(digest));
        }
        self.file.sync_data()?;
        fs::rename(blob.partial(), &blob.path)?;
        blob.state.send_modify(|state| state.whole = true);
        Ok(Verdict::Whole)
    }
}
