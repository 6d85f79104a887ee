//! The files of kernels.

use std::{os::fd::OwnedFd, path::PathBuf};

use async_trait::async_trait;
use banger_domain::id::{KernelId, Uid};
use banger_image::{installed::InstalledKernel, record::KernelFacts};

use super::HostError;

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
    /// [`HostError::NotReady`] if the host has none.
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

/// Why an operation on the files of kernels failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not a kernel that guests can boot, or not a tar of its modules.
    #[error("{message}")]
    Unsupported {
        /// What is wrong with it.
        message: String,
    },
    /// A user's file is of the wrong kind, mode or size.
    #[error("{message}")]
    BadFile {
        /// What is wrong with it.
        message: String,
    },
    /// The call to the host failed.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// The result of this port.
pub type Result<T, E = Error> = std::result::Result<T, E>;
