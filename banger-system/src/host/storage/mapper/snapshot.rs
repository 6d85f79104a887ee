//! Device-mapper nodes: a writable view of a read-only device, whose changes go to another device.

use std::{
    io,
    path::{Path, PathBuf},
};

use banger_domain::{
    id::VmId,
    resource::{mapper_name, vm_of_mapper},
};
use devicemapper::{DM, DevId, DmError, DmName, DmOptions, DmUdevFlags, DmUuid, errors::Error as CoreError};
use rustix::io::Errno;

use super::loops::Loop;
use crate::ports::{
    FromHost as _,
    disks::{Error, Result},
};

/// The targets in the kernel's table. Every device-mapper has the second one.
const TARGET: &str = "snapshot";
const TARGET_OF_TAIL: &str = "linear";
/// Changes are kept across restarts of the host, in chunks of 8 sectors: the block size of the usual file systems, so
/// that changing a block copies nothing.
const CHUNK_SECTORS: u64 = 8;
/// The size of an exception in the table at the head of the overlay.
const EXCEPTION: u64 = 16;
/// With these rules, udev tells the crate that it has handled an event. Without them the crate would wait forever.
const NOTIFY_RULES: [&str; 3] = [
    "/usr/lib/udev/rules.d/95-dm-notify.rules",
    "/lib/udev/rules.d/95-dm-notify.rules",
    "/etc/udev/rules.d/95-dm-notify.rules",
];
const UDEV: &str = "/run/udev/control";

/// Returns the length of an overlay with room for every change of an image of this length, in bytes: one chunk for
/// the header, the chunks, and their exceptions.
pub(super) const fn overlay_size(image: u64) -> u64 {
    let chunk = CHUNK_SECTORS * super::SECTOR;
    let chunks = image.div_ceil(chunk);
    // One area more than can be full, and one chunk that the kernel wants free.
    let areas = chunks.div_ceil(chunk / EXCEPTION) + 1;
    (1 + chunks + areas + 1) * chunk
}

/// Checks that the kernel offers snapshots, or says why not and what to do.
pub(super) fn check() -> Result<()> {
    let not_ready = |message: &str| Err(Error::not_ready(message));
    let Ok(mapper) = DM::new() else {
        return not_ready("the kernel has no device-mapper: load it with modprobe dm_snapshot");
    };
    let targets =
        mapper.list_versions().map_err(|error| failed("ask for the targets of device-mapper", error))?;
    if !targets.iter().any(|(name, ..)| name == TARGET) {
        return not_ready("device-mapper makes no snapshots: load them with modprobe dm_snapshot");
    }
    if Path::new(UDEV).exists() && !NOTIFY_RULES.iter().any(|rules| Path::new(rules).exists()) {
        return not_ready("udev has no rules for device-mapper: install the package dmsetup");
    }
    Ok(())
}

/// Makes the writable node of a sandbox, and returns its path. The loop devices may be dropped then, since the node
/// has them open. If it fails, there is no node.
pub(super) fn create(vm: VmId, origin: &Loop, overlay: &Loop, tail: Option<&Loop>) -> Result<PathBuf> {
    let mapper = open()?;
    let made = mapper.device_create(name(&mapper_name(vm))?, Some(uuid(&mapper_name(vm))?), options());
    let node = made.map_err(|error| failed(&format!("make the mapper device of {vm}"), error))?;
    match load(&mapper, vm, origin, overlay, tail) {
        Ok(()) => Ok(PathBuf::from(format!("/dev/dm-{}", node.device().minor))),
        Err(error) => {
            if let Err(left) = remove(vm) {
                tracing::error!(%vm, error = %left, "cannot remove a mapper device that is of no use");
            }
            Err(error)
        }
    }
}

