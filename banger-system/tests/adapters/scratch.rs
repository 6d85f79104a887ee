//! Paths of a service in a temporary directory.

use std::{fs, path::Path, process::Command, sync::Arc};

use banger_domain::resource::Paths;
use banger_proto::size::Bytes;
use banger_system::host::{process::worker_process::ProcessWorkers, storage::image_files::LocalImages};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount},
    thread::{UnshareFlags, unshare_unsafe},
};
use tempfile::TempDir;

pub(crate) use crate::skip::require;

/// The file systems of [`Scratch::images`].
pub const IMAGE_SIZE: Bytes = Bytes::mib(128);

pub struct Scratch {
    pub home: TempDir,
    pub paths: Paths,
}

impl Scratch {
    pub fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let at = |name| home.path().join(name);
        let paths = Paths { state: at("state"), runtime: at("run"), libexec: at("libexec") };
        Self { home, paths }
    }

    /// Returns images below these paths, made by workers that are processes.
    pub fn images(&self) -> LocalImages {
        LocalImages::new(self.paths.clone(), Arc::new(self.workers()), IMAGE_SIZE)
    }

    /// Returns workers that run the programs below these paths.
    pub fn workers(&self) -> ProcessWorkers {
        self.install("banger-import");
        ProcessWorkers::new(self.paths.clone())
    }

    /// Installs a program of another crate for the service. Cargo builds it for the tests of its own crate, and with
    /// `cargo build --workspace`.
    pub fn install(&self, name: &str) {
        let program = self.paths.program(name);
        if !program.exists() {
            let built = Path::new(env!("CARGO_BIN_EXE_banger-system")).with_file_name(name);
            assert!(built.exists(), "there is no {name}; `cargo build --workspace` makes it");
            fs::create_dir_all(&self.paths.libexec).unwrap();
            fs::copy(built, program).unwrap();
        }
    }

    /// Returns paths on a file system of this size in bytes. This thread and its later threads see it, and it goes
    /// away with them.
    pub fn on_small_file_system(size: u64) -> Self {
        let scratch = Self::in_own_mounts();
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        mount("tmpfs", &scratch.paths.state, "tmpfs", MountFlags::empty(), options.as_c_str()).unwrap();
        scratch
    }

    /// Returns paths on a file system that can share blocks between files, seen by the same threads.
    pub fn on_xfs() -> Self {
        let scratch = Self::in_own_mounts();
        let disk = scratch.home.path().join("xfs");
        fs::File::create(&disk).unwrap().set_len(512 << 20).unwrap();
        run(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&disk));
        // The loop device is freed with the last mount.
        run(Command::new("mount").args(["-o", "loop"]).arg(&disk).arg(&scratch.paths.state));
        scratch
    }

    fn in_own_mounts() -> Self {
        let scratch = Self::new();
        // SAFETY: a mount namespace of this thread's own changes nothing about its memory or descriptors.
        #[expect(unsafe_code, reason = "the call is unsafe for flags that are not given here")]
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        fs::create_dir(&scratch.paths.state).unwrap();
        scratch
    }

    /// Fills the file system except for `spare` bytes.
    pub fn fill_up(&self, spare: u64) {
        let stat = rustix::fs::statvfs(&self.paths.state).unwrap();
        let size = (stat.f_bavail * stat.f_frsize).saturating_sub(spare);
        fs::write(self.paths.state.join("filler"), vec![1; usize::try_from(size).unwrap()]).unwrap();
    }
}

/// The file system is unmounted before its directory is removed.
impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = unmount(&self.paths.state, UnmountFlags::DETACH);
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns the names in a directory; none when it is missing.
pub fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub fn mode(path: &Path) -> u32 {
    std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).unwrap().permissions()) & 0o7777
}

pub fn has_program(name: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join(name).exists()))
}

pub fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
