//! The files of images: each is a raw ext4 file system that never changes. An ext4 file is copied; a worker makes one
//! of everything else.

use std::{
    fs::File,
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use banger_domain::{
    digest::Digest as OciDigest,
    id::{ImageId, Uid},
    launch_spec::{Drive, Medium},
    limits::Exceeded,
    name::Name,
    resource::{IMAGE_FILE, Paths},
};
use banger_image::{
    ext4::{self, FileSystem},
    holes,
    importer::message::{Archive, Claim, CopyFile, Export, Extent, Flatten, Import},
    oci::{
        LayerFacts, RemoteImage, Unusable,
        config::{self, ImageConfig, Parsed},
        manifest::{Document, MAX_DOCUMENT},
        platform::Platform,
    },
    packing,
    record::ImageFacts,
};
use banger_proto::size::Bytes;
use sha2::{Digest, Sha256};

use super::{sparse, staging, staging::Staging, write_behind::write_behind};
use crate::{
    host::{
        blocking::blocking,
        process::worker::{self, Job, Workers},
    },
    ports::{
        FromHost as _, NoProgress, Progress,
        image_files::{Content, Error, Exported, FileRange, ImageFiles, Layer, Layout, Result},
    },
};

/// The largest accepted file. Holes are not copied but hashed, at about one GiB per second.
const MAX_SIZE: Bytes = Bytes::gib(256);
/// How often the progress of a copy is reported.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// Readable by the image's owner, writable by nobody.
const MODE: u32 = 0o400;
/// How many layers an image may have: as many as the programs that make images allow.
const MAX_LAYERS: usize = 127;
/// The name of a user's file in messages.
const ROOTFS: &str = "the root file system";

/// Images as files below [`Paths::images`].
#[derive(Clone)]
pub struct LocalImages {
    paths: Paths,
    workers: Arc<dyn Workers>,
    /// The size of file systems that workers make.
    size: Bytes,
}

impl LocalImages {
    /// Returns the images below these paths. Workers make file systems of this size.
    pub fn new(paths: Paths, workers: Arc<dyn Workers>, size: Bytes) -> Self {
        Self { paths, workers, size }
    }

    /// Returns the beginning of a user's file and its whole size.
    async fn head(&self, job: Job, file: OwnedFd, progress: Arc<dyn Progress>) -> Result<(Vec<u8>, Bytes)> {
        let copy = worker::memory_file()?;
        let extent = Extent::Head(ext4::HEAD as u64);
        let order = CopyFile { what: ROOTFS.to_owned(), max: MAX_SIZE, extent };
        let files = (file, copy.try_clone().map_err(unread)?);
        let size = worker::copy_file(&*self.workers, job, order, files, None, progress).await?;
        let mut head = vec![0; usize::try_from(size.0).unwrap_or(ext4::HEAD).min(ext4::HEAD)];
        copy.read_exact_at(&mut head, 0).map_err(unread)?;
        Ok((head, size))
    }

    /// Orders a worker to make the image of archives.
    async fn build(
        &self,
        job: Job,
        staged: Staged,
        archives: Vec<(Archive, OwnedFd)>,
        known_size: Option<Bytes>,
        progress: Arc<dyn Progress>,
    ) -> Result<ImageFacts> {
        let image = job.id;
        let doing = move |error| Error::os(format!("write image {image}"), error);
        let Staged { staging, file } = staged;
        let (spool, file, written) = blocking("start writing an image", move || {
            let spool = staging.nameless().map_err(doing)?;
            let written = file.try_clone().map_err(doing)?;
            Ok::<_, Error>(((staging, spool), file, written))
        })
        .await?;
        let (staging, spool) = spool;
        let (archives, fds) = archives.into_iter().unzip();
        let order = Import { archives, size: self.size };
        let files = worker::Files { image: file, spool, archives: fds };
        let behind = written.try_clone().map_err(doing)?;
        let import = worker::import(&*self.workers, job, order, files, known_size, progress);
        let made = write_behind(behind, import).await?;
        let size = self.size;
        blocking("finish writing an image", move || {
            // The process that wrote it handled untrusted bytes, so the size is checked here.
            let metadata = written.metadata().map_err(doing)?;
            let mut head = [0; ext4::HEAD];
            written.read_exact_at(&mut head, 0).map_err(doing)?;
            let unusable = |error| Error::other("check the result of an import worker", error);
            let found = FileSystem::read(&head, Bytes(metadata.len())).map_err(unusable)?;
            if metadata.len() != size.0 || found.size != size {
                return Err(unusable(ext4::Unusable::Short { expected: size, found: found.size }));
            }
            staging.finish().map_err(doing)?;
            let disk_usage = Bytes(metadata.blocks() * 512);
            let content_size = made.content.min(size);
            Ok(ImageFacts { file: image, digest: made.digest, virtual_size: size, content_size, disk_usage })
        })
        .await
    }

    /// Copies the system disk of a sandbox.
    async fn flatten(
        &self,
        job: Job,
        staged: Staged,
        (drive, room): (Drive, Bytes),
        progress: Arc<dyn Progress>,
    ) -> Result<ImageFacts> {
        let image = job.id;
        let Staged { staging, file } = staged;
        let copy = file.try_clone().map_err(unwritten)?;
        let opened = blocking("open a system disk", move || {
            let open = |path: &Path| {
                File::open(path).map_err(|error| Error::os(format!("open {}", path.display()), error))
            };
            let disk = open(&drive.path)?;
            let metadata = disk.metadata().map_err(unread)?;
            if metadata.len() > MAX_SIZE.0 {
                let message =
                    format!("the system disk has {}, which is too much for an image", Bytes(metadata.len()));
                return Err(Error::Unsupported { message });
            }
            let size = metadata.blocks() * 512;
            let files = match drive.medium {
                // Blocks can only be shared by regular files.
                Medium::File if sparse::share(&disk, &copy).map_err(unwritten)? => return Ok(None),
                Medium::File | Medium::BlockDevice => vec![copy, disk],
                Medium::Layer { base, frozen } => {
                    let below = frozen.iter().rev().chain([&base]).map(|path| open(path));
                    [Ok(copy), Ok(disk)].into_iter().chain(below).collect::<Result<_, Error>>()?
                }
            };
            Ok::<_, Error>(Some((files, Bytes(size))))
        });
        if let Some((files, total)) = opened.await? {
            let progress = Arc::clone(&progress);
            let order = Flatten { max: MAX_SIZE, room };
            let copied = worker::flatten(&*self.workers, job, order, files, total, progress).await?;
            copied.ok_or(Exceeded::Room { room })?;
        }
        blocking("finish writing an image", move || {
            require_unmounted(&file)?;
            let facts = facts_of(image, &file, &*progress)?;
            staging.finish().map_err(unwritten)?;
            Ok(facts)
        })
        .await
    }
}

/// The progress of a step that is too short to report but can be cancelled.
struct SilentProgress(Arc<dyn Progress>);

impl Progress for SilentProgress {
    fn advanced(&self, _done: Bytes, _total: Option<Bytes>) {}

    fn is_canceled(&self) -> bool {
        self.0.is_canceled()
    }
}

/// The directory of an image that is being made. Dropping it removes the directory.
struct Staged {
    staging: Staging,
    file: File,
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
        let parent = self.paths.images();
        let doing = move || format!("write image {image}");
        let staged = blocking("start writing an image", move || {
            let staging =
                Staging::begin(&parent, &image.to_string()).map_err(|source| Error::os(doing(), source))?;
            let file = staging.file(IMAGE_FILE, MODE).map_err(|source| Error::os(doing(), source))?;
            Ok::<_, Error>(Staged { staging, file })
        })
        .await?;
        let fd = match content {
            Content::Layers(layers) => {
                let job = Job { id: image, owner };
                return self.build(job, staged, claims(layers)?, None, progress).await;
            }
            Content::File(fd) => fd,
            Content::Disk { drive, room } => {
                return self.flatten(Job { id: image, owner }, staged, (drive, room), progress).await;
            }
        };
        let job = Job { id: image, owner };
        let (head, size) = self
            .head(job, fd.try_clone().map_err(unread)?, Arc::new(SilentProgress(Arc::clone(&progress))))
            .await?;
        let unsupported = |foreign: packing::Foreign| Error::Unsupported { message: foreign.to_string() };
        if packing::of(&head).map_err(unsupported)?.is_some() {
            let archive = Archive { claim: None, offset: None };
            return self.build(job, staged, vec![(archive, fd)], Some(size), progress).await;
        }
        // Checked first, so that a file of another kind is not copied in vain.
        inspect(&head, size)?;
        let Staged { staging, file } = staged;
        let (copy, original) = (file.try_clone().map_err(unwritten)?, fd.try_clone().map_err(unread)?);
        // Blocks can only be shared within our own file system, and no other one is asked.
        let shared = blocking("copy the root file system", move || {
            sparse::share(&File::from(original), &copy).map_err(unwritten)
        });
        if !shared.await? {
            let order = CopyFile { what: ROOTFS.to_owned(), max: MAX_SIZE, extent: Extent::Whole };
            let files = (fd, file.try_clone().map_err(unwritten)?);
            worker::copy_file(&*self.workers, job, order, files, Some(size), Arc::clone(&progress)).await?;
        }
        blocking("finish writing an image", move || {
            let facts = facts_of(image, &file, &*progress)?;
            staging.finish().map_err(|source| Error::os(doing(), source))?;
            Ok(facts)
        })
        .await
    }

    async fn layout(
        &self,
        owner: Uid,
        file: OwnedFd,
        parts: &[FileRange],
        platform: &Platform,
    ) -> Result<Layout> {
        let misses = |why: &str| Error::BadFile { message: format!("the image {why}") };
        let [manifest, config, layers @ ..] = parts else {
            return Err(misses("has no manifest or no configuration"));
        };
        if [manifest, config].iter().any(|part| part.length > MAX_DOCUMENT) {
            return Err(misses(&format!("has a document of more than {MAX_DOCUMENT}")));
        }
        let documents = worker::memory_file()?;
        let extent = Extent::Parts([manifest, config].map(|part| (part.offset, part.length.0)).to_vec());
        let order = CopyFile { what: "the image".to_owned(), max: MAX_SIZE, extent };
        let files = (file.try_clone().map_err(unread)?, documents.try_clone().map_err(unread)?);
        let job = Job { id: ImageId::random(), owner };
        let size = worker::copy_file(&*self.workers, job, order, files, None, Arc::new(NoProgress)).await?;
        let is_inside =
            |part: &FileRange| part.offset.checked_add(part.length.0).is_some_and(|end| end <= size.0);
        if !parts.iter().all(is_inside) {
            return Err(misses("has a part beyond its end"));
        }
        let mut manifest_bytes = vec![0; usize::try_from(manifest.length.0).unwrap_or_default()];
        let mut config_bytes = vec![0; usize::try_from(config.length.0).unwrap_or_default()];
        documents.read_exact_at(&mut manifest_bytes, 0).map_err(unread)?;
        documents.read_exact_at(&mut config_bytes, manifest.length.0).map_err(unread)?;
        read_layout(&file, &manifest_bytes, &config_bytes, layers, platform)
    }

    async fn export(
        &self,
        image: ImageId,
        for_whom: Uid,
        (name, config): (Name, ImageConfig),
        archive: OwnedFd,
        progress: Arc<dyn Progress>,
    ) -> Result<Exported> {
        let path = self.paths.image(image);
        let files = blocking("start an export", move || {
            let image = File::open(&path).map_err(|error| Error::os(format!("open image {image}"), error))?;
            Ok::<_, Error>((image, File::from(archive)))
        })
        .await?;
        let name = name.to_string();
        let order = Export { name, config, architecture: std::env::consts::ARCH.to_owned() };
        // Several jobs may export the same image.
        let id = ImageId::random();
        let exported =
            worker::export(&*self.workers, Job { id, owner: for_whom }, order, files, progress).await?;
        let manifest = exported.manifest.parse();
        let manifest = manifest.map_err(|error| Error::other("read the result of an export", error))?;
        Ok(Exported { manifest, bytes: exported.bytes })
    }

    async fn share(&self, image: ImageId, of: ImageId) -> Result<()> {
        let (parent, file) = (self.paths.images(), self.paths.image(of));
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
        let parent = self.paths.images();
        blocking("remove an image", move || {
            staging::remove(&parent, &image.to_string())
                .map_err(|source| Error::os(format!("remove image {image}"), source))
        })
        .await
    }

    async fn found(&self) -> Result<Vec<ImageId>> {
        let parent = self.paths.images();
        blocking("look for images", move || {
            staging::found(&parent).map_err(|source| Error::os(format!("read {}", parent.display()), source))
        })
        .await
    }
}

