//! Finds the kernel of the host itself, which guests boot by default.

use std::{io::ErrorKind, os::unix::fs::MetadataExt, path::PathBuf};

use banger_image::installed::{self, InstalledKernel};
use sha2::{Digest, Sha256};

use crate::ports::{
    FromHost as _,
    kernel_files::{Error, HostKernel, Result},
};

/// Hexadecimal digits of a stamp: more than enough to tell a few kernels apart.
const STAMP: usize = 16;

/// Where the host's own kernel is.
#[derive(Debug, Clone)]
pub(super) struct HostRoot {
    root: PathBuf,
    /// The release of the running kernel.
    running: String,
}

impl Default for HostRoot {
    fn default() -> Self {
        let running = rustix::system::uname().release().to_string_lossy().into_owned();
        Self { root: PathBuf::from("/"), running }
    }
}

impl HostRoot {
    /// Returns another root, on a host that runs the kernel of this release.
    pub(super) fn at(root: PathBuf, running: String) -> Self {
        Self { root, running }
    }

    /// Finds the kernel for guests.
    pub(super) fn find(&self) -> Result<HostKernel> {
        let (root, running) = (&self.root, &self.running);
        let installed = installed::best(root, running).ok_or_else(|| {
            let why = installed::missing(root, running);
            Error::not_ready(format!("this host has no kernel that guests can boot: {why}"))
        })?;
        let stamp = stamp(&installed)?;
        Ok(HostKernel { installed, stamp })
    }
}

/// Returns a digest of what changes when a package replaces the kernel, or adds a module to it.
fn stamp(kernel: &InstalledKernel) -> Result<String> {
    let mut hasher = Sha256::new();
    let table = kernel.modules.as_ref().map(|modules| modules.join("modules.dep"));
    for path in [Some(&kernel.vmlinuz), kernel.modules.as_ref(), table.as_ref()].into_iter().flatten() {
        let metadata = match path.metadata() {
            // A package brings no table of its own.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            metadata => {
                metadata.map_err(|source| Error::os(format!("look at {}", path.display()), source))?
            }
        };
        hasher.update(path.as_os_str().as_encoded_bytes());
        for number in [metadata.mtime(), metadata.mtime_nsec(), metadata.size().cast_signed()] {
            hasher.update(number.to_le_bytes());
        }
    }
    Ok(format!("{:x}", hasher.finalize()).chars().take(STAMP).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        fs::{self, File},
        path::Path,
        sync::Arc,
        time::{Duration, SystemTime},
    };

    use banger_domain::{id::KernelId, resource::Paths};
    use banger_image::{fixtures::kernel as fixture, kernel::decompress::Compression};
    use tempfile::TempDir;

    use super::*;
    use crate::{
        host::{process::worker::in_process::InProcess, storage::kernel_files::LocalKernels},
        ports::kernel_files::KernelFiles as _,
    };

    const KERNEL: KernelId = KernelId::from_bits(0xabc);
    const DRIVERS: [&str; 5] = ["virtio_mmio", "virtio_pci", "virtio_blk", "virtio_console", "virtio_net"];

    struct Host {
        home: TempDir,
        kernels: LocalKernels,
    }

    impl Host {
        fn new() -> Self {
            let home = tempfile::tempdir().unwrap();
            let at = |name| home.path().join(name);
            let paths = Paths { state: at("state"), runtime: at("run"), libexec: at("libexec") };
            let kernels =
                LocalKernels::new(paths, Arc::new(InProcess)).with_host(at("root"), fixture::RELEASE);
            Self { home, kernels }
        }

        fn install(&self, path: &str, content: &[u8]) -> PathBuf {
            let path = self.home.path().join("root").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            path
        }

        fn install_modules(&self, parent: &str) {
            let directory = format!("{parent}/{}", fixture::RELEASE);
            for name in DRIVERS {
                self.install(&format!("{directory}/kernel/{name}.ko"), &fixture::module_needing(""));
            }
            self.install(&format!("{directory}/modules.builtin"), b"kernel/fs/ext4/ext4.ko\n");
        }

        fn left(&self) -> usize {
            fs::read_dir(self.home.path().join("state/kernels")).map_or(0, Iterator::count)
        }
    }

    fn vmlinuz(compression: Compression) -> Vec<u8> {
        fixture::bzimage(&fixture::payload(compression, &fixture::vmlinux()))
    }

    #[tokio::test]
    async fn the_kernels_of_distributions_are_imported_with_their_modules() {
        let of_boot = format!("boot/vmlinuz-{}", fixture::RELEASE);
        let beside = format!("usr/lib/modules/{}/vmlinuz", fixture::RELEASE);
        let signed = [vmlinuz(Compression::Zstd), vec![0x30; 1500]].concat();
        for (path, modules, content) in [
            (&of_boot, "lib/modules", vmlinuz(Compression::Xz)),
            (&of_boot, "usr/lib/modules", signed),
            (&beside, "usr/lib/modules", vmlinuz(Compression::Gzip)),
            (&beside, "usr/lib/modules", fixture::vmlinux()),
        ] {
            let host = Host::new();
            host.install(path, &content);
            host.install_modules(modules);
            let found = host.kernels.on_host().await.unwrap();
            assert_eq!(found.installed.vmlinuz, host.home.path().join("root").join(path));
            let facts = host.kernels.import_from_host(KERNEL, &found).await.unwrap();
            assert_eq!((facts.release.as_str(), facts.modules), (fixture::RELEASE, 5), "{path}");
            assert!(facts.module_tree.0 > 0);
            // Nothing but the kernel: no copy of its files.
            assert_eq!(host.left(), 1);
        }
    }

    #[tokio::test]
    async fn a_kernel_that_guests_cannot_boot_leaves_nothing() {
        let host = Host::new();
        let none = host.kernels.on_host().await.unwrap_err().to_string();
        assert!(none.starts_with("this host has no kernel that guests can boot: there is no "), "{none}");
        for (content, expect) in [(&b"no kernel"[..], "not a Linux kernel"), (&b""[..], "is empty")] {
            host.install(&format!("boot/vmlinuz-{}", fixture::RELEASE), content);
            let found = host.kernels.on_host().await.unwrap();
            let error = host.kernels.import_from_host(KERNEL, &found).await.unwrap_err();
            assert!(error.to_string().contains(expect), "{error}");
            assert_eq!(host.left(), 0);
        }
    }

    #[tokio::test]
    async fn the_stamp_changes_with_the_kernel_and_its_modules() {
        let host = Host::new();
        let kernel = host.install(&format!("boot/vmlinuz-{}", fixture::RELEASE), b"one");
        host.install_modules("lib/modules");
        let table = host.install(&format!("lib/modules/{}/modules.dep", fixture::RELEASE), b"");
        let stamp = async || host.kernels.on_host().await.unwrap().stamp;
        let first = stamp().await;
        assert_eq!(stamp().await, first);
        let age = |path: &Path| {
            let past = SystemTime::now() - Duration::from_secs(60);
            File::options().write(true).open(path).unwrap().set_modified(past).unwrap();
        };
        age(&kernel);
        let second = stamp().await;
        age(&table);
        let third = stamp().await;
        fs::write(&kernel, "another").unwrap();
        age(&kernel);
        let all = [first, second, third, stamp().await];
        assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), 4, "{all:?}");
    }
}
