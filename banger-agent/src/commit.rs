//! Prepares the system disk for an image: what is on the work disk is copied to the directory that it hides, and what
//! identifies this guest is removed.
//!
//! The disk is changed through a second mount, which shows what other mounts hide. Links in it are resolved beneath its
//! root.

use std::{
    ffi::OsString,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use banger_proto::guest::Frame;
use rustix::{
    fs::{AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags, openat2, unlinkat},
    io::Errno,
    mount::{UnmountFlags, mount_bind, unmount},
};

use crate::{
    conversation::{WORK_DISK, kind_of, refuse},
    disks,
    port::Port,
};

/// Where the second mount is.
const MOUNT: &str = "/run/banger/system-disk";
/// Files that are emptied. systemd writes a new id into an empty one at the next boot (machine-id(5)).
const EMPTIED: [&str; 1] = ["etc/machine-id"];
/// Files that would make two guests look alike.
const IDS: [&str; 3] =
    ["var/lib/dbus/machine-id", "var/lib/systemd/random-seed", "var/lib/urandom/random-seed"];
const REMOVED: [&str; 1] = ["var/lib/systemd/credential.secret"];
/// Directories that are emptied: leases, the state of cloud-init, journals, temporary files.
const CLEARED: [&str; 8] = [
    "tmp",
    "var/tmp",
    "var/lib/cloud",
    "var/lib/dhcp",
    "var/lib/dhclient",
    "var/lib/dhcpcd",
    "var/lib/NetworkManager",
    "var/log/journal",
];
/// Directories with homes, beside that of root.
const HOMES: &str = "home";
/// Files in homes that say what was typed.
const HISTORIES: [&str; 7] = [
    ".ash_history",
    ".bash_history",
    ".lesshst",
    ".node_repl_history",
    ".python_history",
    ".sh_history",
    ".zsh_history",
];
const SSH: &str = "etc/ssh";
const HOST_KEY: &str = "ssh_host_";

/// Prepares the system disk of this guest.
pub fn prepare(port: &mut Port) -> io::Result<()> {
    match with_second_mount(prepare_disk) {
        Ok(()) => port.send(&Frame::Done).map(drop),
        Err(error) => refuse(port, kind_of(&error), &format!("cannot prepare the system disk: {error}")),
    }
}

/// Removes the ids of another guest from the root file system below `root`. The next init makes up new ones.
pub fn forget_ids(root: &str) -> io::Result<()> {
    SystemDisk::open(Path::new(root))?.forget_ids()
}

fn with_second_mount(work: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    // Every guest has this mark, and nothing else has: what follows must not happen anywhere else.
    if !disks::is_filled(Path::new(WORK_DISK)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the work disk is not mounted"));
    }
    fs::create_dir_all(MOUNT)?;
    mount_bind("/", MOUNT)?;
    let worked = work(Path::new(MOUNT));
    // A mount that stays would keep the file system from becoming read-only.
    unmount(MOUNT, UnmountFlags::empty())?;
    fs::remove_dir(MOUNT)?;
    worked
}

fn prepare_disk(mount: &Path) -> io::Result<()> {
    let disk = SystemDisk::open(mount)?;
    // A home that is a link, as in some images, is where the link leads.
    let home = fs::canonicalize(WORK_DISK)?;
    if let Some(hidden) = disk.directory(&home)?
        && fs::metadata(&home)?.dev() != fs::metadata(path_of(&hidden))?.dev()
    {
        disks::return_work(&home, &path_of(&hidden))?;
    }
    disk.forget_identity()?;
    rustix::fs::sync();
    Ok(())
}

/// The root file system without what is mounted on it.
struct SystemDisk(OwnedFd);

impl SystemDisk {
    fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(openat2(CWD, path, flags, Mode::empty(), ResolveFlags::empty())?))
    }

    /// Opens a directory, if it exists.
    fn directory(&self, path: &Path) -> io::Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match openat2(&self.0, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the directory of a file, if it exists, and returns it with the file's name.
    fn parent(&self, path: &str) -> io::Result<Option<(OwnedFd, OsString)>> {
        let path = Path::new(path);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
        Ok(self.directory(parent)?.map(|directory| (directory, name.to_owned())))
    }

    fn forget_ids(&self) -> io::Result<()> {
        for path in EMPTIED {
            if let Some((directory, name)) = self.parent(path)? {
                let file = path_of(&directory).join(name);
                if fs::symlink_metadata(&file).is_ok_and(|found| found.is_file()) {
                    fs::File::options().write(true).truncate(true).open(&file)?;
                }
            }
        }
        self.remove(&IDS)
    }

    fn remove(&self, paths: &[&str]) -> io::Result<()> {
        for path in paths {
            if let Some((directory, name)) = self.parent(path)? {
                remove_file(&directory, &name)?;
            }
        }
        Ok(())
    }

    fn forget_identity(&self) -> io::Result<()> {
        self.forget_ids()?;
        self.remove(&REMOVED)?;
        for path in CLEARED {
            if let Some(directory) = self.directory(Path::new(path))? {
                disks::clear(&path_of(&directory))?;
            }
        }
        if let Some(ssh) = self.directory(Path::new(SSH))? {
            for name in names(&ssh)? {
                if name.to_string_lossy().starts_with(HOST_KEY) {
                    remove_file(&ssh, &name)?;
                }
            }
        }
        self.forget_histories()
    }

    fn forget_histories(&self) -> io::Result<()> {
        let mut homes = vec![PathBuf::from(WORK_DISK.trim_start_matches('/'))];
        if let Some(all) = self.directory(Path::new(HOMES))? {
            homes.extend(names(&all)?.into_iter().map(|name| Path::new(HOMES).join(name)));
        }
        for home in homes {
            let Some(home) = self.directory(&home)? else { continue };
            for name in HISTORIES {
                remove_file(&home, name.as_ref())?;
            }
        }
        Ok(())
    }
}

