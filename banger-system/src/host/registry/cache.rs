//! The cache of blobs, shared by all users: `REGISTRY/DIGITS` each, and `REGISTRY/DIGITS.partial` for what has come
//! of one so far. Blobs of a catalog are below `@CATALOG`, which is not a name of any registry.
//!
//! Blobs of one registry are only for users whom that registry gives a manifest that names them: a user with a
//! registry of their own could make a manifest that names anything, and it would be theirs if it were not kept
//! apart. A blob has its name only once it has its digest, and is on the disk by then.

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
/// What is read of a file at once.
const CHUNK: usize = 1 << 20;

/// The cache. Clones are the same one.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    root: Arc<Path>,
    limit: Bytes,
    /// What somebody fetches or reads at the moment.
    used: Arc<Mutex<HashMap<PathBuf, Weak<Blob>>>>,
}

/// A blob, whole or on its way.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) descriptor: Descriptor,
    path: PathBuf,
    level: watch::Sender<Level>,
    /// The task that holds it may write.
    pen: Arc<tokio::sync::Mutex<()>>,
}

/// How much of a blob is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) bytes: u64,
    /// It is whole, and has its digest.
    pub(super) whole: bool,
    /// Grows by one whenever what there was turned out to be wrong.
    pub(super) edition: u32,
}

impl Cache {
    pub(super) fn new(root: &Path, limit: Bytes) -> Self {
        Self { root: root.into(), limit, used: Arc::default() }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// A blob of a registry or of a catalog. It stays for as long as somebody has it.
    pub(super) fn blob(&self, keeper: &str, descriptor: Descriptor) -> io::Result<Arc<Blob>> {
        let directory = self.root.join(keeper);
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let path = directory.join(descriptor.digest.hex());
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.retain(|_, blob| blob.strong_count() > 0);
        if let Some(blob) = used.get(&path).and_then(Weak::upgrade) {
            return Ok(blob);
        }
        let level = match fs::metadata(&path) {
            Ok(metadata) if metadata.len() == descriptor.size.0 => {
                let now = SystemTime::now();
                // How long ago it was used is a hint and no more.
                let _ = File::open(&path).and_then(|file| file.set_modified(now));
                Level { bytes: metadata.len(), whole: true, edition: 0 }
            }
            // It was a blob of another size, so it never was this one.
            Ok(_) => {
                forget(&path)?;
                Level { bytes: 0, whole: false, edition: 0 }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Level { bytes: 0, whole: false, edition: 0 },
            Err(error) => return Err(error),
        };
        let blob = Arc::new(Blob { descriptor, path, level: watch::channel(level).0, pen: Arc::default() });
        used.insert(blob.path.clone(), Arc::downgrade(&blob));
        Ok(blob)
    }

    /// Removes what nobody uses at the moment: all of it, or what is older.
    pub(super) fn prune(&self, prune: Prune) -> io::Result<Pruned> {
        let age = |file: &Kept| SystemTime::now().duration_since(file.used).unwrap_or_default();
        self.remove(prune.dry_run, self.kept()?, |file, _| {
            prune.older_than.is_none_or(|least| age(file) >= least)
        })
    }

    /// Removes what was not used for the longest time, until the rest is no more than the cache may have.
    pub(super) fn trim(&self) -> io::Result<Pruned> {
        let kept = self.kept()?;
        let mut total: u64 = kept.iter().map(|file| file.bytes).sum();
        let limit = self.limit.0;
        self.remove(false, kept, |file, removed| {
            let is_over = total > limit;
            total -= if is_over && removed() { file.bytes } else { 0 };
            is_over
        })
    }

    /// Everything in the cache, what was not used for the longest time first.
    fn kept(&self) -> io::Result<Vec<Kept>> {
        let mut kept = Vec::new();
        for directory in entries(&self.root)? {
            if !directory.file_type()?.is_dir() {
                continue;
            }
            for entry in entries(&directory.path())? {
                match entry.metadata() {
                    Ok(metadata) if metadata.is_file() => {
                        let used = metadata.modified()?;
                        kept.push(Kept { path: entry.path(), bytes: metadata.len(), used });
                    }
                    _ => {}
                }
            }
        }
        kept.sort_by_key(|file| file.used);
        Ok(kept)
    }

    fn remove(
        &self,
        dry_run: bool,
        kept: Vec<Kept>,
        mut goes: impl FnMut(&Kept, &dyn Fn() -> bool) -> bool,
    ) -> io::Result<Pruned> {
        let mut pruned = Pruned::default();
        for file in kept {
            // Nobody begins to use it while this is held.
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

struct Kept {
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
    pub(super) fn level(&self) -> watch::Receiver<Level> {
        self.level.subscribe()
    }

    pub(super) fn is_whole(&self) -> bool {
        self.level.borrow().whole
    }

    /// The bytes that are there, from the first one on; more of them come into the same file.
    pub(super) fn open(&self) -> io::Result<File> {
        // It may get its name between the first two looks.
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

    /// Waits until nobody else writes, for as long as it takes. Nothing is returned when the blob is whole then.
    pub(super) async fn pen(self: &Arc<Self>) -> Option<Pen> {
        let held = Arc::clone(&self.pen).lock_owned().await;
        (!self.is_whole()).then(|| Pen { blob: Arc::clone(self), _held: held })
    }

    /// It was not what it should be.
    pub(super) fn discard(&self) -> io::Result<()> {
        forget(&self.path)?;
        forget(&self.partial())?;
        self.level.send_modify(|level| {
            *level = Level { bytes: 0, whole: false, edition: level.edition + 1 };
        });
        Ok(())
    }

    fn partial(&self) -> PathBuf {
        self.path.with_extension(PARTIAL)
    }
}

/// The right to write a blob.
pub(super) struct Pen {
    blob: Arc<Blob>,
    _held: OwnedMutexGuard<()>,
}

/// A blob that is being written. What was written is kept when this is dropped.
pub(super) struct Writing {
    pen: Pen,
    file: File,
    sha256: Sha256,
    pub(super) at: u64,
}

impl Pen {
    /// Continues where an earlier try ended.
    pub(super) fn resume(self) -> io::Result<Writing> {
        let options = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            options
        };
        let file = options().open(self.blob.partial())?;
        let have = file.metadata()?.len();
        let mut writing = Writing { pen: self, file, sha256: Sha256::new(), at: 0 };
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
        writing.tell();
        Ok(writing)
    }
}

/// How a blob came out that has all of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Whole,
    /// Its bytes come to another digest, and are gone.
    Wrong(Digest),
}

impl Writing {
    pub(super) fn blob(&self) -> &Blob {
        &self.pen.blob
    }

    pub(super) fn write(&mut self, chunk: &Chunk) -> io::Result<()> {
        self.file.write_all_at(chunk, self.at)?;
        self.sha256.update(chunk);
        self.at += chunk.len() as u64;
        self.tell();
        Ok(())
    }

    fn tell(&self) {
        self.blob().level.send_modify(|level| level.bytes = self.at);
    }

    /// Compares the digest of all bytes, and gives the blob its name.
    pub(super) fn finish(self) -> io::Result<Verdict> {
        let digest = Digest::from_bytes(self.sha256.clone().finalize().into());
        let blob = self.blob();
        if digest != blob.descriptor.digest {
            blob.discard()?;
            return Ok(Verdict::Wrong(digest));
        }
        self.file.sync_data()?;
        fs::rename(blob.partial(), &blob.path)?;
        blob.level.send_modify(|level| level.whole = true);
        Ok(Verdict::Whole)
    }
}
