//! Mounts all modules of the kernel, from a disk that sandboxes share, where `modprobe` in the image looks for them.

use std::{
    ffi::CStr,
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, RawDir, makedev},
    mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount},
};

use crate::{apply, disks};

/// Where the disk is mounted temporarily.
const STAGING: &str = "/modules";
/// Where an image may have modules. In most images, both are the same directory.
const MODULE_DIRECTORIES: [&str; 2] = ["usr/lib/modules", "lib/modules"];

/// Mounts the modules below the new root, unless the image has its own for this kernel.
pub fn mount_at(device: &str, new_root: &str) -> io::Result<()> {
    disks::wait_for(device)?;
    fs::create_dir_all(STAGING)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount(device, STAGING, "ext4", flags, None::<&CStr>)?;
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let modules = Path::new(STAGING).join(&*release);
    let mounted = bind(&modules, new_root, &release);
    if let Ok(nodes) = fs::read_to_string(modules.join("modules.devname")) {
        make_nodes(&nodes);
    }
    // The bind mount stays.
    unmount(STAGING, UnmountFlags::empty())?;
    mounted
}

fn bind(modules: &Path, new_root: &str, release: &str) -> io::Result<()> {
    for directory in MODULE_DIRECTORIES {
        let Some(target) = mount_point(new_root, directory, release)? else { continue };
        mount_bind(modules, format!("/proc/self/fd/{}", target.as_raw_fd()))?;
    }
    Ok(())
}

/// Creates the device nodes that load a module when they are opened, as systemd does if the image has kmod. A node
/// that cannot be created exists already.
fn make_nodes(devname: &str) {
    for (path, kind, device) in devname.lines().filter_map(node) {
        let path = Path::new("/dev").join(path);
        let mode = match path.to_str() {
            // udev allows everyone to open these.
            Some("/dev/fuse" | "/dev/net/tun") => 0o666,
            _ => 0o600,
        };
        let _ = path.parent().map(fs::create_dir_all);
        if rustix::fs::mknodat(CWD, &path, kind, Mode::from_raw_mode(mode), device).is_ok() {
            let _ = fs::set_permissions(&path, fs::Permissions::from_mode(mode));
        }
    }
}

/// Parses the node in a line such as `fuse fuse c10:229`.
fn node(line: &str) -> Option<(&str, FileType, u64)> {
    let [module, path, number] = line.split(' ').collect::<Vec<_>>().try_into().ok()?;
    if module.starts_with('#') || path.starts_with('/') || path.split('/').any(|name| name == "..") {
        return None;
    }
    let (kind, number) = match number.split_at_checked(1)? {
        ("c", number) => (FileType::CharacterDevice, number),
        ("b", number) => (FileType::BlockDevice, number),
        _ => return None,
    };
    let (major, minor) = number.split_once(':')?;
    Some((path, kind, makedev(major.parse().ok()?, minor.parse().ok()?)))
}

/// Opens the empty directory of a release, and creates it if missing. Returns `None` if the image has its own modules
/// there, or no such directory.
fn mount_point(root: &str, directory: &str, release: &str) -> io::Result<Option<OwnedFd>> {
    let top = Path::new(directory).parent().unwrap_or(Path::new(directory));
    if !apply::has_directory(root, top)? {
        return Ok(None);
    }
    let directory = apply::open_directory(root, &Path::new(directory).join(release), 0o755)?;
    Ok(is_empty(&directory)?.then_some(directory))
}

fn is_empty(directory: &OwnedFd) -> io::Result<bool> {
    let directory = rustix::fs::openat(directory, ".", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = Vec::with_capacity(1024);
    let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    const RELEASE: &str = "6.1.0-41-cloud-amd64";

    /// Returns the directories below this root that get modules.
    fn places(root: &Path) -> Vec<&'static str> {
        let found =
            |directory: &&str| mount_point(root.to_str().unwrap(), directory, RELEASE).unwrap().is_some();
        MODULE_DIRECTORIES.into_iter().filter(found).collect()
    }

    #[test]
    fn modules_are_mounted_only_where_the_image_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let root = |name: &str| dir.path().join(name);
        let merged = root("merged");
        fs::create_dir_all(merged.join("usr/lib")).unwrap();
        symlink("usr/lib", merged.join("lib")).unwrap();
        assert_eq!(places(&merged), MODULE_DIRECTORIES);
        let made = merged.join("usr/lib/modules").join(RELEASE);
        assert!(made.is_dir());
        // The state after a mount at the first of the two.
        fs::write(made.join("modules.dep"), "").unwrap();
        assert!(places(&merged).is_empty());

        let apart = root("apart");
        fs::create_dir_all(apart.join("usr/lib")).unwrap();
        fs::create_dir_all(apart.join("lib/modules").join(RELEASE)).unwrap();
        assert_eq!(places(&apart), MODULE_DIRECTORIES);
        fs::create_dir(apart.join("lib/modules").join(RELEASE).join("kernel")).unwrap();
        assert_eq!(places(&apart), MODULE_DIRECTORIES[..1]);

        let bare = root("bare");
        fs::create_dir_all(bare.join("lib")).unwrap();
        assert_eq!(places(&bare), MODULE_DIRECTORIES[1..]);
    }

    #[test]
    fn a_line_is_a_device_node_or_none() {
        assert_eq!(node("fuse fuse c10:229"), Some(("fuse", FileType::CharacterDevice, makedev(10, 229))));
        assert_eq!(node("tun net/tun c10:200").unwrap().0, "net/tun");
        assert_eq!(node("x y b7:0").unwrap().1, FileType::BlockDevice);
        for line in ["# Device nodes of", "", "x ../y c1:2", "x /y c1:2", "x y d1:2", "x y c1", "x y c1:2 z"]
        {
            assert_eq!(node(line), None, "{line}");
        }
    }

    #[test]
    fn a_link_in_the_image_does_not_lead_out_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(root.join("usr/lib")).unwrap();
        fs::create_dir(&outside).unwrap();
        symlink(&outside, root.join("usr/lib/modules")).unwrap();
        let _ = mount_point(root.to_str().unwrap(), MODULE_DIRECTORIES[0], RELEASE);
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }
}
