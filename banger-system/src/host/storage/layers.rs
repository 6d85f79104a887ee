//! Layers of disks that several sandboxes share.
//!
//! A sandbox whose system disk is a qcow2 overlay can be frozen while it is down. What it has written so far becomes a
//! frozen layer, and it continues with an empty one on top:
//!
//! ```text
//!    before                 after                     a child
//!    system.qcow2           system.qcow2, empty       system.qcow2, empty
//!    base.ext4 (image)      system.1.qcow2 ◄──────────system.1.qcow2
//!                           base.ext4      ◄──────────base.ext4
//!
//!    work.ext4              work.qcow2, empty         work.qcow2, empty
//!                           work.ext4      ◄──────────work.ext4
//! ```
//!
//! Each sandbox has its own name for every layer that it needs, a hard link. So the file system counts the users of
//! a layer: it stays when the sandbox that wrote it is deleted, and the last deletion frees it. Nothing is recorded
//! elsewhere, and a crash cannot leave a layer that no sandbox has.
//!
//! A sandbox that runs is frozen in the same way while its guest stands still. The new layers are made before that, and get
//! their names before QEMU switches. The names are written to the storage before the guest continues.
//! If a crash prevents the switch, QEMU keeps writing to the layer below. No child has that layer, and the next fork puts
//! one more on top. So each of these freezes adds one.
//!
//! All other disks are copied. The copy shares blocks with the original if the file system can.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use banger_domain::{id::VmId, limits::Disk, resource::Paths};
use banger_image::qcow2;
use banger_proto::size::Bytes;
use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};

use super::{partial::Partial, sparse};
use crate::{
    host::blocking::blocking,
    ports::{
        FromHost as _, Progress,
        disks::{Error, FrozenLayer, MAX_DEPTH, NewLayers, Parent, Result},
    },
};

/// A disk that is an overlay, and what is below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    /// What the sandbox writes to.
    pub top: PathBuf,
    /// The raw file at the bottom: the image, or the work disk as it was first frozen.
    pub base: PathBuf,
    /// Frozen layers between the two, the lowest first.
    pub frozen: Vec<PathBuf>,
}

impl Chain {
    /// Returns the layers of a disk; none if it is not an overlay. A layer whose freezing was interrupted is still the
    /// one that the sandbox writes to.
    pub(super) fn of(paths: &Paths, vm: VmId, disk: Disk) -> Result<Option<Self>> {
        let (top, base) = files(paths, vm, disk);
        let Some(writable) = inode(&top)? else { return Ok(None) };
        let mut frozen = Vec::new();
        for number in 1.. {
            let layer = paths.frozen_layer(vm, disk, number);
            match inode(&layer)? {
                Some(inode) if inode != writable => frozen.push(layer),
                _ => break,
            }
        }
        Ok(Some(Self { top, base, frozen }))
    }

    /// Returns the frozen layers of a disk. The image is not one of them.
    fn layers(&self, disk: Disk) -> Vec<&Path> {
        let base = (disk == Disk::Work).then_some(self.base.as_path());
        base.into_iter().chain(self.frozen.iter().map(PathBuf::as_path)).collect()
    }
}

/// Returns every file that a disk may consist of.
pub(super) fn all_files(paths: &Paths, vm: VmId, disk: Disk) -> Vec<PathBuf> {
    let (top, base) = files(paths, vm, disk);
    let frozen = (1..=MAX_DEPTH).map(|number| paths.frozen_layer(vm, disk, number));
    let mut all: Vec<PathBuf> = [top, base].into_iter().chain(frozen).collect();
    if disk == Disk::System {
        all.extend([paths.system_disk(vm), paths.overlay(vm), paths.system_tail(vm)]);
    }
    all
}

/// Returns the overlay of a disk, and what is at the bottom of it.
fn files(paths: &Paths, vm: VmId, disk: Disk) -> (PathBuf, PathBuf) {
    match disk {
        Disk::System => (paths.system_layer(vm), paths.system_base(vm)),
        Disk::Work => (paths.work_layer(vm), paths.work_disk(vm)),
    }
}

