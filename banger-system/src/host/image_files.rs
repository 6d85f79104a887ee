//! The files of images: each a raw ext4 file system that is never written to again. One that comes as an ext4 is
//! copied; of everything else, a worker makes one.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Seek, SeekFrom},
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, MetadataExt},
    },
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use banger_proto::size::Bytes;
use sha2::{Digest, Sha256};

use super::{
    blocking::blocking,
    fd::{self, UserFile},
    pulse::{Pulse, watch},
    sparse, staging,
    staging::Staging,
    worker::{self, Job, Workers},
    write_behind::write_behind,
};
use crate::{
    domain::{
        digest::Digest as OciDigest,
        ext4::{self, FileSystem},
        id::{ImageId, Uid},
        image::ImageFacts,
        oci::{
            LayerFacts, RemoteImage, Unusable,
            config::{self, ImageConfig},
            manifest::{Document, MAX_DOCUMENT},
            platform::Platform,
        },
        resource::{IMAGE_FILE, Places},
        rootfs::tar,
    },
    importer::message::{Archive, Claim, Export, Import},
    ports::{
        Error, ImageFiles, Result,
        images::{Content, Exported, Layer, Layout, Packing, Part, Progress},
    },
};

/// The largest file that is taken. Holes are not copied but are part of the digest, at about one GiB per
/// second.
const MAX_SIZE: Bytes = Bytes::gib(256);
/// How long a read of a user's file may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often somebody is told how far a copy is.
const TELL: Duration = Duration::from_millis(100);
/// The image's owner may read it, and nobody may write.
const MODE: u32 = 0o400;
/// How many layers an image may have: as many as the programs that make images allow.
const MAX_LAYERS: usize = 127;
/// What a user's file is called in messages.
const ROOTFS: &str = "the root file system";

/// Images as files under [`Places::images`].
#[derive(Clone)]
pub struct LocalImages {
    places: Places,
    workers: Arc<dyn Workers>,
    /// The size of the file systems that workers make.
    size: Bytes,
}

impl LocalImages {
    /// The images under these places. What is no file system yet becomes one of this size.
    pub fn new(places: Places, workers: Arc<dyn Workers>, size: Bytes) -> Self {
        Self { places, workers, size }
    }

    /// Has a worker make the image of archives.
    async fn build(
        &self,
        image: ImageId,
        owner: Uid,
        staged: Staged,
        archives: Vec<(Archive, OwnedFd)>,
        progress: Arc<dyn Progress>,
    ) -> Result<ImageFacts> {
        let doing = move |error| Error::os(format!("write image {image}"), error);
        let Staged { staging, file } = staged;
        let (spool, file, written) = blocking("begin an image", move || {
            let spool = staging.nameless().map_err(doing)?;
            let written = file.try_clone().map_err(doing)?;
            Ok(((staging, spool), file, written))
        })
        .await?;
        let (staging, spool) = spool;
        let (archives, fds) = archives.into_iter().unzip();
        let order = Import { archives, size: self.size };
        let files = worker::Files { image: file, spool, archives: fds };
        let behind = written.try_clone().map_err(doing)?;
        let import = worker::import(&*self.workers, Job { id: image, owner }, order, files, progress);
        let made = write_behind(behind, import).await?;
        let size = self.size;
        blocking("finish an image", move || {
            // What wrote it had to do with bytes that nobody vouches for.
            let metadata = written.metadata().map_err(doing)?;
            let mut head = [0; ext4::HEAD];
            written.read_exact_at(&mut head, 0).map_err(doing)?;
            let unusable = |error| Error::other("check what an import worker made", error);
            let found = FileSystem::read(&head, Bytes(metadata.len())).map_err(unusable)?;
            if metadata.len() != size.0 || found.size != size {
                return Err(unusable(ext4::Unusable::Short { expected: size, found: found.size }));
            }
            staging.finish().map_err(doing)?;
            let disk_usage = Bytes(metadata.blocks() * 512);
            Ok(ImageFacts { digest: made.digest, virtual_size: size, disk_usage })
        })
        .await
    }
}

