//! What every VMM gets: its confinement, files that are opened here, and the logs of its output.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use banger_domain::{
    id::VmId,
    machine::{Access, Machine},
    resource::Places,
};
use banger_jail::ring;
use banger_proto::size::Bytes;
use rustix::fs::{FileType, MemfdFlags, SealFlags};

use crate::ports::{Error, JailSpec, NetworkNamespace, Result};

/// The console of a guest: some thousand lines of a boot, and then the last of what it prints.
pub const CONSOLE_LOG: u64 = 16 << 20;
/// The monitor itself says little.
pub const MONITOR_LOG: u64 = 1 << 20;

/// What the process of a machine may have of the host: memory beside that of its guest, and devices, but neither
/// a directory nor a network.
pub fn confinement(machine: &Machine, overhead: Bytes, devices: Vec<PathBuf>) -> JailSpec {
    JailSpec {
        vm: machine.vm,
        owner: machine.owner,
        description: format!("banger sandbox {} of user {}", machine.name, machine.owner),
        memory_max: Bytes(machine.memory.0.saturating_add(overhead.0)),
        cpu_percent: machine.vcpus * 100,
        devices,
        directory: None,
        network: NetworkNamespace::Private,
    }
}

/// Opens a file as a guest may use it.
pub fn open(path: &Path, access: Access) -> Result<OwnedFd> {
    let write = access == Access::ReadWrite;
    let opened = OpenOptions::new().read(true).write(write).open(path);
    opened.map(OwnedFd::from).map_err(|error| Error::os(format!("open {}", path.display()), error))
}

/// Whether this is a block device.
pub fn is_device(path: &Path) -> Result<bool> {
    let stat = rustix::fs::stat(path);
    let stat = stat.map_err(|error| Error::os(format!("look at {}", path.display()), error))?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice)
}

/// The archives of the initramfs behind each other, in memory that can no longer be changed.
pub fn initrd(machine: &Machine) -> Result<OwnedFd> {
    let os = |error: io::Error| Error::os("build the initramfs", error);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create("banger-initrd", flags).map_err(|error| os(error.into()))?;
    let mut memory = File::from(memory);
    for path in &machine.initramfs {
        let mut archive =
            File::open(path).map_err(|error| Error::os(format!("open {}", path.display()), error))?;
        io::copy(&mut archive, &mut memory).map_err(os)?;
    }
    memory.write_all(&machine.guest_archive).map_err(os)?;
    // The monitor opens it again by its number in /proc, as a user that does not own it.
    memory.set_permissions(Permissions::from_mode(0o444)).map_err(os)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&memory, seals).map_err(|error| os(error.into()))?;
    Ok(memory.into())
}

/// Begins a new log, one for each boot.
pub fn log(path: &Path, capacity: u64) -> Result<OwnedFd> {
    let os = |error| Error::os(format!("create the log {}", path.display()), error);
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).clone();
    let file = options.open(path).map_err(os)?;
    ring::Writer::create(file.try_clone().map_err(os)?, capacity).map_err(os)?;
    Ok(file.into())
}

/// The machines that have a directory for sockets.
pub fn socket_dirs(places: &Places) -> Result<Vec<VmId>> {
    let directory = places.sockets();
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| Error::os(format!("read {}", directory.display()), error))?,
    };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}
