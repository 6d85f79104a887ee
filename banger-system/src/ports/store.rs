//! The database.

use async_trait::async_trait;
use banger_domain::{
    id::{ImageId, KernelId, VmId},
    net::subnet::Subnet,
    resource::Resource,
    vm::Vm,
};
use banger_image::record::{Image, Kernel};

use super::HostError;

/// The database. A write survives a crash of the service once its method has returned, and may be repeated.
#[async_trait]
pub trait Store: Send + Sync {
    /// Returns all VMs.
    async fn vms(&self) -> Result<Vec<Vm>>;
    /// Stores a VM, new or changed.
    async fn put_vm(&self, vm: &Vm) -> Result<()>;
    /// Deletes a VM's row. The ledger keeps the resources that could not be released.
    async fn delete_vm(&self, vm: VmId) -> Result<()>;
    /// Returns all images.
    async fn images(&self) -> Result<Vec<Image>>;
    /// Stores an image, new or changed.
    async fn put_image(&self, image: &Image) -> Result<()>;
    /// Stores an image and deletes the one that it replaces, in one transaction.
    async fn replace_image(&self, image: &Image, old: ImageId) -> Result<()>;
    /// Deletes an image's row.
    async fn delete_image(&self, image: ImageId) -> Result<()>;
    /// Returns all kernels.
    async fn kernels(&self) -> Result<Vec<Kernel>>;
    /// Stores a kernel, new or changed.
    async fn put_kernel(&self, kernel: &Kernel) -> Result<()>;
    /// Stores a kernel and deletes the one that it replaces, in one transaction.
    async fn replace_kernel(&self, kernel: &Kernel, old: KernelId) -> Result<()>;
    /// Deletes a kernel's row.
    async fn delete_kernel(&self, kernel: KernelId) -> Result<()>;
    /// Returns the network of the guests, if it was chosen.
    async fn subnet(&self) -> Result<Option<Subnet>>;
    /// Stores the network of the guests.
    async fn put_subnet(&self, subnet: Subnet) -> Result<()>;
    /// Records in the ledger that a VM is about to get a resource, maybe before [`Store::put_vm`] has stored the VM.
    /// Only the lease calls this.
    async fn record(&self, vm: VmId, resource: Resource) -> Result<()>;
    /// Strikes a released resource from the ledger. Only the lease calls this.
    async fn strike(&self, vm: VmId, resource: Resource) -> Result<()>;
    /// Returns the ledger: all resources that may exist.
    async fn ledger(&self) -> Result<Vec<(VmId, Resource)>>;
}

/// Why this port failed. It has no failures of its own.
pub type Error = HostError;

/// The result of this port.
pub type Result<T, E = Error> = std::result::Result<T, E>;
