//! Disks on a kernel with device-mapper: a system disk is a snapshot of its image, which all its sandboxes share, and
//! a sparse file takes what the sandbox writes.
//!
//! While a sandbox runs there are two loop devices and one mapper node:
//!
//! ```text
//! images/ID/rootfs.ext4 ── /dev/loopA (read-only, one for all) ─┐
//!                                                               ├─ /dev/dm-N, named banger-VM
//! vms/VM/system.cow ────── /dev/loopB ──────────────────────────┤
//! vms/VM/system.tail ───── /dev/loopC ──────────────────────────┘
//! ```
//!
//! A snapshot cannot be larger than its origin. So a system disk that is larger than its image has a third device, a
//! sparse file that the node appends to the snapshot.
//!
//! The loop devices belong to the node alone: the kernel frees each with its last user. So undoing everything means
//! removing the node by its name, also after a crash at any point.

mod loops;
mod snapshot;

use std::{
    fs::{File, OpenOptions},
    io::ErrorKind,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use banger_domain::{
    id::{ImageId, VmId},
    launch_spec::{Access, Drive, Medium},
    resource::Paths,
};
use banger_proto::size::Bytes;

use self::loops::Loop;
use super::disks::{self, FileDisks};
use crate::{
    host::blocking::blocking,
    ports::{
        Check, FromHost as _, Progress, Status,
        captures::HostFacts,
        disks::{Disks, Error, FrozenLayer, NewLayers, OverlayBy, Parent, Result},
    },
};

/// The unit of device-mapper, whatever the device.
const SECTOR: u64 = 512;
/// The least free space on the host's file system to start a sandbox. A snapshot whose overlay cannot be written is
/// lost as a whole.
const RESERVE: Bytes = Bytes::mib(64);
/// The kernel answers at once, and udev in milliseconds. A udev that hangs is not waited for.
const TIMEOUT: Duration = Duration::from_secs(60);

/// System disks as snapshots, everything else as files.
#[derive(Debug, Clone)]
pub struct MapperDisks {
    paths: Paths,
    files: FileDisks,
    /// Held while a shared device is looked for or made, so that there is only one.
    origins: Arc<Mutex<()>>,
}

impl MapperDisks {
    /// Returns the disks below these paths, or why the kernel does not support them.
    pub fn new(paths: Paths) -> Result<Self> {
        loops::check()?;
        snapshot::check()?;
        let files = FileDisks::new(paths.clone());
        Ok(Self { paths, files, origins: Arc::default() })
    }

    /// Returns whether the system disk is a file or a qcow2 overlay.
    fn has_files(&self, vm: VmId) -> bool {
        self.paths.system_disk(vm).exists() || self.paths.system_layer(vm).exists()
    }

    fn make_snapshot(&self, vm: VmId, image: ImageId) -> Result<Drive> {
        let (image_path, overlay_path) = (self.paths.image(image), self.paths.overlay(vm));
        let image = disks::open_image(&image_path)?;
        let overlay = open_overlay(&overlay_path)?;
        require_space(&overlay, &overlay_path)?;
        let origin = {
            let _alone = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
            Loop::shared(&image, &image_path)?
        };
        // An earlier node of this sandbox would have the overlay open twice.
        snapshot::remove(vm)?;
        let overlay = Loop::attach(&overlay, &overlay_path, Access::ReadWrite)?;
        let tail_path = self.paths.system_tail(vm);
        let tail = match File::options().read(true).write(true).open(&tail_path) {
            Ok(file) => Some(Loop::attach(&file, &tail_path, Access::ReadWrite)?),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(source) => return Err(Error::os(format!("open {}", tail_path.display()), source)),
        };
        let path = snapshot::create(vm, &origin, &overlay, tail.as_ref())?;
        Ok(Drive { path, access: Access::ReadWrite, medium: Medium::BlockDevice })
    }
}

#[async_trait]
impl Disks for MapperDisks {
    async fn create_directory(&self, vm: VmId) -> Result<()> {
        self.files.create_directory(vm).await
    }

    async fn clone_image(&self, vm: VmId, image: ImageId, _layers: OverlayBy, size: Bytes) -> Result<()> {
        let (image, overlay) = (self.paths.image(image), self.paths.overlay(vm));
        let tail = self.paths.system_tail(vm);
        blocking("make an overlay", move || {
            let length = length_of(&image)?;
            // The overlay comes last: if it exists, the disk has its size.
            grow_tail(&tail, length, size)?;
            disks::create(&overlay, |file| {
                let doing = || format!("make the overlay {}", overlay.display());
                file.set_len(snapshot::overlay_size(length)).map_err(|source| Error::os(doing(), source))
            })
        })
        .await
    }

    async fn create_work_disk(&self, vm: VmId, size: Bytes) -> Result<()> {
        self.files.create_work_disk(vm, size).await
    }

    async fn grow_work_disk(&self, vm: VmId, size: Bytes) -> Result<()> {
        self.files.grow_work_disk(vm, size).await
    }

    async fn grow_system_disk(&self, vm: VmId, image: ImageId, size: Bytes) -> Result<()> {
        if self.has_files(vm) {
            return self.files.grow_system_disk(vm, image, size).await;
        }
        let (image, tail) = (self.paths.image(image), self.paths.system_tail(vm));
        blocking("grow a system disk", move || grow_tail(&tail, length_of(&image)?, size)).await
    }

    async fn attach(&self, vm: VmId, image: ImageId) -> Result<Vec<Drive>> {
        // It was made when the kernel had no device-mapper, and stays as it is.
        if self.has_files(vm) {
            return self.files.attach(vm, image).await;
        }
        let this = self.clone();
        let make = blocking("make a snapshot", move || this.make_snapshot(vm, image));
        let system = with_timeout("making a snapshot", make).await?;
        Ok(vec![system, disks::work_drive(&self.paths, vm)])
    }

    async fn freezable(&self, vm: VmId, parent: Parent) -> Result<Bytes> {
        self.files.freezable(vm, parent).await
    }

    async fn freeze(&self, vm: VmId) -> Result<()> {
        self.files.freeze(vm).await
    }

    async fn prepare_layers(&self, vm: VmId) -> Result<Box<dyn NewLayers>> {
        self.files.prepare_layers(vm).await
    }

    async fn sync_layers(&self, vm: VmId) -> Result<()> {
        self.files.sync_layers(vm).await
    }

    async fn create_child(
        &self,
        vm: VmId,
        of: VmId,
        parent: Parent,
        progress: Arc<dyn Progress>,
    ) -> Result<()> {
        self.files.create_child(vm, of, parent, progress).await
    }

    async fn empty(&self, vm: VmId) -> Result<()> {
        self.files.empty(vm).await
    }

    async fn exchange(&self, vm: VmId, with: VmId) -> Result<()> {
        self.files.exchange(vm, with).await
    }

    async fn frozen(&self, vm: VmId) -> Result<Vec<FrozenLayer>> {
        self.files.frozen(vm).await
    }

    async fn detach(&self, vm: VmId) -> Result<()> {
        let remove = blocking("remove a snapshot", move || snapshot::remove(vm));
        with_timeout("removing a snapshot", remove).await
    }

    async fn attached(&self) -> Result<Vec<VmId>> {
        blocking("look for snapshots", snapshot::found).await
    }

    async fn identity(&self, vm: VmId) -> Result<HostFacts> {
        self.files.identity(vm).await
    }

    async fn remove_directory(&self, vm: VmId) -> Result<()> {
        self.files.remove_directory(vm).await
    }

    async fn found(&self) -> Result<Vec<VmId>> {
        self.files.found().await
    }

    async fn checks(&self) -> Vec<Check> {
        vec![match loops::check().and_then(|()| snapshot::check()) {
            Ok(()) => disks::check(Status::Pass, "system disks are snapshots of their images", ""),
            Err(error) => {
                disks::check(Status::Fail, &error.to_string(), "run `systemctl restart banger-system`")
            }
        }]
    }
}

async fn with_timeout<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(TIMEOUT, work).await {
        Ok(done) => done,
        Err(_) => Err(Error::timeout(format!("{what} (see dmsetup udevcookies)"), TIMEOUT)),
    }
}