/// Parses the manifest and the configuration, and compares them with the given offsets of the layers.
fn read_layout(
    file: &OwnedFd,
    manifest_bytes: &[u8],
    config: &[u8],
    layers: &[FileRange],
    platform: &Platform,
) -> Result<Layout> {
    let unusable = |error: Unusable| Error::Unsupported { message: error.to_string() };
    let Document::Manifest(manifest) = Document::parse(manifest_bytes, None).map_err(unusable)? else {
        return Err(Error::Unsupported { message: "the manifest is an index of other manifests".to_owned() });
    };
    if OciDigest::from_bytes(Sha256::digest(config).into()) != manifest.config.digest {
        return Err(Error::Mismatch { message: "the configuration does not match the manifest".to_owned() });
    }
    let Parsed { layers: facts, config, notes } =
        config::parse(config, &manifest, platform).map_err(unusable)?;
    if facts.len() != layers.len()
        || facts.iter().zip(layers).any(|(layer, part)| layer.blob.size != part.length)
    {
        return Err(Error::Mismatch { message: "the layers do not match the manifest".to_owned() });
    }
    let layer = |(facts, part): (&LayerFacts, &FileRange)| {
        Ok(Layer {
            blob: file.try_clone().map_err(unread)?,
            offset: Some(part.offset),
            size: facts.blob.size,
            digest: facts.blob.digest,
            diff_id: facts.diff_id,
        })
    };
    let parts = facts.iter().zip(layers).map(layer).collect::<Result<_>>()?;
    let manifest = OciDigest::from_bytes(Sha256::digest(manifest_bytes).into());
    Ok(Layout { image: RemoteImage { manifest, layers: facts, config, notes }, layers: parts })
}

