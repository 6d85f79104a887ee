//! The disks of machines: files in a directory of each machine's own.
//!
//! A disk appears whole or not at all, under its name, and is never replaced: what is there may hold
//! somebody's work. It is not flushed when it is made: a flush would take longer than all the rest, and the
//! first one of the guest writes the whole file out. After a power cut before that, the machine has lost
//! what it was made of and nothing of its user's.

use std::{
    fs::{DirBuilder, File},
    io::ErrorKind,
    os::unix::fs::DirBuilderExt,
    path::Path,
};

use async_trait::async_trait;
use banger_proto::size::Bytes;

use super::{blocking::blocking, ext4_writer, partial::Partial, sparse, staging};
use crate::{
    domain::{
        id::{ImageId, VmId},
        machine::{Access, Drive},
        resource::Places,
    },
    ports::{Disks, Error, Result},
};

/// Disks as files under [`Places::vms`].
#[derive(Debug, Clone)]
pub struct FileDisks {
    places: Places,
}

impl FileDisks {
    /// The disks under these places.
    pub fn new(places: Places) -> Self {
        Self { places }
    }
}

#[async_trait]
impl Disks for FileDisks {
    async fn create_directory(&self, vm: VmId) -> Result<()> {
        let directory = self.places.vm_dir(vm);
        blocking("make the directory of a machine", move || {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
            made.map_err(|source| Error::os(format!("make {}", directory.display()), source))
        })
        .await
    }

    async fn clone_image(&self, vm: VmId, image: ImageId) -> Result<()> {
        let (original, disk) = (self.places.image(image), self.places.system_disk(vm));
        blocking("clone an image", move || {
            let original = open_image(&original)?;
            create(&disk, |file| {
                sparse::copy(&original, file)
                    .map(drop)
                    .map_err(|source| Error::os(format!("clone the image to {}", disk.display()), source))
            })
        })
        .await
    }

    async fn create_work_disk(&self, vm: VmId, size: Bytes) -> Result<()> {
        let disk = self.places.work_disk(vm);
        blocking("make a work disk", move || {
            let uuid = uuid::Uuid::new_v4().into_bytes();
            create(&disk, |file| {
                let doing = || format!("make a file system in {}", disk.display());
                ext4_writer::write_empty(file, size, uuid).map_err(|error| match error {
                    mkext4::Error::Io(source) => Error::os(doing(), source),
                    mkext4::Error::Invalid(_) | mkext4::Error::Unsupported(_) => Error::Unsupported {
                        message: format!("a work disk of {size} cannot be made: {error}"),
                    },
                    other => Error::other(doing(), other),
                })
            })
        })
        .await
    }

    fn drives(&self, vm: VmId) -> Vec<Drive> {
        [self.places.system_disk(vm), self.places.work_disk(vm)]
            .map(|path| Drive { path, access: Access::ReadWrite })
            .to_vec()
    }

    async fn remove_directory(&self, vm: VmId) -> Result<()> {
        let directory = self.places.vm_dir(vm);
        blocking("remove the directory of a machine", move || {
            staging::remove_tree(&directory)
                .map_err(|source| Error::os(format!("remove {}", directory.display()), source))
        })
        .await
    }

    async fn found(&self) -> Result<Vec<VmId>> {
        let vms = self.places.vms();
        blocking("look for disks", move || {
            staging::found(&vms).map_err(|source| Error::os(format!("read {}", vms.display()), source))
        })
        .await
    }
}

fn open_image(path: &Path) -> Result<File> {
    File::open(path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => Error::HostNotReady {
            message: format!("the file of the image is gone ({}); register the image again", path.display()),
        },
        _ => Error::os(format!("open {}", path.display()), source),
    })
}

/// Makes the disk at `path`. A disk that is there is kept.
fn create(path: &Path, fill: impl FnOnce(&File) -> Result<()>) -> Result<()> {
    let os = |doing: &str, source| Error::os(format!("{doing} {}", path.display()), source);
    if path.try_exists().map_err(|source| os("look at", source))? {
        return Ok(());
    }
    let disk = Partial::begin(path, 0o600).map_err(|source| os("make", source))?;
    fill(&disk.file)?;
    disk.add().map_err(|source| os("make", source))
}
