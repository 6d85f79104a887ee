//! Catalogs: their indexes are fetched, checked against their signatures, and stored in one file each, so that index
//! and signature always belong together. The serial number is also stored outside of the signed part, so that an
//! older edition is recognised even after the keys have changed.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, ErrorKind, Read, Write},
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use banger_domain::{id::Timestamp, name::Name};
use banger_image::catalog::{
    RemoteFile, Source, Unusable,
    index::{Index, MAX_INDEX},
    signature::{Keys, MAX_SIGNATURE, Signed},
};

use super::{blocking::blocking, registry::Registries, storage::partial::Partial};
use crate::ports::{
    FromHost as _, Progress,
    catalogs::{Catalogs, Error, FetchedIndex, Result},
};

/// The first line of a stored copy.
const MAGIC: &str = "banger catalog 1";
const MODE: u32 = 0o600;
/// A file of keys has a few lines.
const MAX_KEY_FILE: u64 = 16 << 10;

/// The catalogs of the configuration.
#[derive(Debug, Clone)]
pub struct SignedCatalogs {
    sources: Arc<[Source]>,
    /// The directory of stored editions.
    directory: PathBuf,
    /// Directories in which `NAME.pub` holds keys of the catalog NAME.
    keys: Vec<PathBuf>,
    registries: Registries,
}

impl SignedCatalogs {
    /// Returns the catalogs whose editions are stored in this directory, and whose files go through the cache of
    /// registries.
    pub fn new(sources: Vec<Source>, directory: PathBuf, keys: Vec<PathBuf>, registries: Registries) -> Self {
        Self { sources: sources.into(), directory, keys, registries }
    }

    fn source(&self, catalog: &Name) -> Result<&Source> {
        let none = || Error::Refused { message: format!("there is no catalog {catalog}") };
        self.sources.iter().find(|source| source.name == *catalog).ok_or_else(none)
    }

    fn path(&self, catalog: &Name) -> PathBuf {
        self.directory.join(catalog.as_str())
    }

    /// Returns the keys that may sign a catalog at the moment.
    fn keys_of(&self, source: &Source) -> Result<Keys> {
        self.keys.iter().try_fold(source.keys.clone(), |keys, directory| {
            let path = directory.join(format!("{}.pub", source.name));
            let mut text = String::new();
            match File::open(&path).and_then(|file| file.take(MAX_KEY_FILE).read_to_string(&mut text)) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(keys),
                Err(error) => return Err(Error::os(format!("read {}", path.display()), error)),
                Ok(_) => {}
            }
            let more = Keys::parse(&text)
                .map_err(|why| Error::Refused { message: format!("{}: {why}", path.display()) })?;
            Ok(keys.and(&more))
        })
    }

    /// Parses an index after checking that one of the keys signed it.
    fn open(&self, source: &Source, bytes: Vec<u8>, signature: &[u8]) -> Result<(Signed, Index)> {
        let unusable = |error: Unusable| refused(source, &error);
        let signed = Signed::verify(bytes, signature, &self.keys_of(source)?).map_err(unusable)?;
        let index = Index::parse(&signed, std::env::consts::ARCH).map_err(unusable)?;
        Ok((signed, index))
    }

    /// Stores an edition, unless the stored one is newer.
    fn keep(&self, source: &Source, fetched: Fetched, now: Timestamp) -> Result<FetchedIndex> {
        let (signed, index) = self.open(source, fetched.index, &fetched.signature)?;
        index.check_age(now).map_err(|error| refused(source, &error))?;
        let path = self.path(&source.name);
        let doing = || format!("keep the catalog {}", source.name);
        if let Some(last) = StoredEdition::read(&path).map_err(|error| Error::os(doing(), error))? {
            last.check_follows(&index, &signed).map_err(|why| {
                let message = format!(
                    "the catalog {} is refused: {why}; to start over, remove {}",
                    source.name,
                    path.display()
                );
                Error::Refused { message }
            })?;
        }
        let stored = StoredEdition {
            serial: index.serial,
            fetched_at: now,
            signature: fetched.signature,
            index: signed.bytes().to_vec(),
        };
        stored.write(&path).map_err(|error| Error::os(doing(), error))?;
        Ok(FetchedIndex { index: Arc::new(index), fetched_at: now })
    }
}

