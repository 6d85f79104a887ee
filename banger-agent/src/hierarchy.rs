//! The tree of control groups as files (`Documentation/admin-guide/cgroup-v2.rst`).
//!
//! The agent reaches it by a private mount without a path, because the image's init mounts it wherever it likes.

use std::{
    fs, io,
    io::{Read, Write},
    os::fd::OwnedFd,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, mkdirat, openat, unlinkat},
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsmount, fsopen},
};

/// The options of systemd's mount: the last mount determines them for all.
const OPTIONS: [&str; 2] = ["nsdelegate", "memory_recursiveprot"];

/// A group of the tree, below which all groups and files are named by relative paths. The group itself is `""`.
pub struct Hierarchy(OwnedFd);

impl Hierarchy {
    /// Returns the whole tree.
    pub fn mount() -> io::Result<Self> {
        let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for option in OPTIONS {
            // A kernel without an option does not need it.
            let _ = fsconfig_set_flag(&context, option);
        }
        fsconfig_create(&context)?;
        Ok(Self(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?))
    }

    /// Creates a group unless it exists.
    pub fn make(&self, group: &str) -> io::Result<()> {
        match mkdirat(&self.0, group, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a group. Returns `false` if processes are left in it.
    pub fn remove(&self, group: &str) -> bool {
        !matches!(unlinkat(&self.0, group, AtFlags::REMOVEDIR), Err(Errno::BUSY | Errno::NOTEMPTY))
    }

    /// Reads a file of a group.
    pub fn read(&self, group: &str, file: &str) -> io::Result<String> {
        let mut text = String::new();
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(&self.0, path(group, file), flags, Mode::empty())?;
        fs::File::from(file).read_to_string(&mut text)?;
        Ok(text)
    }

    /// Writes a file of a group.
    pub fn write(&self, group: &str, file: &str, value: &str) -> io::Result<()> {
        fs::File::from(self.write_end(group, file)?).write_all(value.as_bytes())
    }

    /// Opens a file of a group for writing.
    pub fn write_end(&self, group: &str, file: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        Ok(openat(&self.0, path(group, file), flags, Mode::empty())?)
    }

    /// Returns the groups directly below a group.
    pub fn below(&self, group: &str) -> io::Result<Vec<String>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(&self.0, path(group, "."), flags, Mode::empty())?;
        let mut groups = Vec::new();
        for entry in Dir::new(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy();
            if entry.file_type() == FileType::Directory && name != "." && name != ".." {
                groups.push(path(group, &name));
            }
        }
        Ok(groups)
    }

    /// Returns the processes of a group.
    pub fn processes(&self, group: &str) -> io::Result<Vec<u32>> {
        let text = self.read(group, "cgroup.procs")?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }
}

fn path(group: &str, name: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{group}/{name}") }
}

/// A group of this system's tree for one test. Dropping it kills its processes and removes it.
#[cfg(test)]
pub mod scratch {
    #![allow(clippy::unwrap_used)]
    use std::{sync::atomic::AtomicU32, thread, time::Duration};

    use super::*;

    pub struct Scratch {
        parent: Hierarchy,
        /// Its name in the whole tree.
        pub name: String,
    }

    impl Scratch {
        /// Returns `None` if this system has no such tree, or this process may not change it.
        pub fn new() -> Option<Self> {
            static LAST: AtomicU32 = AtomicU32::new(0);
            let parent = Hierarchy::mount().ok()?;
            let number = LAST.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let name = format!("banger-agent-test-{}-{number}", std::process::id());
            parent.make(&name).ok()?;
            let has_freezer = parent.read(&name, "cgroup.freeze").is_ok();
            let scratch = Self { parent, name };
            has_freezer.then_some(scratch)
        }

        pub fn hierarchy(&self) -> Hierarchy {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            Hierarchy(openat(&self.parent.0, &*self.name, flags, Mode::empty()).unwrap())
        }

        /// Kills all processes in it.
        pub fn kill(&self) {
            self.parent.write(&self.name, "cgroup.kill", "1").unwrap();
        }

        fn remove(&self, group: &str) {
            for below in self.parent.below(group).unwrap_or_default() {
                self.remove(&below);
            }
            while !self.parent.remove(group) {
                thread::sleep(Duration::from_millis(10));
            }
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            self.kill();
            self.remove(&self.name);
        }
    }
}