const DISKS: [Disk; 2] = [Disk::System, Disk::Work];
/// The mode of what a sandbox writes to. The service needs it too: it may not override modes.
const WRITABLE: u32 = 0o600;
/// The mode of a frozen layer.
const FROZEN: u32 = 0o400;

/// What freezing a disk means.
enum Freeze {
    /// Nothing was written since the last time.
    Nothing,
    /// The disk is a raw file, which becomes the base.
    Base { base: PathBuf, top: PathBuf, size: Bytes },
    /// The overlay becomes the frozen layer of this name.
    Layer { top: PathBuf, name: PathBuf, size: Bytes },
}

/// Returns whether the disks of a VM have layers. Others are copied.
fn is_layered(paths: &Paths, vm: VmId) -> Result<bool> {
    Ok(inode(&paths.system_layer(vm))?.is_some())
}

fn plan(paths: &Paths, vm: VmId, disk: Disk, parent: Parent) -> Result<Freeze> {
    let Some(chain) = Chain::of(paths, vm, disk)? else {
        let (top, base) = files(paths, vm, disk);
        let size = Bytes(metadata(&base)?.len());
        return Ok(Freeze::Base { base, top, size });
    };
    let size = disk_size(&chain.top)?;
    // A VMM makes it longer with the first cluster that it writes.
    let is_empty = metadata(&chain.top)?.len() <= qcow2::empty(size).len() as u64;
    if parent == Parent::Down && is_empty {
        return Ok(Freeze::Nothing);
    }
    if chain.layers(disk).len() >= MAX_DEPTH {
        return Err(Error::TooDeep);
    }
    let name = paths.frozen_layer(vm, disk, chain.frozen.len() + 1);
    Ok(Freeze::Layer { top: chain.top, name, size })
}

/// Returns the size of the disk in a layer.
fn disk_size(layer: &Path) -> Result<Bytes> {
    let os = |source| Error::os(format!("read {}", layer.display()), source);
    let mut head = [0; qcow2::HEAD];
    File::open(layer).and_then(|file| file.read_exact_at(&mut head, 0)).map_err(os)?;
    qcow2::disk_size(&head)
        .ok_or_else(|| Error::Unsupported { message: format!("the layer {} is damaged", layer.display()) })
}

/// Returns how much would be frozen.
pub(super) fn freezable(paths: &Paths, vm: VmId, parent: Parent) -> Result<Bytes> {
    match (is_layered(paths, vm)?, parent) {
        (true, _) => {}
        (false, Parent::Down) => return Ok(Bytes(0)),
        (false, Parent::Up) => return Err(Error::NotLayered),
    }
    let mut total = 0;
    for disk in DISKS {
        total += match plan(paths, vm, disk, parent)? {
            Freeze::Nothing => 0,
            Freeze::Base { base: written, .. } | Freeze::Layer { top: written, .. } => allocated(&written)?,
        };
    }
    Ok(Bytes(total))
}

/// Freezes the disks of a VM that is down, if they have layers.
pub(super) fn freeze(paths: &Paths, vm: VmId) -> Result<()> {
    if !is_layered(paths, vm)? {
        return Ok(());
    }
    Prepared::of(paths, vm, Parent::Down)?.put()?;
    sync_frozen(paths, vm)
}

/// New layers that are whole and on the storage, without their names, and what will be below each.
pub(super) struct Prepared {
    paths: Paths,
    vm: VmId,
    layers: Vec<(Freeze, Partial)>,
}

impl Prepared {
    /// Makes the layers for a VM whose guest runs.
    pub(super) fn of_running(paths: &Paths, vm: VmId) -> Result<Self> {
        match is_layered(paths, vm)? {
            true => Self::of(paths, vm, Parent::Up),
            false => Err(Error::NotLayered),
        }
    }

    fn of(paths: &Paths, vm: VmId, parent: Parent) -> Result<Self> {
        // All of it is checked before anything is made.
        let plans = [plan(paths, vm, Disk::System, parent)?, plan(paths, vm, Disk::Work, parent)?];
        let mut layers = Vec::new();
        for plan in plans {
            let overlay = match &plan {
                Freeze::Nothing => continue,
                Freeze::Base { base: written, top, size }
                | Freeze::Layer { top: written @ top, size, .. } => {
                    sync(written)?;
                    begin_overlay(top, *size)?
                }
            };
            layers.push((plan, overlay));
        }
        Ok(Self { paths: paths.clone(), vm, layers })
    }