/// The directory of an image that is being made. Dropping it removes it, whichever way that ends.
struct Staged {
    staging: Staging,
    file: File,
}

/// What a user's file turned out to be.
enum Found {
    /// A file system, which was copied.
    Copied(Staged, ImageFacts),
    /// An archive.
    Archive(Staged, OwnedFd, Packing),
}

#[async_trait]
impl ImageFiles for LocalImages {
    async fn import(
        &self,
        image: ImageId,
        owner: Uid,
        content: Content,
        progress: Arc<dyn Progress>,
    ) -> Result<ImageFacts> {
        let parent = self.places.images();
        let doing = move || format!("write image {image}");
        let staged = blocking("begin an image", move || {
            let staging =
                Staging::begin(&parent, &image.to_string()).map_err(|source| Error::os(doing(), source))?;
            let file = staging.file(IMAGE_FILE, MODE).map_err(|source| Error::os(doing(), source))?;
            Ok(Staged { staging, file })
        })
        .await?;
        let fd = match content {
            Content::Layers(layers) => {
                return self.build(image, owner, staged, claims(layers)?, progress).await;
            }
            Content::File(fd) => fd,
        };
        let watched = Arc::clone(&progress);
        let found = watch("read the root file system", PATIENCE, move |pulse| {
            let original = UserFile::check(fd, ROOTFS, MAX_SIZE)?;
            if let Some(packing) = packing(&head(&original.file, &original)?) {
                return Ok(Found::Archive(staged, original.file.into(), packing));
            }
            let facts = copy_checked(&original, &staged.file, pulse, &*watched)?;
            Ok(Found::Copied(staged, facts))
        })
        .await?;
        match found {
            Found::Archive(staged, fd, packing) => {
                let archive = Archive { packing, claim: None, offset: None };
                self.build(image, owner, staged, vec![(archive, fd)], progress).await
            }
            Found::Copied(Staged { staging, .. }, facts) => {
                blocking("finish an image", move || {
                    staging.finish().map_err(|source| Error::os(doing(), source))
                })
                .await?;
                Ok(facts)
            }
        }
    }

    async fn layout(&self, file: OwnedFd, parts: &[Part]) -> Result<Layout> {
        let parts = parts.to_vec();
        watch("read the image", PATIENCE, move |pulse| {
            read_layout(&UserFile::check(file, "the image", MAX_SIZE)?, &parts, pulse)
        })
        .await
    }

    async fn export(
        &self,
        image: ImageId,
        for_whom: Uid,
        config: ImageConfig,
        archive: OwnedFd,
        progress: Arc<dyn Progress>,
    ) -> Result<Exported> {
        let path = self.places.image(image);
        let files = blocking("begin an export", move || {
            let archive = fd::writable(archive, "the file for the archive")?;
            let image = File::open(&path).map_err(|error| Error::os(format!("open image {image}"), error))?;
            Ok((image, archive))
        })
        .await?;
        let order = Export { config, architecture: std::env::consts::ARCH.to_owned() };
        // Several may export one image at once.
        let id = ImageId::random();
        let exported =
            worker::export(&*self.workers, Job { id, owner: for_whom }, order, files, progress).await?;
        let manifest = exported.manifest.parse();
        let manifest = manifest.map_err(|error| Error::other("understand an export", error))?;
        Ok(Exported { manifest, bytes: exported.bytes })
    }

    async fn share(&self, image: ImageId, of: ImageId) -> Result<()> {
        let (parent, file) = (self.places.images(), self.places.image(of));
        let doing = move || format!("share the file of image {of} with {image}");
        blocking("share an image", move || {
            let failed = |source| Error::os(doing(), source);
            let staging = Staging::begin(&parent, &image.to_string()).map_err(failed)?;
            staging.link(&file, IMAGE_FILE).map_err(failed)?;
            staging.finish().map_err(failed)
        })
        .await
    }

