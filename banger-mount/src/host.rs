//! What is opened on the host, and how: nothing here follows a link of the directory, or leaves its file system.

use std::{
    ffi::CStr,
    io::ErrorKind,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags},
    io::Errno,
};

use crate::server::Result;

/// What a guest may set of a mode. A directory may have the set-group-id bit: it only hands on the group.
pub const FILE_MODE: u32 = 0o777;
pub const DIRECTORY_MODE: u32 = 0o3777;

/// File systems that show the state of the kernel and of processes, also of this one (statfs(2)): proc, sysfs, debugfs,
/// tracefs, securityfs, configfs, cgroup and cgroup2, fusectl, selinuxfs, mqueue, efivarfs and bpf.
const STATES: [u64; 13] = [
    0x9fa0,
    0x6265_6572,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0x6265_6570,
    0x0027_e0eb,
    0x6367_7270,
    0x6573_5543,
    0xf97c_ff8c,
    0x1980_0202,
    0xde5e_81e4,
    0xcafe_4a11,
];

/// How an entry of a directory is reached: within its file system, and by no link.
const BELOW: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Opens a directory to serve it. Refuses other files, and file systems without files of users: by them, a guest could
/// change processes of the user.
pub fn open(path: &Path) -> std::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty())?;
    if STATES.contains(&(rustix::fs::fstatfs(&opened)?.f_type as u64 & 0xffff_ffff)) {
        return Err(std::io::Error::new(ErrorKind::Unsupported, "its file system has no files of users"));
    }
    Ok(opened)
}

/// Opens an entry of a directory, without access to its content. A link is opened itself.
pub fn open_below(directory: impl AsFd, name: &CStr) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(directory, name, flags, Mode::empty(), BELOW)
}

/// Creates a file that does not exist.
pub fn create(directory: impl AsFd, name: &CStr, access: OFlags, mode: u32) -> Result<OwnedFd> {
    let flags = access | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::openat2(directory, name, flags, Mode::from_raw_mode(mode & FILE_MODE), BELOW)
}

/// Returns a path to what is open: a link of proc(5) that leads to nothing else.
pub fn path_of(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Opens a node with access to its content, which only regular files have. It waits until others give up their leases
/// (fcntl(2), `F_SETLEASE`), as any program does.
pub fn reopen(fd: impl AsFd, kind: FileType, flags: OFlags) -> Result<OwnedFd> {
    match kind {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Errno::ISDIR),
        _ => return Err(Errno::ACCESS),
    }
    rustix::fs::open(path_of(fd), flags | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
}

/// Returns a descriptor of the same file without access to its content.
pub fn handle_of(file: &OwnedFd) -> Result<OwnedFd> {
    rustix::fs::open(path_of(file), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

pub fn stat(fd: impl AsFd) -> Result<Statx> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW, mask)
}

pub fn kind_of(stat: &Statx) -> FileType {
    FileType::from_raw_mode(stat.stx_mode.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_is_opened_as_programs_do() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "").unwrap();
        let file = open_below(open(dir.path()).unwrap(), c"a").unwrap();
        let file = reopen(&file, FileType::RegularFile, OFlags::RDWR).unwrap();
        let flags = rustix::fs::fcntl_getfl(file).unwrap();
        // With it, a lease of a file server is an error.
        assert_eq!(flags & (OFlags::NONBLOCK | OFlags::RWMODE), OFlags::RDWR);
    }
}