    /// Puts the layers over what was written. Returns them, open for writing.
    fn put(self) -> Result<Vec<OwnedFd>> {
        let mut files = Vec::new();
        for (plan, overlay) in self.layers {
            let top = match plan {
                Freeze::Nothing => continue,
                Freeze::Base { top, .. } => top,
                Freeze::Layer { top, name, .. } => {
                    link(&top, &name)?;
                    top
                }
            };
            files.push(put(overlay, &top)?);
        }
        close(&self.paths, self.vm)?;
        Ok(files)
    }
}

#[async_trait]
impl NewLayers for Prepared {
    async fn freeze(self: Box<Self>) -> Result<Vec<OwnedFd>> {
        blocking("freeze the disks of a sandbox", move || self.put()).await
    }
}

/// Writes the layers that were frozen last to the storage, and all names.
pub(super) fn sync_frozen(paths: &Paths, vm: VmId) -> Result<()> {
    for disk in DISKS {
        let Some(chain) = Chain::of(paths, vm, disk)? else { continue };
        chain.layers(disk).last().map_or(Ok(()), |layer| sync(layer))?;
    }
    sync(&paths.vm_dir(vm))
}

/// Makes the frozen layers read-only. This comes last: until there is a new overlay, the sandbox writes to them.
fn close(paths: &Paths, vm: VmId) -> Result<()> {
    for disk in DISKS {
        let Some(chain) = Chain::of(paths, vm, disk)? else { continue };
        chain.layers(disk).into_iter().try_for_each(|layer| set_mode(layer, FROZEN))?;
    }
    Ok(())
}

/// Makes the file that a sandbox writes to writable, if it is not.
pub(super) fn open(file: &Path) -> Result<()> {
    match inode(file)? {
        Some(_) => set_mode(file, WRITABLE),
        None => Ok(()),
    }
}

/// Makes the disks of a child.
pub(super) fn create_child(
    paths: &Paths,
    child: VmId,
    parent: VmId,
    state: Parent,
    progress: &dyn Progress,
) -> Result<()> {
    if !is_layered(paths, parent)? {
        if state == Parent::Up {
            return Err(Error::NotLayered);
        }
        let copies = [Paths::overlay, Paths::system_tail, Paths::system_disk, Paths::work_disk];
        copies.iter().try_for_each(|file| copy(&file(paths, parent), &file(paths, child), progress))?;
        return sync_new(paths, child);
    }
    for disk in DISKS {
        let not_frozen = || Error::other("fork the disks", "they were written to after they were frozen");
        let chain = Chain::of(paths, parent, disk)?.ok_or_else(not_frozen)?;
        if state == Parent::Down && !matches!(plan(paths, parent, disk, state)?, Freeze::Nothing) {
            return Err(not_frozen());
        }
        let (top, base) = files(paths, child, disk);
        link(&chain.base, &base)?;
        for (index, layer) in chain.frozen.iter().enumerate() {
            link(layer, &paths.frozen_layer(child, disk, index + 1))?;
        }
        put(begin_overlay(&top, disk_size(&chain.top)?)?, &top)?;
    }
    sync_new(paths, child)
}

/// Swaps the directories of two VMs in one step. The first one keeps its logs.
pub(super) fn exchange(paths: &Paths, vm: VmId, with: VmId) -> Result<()> {
    for log in [Paths::console_log, Paths::vmm_log] {
        let (log, name) = (log(paths, vm), log(paths, with));
        if inode(&log)?.is_some() {
            link(&log, &name)?;
        }
    }
    sync(&paths.vm_dir(with))?;
    let (one, other) = (paths.vm_dir(vm), paths.vm_dir(with));
    match renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE) {
        Ok(()) => {}
        Err(Errno::INVAL | Errno::NOSYS) => {
            let message =
                format!("the file system of {} cannot exchange two directories", paths.vms().display());
            return Err(Error::Unsupported { message });
        }
        Err(error) => {
            return Err(Error::os(format!("exchange {} and {}", one.display(), other.display()), error));
        }
    }
    // They are exchanged. Storage that cannot be written to fails with what is written next.
    if let Err(error) = sync(&paths.vms()) {
        tracing::error!(%vm, %error, "exchanged disks are not on the storage yet");
    }
    Ok(())
}

