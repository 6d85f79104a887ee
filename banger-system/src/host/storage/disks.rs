//! The disks of sandboxes as files, in a directory for each sandbox.
//!
//! A clone shares its blocks with the image if the file system can. Otherwise a VMM that supports overlays gets an
//! empty one over the image, and for any other VMM the image is copied.
//!
//! A disk appears whole or not at all, and is never replaced, since it may hold somebody's work. It is not flushed
//! when it is made: that would take longer than all the rest, and the first flush of the guest writes the whole file
//! out. A power cut before that loses the copy of the image, and nothing of the user's.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use banger_domain::{
    id::{ImageId, VmId},
    launch_spec::{Access, Drive, Medium},
    limits::Disk,
    resource::Paths,
};
use banger_image::{ext4_writer, qcow2};
use banger_proto::size::Bytes;

use super::{
    layers::{self, Chain, Prepared},
    partial::Partial,
    sparse, staging,
};
use crate::{
    host::blocking::blocking,
    ports::{
        Check, FromHost as _, Progress, Status,
        captures::HostFacts,
        disks::{Disks, Error, FrozenLayer, NewLayers, OverlayBy, Parent, Result},
    },
};

/// The block size of our file systems: a disk has a whole number of blocks.
const BLOCK: u64 = 4096;

/// Disks as files below [`Paths::vms`].
#[derive(Debug, Clone)]
pub struct FileDisks {
    paths: Paths,
    /// Why system disks are files on this host.
    reason: Arc<str>,
}

impl FileDisks {
    /// Returns the disks below these paths.
    pub fn new(paths: Paths) -> Self {
        Self { paths, reason: "system disks are files".into() }
    }

    /// Returns the same with the reason why device-mapper is not used, for `doctor`.
    pub fn because(self, reason: &Error) -> Self {
        Self { reason: reason.to_string().into(), ..self }
    }
}