fn load(mapper: &DM, vm: VmId, origin: &Loop, overlay: &Loop, tail: Option<&Loop>) -> Result<()> {
    let device_name = mapper_name(vm);
    let id = DevId::Name(name(&device_name)?);
    let words = format!("{} {} P {CHUNK_SECTORS}", origin.path.display(), overlay.path.display());
    let sectors = origin.sectors()?;
    let mut table = vec![(0, sectors, TARGET.to_owned(), words)];
    if let Some(tail) = tail {
        let words = format!("{} 0", tail.path.display());
        table.push((sectors, tail.sectors()?, TARGET_OF_TAIL.to_owned(), words));
    }
    let doing = || format!("make a snapshot of {} for {vm}", origin.path.display());
    mapper.table_load(&id, &table, options()).map_err(|error| failed(&doing(), error))?;
    mapper.device_suspend(&id, options()).map_err(|error| failed(&doing(), error))?;
    let (_, status) = mapper.table_status(&id, options()).map_err(|error| failed(&doing(), error))?;
    match status.first() {
        // A write to the overlay has failed before, and the kernel has given up the snapshot.
        Some((_, _, _, state)) if state.starts_with("Invalid") || state.starts_with("Overflow") => {
            Err(Error::Unsupported {
                message: format!(
                    "the system disk of {vm} is lost, since the host's file system was full when the guest \
                     wrote to it; its work disk is not: delete the sandbox once you have copied that"
                ),
            })
        }
        _ => Ok(()),
    }
}

/// Removes the node of a sandbox, and so the last user of its loop devices.
pub(super) fn remove(vm: VmId) -> Result<()> {
    let device_name = mapper_name(vm);
    // Without device-mapper there is no node.
    let Ok(mapper) = DM::new() else { return Ok(()) };
    match mapper.device_remove(&DevId::Name(name(&device_name)?), options()) {
        Ok(_) => Ok(()),
        Err(error) if errno(&error) == Some(Errno::NXIO) => Ok(()),
        Err(error) if errno(&error) == Some(Errno::BUSY) => Err(Error::os(
            format!("remove the mapper device {device_name}: a program of this host has it open"),
            Errno::BUSY,
        )),
        Err(error) => Err(failed(&format!("remove the mapper device {device_name}"), error)),
    }
}

/// Returns the sandboxes that have a node.
pub(super) fn found() -> Result<Vec<VmId>> {
    let Ok(mapper) = DM::new() else { return Ok(Vec::new()) };
    let devices = mapper.list_devices().map_err(|error| failed("list the mapper devices", error))?;
    Ok(devices.iter().filter_map(|(name, ..)| vm_of_mapper(&name.to_string())).collect())
}

fn open() -> Result<DM> {
    DM::new().map_err(|error| failed("open device-mapper", error))
}

/// Tells udev not to look into a disk that a guest writes: no links, no probing, no assembling. `60-banger.rules`
/// says the same about events of other programs.
fn options() -> DmOptions {
    DmOptions::default().set_udev_flags(
        DmUdevFlags::DM_UDEV_DISABLE_DM_RULES_FLAG
            | DmUdevFlags::DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG
            | DmUdevFlags::DM_UDEV_DISABLE_DISK_RULES_FLAG
            | DmUdevFlags::DM_UDEV_DISABLE_OTHER_RULES_FLAG
            | DmUdevFlags::DM_UDEV_DISABLE_LIBRARY_FALLBACK,
    )
}

fn name(text: &str) -> Result<&DmName> {
    DmName::new(text).map_err(|error| Error::other("name a mapper device", error))
}

fn uuid(text: &str) -> Result<&DmUuid> {
    DmUuid::new(text).map_err(|error| Error::other("name a mapper device", error))
}

/// Returns the kernel's error.
fn errno(error: &DmError) -> Option<Errno> {
    match error {
        DmError::Core(CoreError::Ioctl(_, _, _, errno)) => Some(Errno::from_raw_os_error(**errno as i32)),
        _ => None,
    }
}

fn failed(doing: &str, error: DmError) -> Error {
    match errno(&error) {
        Some(errno) => Error::os(doing, io::Error::from(errno)),
        None => Error::other(doing, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_has_room_for_every_change() {
        let check = |image: u64| {
            // The kernel's own layout: after the header, each chunk of exceptions is followed by as many
            // chunks of data as it has exceptions (drivers/md/dm-snap-persistent.c).
            let (chunk, per_area) = (4096, 256);
            let chunks = image.div_ceil(chunk);
            let needed = 1 + chunks + chunks.div_ceil(per_area);
            let size = overlay_size(image);
            assert!(size >= needed * chunk, "{image}");
            assert!(size < image + image / 200 + (1 << 20), "{image}: {size}");
        };
        for image in [0, 512, 4096, 1 << 20, (1 << 20) + 4096, 4 << 30, (8 << 30) + 512, 1 << 44] {
            check(image);
        }
    }
}