/// Returns the claims about layers, and their files.
fn claims(layers: Vec<Layer>) -> Result<Vec<(Archive, OwnedFd)>> {
    match layers.len() {
        0 => return Err(Error::Unsupported { message: "the image has no layers".to_owned() }),
        1..=MAX_LAYERS => {}
        count => {
            let message = format!("the image has {count} layers; the limit is {MAX_LAYERS}");
            return Err(Error::Unsupported { message });
        }
    }
    let claim = |layer: &Layer| Claim {
        size: layer.size,
        digest: layer.digest.to_string(),
        diff_id: layer.diff_id.to_string(),
    };
    let archive = |layer: Layer| {
        let archive = Archive { claim: Some(claim(&layer)), offset: layer.offset };
        (archive, layer.blob)
    };
    Ok(layers.into_iter().map(archive).collect())
}

/// Returns the facts about the copy of a file system. Only the copy counts, since the user may still write to the
/// original.
fn facts_of(image: ImageId, copy: &File, progress: &dyn Progress) -> Result<ImageFacts> {
    let metadata = copy.metadata().map_err(unwritten)?;
    let size = Bytes(metadata.len());
    let mut head = vec![0; ext4::HEAD.min(usize::try_from(size.0).unwrap_or(ext4::HEAD))];
    copy.read_exact_at(&mut head, 0).map_err(unwritten)?;
    let file_system = inspect(&head, size)?;
    // Only this size is counted, and the disk of a sandbox is at least as long as its image.
    copy.set_len(file_system.size.0).map_err(unwritten)?;
    let digest = digest_of(copy, file_system.size, progress).map_err(unwritten)?;
    let disk_usage = Bytes(copy.metadata().map_err(unwritten)?.blocks() * 512);
    let content_size = file_system.used.unwrap_or(disk_usage);
    Ok(ImageFacts { file: image, digest, virtual_size: file_system.size, content_size, disk_usage })
}

