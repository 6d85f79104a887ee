//! The files of images: each a raw ext4 file system that is never written to again.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::{FileExt, MetadataExt},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use banger_proto::size::Bytes;
use sha2::{Digest, Sha256};

use super::{
    blocking::blocking,
    fd::UserFile,
    pulse::{Pulse, watch},
    sparse, staging,
    staging::Staging,
};
use crate::{
    domain::{
        ext4::{self, FileSystem},
        id::ImageId,
        image::ImageFacts,
        resource::{IMAGE_FILE, Places},
    },
    ports::{
        Error, ImageFiles, Result,
        images::{Content, Progress},
    },
};

/// The largest file that is taken. Holes are not copied but are part of the digest, at about one GiB per
/// second.
const MAX_SIZE: Bytes = Bytes::gib(256);
/// How long a read of a user's file may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The image's owner may read it, and nobody may write.
const MODE: u32 = 0o400;

/// Images as files under [`Places::images`].
#[derive(Debug, Clone)]
pub struct LocalImages {
    places: Places,
}

impl LocalImages {
    /// The images under these places.
    pub fn new(places: Places) -> Self {
        Self { places }
    }
}

#[async_trait]
impl ImageFiles for LocalImages {
    async fn import(
        &self,
        image: ImageId,
        content: Content,
        _progress: Arc<dyn Progress>,
    ) -> Result<ImageFacts> {
        let Content::File(rootfs) = content else {
            return Err(Error::Unsupported { message: "layers cannot be imported yet".to_owned() });
        };
        let parent = self.places.images();
        let doing = move || format!("write image {image}");
        let (staging, file) = blocking("begin an image", move || {
            let staging =
                Staging::begin(&parent, &image.to_string()).map_err(|source| Error::os(doing(), source))?;
            let file = staging.file(IMAGE_FILE, MODE).map_err(|source| Error::os(doing(), source))?;
            Ok((staging, file))
        })
        .await?;
        // Dropping `staging` removes it, whichever way this ends.
        let facts = watch("read the root file system", PATIENCE, move |pulse| {
            let original = UserFile::check(rootfs, "the root file system", MAX_SIZE)?;
            copy_checked(&original, &file, pulse)
        })
        .await?;
        blocking("finish an image", move || staging.finish().map_err(|source| Error::os(doing(), source)))
            .await?;
        Ok(facts)
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

/// Copies a file that holds an ext4 file system. What counts is what the copy holds: its user may write to
/// the original all the while.
fn copy_checked(original: &UserFile, copy: &File, pulse: &Pulse) -> Result<ImageFacts> {
    // A first look, so that a file of another kind is not copied in vain.
    look(&original.file, original)?;
    let shared = sparse::share(&original.file, copy).map_err(unwritten)?;
    let digest = if shared {
        if copy.metadata().map_err(unwritten)?.len() != original.size.0 {
            return Err(original.unread(ErrorKind::UnexpectedEof.into()));
        }
        read_through(copy, original, pulse, |_, _| Ok(()))?
    } else {
        copy.set_len(original.size.0).map_err(unwritten)?;
        read_through(&original.file, original, pulse, |data, at| sparse::write_sparse(copy, data, at))?
    };
    let file_system = look(copy, original)?;
    let disk_usage = Bytes(copy.metadata().map_err(unwritten)?.blocks() * 512);
    Ok(ImageFacts { digest, virtual_size: file_system.size, disk_usage })
}

/// The file system in `file`, which is the original or a copy of it.
fn look(file: &File, original: &UserFile) -> Result<FileSystem> {
    let length = ext4::HEAD.min(usize::try_from(original.size.0).unwrap_or(ext4::HEAD));
    let mut head = [0; ext4::HEAD];
    file.read_exact_at(&mut head[..length], 0).map_err(|source| original.unread(source))?;
    FileSystem::read(&head[..length], original.size)
        .map_err(|unusable| Error::Unsupported { message: unusable.to_string() })
}

/// Reads `file`, which is the original or a copy of it, hands its data on, and returns the digest of all of
/// it: the one that `sha256sum` prints.
fn read_through(
    file: &File,
    original: &UserFile,
    pulse: &Pulse,
    write: impl Fn(&[u8], u64) -> io::Result<()>,
) -> Result<String> {
    let unread = |source| original.unread(source);
    let size = original.size.0;
    let mut sha256 = Sha256::new();
    let (zeros, mut buffer) = (vec![0; sparse::CHUNK], vec![0; sparse::CHUNK]);
    let mut at = 0;
    while at < size {
        let data = sparse::next_data(file, at, size).map_err(unread)?.unwrap_or(size..size);
        for (_, length) in sparse::chunks(at..data.start) {
            sha256.update(&zeros[..length]);
            pulse.beat().map_err(unread)?;
        }
        for (at, length) in sparse::chunks(data.clone()) {
            let bytes = &mut buffer[..length];
            file.read_exact_at(bytes, at).map_err(unread)?;
            pulse.beat().map_err(unread)?;
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