    async fn remove(&self, image: ImageId) -> Result<()> {
        let parent = self.places.images();
        blocking("remove an image", move || {
            staging::remove(&parent, &image.to_string())
                .map_err(|source| Error::os(format!("remove image {image}"), source))
        })
        .await
    }

    async fn found(&self) -> Result<Vec<ImageId>> {
        let parent = self.places.images();
        blocking("look for images", move || {
            staging::found(&parent).map_err(|source| Error::os(format!("read {}", parent.display()), source))
        })
        .await
    }
}

/// Reads the manifest and the configuration, and compares with them where the layers are said to be.
fn read_layout(file: &UserFile, parts: &[Part], pulse: &Pulse) -> Result<Layout> {
    let unusable = |Unusable(message)| Error::Unsupported { message };
    let misses = |why: &str| Error::BadFile { message: format!("the image {why}") };
    let is_inside =
        |part: &Part| part.offset.checked_add(part.length.0).is_some_and(|end| end <= file.size.0);
    if !parts.iter().all(is_inside) {
        return Err(misses("has a part beyond its end"));
    }
    let [manifest, config, layers @ ..] = parts else {
        return Err(misses("has no manifest or no configuration"));
    };
    let read = |part: &Part| {
        if part.length > MAX_DOCUMENT {
            return Err(misses(&format!("has a document of more than {MAX_DOCUMENT}")));
        }
        let mut bytes = Vec::new();
        let mut stream = file.stream(pulse);
        let whole = stream.seek(SeekFrom::Start(part.offset));
        let whole = whole.and_then(|_| stream.take(part.length.0).read_to_end(&mut bytes));
        whole.map(|_| bytes).map_err(|error| file.unread(error))
    };
    let manifest_bytes = read(manifest)?;
    let Document::Manifest(manifest) = Document::parse(&manifest_bytes, None).map_err(unusable)? else {
        return Err(Error::Unsupported { message: "the manifest is an index of others".to_owned() });
    };
    let config = read(config)?;
    if OciDigest::from_bytes(Sha256::digest(&config).into()) != manifest.config.digest {
        return Err(Error::Mismatch {
            message: "the configuration is not the one of the manifest".to_owned(),
        });
    }
    let platform = Platform::of_host(std::env::consts::ARCH);
    let (facts, config) = config::parse(&config, &manifest, &platform).map_err(unusable)?;
    if facts.len() != layers.len()
        || facts.iter().zip(layers).any(|(layer, part)| layer.blob.size != part.length)
    {
        return Err(Error::Mismatch { message: "the layers are not those of the manifest".to_owned() });
    }
    let layer = |(facts, part): (&LayerFacts, &Part)| {
        let blob = file.file.try_clone().map_err(|error| file.unread(error))?;
        Ok(Layer {
            blob: blob.into(),
            offset: Some(part.offset),
            packing: facts.packing,
            size: facts.blob.size,
            digest: facts.blob.digest,
            diff_id: facts.diff_id,
        })
    };
    let parts = facts.iter().zip(layers).map(layer).collect::<Result<_>>()?;
    let manifest = OciDigest::from_bytes(Sha256::digest(&manifest_bytes).into());
    Ok(Layout { image: RemoteImage { manifest, layers: facts, config }, layers: parts })
}

/// What is said of layers, and their files.
fn claims(layers: Vec<Layer>) -> Result<Vec<(Archive, OwnedFd)>> {
    match layers.len() {
        0 => return Err(Error::Unsupported { message: "the image has no layers".to_owned() }),
        1..=MAX_LAYERS => {}
        count => {
            let message = format!("the image has {count} layers, and at most {MAX_LAYERS} are taken");
            return Err(Error::Unsupported { message });
        }
    }
    let claim = |layer: &Layer| Claim {
        size: layer.size,
        digest: layer.digest.to_string(),
        diff_id: layer.diff_id.to_string(),
    };
    let archive = |layer: Layer| {
        let archive = Archive { packing: layer.packing, claim: Some(claim(&layer)), offset: layer.offset };
        (archive, layer.blob)
    };
    Ok(layers.into_iter().map(archive).collect())
}

