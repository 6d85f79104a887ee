//! The disks of machines: files in a directory of each machine's own.
//!
//! A clone shares its blocks with the image where the file system can. Where it cannot, a monitor that can
//! lay one file over another gets an empty layer and the image; for any other the image is copied.
//!
//! A disk appears whole or not at all, under its name, and is never replaced: what is there may hold
//! somebody's work. It is not flushed when it is made: a flush would take longer than all the rest, and the
//! first one of the guest writes the whole file out. After a power cut before that, the machine has lost
//! what it was made of and nothing of its user's.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, ErrorKind, Write},
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
        qcow2,
        resource::Places,
    },
    ports::{Disks, Error, Layers, Result},
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

    async fn clone_image(&self, vm: VmId, image: ImageId, layers: Layers) -> Result<()> {
        let (places, image) = (self.places.clone(), self.places.image(image));
        blocking("clone an image", move || {
            let original = open_image(&image)?;
            let (disk, layer) = (places.system_disk(vm), places.system_layer(vm));
            let os = |source| Error::os(format!("clone the image to {}", disk.display()), source);
            if disk.try_exists().map_err(os)? || layer.try_exists().map_err(os)? {
                return Ok(());
            }
            let clone = Partial::begin(&disk, 0o600).map_err(os)?;
            if sparse::share(&original, &clone.file).map_err(os)? {
                return clone.add().map_err(os);
            }
            // The layer comes last: where it is, what it lies on is too.
            if layers == Layers::Monitor && link(&image, &places.system_base(vm)).map_err(os)? {
                let size = Bytes(original.metadata().map_err(os)?.len());
                return create(&layer, |mut file| file.write_all(&qcow2::empty(size)).map_err(os));
            }
            sparse::copy(&original, &clone.file).map_err(os)?;
            clone.add().map_err(os)
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
        let drive = |path, base| Drive { path, base, access: Access::ReadWrite };
        let layer = self.places.system_layer(vm);
        let system = match layer.exists() {
            true => drive(layer, Some(self.places.system_base(vm))),
            false => drive(self.places.system_disk(vm), None),
        };
        vec![system, drive(self.places.work_disk(vm), None)]
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

/// Gives the image's file another name, which keeps it even when the image is deleted. False where the
/// machine is on another file system than its image.
fn link(image: &Path, name: &Path) -> io::Result<bool> {
    match fs::hard_link(image, name) {
        Ok(()) => Ok(true),
        // A crash has left it.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(true),
        Err(error) if error.kind() == ErrorKind::CrossesDevices => Ok(false),
        Err(error) => Err(error),
    }
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
