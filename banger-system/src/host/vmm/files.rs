//! What every VMM gets: its confinement, files that the service opens, and the logs of its output.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use banger_domain::{
    id::VmId,
    launch_spec::{Access, LaunchSpec},
    resource::Paths,
};
use banger_jail::ring;
use banger_proto::size::Bytes;
use rustix::fs::FileType;

use crate::{
    host::memory,
    ports::{
        FromHost as _,
        vmm::{Error, JailSpec, NetworkNamespace, Result},
    },
};

/// The console of a guest: a boot of some thousand lines, and then the most recent output.
pub const CONSOLE_LOG: u64 = 16 << 20;
/// The VMM itself says little.
pub const VMM_LOG: u64 = 1 << 20;

/// Returns what the VMM's process may use of the host: memory beyond its guest's, and devices, but no directory and
/// no network.
pub fn vmm_jail(spec: &LaunchSpec, overhead: Bytes, devices: Vec<PathBuf>) -> JailSpec {
    JailSpec {
        vm: spec.vm,
        owner: spec.owner,
        description: format!("banger sandbox {} of user {}", spec.name, spec.owner),
        memory_max: Bytes(spec.memory.0.saturating_add(overhead.0)),
        cpu_percent: spec.vcpus * 100,
        devices,
        directory: None,
        network: NetworkNamespace::Private,
    }
}

/// Opens a file with the guest's access.
pub fn open(path: &Path, access: Access) -> Result<OwnedFd> {
    let write = access == Access::ReadWrite;
    let opened = OpenOptions::new().read(true).write(write).open(path);
    opened.map(OwnedFd::from).map_err(|error| Error::os(format!("open {}", path.display()), error))
}

/// Returns whether this is a block device.
pub fn is_device(path: &Path) -> Result<bool> {
    let stat = rustix::fs::stat(path);
    let stat = stat.map_err(|error| Error::os(format!("look at {}", path.display()), error))?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice)
}

/// Returns the concatenated archives of the initramfs, in memory that cannot be changed any more.
pub fn initrd(spec: &LaunchSpec) -> Result<OwnedFd> {
    let os = |error: io::Error| Error::os("build the initramfs", error);
    let mut archives = memory::file("banger-initrd", 0o444).map_err(os)?;
    for path in &spec.initramfs {
        let mut archive =
            File::open(path).map_err(|error| Error::os(format!("open {}", path.display()), error))?;
        io::copy(&mut archive, &mut archives).map_err(os)?;
    }
    memory::seal(&archives).map_err(os)?;
    Ok(archives.into())
}

/// Starts a new log, one per boot.
pub fn log(path: &Path, capacity: u64) -> Result<OwnedFd> {
    let os = |error| Error::os(format!("create the log {}", path.display()), error);
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).clone();
    let file = options.open(path).map_err(os)?;
    ring::Writer::create(file.try_clone().map_err(os)?, capacity).map_err(os)?;
    Ok(file.into())
}

/// Returns the sandboxes with a directory for sockets.
pub fn socket_dirs(paths: &Paths) -> Result<Vec<VmId>> {
    let directory = paths.sockets();
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| Error::os(format!("read {}", directory.display()), error))?,
    };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}
