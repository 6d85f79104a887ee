//! The store in memory. It outlives an engine, so that a test can crash one and start another.

use async_trait::async_trait;
use banger_domain::{
    id::{ImageId, KernelId, VmId},
    net::subnet::Subnet,
    resource::Resource,
    vm::Vm,
};
use banger_image::record::{Image, Kernel};

use super::Sim;

use crate::ports::{
    FromHost as _,
    store::{Error, Result, Store},
};

#[async_trait]
impl Store for Sim {
    async fn vms(&self) -> Result<Vec<Vm>> {
        let mut state = self.lock();
        if let Some(vm) = state.leaving.take() {
            state.disks.remove(&vm);
            state.mappers.remove(&vm);
            state.sockets.remove(&vm);
        }
        match state.rows_unreadable {
            true => Err(Error::not_ready("the database cannot be read")),
            false => Ok(state.vms.values().cloned().collect()),
        }
    }

    async fn put_vm(&self, vm: &Vm) -> Result<()> {
        self.step("store a sandbox")?.vms.insert(vm.id, vm.clone());
        Ok(())
    }

    async fn delete_vm(&self, vm: VmId) -> Result<()> {
        let mut state = self.lock();
        if state.rows_kept {
            return Err(Error::no_space("delete a sandbox"));
        }
        state.vms.remove(&vm);
        Ok(())
    }

    async fn images(&self) -> Result<Vec<Image>> {
        Ok(self.lock().images.values().cloned().collect())
    }

    async fn put_image(&self, image: &Image) -> Result<()> {
        self.step("store an image")?.images.insert(image.id, image.clone());
        Ok(())
    }

    async fn replace_image(&self, image: &Image, old: ImageId) -> Result<()> {
        let mut state = self.step("store an image in the place of another")?;
        state.images.remove(&old);
        state.images.insert(image.id, image.clone());
        Ok(())
    }

    async fn delete_image(&self, image: ImageId) -> Result<()> {
        self.step("delete the row of an image")?.images.remove(&image);
        Ok(())
    }

    async fn kernels(&self) -> Result<Vec<Kernel>> {
        Ok(self.lock().kernels.values().cloned().collect())
    }

    async fn put_kernel(&self, kernel: &Kernel) -> Result<()> {
        self.step("store a kernel")?.kernels.insert(kernel.id, kernel.clone());
        Ok(())
    }

    async fn replace_kernel(&self, kernel: &Kernel, old: KernelId) -> Result<()> {
        let mut state = self.step("store a kernel in the place of another")?;
        state.kernels.remove(&old);
        state.kernels.insert(kernel.id, kernel.clone());
        Ok(())
    }

    async fn delete_kernel(&self, kernel: KernelId) -> Result<()> {
        self.step("delete the row of a kernel")?.kernels.remove(&kernel);
        Ok(())
    }

    async fn subnet(&self) -> Result<Option<Subnet>> {
        Ok(self.lock().stored_subnet)
    }

    async fn put_subnet(&self, subnet: Subnet) -> Result<()> {
        self.step("store the subnet")?.stored_subnet = Some(subnet);
        Ok(())
    }

    async fn record(&self, vm: VmId, resource: Resource) -> Result<()> {
        self.step("write the ledger")?.ledger.insert((vm, resource));
        Ok(())
    }

    async fn strike(&self, vm: VmId, resource: Resource) -> Result<()> {
        self.lock().ledger.remove(&(vm, resource));
        Ok(())
    }

    async fn ledger(&self) -> Result<Vec<(VmId, Resource)>> {
        Ok(self.lock().ledger.iter().copied().collect())
    }
}
