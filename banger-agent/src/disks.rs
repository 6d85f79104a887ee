//! Mounts the disks: the root file system, and the work disk that is filled at the first boot.

use std::{
    fs,
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use banger_proto::guest::config::WorkDisk;
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags},
    ioctl::{Opcode, Setter, ioctl, opcode},
    mount::{MountFlags, mount, mount_move},
};

/// How long the kernel may take to find a disk.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(20);
/// Poll interval. Devices appear in the order of modules, most of them before the first check.
const DEVICE_POLL: Duration = Duration::from_millis(5);
/// Where the work disk is mounted until it is filled.
const STAGING: &str = "/work";
/// Attribute on the root of a work disk that has been filled.
const SEEDED: &str = "trusted.banger.seeded";
/// Directory that every new ext4 has, and its inode.
const LOST_FOUND: &str = "lost+found";
const LOST_FOUND_INODE: u64 = 11;

/// Mounts the root file system.
pub fn mount_root(device: &str, target: &str) -> io::Result<()> {
    wait_for(device)?;
    fs::create_dir_all(target)?;
    Ok(mount(device, target, "ext4", MountFlags::empty(), None::<&std::ffi::CStr>)?)
}

/// Mounts the work disk below the new root, and fills it from the image at the first boot. Anything that does not
/// prevent its use is reported as a problem.
pub fn mount_work(work: &WorkDisk, new_root: &str, problems: &mut Vec<String>) -> io::Result<()> {
    wait_for(&work.device)?;
    fs::create_dir_all(STAGING)?;
    mount(work.device.as_str(), STAGING, "ext4", MountFlags::NODEV, None::<&std::ffi::CStr>)?;
    let root = rustix::fs::open(new_root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let inside = work.mount_point.trim_start_matches('/');
    // Links of the image must not lead out of the image.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let target = rustix::fs::openat2(&root, inside, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
    let target = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&target));
    if let Err(error) = fill_device(&work.device, STAGING) {
        problems.push(format!("cannot grow the work disk: {error}"));
    }
    remove_lost_found(Path::new(STAGING));
    seed(Path::new(&target), Path::new(STAGING))?;
    Ok(mount_move(STAGING, target.as_str())?)
}

/// Waits until the kernel has found a disk.
pub fn wait_for(device: &str) -> io::Result<()> {
    let deadline = Instant::now() + DEVICE_TIMEOUT;
    loop {
        match fs::metadata(device) {
            Ok(found) if found.file_type().is_block_device() => return Ok(()),
            _ if Instant::now() >= deadline => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{device} does not appear")));
            }
            _ => thread::sleep(DEVICE_POLL),
        }
    }
}

/// `EXT4_IOC_RESIZE_FS` of Linux, fs/ext4/ext4.h: grows a mounted file system to this number of blocks.
const RESIZE: Opcode = opcode::write::<u64>(b'f', 16);

/// Grows a mounted ext4 to the size of its device, which may have grown since it was created.
pub fn fill_device(device: &str, mounted: &str) -> io::Result<()> {
    let mut disk = fs::File::open(device)?;
    let mut superblock = [0; 1024];
    disk.read_exact_at(&mut superblock, 1024)?;
    let extent = Extent::read(&superblock).ok_or(io::ErrorKind::InvalidData)?;
    let room = disk.seek(SeekFrom::End(0))? / extent.block;
    if room <= extent.blocks {
        return Ok(());
    }
    let root = fs::File::open(mounted)?;
    // SAFETY: RESIZE reads a number of blocks; the file system has that size already, or grows.
    #[expect(unsafe_code, reason = "the meaning of an ioctl is nowhere declared")]
    Ok(unsafe { ioctl(&root, Setter::<RESIZE, u64>::new(room)) }?)
}

/// The size of a file system, from its superblock.
#[derive(Debug, PartialEq, Eq)]
struct Extent {
    /// The size of a block in bytes.
    block: u64,
    /// The number of blocks.
    blocks: u64,
}