/// Checks that a guest has unmounted the file system on a copy of its disk.
fn require_unmounted(copy: &File) -> Result<()> {
    let mut head = [0; ext4::HEAD];
    copy.read_exact_at(&mut head, 0).map_err(unwritten)?;
    match FileSystem::read(&head, Bytes(copy.metadata().map_err(unwritten)?.len())) {
        Err(ext4::Unusable::Unclean) => Err(Error::Unsupported {
            message: "the guest has not unmounted its system disk; start the sandbox, stop it, and try again"
                .to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Parses the file system that begins with these bytes.
fn inspect(head: &[u8], size: Bytes) -> Result<FileSystem> {
    FileSystem::read(head, size).map_err(|unusable| Error::Unsupported { message: unusable.to_string() })
}

/// Returns the digest of a file of ours, as `sha256sum` prints it.
fn digest_of(file: &File, size: Bytes, progress: &dyn Progress) -> io::Result<String> {
    let mut sha256 = Sha256::new();
    let (zeros, mut buffer) = (vec![0; holes::CHUNK], vec![0; holes::CHUNK]);
    let (mut at, mut told) = (0, Instant::now());
    let mut tell = |done: u64| {
        if told.elapsed() >= PROGRESS_INTERVAL {
            told = Instant::now();
            progress.advanced(Bytes(done), Some(size));
        }
        match progress.is_canceled() {
            true => Err(io::Error::other("nobody wants it any more")),
            false => Ok(()),
        }
    };
    while at < size.0 {
        let data = holes::next_data(file, at, size.0)?.unwrap_or(size.0..size.0);
        for (at, length) in holes::chunks(at..data.start) {
            sha256.update(&zeros[..length]);
            tell(at + length as u64)?;
        }
        for (at, length) in holes::chunks(data.clone()) {
            file.read_exact_at(&mut buffer[..length], at)?;
            sha256.update(&buffer[..length]);
            tell(at + length as u64)?;
        }
        at = data.end;
    }
    Ok(format!("sha256:{:x}", sha256.finalize()))
}

fn unread(error: io::Error) -> Error {
    Error::os(format!("read {ROOTFS}"), error)
}

fn unwritten(source: io::Error) -> Error {
    Error::os("write an image", source)
}
