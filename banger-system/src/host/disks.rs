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
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, FileExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use banger_domain::{
    id::{ImageId, VmId},
    machine::{Access, Drive, Medium},
    resource::Places,
};
use banger_image::{ext4_writer, qcow2};
use banger_proto::size::Bytes;

use super::{blocking::blocking, partial::Partial, sparse, staging};
use crate::ports::{Check, Disks, Error, OverlayBy, Result, Status};

/// The block of our file systems: a disk has a whole number of them.
const BLOCK: u64 = 4096;

/// Disks as files under [`Places::vms`].
#[derive(Debug, Clone)]
pub struct FileDisks {
    places: Places,
    /// Why system disks are files.
    reason: Arc<str>,
}

impl FileDisks {
    /// The disks under these places.
    pub fn new(places: Places) -> Self {
        Self { places, reason: "system disks are files".into() }
    }

    /// The same, on a host on which system disks could be something better, for `doctor` to tell.
    pub fn because(self, reason: &Error) -> Self {
        Self { reason: reason.to_string().into(), ..self }
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

    async fn clone_image(&self, vm: VmId, image: ImageId, overlay_by: OverlayBy, size: Bytes) -> Result<()> {
        let (places, image) = (self.places.clone(), self.places.image(image));
        blocking("clone an image", move || {
            let original = open_image(&image)?;
            let (disk, layer) = (places.system_disk(vm), places.system_layer(vm));
            let os = |source| Error::os(format!("clone the image to {}", disk.display()), source);
            if disk.try_exists().map_err(os)? || layer.try_exists().map_err(os)? {
                return Ok(());
            }
            let length = original.metadata().map_err(os)?.len();
            let size = whole_blocks(size).0.max(length);
            let clone = Partial::begin(&disk, 0o600).map_err(os)?;
            if sparse::share(&original, &clone.file).map_err(os)? {
                clone.file.set_len(size).map_err(os)?;
                return clone.add().map_err(os);
            }
            // The layer comes last: where it is, what it lies on is too.
            if overlay_by == OverlayBy::Vmm && link(&image, &places.system_base(vm)).map_err(os)? {
                return create(&layer, |mut file| file.write_all(&qcow2::empty(Bytes(size))).map_err(os));
            }
            sparse::copy(&original, &clone.file).map_err(os)?;
            clone.file.set_len(size).map_err(os)?;
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
                    ext4_writer::Error::Write(source) => Error::os(doing(), source),
                    ext4_writer::Error::Unsupported(_) => Error::Unsupported {
                        message: format!("a work disk of {size} cannot be made: {error}"),
                    },
                    other => Error::other(doing(), other),
                })
            })
        })
        .await
    }

    async fn grow_work_disk(&self, vm: VmId, size: Bytes) -> Result<()> {
        let disk = self.places.work_disk(vm);
        blocking("grow a work disk", move || grow(&disk, size)).await
    }

    async fn grow_system_disk(&self, vm: VmId, _image: ImageId, size: Bytes) -> Result<()> {
        let (disk, layer) = (self.places.system_disk(vm), self.places.system_layer(vm));
        let places = self.places.clone();
        blocking("grow a system disk", move || {
            require_file(&places, vm)?;
            match layer.exists() {
                true => grow_layer(&layer, size),
                false => grow(&disk, size),
            }
        })
        .await
    }

    async fn attach(&self, vm: VmId, _image: ImageId) -> Result<Vec<Drive>> {
        let layer = self.places.system_layer(vm);
        if layer.exists() {
            let medium = Medium::Layer { base: self.places.system_base(vm) };
            let system = Drive { path: layer, access: Access::ReadWrite, medium };
            return Ok(vec![system, work_drive(&self.places, vm)]);
        }
        require_file(&self.places, vm)?;
        Ok(vec![file_drive(self.places.system_disk(vm)), work_drive(&self.places, vm)])
    }

    async fn detach(&self, _vm: VmId) -> Result<()> {
        Ok(())
    }

    async fn attached(&self) -> Result<Vec<VmId>> {
        Ok(Vec::new())
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

    async fn checks(&self) -> Vec<Check> {
        let message = format!("system disks are files: {}", self.reason);
        vec![check(Status::Warn, &message, "modprobe dm_snapshot, then systemctl restart banger-system")]
    }
}

/// What `doctor` shows of disks.
pub(super) fn check(status: Status, message: &str, hint: &str) -> Check {
    Check { name: "disks", status, message: message.to_owned(), hint: hint.to_owned() }
}

/// The work disk, which is a file on every host.
pub(super) fn work_drive(places: &Places, vm: VmId) -> Drive {
    file_drive(places.work_disk(vm))
}

fn file_drive(path: PathBuf) -> Drive {
    Drive { path, access: Access::ReadWrite, medium: Medium::File }
}

/// Refuses a system disk that device-mapper has made.
fn require_file(places: &Places, vm: VmId) -> Result<()> {
    if places.overlay(vm).exists() && !places.system_disk(vm).exists() && !places.system_layer(vm).exists() {
        return Err(Error::HostNotReady {
            message: "the system disk is a snapshot, which this kernel cannot make; \
                      modprobe dm_snapshot, then systemctl restart banger-system"
                .to_owned(),
        });
    }
    Ok(())
}

/// A size as a disk has it.
pub(super) fn whole_blocks(size: Bytes) -> Bytes {
    Bytes(size.0.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX))
}

/// Only the file: what is in it was written by a guest, and only a guest's kernel reads it.
pub(super) fn grow(disk: &Path, size: Bytes) -> Result<()> {
    let os = |doing: &str, source| Error::os(format!("{doing} {}", disk.display()), source);
    let file = OpenOptions::new().write(true).open(disk).map_err(|source| os("open", source))?;
    let is = file.metadata().map_err(|source| os("look at", source))?.len();
    let wanted = whole_blocks(size).0;
    match wanted <= is {
        true => Ok(()),
        false => file.set_len(wanted).map_err(|source| os("grow", source)),
    }
}

/// Lets a layer say that its disk is larger. What is in the disk is not looked at.
fn grow_layer(layer: &Path, size: Bytes) -> Result<()> {
    let os = |source| Error::os(format!("grow {}", layer.display()), source);
    let file = OpenOptions::new().read(true).write(true).open(layer).map_err(os)?;
    let mut head = [0; qcow2::HEAD];
    file.read_exact_at(&mut head, 0).map_err(os)?;
    let grown = qcow2::grow(head, whole_blocks(size)).map_err(|error| Error::Unsupported {
        message: format!("cannot grow the system disk to {size}: {error}"),
    })?;
    // All of it is in one sector, which is written whole or not at all.
    file.write_all_at(&grown, 0).map_err(os)
}

pub(super) fn open_image(path: &Path) -> Result<File> {
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
pub(super) fn create(path: &Path, fill: impl FnOnce(&File) -> Result<()>) -> Result<()> {
    let os = |doing: &str, source| Error::os(format!("{doing} {}", path.display()), source);
    if path.try_exists().map_err(|source| os("look at", source))? {
        return Ok(());
    }
    let disk = Partial::begin(path, 0o600).map_err(|source| os("make", source))?;
    fill(&disk.file)?;
    disk.add().map_err(|source| os("make", source))
}
