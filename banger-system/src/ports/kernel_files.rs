//! The files of kernels.

use std::{os::fd::OwnedFd, path::PathBuf};

use async_trait::async_trait;
use banger_domain::id::{KernelId, Uid};
use banger_image::{installed::InstalledKernel, record::KernelFacts};

pub use super::file_error::FileError as Error;

/// The files of kernels.
#[async_trait]
pub trait KernelFiles: Send + Sync {
    /// Extracts a kernel from a user's file, picks the modules that booting needs from a tar of the modules
    /// directory, and makes a file system of all modules. A failed import leaves no files. Fails with
    /// [`Error::Unsupported`] if the file is not a kernel that guests can boot.
    async fn import(
        &self,
        kernel: KernelId,
        owner: Uid,
        vmlinuz: OwnedFd,
        modules: Option<OwnedFd>,
    ) -> Result<KernelFacts>;
    /// Looks for the installed kernel that guests boot by default. Reads only names and times. Fails with
    /// [`super::HostError::NotReady`] if the host has none.
    async fn on_host(&self) -> Result<HostKernel>;
    /// Imports a kernel that [`KernelFiles::on_host`] found, with its modules, like [`KernelFiles::import`].
    async fn import_from_host(&self, kernel: KernelId, from: &HostKernel) -> Result<KernelFacts>;
    /// Returns the paths of the ELF kernel and of the initramfs archives: the kernel's modules, then the agent.
    async fn boot_files(&self, kernel: KernelId) -> Result<BootFiles>;
    /// Removes a kernel's files. A repeat is safe.
    async fn remove(&self, kernel: KernelId) -> Result<()>;
    /// Returns the kernels that have files.
    async fn found(&self) -> Result<Vec<KernelId>>;
}

/// A kernel that is installed on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostKernel {
    /// Its release and its files.
    pub installed: InstalledKernel,
    /// Changes when a package replaces the kernel or its modules.
    pub stamp: String,
}

/// The files that a VM boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFiles {
    /// The ELF kernel.
    pub kernel: PathBuf,
    /// The archives of the initramfs in order, without the guest's configuration.
    pub initramfs: Vec<PathBuf>,
    /// The file system of all modules, if the kernel came with modules.
    pub module_tree: Option<PathBuf>,
}

/// The result of this port.
pub type Result<T, E = Error> = std::result::Result<T, E>;