fn path_of(directory: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", directory.as_raw_fd()).into()
}

fn names(directory: &OwnedFd) -> io::Result<Vec<OsString>> {
    use std::os::unix::ffi::OsStringExt;
    let mut names = Vec::new();
    for entry in Dir::read_from(directory.as_fd())? {
        let name = OsString::from_vec(entry?.file_name().to_bytes().to_vec());
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// Removes a file, if it exists. A directory of that name stays.
fn remove_file(directory: &OwnedFd, name: &std::ffi::OsStr) -> io::Result<()> {
    match unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{collections::BTreeSet, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn what_identifies_a_guest_is_gone_and_everything_else_stays() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        let gone = [
            "var/lib/dbus/machine-id",
            "var/lib/systemd/random-seed",
            "etc/ssh/ssh_host_ed25519_key",
            "etc/ssh/ssh_host_rsa_key.pub",
            "var/lib/dhcp/dhclient.leases",
            "var/lib/cloud/instances/i-1/boot-finished",
            "var/log/journal/0123/system.journal",
            "tmp/x/y",
            "root/.bash_history",
            "home/ann/.zsh_history",
        ];
        let kept =
            ["etc/ssh/sshd_config", "etc/hostname", "root/notes", "home/ann/.profile", "var/log/dpkg.log"];
        for path in gone.iter().chain(&kept).chain(&["etc/machine-id"]) {
            fs::create_dir_all(at(path).parent().unwrap()).unwrap();
            fs::write(at(path), "content").unwrap();
        }
        // A link of the image leads to its own root and not to that of the guest.
        fs::write(outside.path().join("stays"), "").unwrap();
        fs::create_dir(at("var/lib/real")).unwrap();
        fs::write(at("var/lib/real/lease"), "").unwrap();
        symlink(outside.path(), at("var/tmp")).unwrap();
        symlink("/var/lib/real", at("var/lib/dhcpcd")).unwrap();
        SystemDisk::open(root.path()).unwrap().forget_identity().unwrap();
        for path in gone.iter().chain(&["var/lib/real/lease"]) {
            assert!(!at(path).exists(), "{path}");
        }
        for path in kept {
            assert_eq!(fs::read_to_string(at(path)).unwrap(), "content", "{path}");
        }
        assert_eq!(fs::read_to_string(at("etc/machine-id")).unwrap(), "");
        assert!(at("tmp").is_dir() && outside.path().join("stays").exists());
        // A repeat, and a disk without any of it, are fine.
        SystemDisk::open(root.path()).unwrap().forget_identity().unwrap();
        let empty = tempfile::tempdir().unwrap();
        SystemDisk::open(empty.path()).unwrap().forget_identity().unwrap();
        assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_ids_of_another_guest_are_gone_and_its_work_stays() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        let kept =
            ["var/lib/systemd/credential.secret", "root/.bash_history", "tmp/x", "var/log/journal/0/a"];
        for path in IDS.iter().chain(&kept).chain(&EMPTIED) {
            fs::create_dir_all(at(path).parent().unwrap()).unwrap();
            fs::write(at(path), "content").unwrap();
        }
        forget_ids(root.path().to_str().unwrap()).unwrap();
        assert!(IDS.iter().all(|path| !at(path).exists()));
        assert_eq!(fs::read_to_string(at("etc/machine-id")).unwrap(), "");
        assert!(kept.iter().all(|path| at(path).exists()));
    }

    #[test]
    fn only_a_guest_is_prepared() {
        assert!(!disks::is_filled(Path::new(WORK_DISK)), "a test must not run in a guest");
        let touched = std::cell::Cell::new(false);
        let error = with_second_mount(|_| {
            touched.set(true);
            Ok(())
        });
        assert!(error.is_err() && !touched.get());
    }

    #[test]
    fn the_work_disk_replaces_what_it_hides() {
        let directory = tempfile::tempdir().unwrap();
        let (work, hidden) = (directory.path().join("work"), directory.path().join("hidden"));
        fs::create_dir_all(work.join("sub")).unwrap();
        fs::create_dir_all(hidden.join("old")).unwrap();
        fs::write(work.join("sub/file"), "new").unwrap();
        disks::return_work(&work, &hidden).unwrap();
        let names: BTreeSet<_> =
            fs::read_dir(&hidden).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [OsString::from("sub")].into());
        assert_eq!(fs::read_to_string(hidden.join("sub/file")).unwrap(), "new");
    }
}
