//! The jail of a process on hosts without systemd: the same confinement that systemd gives to a unit.
//!
//! [`enter`] changes the calling process for good, before it starts a VMM or reads the first byte of an image. Order
//! matters, since each step needs privileges that a later one gives up:
//!
//! ```text
//!   session, OOM score, limits
//!      │  needs root and the host's /proc
//!      ▼
//!   namespaces: mounts, IPC, host name, network unless a TAP is needed
//!      │
//!      ▼
//!   root: a small tmpfs with programs and libraries (read-only), a few devices, /proc of this user,
//!      │  and at most one writable directory, that of the sandbox
//!      ▼
//!   capabilities out of the bounding set, groups, user
//!      │  from here on the process cannot undo any of this
//!      ▼
//!   no new privileges, which the system call filter requires
//! ```
//!
//! A guest that takes over its VMM then runs as a user who owns nothing on the host, in a file system that contains
//! nothing of other users. [`crate::filter`] takes away system calls as well; each of the two alone should suffice.
//! Limits of memory and processor time are missing here, because they need a control group.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Gid, Mode, Uid},
    mount::{
        MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_remount,
        unmount,
    },
    process::{Resource, Rlimit, chdir, pivot_root, setrlimit, setsid, umask},
    thread::{
        UnshareFlags, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
        unshare_unsafe,
    },
};
use serde::{Deserialize, Serialize};

use crate::capabilities;

/// Where the VMM sees the directory of its sandbox, which is [`Jail::directory`] on the host.
pub const VM_DIRECTORY: &str = "/machine";
/// Devices that any program may open.
const DEVICES: [&str; 4] = ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"];
const MAX_FILES: u64 = 1024;

/// The jail to build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jail {
    /// An empty directory, over which the new root is mounted.
    pub root: PathBuf,
    /// Files of the host that are visible. Missing ones are skipped.
    pub visible: Vec<PathBuf>,
    /// Devices that may be opened.
    pub devices: Vec<PathBuf>,
    /// The user and the group of the process.
    pub user: u32,
    /// Further groups, for access to devices.
    pub groups: Vec<u32>,
    /// A directory that is visible as [`VM_DIRECTORY`] and writable, accessible to every user in the jail.
    pub directory: Option<PathBuf>,
    /// Whether the process stays in the host's network namespace.
    pub keeps_network: bool,
    /// The OOM score adjustment, up to 1000.
    pub oom_score: u16,
}

/// Confines this process permanently. Call it while the process has one thread.
pub fn enter(jail: &Jail) -> io::Result<()> {
    // Detached from terminals: a signal to the service's process group is not meant for VMMs.
    did("start a session", setsid())?;
    let score = jail.oom_score.to_string();
    did("set the OOM score", fs::write("/proc/self/oom_score_adj", score))?;
    let limit = |most| Rlimit { current: Some(most), maximum: Some(most) };
    did("limit core files", setrlimit(Resource::Core, limit(0)))?;
    did("limit open files", setrlimit(Resource::Nofile, limit(MAX_FILES)))?;

    let mut namespaces = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    if !jail.keeps_network {
        namespaces |= UnshareFlags::NEWNET;
    }
    // SAFETY: the flags separate namespaces; memory and descriptors stay as they are.
    #[expect(unsafe_code, reason = "the call is unsafe for flags that are not given here")]
    let unshared = unsafe { unshare_unsafe(namespaces) };
    did("create namespaces", unshared)?;
    // The new root belongs to root, and the VMM has to pass through it.
    umask(Mode::WGRP | Mode::WOTH);
    change_root(jail)?;
    umask(if jail.directory.is_some() { Mode::empty() } else { Mode::RWXG | Mode::RWXO });

    did("clear the bounding set of capabilities", capabilities::clear_bounding())?;
    let groups: Vec<Gid> = jail.groups.iter().map(|&group| Gid::from_raw(group)).collect();
    let (user, group) = (Uid::from_raw(jail.user), Gid::from_raw(jail.user));
    did("set the groups", set_thread_groups(&groups))?;
    did("set the group", set_thread_res_gid(group, group, group))?;
    // Changing the user clears the other capability sets.
    did("set the user", set_thread_res_uid(user, user, user))?;
    did("give up further privileges", set_no_new_privs(true))
}

/// Adds the failed step to an error.
fn did<T, E: Into<io::Error>>(doing: &str, result: Result<T, E>) -> io::Result<T> {
    result.map_err(|error| {
        let error = error.into();
        io::Error::new(error.kind(), format!("cannot {doing}: {error}"))
    })
}

/// Makes a file system with only the visible files the root of this process.
fn change_root(jail: &Jail) -> io::Result<()> {
    let (root, closed) = (&jail.root, MountFlags::NOSUID | MountFlags::NODEV);
    let read_only = MountFlags::BIND | MountFlags::RDONLY | closed;
    did(
        "make mounts private",
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC),
    )?;
    let options = c"mode=755,size=1m";
    did("mount a root", mount("banger-jail", root, "tmpfs", closed | MountFlags::NOEXEC, options))?;
    for path in &jail.visible {
        if let Some(target) = show(root, path)? {
            did("make a mount read-only", mount_remount(&target, read_only, c""))?;
        }
    }
    for device in DEVICES.iter().map(Path::new).chain(jail.devices.iter().map(PathBuf::as_path)) {
        show(root, device)?;
    }
    if let Some(directory) = &jail.directory {
        let target = inside(root, Path::new(VM_DIRECTORY))?;
        did("create the directory of the sandbox", fs::create_dir(&target))?;
        did("mount the directory of the sandbox", mount_bind(directory, &target))?;
        let flags = MountFlags::BIND | MountFlags::NOEXEC | closed;
        did("restrict the directory of the sandbox", mount_remount(&target, flags, c""))?;
    }
    let proc = root.join("proc");
    did("create /proc", fs::create_dir(&proc))?;
    let options = c"hidepid=invisible,subset=pid";
    did("mount /proc", mount("proc", &proc, "proc", closed | MountFlags::NOEXEC, options))?;

    did("change to the root directory", chdir(root))?;
    // The old root is mounted on top of the new one (pivot_root(2)) and then unmounted.
    did("switch to the new root", pivot_root(".", "."))?;
    did("unmount the old root", unmount(".", UnmountFlags::DETACH))?;
    did("change to the root directory", chdir("/"))?;
    did("make the root read-only", mount_remount("/", read_only | MountFlags::NOEXEC, c""))
}

/// Returns the path below a root.
fn inside(root: &Path, path: &Path) -> io::Result<PathBuf> {
    Ok(root.join(path.strip_prefix("/").map_err(|_| io::ErrorKind::InvalidInput)?))
}

/// Mounts a path of the host at the same path below a root. `None` if the host has no such path.
fn show(root: &Path, path: &Path) -> io::Result<Option<PathBuf>> {
    let doing = format!("mount {}", path.display());
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => did(&doing, found)?,
    };
    let target = did(&doing, inside(root, path))?;
    let directory = if metadata.is_dir() { Some(target.as_path()) } else { target.parent() };
    did(&doing, fs::create_dir_all(directory.unwrap_or(root)))?;
    if !metadata.is_dir() {
        did(&doing, File::create(&target))?;
    }
    did(&doing, mount_bind(path, &target))?;
    Ok(Some(target))
}
