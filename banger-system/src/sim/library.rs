//! Files in memory: disks, images and kernels are only remembered.

use std::{os::fd::OwnedFd, sync::Arc};

use async_trait::async_trait;
use banger_proto::size::Bytes;

use super::Sim;
use crate::{
    domain::{
        id::{ImageId, KernelId, VmId},
        image::{ImageFacts, KernelFacts},
        machine::{Access, Drive, Medium},
        oci::{RemoteImage, config::ImageConfig},
    },
    ports::{
        BootFiles, Check, Disks, Error, ImageFiles, KernelFiles, Layers, Result,
        images::{Content, Exported, Layout, Part, Progress},
    },
};

/// What stands for the digest of a file that was never read.
const NO_DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

#[async_trait]
impl Disks for Sim {
    async fn create_directory(&self, vm: VmId) -> Result<()> {
        self.step("make a directory")?.disks.insert(vm);
        Ok(())
    }

    async fn clone_image(&self, _vm: VmId, image: ImageId, _layers: Layers) -> Result<()> {
        match self.step("clone an image")?.image_files.contains(&image) {
            true => Ok(()),
            false => Err(Error::HostNotReady { message: "the image has no file".to_owned() }),
        }
    }

    async fn create_work_disk(&self, _vm: VmId, _size: Bytes) -> Result<()> {
        self.step("make a work disk").map(drop)
    }

    async fn grow_work_disk(&self, _vm: VmId, _size: Bytes) -> Result<()> {
        self.step("grow a work disk").map(drop)
    }

    async fn attach(&self, vm: VmId, _image: ImageId) -> Result<Vec<Drive>> {
        self.step("attach disks")?.mappers.insert(vm);
        let drive = |disk| Drive {
            path: format!("/sim/{vm}/{disk}").into(),
            access: Access::ReadWrite,
            medium: Medium::File,
        };
        Ok(["system", "work"].map(drive).to_vec())
    }

    async fn detach(&self, vm: VmId) -> Result<()> {
        self.lock().mappers.remove(&vm);
        Ok(())
    }

    async fn attached(&self) -> Result<Vec<VmId>> {
        Ok(self.lock().mappers.iter().copied().collect())
    }

    async fn remove_directory(&self, vm: VmId) -> Result<()> {
        self.lock().disks.remove(&vm);
        Ok(())
    }

    async fn found(&self) -> Result<Vec<VmId>> {
        Ok(self.lock().disks.iter().copied().collect())
    }

    async fn checks(&self) -> Vec<Check> {
        Vec::new()
    }
}

#[async_trait]
impl ImageFiles for Sim {
    async fn import(
        &self,
        image: ImageId,
        _content: Content,
        progress: Arc<dyn Progress>,
    ) -> Result<ImageFacts> {
        self.step("import an image")?.image_files.insert(image);
        progress.advanced(Bytes::mib(300), Some(Bytes::mib(400)));
        Ok(ImageFacts {
            digest: NO_DIGEST.to_owned(),
            virtual_size: Bytes::gib(8),
            disk_usage: Bytes::mib(400),
        })
    }

    async fn layout(&self, _file: OwnedFd, parts: &[Part]) -> Result<Layout> {
        if parts.len() < 3 {
            return Err(Error::Unsupported { message: "the image has no layers".to_owned() });
        }
        let manifest = crate::domain::digest::Digest::from_bytes([0; 32]);
        let config = ImageConfig { cmd: vec!["/bin/sh".to_owned()], ..ImageConfig::default() };
        Ok(Layout { image: RemoteImage { manifest, layers: Vec::new(), config }, layers: Vec::new() })
    }

    async fn export(
        &self,
        image: ImageId,
        _config: ImageConfig,
        _archive: OwnedFd,
        _progress: Arc<dyn Progress>,
    ) -> Result<Exported> {
        match self.step("export an image")?.image_files.contains(&image) {
            true => {
                let manifest = crate::domain::digest::Digest::from_bytes([0; 32]);
                Ok(Exported { manifest, bytes: Bytes::mib(400) })
            }
            false => Err(Error::HostNotReady { message: "the image has no file".to_owned() }),
        }
    }

    async fn share(&self, image: ImageId, of: ImageId) -> Result<()> {
        let mut state = self.step("share the file of an image")?;
        if !state.image_files.contains(&of) {
            return Err(Error::HostNotReady { message: "the image has no file".to_owned() });
        }
        state.image_files.insert(image);
        Ok(())
    }

    async fn remove(&self, image: ImageId) -> Result<()> {
        self.lock().image_files.remove(&image);
        Ok(())
    }

    async fn found(&self) -> Result<Vec<ImageId>> {
        Ok(self.lock().image_files.iter().copied().collect())
    }
}

#[async_trait]
impl KernelFiles for Sim {
    async fn import(
        &self,
        kernel: KernelId,
        _vmlinuz: OwnedFd,
        _modules: Option<OwnedFd>,
    ) -> Result<KernelFacts> {
        self.step("import a kernel")?.kernel_files.insert(kernel);
        Ok(KernelFacts {
            digest: NO_DIGEST.to_owned(),
            release: "6.1.0-sim".to_owned(),
            modules: 12,
            size: Bytes::mib(40),
        })
    }

    async fn boot_files(&self, kernel: KernelId) -> Result<BootFiles> {
        Ok(BootFiles { kernel: format!("/sim/{kernel}/vmlinux").into(), initramfs: Vec::new() })
    }

    async fn remove(&self, kernel: KernelId) -> Result<()> {
        self.lock().kernel_files.remove(&kernel);
        Ok(())
    }

    async fn found(&self) -> Result<Vec<KernelId>> {
        Ok(self.lock().kernel_files.iter().copied().collect())
    }
}