/// Empties the layers that a child writes to. Their headers stay valid at each step, and the files the same ones.
pub(super) fn empty(paths: &Paths, vm: VmId) -> Result<()> {
    for disk in DISKS {
        let Some(Chain { top, .. }) = Chain::of(paths, vm, disk)? else { continue };
        let os = |source| Error::os(format!("empty {}", top.display()), source);
        let content = qcow2::empty(disk_size(&top)?);
        let file = File::options().write(true).open(&top).map_err(os)?;
        file.write_all_at(&content, 0).and_then(|()| file.set_len(content.len() as u64)).map_err(os)?;
    }
    Ok(())
}

/// Returns the frozen layers of a VM.
pub(super) fn frozen(paths: &Paths, vm: VmId) -> Result<Vec<FrozenLayer>> {
    let mut all = Vec::new();
    for disk in DISKS {
        let Some(chain) = Chain::of(paths, vm, disk)? else { continue };
        for layer in chain.layers(disk) {
            let metadata = metadata(layer)?;
            all.push(FrozenLayer { id: metadata.ino(), size: Bytes(metadata.blocks() * 512) });
        }
    }
    Ok(all)
}

/// Writes the directory of a new sandbox to the storage. Its row is stored afterwards.
fn sync_new(paths: &Paths, vm: VmId) -> Result<()> {
    sync(&paths.vm_dir(vm))?;
    sync(&paths.vms())
}

/// Writes a file or a directory to the storage.
fn sync(path: &Path) -> Result<()> {
    let written = File::open(path).and_then(|file| file.sync_all());
    written.map_err(|source| Error::os(format!("write {} to the storage", path.display()), source))
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    if metadata(path)?.mode() & 0o777 == mode {
        return Ok(());
    }
    let set = fs::set_permissions(path, Permissions::from_mode(mode));
    set.map_err(|source| Error::os(format!("set the mode of {}", path.display()), source))
}

/// Makes an empty overlay that will be in the place of a file.
fn begin_overlay(top: &Path, size: Bytes) -> Result<Partial> {
    let os = |source| Error::os(format!("make {}", top.display()), source);
    let mut overlay = Partial::begin(top, WRITABLE).map_err(os)?;
    overlay.file.write_all(&qcow2::empty(size)).map_err(os)?;
    overlay.file.sync_all().map_err(os)?;
    Ok(overlay)
}

/// Puts an overlay in its place. Returns it, open for writing.
fn put(overlay: Partial, top: &Path) -> Result<OwnedFd> {
    let os = |source| Error::os(format!("put {} in its place", top.display()), source);
    let file = overlay.file.try_clone().map_err(os)?;
    overlay.replace().map_err(os)?;
    Ok(file.into())
}

/// Copies a file, if it exists.
fn copy(from: &Path, to: &Path, progress: &dyn Progress) -> Result<()> {
    let os = |source| Error::os(format!("copy a disk to {}", to.display()), source);
    let original = match File::open(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(os)?,
    };
    let copy = Partial::begin(to, WRITABLE).map_err(os)?;
    sparse::copy_with(&original, &copy.file, progress).map_err(os)?;
    copy.file.sync_all().map_err(os)?;
    copy.add().map_err(os)
}

/// Gives a file another name. A name that an interrupted try has left is the same file.
fn link(file: &Path, name: &Path) -> Result<()> {
    match fs::hard_link(file, name) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && inode(name)? == inode(file)? => Ok(()),
        linked => linked.map_err(|source| Error::os(format!("link {}", name.display()), source)),
    }
}

fn inode(path: &Path) -> Result<Option<u64>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::os(format!("look at {}", path.display()), source)),
    }
}

fn metadata(path: &Path) -> Result<fs::Metadata> {
    fs::metadata(path).map_err(|source| Error::os(format!("look at {}", path.display()), source))
}

fn allocated(path: &Path) -> Result<u64> {
    Ok(metadata(path)?.blocks() * 512)
}