/// Returns what tells those of these files that exist from others that come in their places.
fn stamps(files: &[PathBuf]) -> io::Result<String> {
    let mut stamps = Vec::new();
    for file in files {
        match fs::metadata(file) {
            Ok(found) => stamps.push(format!("{}-{}", found.ino(), found.len())),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(stamps.join(" "))
}

#[async_trait]
impl Disks for FileDisks {
    async fn create_directory(&self, vm: VmId) -> Result<()> {
        let directory = self.paths.vm_dir(vm);
        blocking("make the directory of a sandbox", move || {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
            made.map_err(|source| Error::os(format!("make {}", directory.display()), source))
        })
        .await
    }

    async fn clone_image(&self, vm: VmId, image: ImageId, overlay_by: OverlayBy, size: Bytes) -> Result<()> {
        let (paths, image) = (self.paths.clone(), self.paths.image(image));
        blocking("clone an image", move || {
            let original = open_image(&image)?;
            let (disk, layer) = (paths.system_disk(vm), paths.system_layer(vm));
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
            // The overlay comes last: if it exists, so does its base.
            if overlay_by == OverlayBy::Vmm && link(&image, &paths.system_base(vm)).map_err(os)? {
                return create(&layer, |mut file| file.write_all(&qcow2::empty(Bytes(size))).map_err(os));
            }
            sparse::copy(&original, &clone.file).map_err(os)?;
            clone.file.set_len(size).map_err(os)?;
            clone.add().map_err(os)
        })
        .await
    }

    async fn create_work_disk(&self, vm: VmId, size: Bytes) -> Result<()> {
        let disk = self.paths.work_disk(vm);
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
        let (disk, layer) = (self.paths.work_disk(vm), self.paths.work_layer(vm));
        blocking("grow a work disk", move || grow_disk(&layer, &disk, size)).await
    }

    async fn grow_system_disk(&self, vm: VmId, _image: ImageId, size: Bytes) -> Result<()> {
        let (disk, layer) = (self.paths.system_disk(vm), self.paths.system_layer(vm));
        let paths = self.paths.clone();
        blocking("grow a system disk", move || {
            require_file(&paths, vm)?;
            grow_disk(&layer, &disk, size)
        })
        .await
    }

    async fn attach(&self, vm: VmId, _image: ImageId) -> Result<Vec<Drive>> {
        let paths = self.paths.clone();
        blocking("look for the layers of a disk", move || {
            let drives = [(Disk::System, paths.system_disk(vm)), (Disk::Work, paths.work_disk(vm))];
            require_file(&paths, vm)?;
            drives.into_iter().map(|(disk, file)| drive(&paths, vm, disk, file)).collect()
        })
        .await
    }

    async fn freezable(&self, vm: VmId, parent: Parent) -> Result<Bytes> {
        let paths = self.paths.clone();
        blocking("look for the layers of a disk", move || layers::freezable(&paths, vm, parent)).await
    }

    async fn freeze(&self, vm: VmId) -> Result<()> {
        let paths = self.paths.clone();
        blocking("freeze the disks of a sandbox", move || layers::freeze(&paths, vm)).await
    }

    async fn prepare_layers(&self, vm: VmId) -> Result<Box<dyn NewLayers>> {
        let paths = self.paths.clone();
        let prepared = blocking("make new layers", move || Prepared::of_running(&paths, vm)).await?;
        Ok(Box::new(prepared))
    }

    async fn sync_layers(&self, vm: VmId) -> Result<()> {
        let paths = self.paths.clone();
        blocking("write layers to the storage", move || layers::sync_frozen(&paths, vm)).await
    }

    async fn create_child(
        &self,
        vm: VmId,
        of: VmId,
        parent: Parent,
        progress: Arc<dyn Progress>,
    ) -> Result<()> {
        let paths = self.paths.clone();
        blocking("fork the disks of a sandbox", move || {
            layers::create_child(&paths, vm, of, parent, &*progress)
        })
        .await
    }

    async fn empty(&self, vm: VmId) -> Result<()> {
        let paths = self.paths.clone();
        blocking("empty the disks of a sandbox", move || layers::empty(&paths, vm)).await
    }

    async fn frozen(&self, vm: VmId) -> Result<Vec<FrozenLayer>> {
        let paths = self.paths.clone();
        blocking("look for the layers of a disk", move || layers::frozen(&paths, vm)).await
    }

    async fn detach(&self, _vm: VmId) -> Result<()> {
        Ok(())
    }

    async fn attached(&self) -> Result<Vec<VmId>> {
        Ok(Vec::new())
    }

    async fn identity(&self, vm: VmId) -> Result<HostFacts> {
        let paths = self.paths.clone();
        blocking("look at the disks of a sandbox", move || {
            let disks = [("the system disk", Disk::System), ("the work disk", Disk::Work)];
            let stamped = disks
                .into_iter()
                .map(|(name, disk)| Ok((name.to_owned(), stamps(&layers::all_files(&paths, vm, disk))?)));
            stamped.collect::<io::Result<_>>().map_err(|error| Error::os("look at the disks", error))
        })
        .await
    }

    async fn exchange(&self, vm: VmId, with: VmId) -> Result<()> {
        let paths = self.paths.clone();
        blocking("exchange the disks of two sandboxes", move || layers::exchange(&paths, vm, with)).await
    }

    async fn remove_directory(&self, vm: VmId) -> Result<()> {
        let directory = self.paths.vm_dir(vm);
        blocking("remove the directory of a sandbox", move || {
            staging::remove_tree(&directory)
                .map_err(|source| Error::os(format!("remove {}", directory.display()), source))
        })
        .await
    }

    async fn found(&self) -> Result<Vec<VmId>> {
        let vms = self.paths.vms();
        blocking("look for disks", move || {
            staging::found(&vms).map_err(|source| Error::os(format!("read {}", vms.display()), source))
        })
        .await
    }

    async fn checks(&self) -> Vec<Check> {
        let message = format!("system disks are files: {}", self.reason);
        vec![check(Status::Warn, &message, "run `modprobe dm_snapshot && systemctl restart banger-system`")]
    }
}

/// Returns what `doctor` shows about disks.
pub(super) fn check(status: Status, message: &str, hint: &str) -> Check {
    Check { name: "disks", status, message: message.to_owned(), hint: hint.to_owned() }
}

/// Returns the work disk, which is a file on every host.
pub(super) fn work_drive(paths: &Paths, vm: VmId) -> Drive {
    file_drive(paths.work_disk(vm))
}

/// Returns the drive of a disk, which is a layer over others if it has one, else the file.
fn drive(paths: &Paths, vm: VmId, disk: Disk, file: PathBuf) -> Result<Drive> {
    match Chain::of(paths, vm, disk)? {
        None => {
            layers::open(&file)?;
            Ok(file_drive(file))
        }
        Some(Chain { top, base, frozen }) => {
            layers::open(&top)?;
            Ok(Drive { path: top, access: Access::ReadWrite, medium: Medium::Layer { base, frozen } })
        }
    }
}

fn file_drive(path: PathBuf) -> Drive {
    Drive { path, access: Access::ReadWrite, medium: Medium::File }
}

/// Refuses a system disk that was made with device-mapper.
fn require_file(paths: &Paths, vm: VmId) -> Result<()> {
    if paths.overlay(vm).exists() && !paths.system_disk(vm).exists() && !paths.system_layer(vm).exists() {
        return Err(Error::not_ready(
            "the system disk is a snapshot, which this kernel cannot make; \
             run `modprobe dm_snapshot && systemctl restart banger-system`",
        ));
    }
    Ok(())
}

/// Rounds a size up to whole blocks.
pub(super) fn whole_blocks(size: Bytes) -> Bytes {
    Bytes(size.0.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX))
}

/// Grows the file only: its content comes from a guest, and only a guest's kernel reads it.
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

/// Grows a disk: its layer if it has one, else its file.
fn grow_disk(layer: &Path, disk: &Path, size: Bytes) -> Result<()> {
    match layer.exists() {
        true => {
            layers::open(layer)?;
            grow_layer(layer, size)
        }
        false => {
            layers::open(disk)?;
            grow(disk, size)
        }
    }
}

/// Increases the disk size in an overlay's header. The content of the disk is not read.
fn grow_layer(layer: &Path, size: Bytes) -> Result<()> {
    let os = |source| Error::os(format!("grow {}", layer.display()), source);
    let file = OpenOptions::new().read(true).write(true).open(layer).map_err(os)?;
    let mut head = [0; qcow2::HEAD];
    file.read_exact_at(&mut head, 0).map_err(os)?;
    let grown = qcow2::grow(head, whole_blocks(size)).map_err(|error| Error::Unsupported {
        message: format!("cannot grow the disk to {size}: {error}"),
    })?;
    // The change is within one sector, which is written whole or not at all.
    file.write_all_at(&grown, 0).map_err(os)
}

pub(super) fn open_image(path: &Path) -> Result<File> {
    File::open(path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => Error::not_ready(format!(
            "the file of the image is gone ({}); register the image again",
            path.display()
        )),
        _ => Error::os(format!("open {}", path.display()), source),
    })
}

/// Makes a hard link to the image's file, which keeps it even if the image is deleted. `false` if the sandbox is on
/// another file system than the image.
fn link(image: &Path, name: &Path) -> io::Result<bool> {
    match fs::hard_link(image, name) {
        Ok(()) => Ok(true),
        // Left by a crash.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(true),
        Err(error) if error.kind() == ErrorKind::CrossesDevices => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes the disk at `path`. An existing disk is kept.
pub(super) fn create(path: &Path, fill: impl FnOnce(&File) -> Result<()>) -> Result<()> {
    let os = |doing: &str, source| Error::os(format!("{doing} {}", path.display()), source);
    if path.try_exists().map_err(|source| os("look at", source))? {
        return Ok(());
    }
    let disk = Partial::begin(path, 0o600).map_err(|source| os("make", source))?;
    fill(&disk.file)?;
    disk.add().map_err(|source| os("make", source))
}
