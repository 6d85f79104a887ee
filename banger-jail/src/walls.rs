//! Does what systemd does for a unit, on hosts without systemd: a user, a file system and namespaces that the
//! VMM has for itself. As close as possible to what the supervisor asks of systemd.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Gid, Mode, Uid},
    io::Errno,
    mount::{
        MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_remount,
        unmount,
    },
    process::{Resource, Rlimit, chdir, pivot_root, setrlimit, setsid, umask},
    thread::{
        CapabilitySet, UnshareFlags, remove_capability_from_bounding_set, set_no_new_privs,
        set_thread_groups, set_thread_res_gid, set_thread_res_uid, unshare_unsafe,
    },
};
use serde::{Deserialize, Serialize};

/// Where a monitor sees the directory of its machine, which is [`Walls::directory`] on the host.
pub const MACHINE_DIRECTORY: &str = "/machine";
/// Devices that any program may open.
const DEVICES: [&str; 4] = ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"];
const MAX_FILES: u64 = 1024;
/// More capabilities than any kernel has.
const CAPABILITIES: u32 = 64;

/// The walls to build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walls {
    /// An empty directory, over which the new root is mounted.
    pub root: PathBuf,
    /// What the monitor may see of the host's files. What is not there is left out.
    pub visible: Vec<PathBuf>,
    /// Devices that it may open.
    pub devices: Vec<PathBuf>,
    /// The user and the group that it runs as.
    pub user: u32,
    /// Further groups, those of the devices.
    pub groups: Vec<u32>,
    /// A directory that it sees as [`MACHINE_DIRECTORY`] and may write to, open to everyone who gets there.
    pub directory: Option<PathBuf>,
    /// Whether it stays in the host's network.
    pub keeps_network: bool,
    /// Its OOM score adjustment, of 1000.
    pub oom_score: u16,
}

/// Confines this process permanently. Call it while the process has one thread.
pub fn enter(walls: &Walls) -> io::Result<()> {
    // Nobody's terminal: a signal to the service's group is not for its machines.
    did("start a session", setsid())?;
    let score = walls.oom_score.to_string();
    did("set the OOM score", fs::write("/proc/self/oom_score_adj", score))?;
    let limit = |most| Rlimit { current: Some(most), maximum: Some(most) };
    did("limit core files", setrlimit(Resource::Core, limit(0)))?;
    did("limit open files", setrlimit(Resource::Nofile, limit(MAX_FILES)))?;

    let mut namespaces = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    if !walls.keeps_network {
        namespaces |= UnshareFlags::NEWNET;
    }
    // SAFETY: the flags separate namespaces; memory and descriptors stay as they are.
    #[expect(unsafe_code, reason = "the call is unsafe for flags that are not given here")]
    let unshared = unsafe { unshare_unsafe(namespaces) };
    did("create namespaces", unshared)?;
    // The new root belongs to the superuser, and the monitor has to pass through it.
    umask(Mode::WGRP | Mode::WOTH);
    change_root(walls)?;
    umask(if walls.directory.is_some() { Mode::empty() } else { Mode::RWXG | Mode::RWXO });

    for number in 0..CAPABILITIES {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            // The kernel has no more.
            Err(Errno::INVAL) => break,
            removed => did("drop a capability", removed)?,
        }
    }
    let groups: Vec<Gid> = walls.groups.iter().map(|&group| Gid::from_raw(group)).collect();
    let (user, group) = (Uid::from_raw(walls.user), Gid::from_raw(walls.user));
    did("set the groups", set_thread_groups(&groups))?;
    did("set the group", set_thread_res_gid(group, group, group))?;
    // The other sets of capabilities go with the superuser.
    did("set the user", set_thread_res_uid(user, user, user))?;
    did("give up further privileges", set_no_new_privs(true))
}

/// Adds what was being done to an error.
fn did<T, E: Into<io::Error>>(doing: &str, result: Result<T, E>) -> io::Result<T> {
    result.map_err(|error| {
        let error = error.into();
        io::Error::new(error.kind(), format!("cannot {doing}: {error}"))
    })
}

/// Makes a file system with only what the VMM may see the root of this process.
fn change_root(walls: &Walls) -> io::Result<()> {
    let (root, closed) = (&walls.root, MountFlags::NOSUID | MountFlags::NODEV);
    let read_only = MountFlags::BIND | MountFlags::RDONLY | closed;
    did(
        "make mounts private",
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC),
    )?;
    let options = c"mode=755,size=1m";
    did("mount a root", mount("banger-jail", root, "tmpfs", closed | MountFlags::NOEXEC, options))?;
    for path in &walls.visible {
        if let Some(target) = show(root, path)? {
            did("make a mount read-only", mount_remount(&target, read_only, c""))?;
        }
    }
    for device in DEVICES.iter().map(Path::new).chain(walls.devices.iter().map(PathBuf::as_path)) {
        show(root, device)?;
    }
    if let Some(directory) = &walls.directory {
        let target = inside(root, Path::new(MACHINE_DIRECTORY))?;
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
    // The old root lands on top of the new one (pivot_root(2)), and is then let go.
    did("switch to the new root", pivot_root(".", "."))?;
    did("unmount the old root", unmount(".", UnmountFlags::DETACH))?;
    did("change to the root directory", chdir("/"))?;
    did("make the root read-only", mount_remount("/", read_only | MountFlags::NOEXEC, c""))
}

/// The path below a root.
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