fn length_of(image: &Path) -> Result<u64> {
    let metadata = disks::open_image(image)?.metadata();
    Ok(metadata.map_err(|source| Error::os(format!("look at {}", image.display()), source))?.len())
}

/// Makes the part of a system disk of this size beyond an image of that length.
fn grow_tail(tail: &Path, image: u64, size: Bytes) -> Result<()> {
    // The kernel gives a snapshot whole sectors only.
    let beyond = disks::whole_blocks(size).0.saturating_sub(image / SECTOR * SECTOR);
    if size.0 <= image || beyond == 0 {
        return Ok(());
    }
    disks::create(tail, |file| {
        let doing = || format!("make {}", tail.display());
        file.set_len(beyond).map_err(|source| Error::os(doing(), source))
    })?;
    disks::grow(tail, Bytes(beyond))
}

fn open_overlay(path: &Path) -> Result<File> {
    OpenOptions::new().read(true).write(true).open(path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => {
            Error::not_ready(format!("the system disk is gone ({}); delete the sandbox", path.display()))
        }
        _ => Error::os(format!("open {}", path.display()), source),
    })
}

fn require_space(file: &File, path: &Path) -> Result<()> {
    let doing = || format!("use {} with less than {RESERVE} left in its file system", path.display());
    let stat = rustix::fs::fstatvfs(file).map_err(|error| Error::os(doing(), error))?;
    match stat.f_bavail.saturating_mul(stat.f_frsize) < RESERVE.0 {
        true => Err(Error::no_space(doing())),
        false => Ok(()),
    }
}