impl Extent {
    /// Reads the superblock of an ext4 (<https://docs.kernel.org/filesystems/ext4/globals.html#super-block>). Returns
    /// `None` for another file system.
    fn read(superblock: &[u8; 1024]) -> Option<Self> {
        const MAGIC: u16 = 0xef53;
        const INCOMPAT_64BIT: u32 = 0x80;
        const MAX_LOG_BLOCK_SIZE: u32 = 6;
        let u32_at = |at: usize| superblock[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let log_block_size = u32_at(0x18);
        if u16::from_le_bytes([superblock[0x38], superblock[0x39]]) != MAGIC
            || log_block_size > MAX_LOG_BLOCK_SIZE
        {
            return None;
        }
        let high = if u32_at(0x60) & INCOMPAT_64BIT != 0 { u32_at(0x150) } else { 0 };
        Some(Self { block: 1024 << log_block_size, blocks: u64::from(high) << 32 | u64::from(u32_at(0x4)) })
    }
}

/// Removes `lost+found` if it is empty: it does not belong in a home directory, and e2fsck recreates it when needed.
fn remove_lost_found(work: &Path) {
    let path = work.join(LOST_FOUND);
    // A directory with this name that the user has created stays.
    if fs::symlink_metadata(&path).is_ok_and(|found| found.ino() == LOST_FOUND_INODE) {
        // It also stays if it is not empty.
        let _ = fs::remove_dir(&path);
    }
}

/// Fills the work disk, once. The mark is set last, after a sync, so an interrupted boot starts over.
fn seed(image: &Path, work: &Path) -> io::Result<()> {
    if is_filled(work) {
        return Ok(());
    }
    clear(work)?;
    copy_children(image, work)?;
    copy_attributes(image, work)?;
    rustix::fs::sync();
    Ok(rustix::fs::setxattr(work, SEEDED, b"1", XattrFlags::empty())?)
}

/// Returns whether this is the root of a work disk that has been filled.
pub fn is_filled(work: &Path) -> bool {
    let mut mark = [0u8; 1];
    rustix::fs::getxattr(work, SEEDED, &mut mark[..]).is_ok()
}

/// Replaces the content of the directory that a work disk hides with the content of the work disk.
pub fn return_work(work: &Path, hidden: &Path) -> io::Result<()> {
    clear(hidden)?;
    copy_children(work, hidden)?;
    copy_attributes(work, hidden)?;
    // The mark is about the work disk.
    match rustix::fs::removexattr(hidden, SEEDED) {
        Ok(()) | Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes the content of a directory.
pub fn clear(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name() == LOST_FOUND {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

/// Copies the content of a directory. Hard links become separate files.
fn copy_children(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_name() == LOST_FOUND {
            continue;
        }
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            fs::create_dir(&target)?;
            copy_children(&source, &target)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_file() {
            fs::copy(&source, &target)?;
        } else if kind.is_fifo() {
            rustix::fs::mknodat(CWD, &target, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        } else {
            // Sockets and devices in a home directory have no use in another file system.
            continue;
        }
        copy_attributes(&source, &target)?;
    }
    Ok(())
}

/// Copies owner, mode, extended attributes and times. The times come last, because the other changes modify them.
fn copy_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(from)?;
    let is_link = metadata.file_type().is_symlink();
    lchown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    if !is_link {
        fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
        copy_xattrs(from, to)?;
    }
    let time = |seconds, nanoseconds: i64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    let times = Timestamps {
        last_access: time(metadata.atime(), metadata.atime_nsec()),
        last_modification: time(metadata.mtime(), metadata.mtime_nsec()),
    };
    Ok(rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn copy_xattrs(from: &Path, to: &Path) -> io::Result<()> {
    // The kernel's limits for the list of names and for a value (limits.h: XATTR_LIST_MAX, XATTR_SIZE_MAX).
    let mut names = vec![0u8; 64 << 10];
    let length = match rustix::fs::listxattr(from, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0u8; 64 << 10];
        let length = rustix::fs::getxattr(from, name, &mut value[..])?;
        rustix::fs::setxattr(to, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_extent_of_a_file_system_is_read_from_its_superblock() {
        let superblock = |fields: &[(usize, u32)]| {
            let mut bytes = [0; 1024];
            bytes[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
            for (at, value) in fields {
                bytes[*at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
            bytes
        };
        let check = |fields: &[(usize, u32)], block, blocks| {
            assert_eq!(Extent::read(&superblock(fields)), Some(Extent { block, blocks }), "{fields:?}");
        };
        check(&[(0x4, 262_144), (0x18, 2)], 4096, 262_144);
        check(&[(0x4, 5), (0x18, 0), (0x150, 1)], 1024, 5);
        check(&[(0x4, 5), (0x18, 2), (0x60, 0x80), (0x150, 1)], 4096, (1 << 32) + 5);
        assert_eq!(Extent::read(&superblock(&[(0x4, 5), (0x18, u32::MAX)])), None);
        assert_eq!(Extent::read(&[0; 1024]), None);
    }

    #[test]
    fn a_copy_keeps_content_links_modes_and_times() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("sub/deep")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("sub/file"), "content").unwrap();
        fs::set_permissions(from.join("sub/file"), fs::Permissions::from_mode(0o751)).unwrap();
        symlink("../elsewhere", from.join("link")).unwrap();
        fs::create_dir(from.join(LOST_FOUND)).unwrap();
        let old = std::time::UNIX_EPOCH + Duration::new(1_000_000, 5);
        fs::File::open(from.join("sub/file")).unwrap().set_modified(old).unwrap();

        copy_children(&from, &to).unwrap();

        assert_eq!(fs::read_to_string(to.join("sub/file")).unwrap(), "content");
        let metadata = fs::metadata(to.join("sub/file")).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o751);
        assert_eq!(metadata.modified().unwrap(), old);
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("../elsewhere"));
        assert!(to.join("sub/deep").is_dir());
        assert!(!to.join(LOST_FOUND).exists());
    }
}