/// What a catalog's location returned.
struct Fetched {
    index: Vec<u8>,
    signature: Vec<u8>,
}

#[async_trait]
impl Catalogs for SignedCatalogs {
    fn names(&self) -> Vec<Name> {
        self.sources.iter().map(|source| source.name.clone()).collect()
    }

    async fn stored(&self, catalog: &Name) -> Result<Option<FetchedIndex>> {
        let (this, source) = (self.clone(), self.source(catalog)?.clone());
        blocking("read a catalog", move || {
            let path = this.path(&source.name);
            let stored = StoredEdition::read(&path)
                .map_err(|error| Error::os(format!("read the catalog {}", source.name), error))?;
            let Some(stored) = stored else { return Ok(None) };
            let (_, index) = this.open(&source, stored.index, &stored.signature)?;
            Ok(Some(FetchedIndex { index: Arc::new(index), fetched_at: stored.fetched_at }))
        })
        .await
    }

    async fn refresh(&self, catalog: &Name, now: Timestamp) -> Result<FetchedIndex> {
        let (this, source) = (self.clone(), self.source(catalog)?.clone());
        let at = &source.location;
        let fetched = Fetched {
            signature: self.registries.document(at, &at.signature(), MAX_SIGNATURE).await?,
            index: self.registries.document(at, at, MAX_INDEX.0).await?,
        };
        blocking("keep a catalog", move || this.keep(&source, fetched, now)).await
    }

    async fn fetch(&self, catalog: &Name, file: &RemoteFile, progress: Arc<dyn Progress>) -> Result<OwnedFd> {
        let from = &self.source(catalog)?.location;
        let at = from.join(&file.location);
        Ok(self.registries.file(&format!("@{catalog}"), from, &at, file.content, progress).await?)
    }
}

fn refused(source: &Source, why: &Unusable) -> Error {
    Error::Refused { message: format!("the catalog {} ({}) is refused: {why}", source.name, source.location) }
}

/// A stored edition.
struct StoredEdition {
    serial: u64,
    fetched_at: Timestamp,
    signature: Vec<u8>,
    index: Vec<u8>,
}

impl StoredEdition {
    /// Reads the stored copy. A file of another format is an error.
    fn read(path: &Path) -> io::Result<Option<Self>> {
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            bytes => bytes?,
        };
        let damaged = || io::Error::new(ErrorKind::InvalidData, format!("{} is damaged", path.display()));
        Self::parse(&bytes).ok_or_else(damaged).map(Some)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let mut line = || {
            let end = rest.iter().position(|byte| *byte == b'\n')?;
            let line = str::from_utf8(&rest[..end]).ok()?;
            rest = &rest[end + 1..];
            Some(line)
        };
        if line()? != MAGIC {
            return None;
        }
        let (serial, fetched_at) = (line()?.parse().ok()?, line()?.parse().ok()?);
        let length: usize = line()?.parse().ok()?;
        let (signature, index) = rest.split_at_checked(length)?;
        Some(Self {
            serial,
            fetched_at: Timestamp(fetched_at),
            signature: signature.to_vec(),
            index: index.to_vec(),
        })
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        if let Some(parent) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        let mut partial = Partial::begin(path, MODE)?;
        let head = format!("{MAGIC}\n{}\n{}\n{}\n", self.serial, self.fetched_at.0, self.signature.len());
        for part in [head.as_bytes(), &self.signature, &self.index] {
            partial.file.write_all(part)?;
        }
        // The protection against older editions must survive a power cut.
        partial.file.sync_all()?;
        partial.replace()?;
        match path.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    }

    /// Checks that an index may replace this one: it must be newer or the same.
    fn check_follows(&self, index: &Index, signed: &Signed) -> Result<(), Unusable> {
        let (new, last) = (index.serial, self.serial);
        if new < last {
            return Err(Unusable::new(format!("its edition {new} is older than {last}, which is stored")));
        }
        match new == last && signed.bytes() != self.index {
            true => Err(Unusable::new(format!(
                "it differs from the stored edition {last}, which has the same number"
            ))),
            false => Ok(()),
        }
    }
}