/// How the archive that begins with these bytes is packed. `None` when it is no archive.
fn packing(head: &[u8]) -> Option<Packing> {
    const GZIP: &[u8] = b"\x1f\x8b";
    const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
    match head {
        _ if head.starts_with(GZIP) => Some(Packing::Gzip),
        _ if head.starts_with(ZSTD) => Some(Packing::Zstd),
        _ => tar::is_beginning(head).then_some(Packing::Plain),
    }
}

/// Copies a file that holds an ext4 file system. What counts is what the copy holds: its user may write to
/// the original all the while.
fn copy_checked(
    original: &UserFile,
    copy: &File,
    pulse: &Pulse,
    progress: &dyn Progress,
) -> Result<ImageFacts> {
    // A first look, so that a file of another kind is not copied in vain.
    look(&original.file, original)?;
    let shared = sparse::share(&original.file, copy).map_err(unwritten)?;
    let digest = if shared {
        if copy.metadata().map_err(unwritten)?.len() != original.size.0 {
            return Err(original.unread(ErrorKind::UnexpectedEof.into()));
        }
        read_through(copy, original, pulse, progress, |_, _| Ok(()))?
    } else {
        copy.set_len(original.size.0).map_err(unwritten)?;
        let write = |data: &[u8], at| sparse::write_sparse(copy, data, at);
        read_through(&original.file, original, pulse, progress, write)?
    };
    let file_system = look(copy, original)?;
    let disk_usage = Bytes(copy.metadata().map_err(unwritten)?.blocks() * 512);
    Ok(ImageFacts { digest, virtual_size: file_system.size, disk_usage })
}

/// The file system in `file`, which is the original or a copy of it.
fn look(file: &File, original: &UserFile) -> Result<FileSystem> {
    FileSystem::read(&head(file, original)?, original.size)
        .map_err(|unusable| Error::Unsupported { message: unusable.to_string() })
}

/// The beginning of `file`, which is the original or a copy of it.
fn head(file: &File, original: &UserFile) -> Result<Vec<u8>> {
    let mut head = vec![0; ext4::HEAD.min(usize::try_from(original.size.0).unwrap_or(ext4::HEAD))];
    file.read_exact_at(&mut head, 0).map_err(|source| original.unread(source))?;
    Ok(head)
}

/// Reads `file`, which is the original or a copy of it, hands its data on, and returns the digest of all of
/// it: the one that `sha256sum` prints.
fn read_through(
    file: &File,
    original: &UserFile,
    pulse: &Pulse,
    progress: &dyn Progress,
    write: impl Fn(&[u8], u64) -> io::Result<()>,
) -> Result<String> {
    let unread = |source| original.unread(source);
    let size = original.size.0;
    let mut sha256 = Sha256::new();
    let (zeros, mut buffer) = (vec![0; sparse::CHUNK], vec![0; sparse::CHUNK]);
    let (mut at, mut told) = (0, Instant::now());
    let mut beat = |done: u64| {
        if told.elapsed() >= TELL {
            told = Instant::now();
            progress.advanced(Bytes(done), Some(original.size));
            if progress.is_canceled() {
                return Err(io::Error::other("nobody wants it any more"));
            }
        }
        pulse.beat()
    };
    while at < size {
        let data = sparse::next_data(file, at, size).map_err(unread)?.unwrap_or(size..size);
        for (at, length) in sparse::chunks(at..data.start) {
            sha256.update(&zeros[..length]);
            beat(at + length as u64).map_err(unread)?;
        }
        for (at, length) in sparse::chunks(data.clone()) {
            let bytes = &mut buffer[..length];
            file.read_exact_at(bytes, at).map_err(unread)?;
            beat(at + length as u64).map_err(unread)?;
            sha256.update(&*bytes);
            write(bytes, at).map_err(unwritten)?;
        }
        at = data.end;
    }
    Ok(format!("sha256:{:x}", sha256.finalize()))
}

fn unwritten(source: io::Error) -> Error {
    Error::os("write an image", source)
}
