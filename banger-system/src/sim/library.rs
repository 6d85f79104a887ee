//! Disks, images and kernels in memory, without content.

use std::{collections::BTreeMap, os::fd::OwnedFd, sync::Arc, time::Duration};

use async_trait::async_trait;
use banger_domain::{
    id::{ImageId, KernelId, Uid, VmId},
    launch_spec::{Access, Drive, Medium},
    limits::Exceeded,
    name::Name,
    resource::Resource,
};
use banger_image::{
    oci::{RemoteImage, config::ImageConfig, platform::Platform},
    record::{ImageFacts, KernelFacts},
};
use banger_proto::size::Bytes;

use super::{Sim, State};
use crate::ports::{
    Check, FromHost as _, HostError, NoProgress, Progress,
    captures::HostFacts,
    disks::{self, Disks, FrozenLayer, MAX_DEPTH, NewLayers, OverlayBy, Parent},
    image_files::{self, Content, Exported, FileRange, ImageFiles, Layout},
    kernel_files::{self, BootFiles, HostKernel, KernelFiles},
};

/// What a boot writes to the disks of a VM.
const LAYER: Bytes = Bytes::mib(1);
/// The digest of a file that was never read.
const NO_DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

#[async_trait]
impl Disks for Sim {
    async fn create_directory(&self, vm: VmId) -> disks::Result<()> {
        self.step("make a directory")?.disks.insert(vm);
        Ok(())
    }

    async fn clone_image(
        &self,
        vm: VmId,
        image: ImageId,
        _layers: OverlayBy,
        size: Bytes,
    ) -> disks::Result<()> {
        let mut state = self.step("clone an image")?;
        require_image(&state, image)?;
        state.disk_sizes.entry(vm).or_default().0 = size;
        Ok(())
    }

    async fn create_work_disk(&self, vm: VmId, size: Bytes) -> disks::Result<()> {
        self.step("make a work disk")?.disk_sizes.entry(vm).or_default().1 = size;
        Ok(())
    }

    async fn grow_work_disk(&self, vm: VmId, size: Bytes) -> disks::Result<()> {
        self.step("grow a work disk")?.disk_sizes.entry(vm).or_default().1 = size;
        Ok(())
    }

    async fn grow_system_disk(&self, vm: VmId, image: ImageId, size: Bytes) -> disks::Result<()> {
        let mut state = self.step("grow a system disk")?;
        require_image(&state, image)?;
        state.disk_sizes.entry(vm).or_default().0 = size;
        Ok(())
    }

    async fn attach(&self, vm: VmId, _image: ImageId) -> disks::Result<Vec<Drive>> {
        let mut state = self.step("attach disks")?;
        state.mappers.insert(vm);
        // A guest writes something in each boot.
        state.written.insert(vm);
        drop(state);
        let drive = |disk| Drive {
            path: format!("/sim/{vm}/{disk}").into(),
            access: Access::ReadWrite,
            medium: Medium::File,
        };
        Ok(["system", "work"].map(drive).to_vec())
    }

    async fn detach(&self, vm: VmId) -> disks::Result<()> {
        self.removal(Resource::Mapper)?.mappers.remove(&vm);
        Ok(())
    }

    async fn attached(&self) -> disks::Result<Vec<VmId>> {
        Ok(self.scan(Resource::Mapper)?.mappers.iter().copied().collect())
    }

    async fn identity(&self, vm: VmId) -> disks::Result<HostFacts> {
        Ok([("the work disk".to_owned(), format!("{:?}", self.disk_sizes(vm)))].into())
    }

    async fn remove_directory(&self, vm: VmId) -> disks::Result<()> {
        let mut state = self.removal(Resource::Disks)?;
        state.disks.remove(&vm);
        state.disk_sizes.remove(&vm);
        state.frozen_layers.remove(&vm);
        state.written.remove(&vm);
        Ok(())
    }

    async fn freezable(&self, vm: VmId, _parent: Parent) -> disks::Result<Bytes> {
        let state = self.step("look for layers")?;
        let depth = state.frozen_layers.get(&vm).map_or(0, Vec::len);
        match state.written.contains(&vm) {
            true if depth >= MAX_DEPTH => Err(disks::Error::TooDeep),
            true => Ok(LAYER),
            false => Ok(Bytes(0)),
        }
    }

    async fn freeze(&self, vm: VmId) -> disks::Result<()> {
        let mut state = self.step("freeze disks")?;
        if state.written.remove(&vm) {
            state.add_layer(vm);
        }
        Ok(())
    }

    async fn prepare_layers(&self, vm: VmId) -> disks::Result<Box<dyn NewLayers>> {
        drop(self.step("make new layers")?);
        Ok(Box::new(SimLayers { sim: self.clone(), vm }))
    }

    async fn sync_layers(&self, vm: VmId) -> disks::Result<()> {
        self.step("write layers to the storage")?.unsynced_layers.remove(&vm);
        Ok(())
    }

    async fn empty(&self, vm: VmId) -> disks::Result<()> {
        self.step("empty disks")?.written.remove(&vm);
        Ok(())
    }

    async fn create_child(
        &self,
        vm: VmId,
        of: VmId,
        _parent: Parent,
        progress: Arc<dyn Progress>,
    ) -> disks::Result<()> {
        while self.lock().workers_blocked && !progress.is_canceled() {
            tokio::time::sleep(LOOK).await;
        }
        let mut state = self.step("fork disks")?;
        if !state.disks.contains(&of) {
            return Err(HostError::not_ready("there are no disks to fork").into());
        }
        let (size, layers) = (state.disk_sizes.get(&of).copied(), state.frozen_layers.get(&of).cloned());
        state.disk_sizes.insert(vm, size.unwrap_or_default());
        state.frozen_layers.insert(vm, layers.unwrap_or_default());
        Ok(())
    }

    async fn exchange(&self, vm: VmId, with: VmId) -> disks::Result<()> {
        let mut state = self.step("exchange disks")?;
        let state = &mut *state;
        if !(state.disks.contains(&vm) && state.disks.contains(&with)) {
            return Err(HostError::not_ready("there are no disks to exchange").into());
        }
        let was_written = state.written.remove(&vm);
        if state.written.remove(&with) {
            state.written.insert(vm);
        }
        if was_written {
            state.written.insert(with);
        }
        swap(&mut state.disk_sizes, vm, with);
        swap(&mut state.frozen_layers, vm, with);
        Ok(())
    }

    async fn frozen(&self, vm: VmId) -> disks::Result<Vec<FrozenLayer>> {
        Ok(self.step("look for layers")?.frozen_layers.get(&vm).cloned().unwrap_or_default())
    }

    async fn found(&self) -> disks::Result<Vec<VmId>> {
        Ok(self.scan(Resource::Disks)?.disks.iter().copied().collect())
    }

    async fn checks(&self) -> Vec<Check> {
        Vec::new()
    }
}

/// Swaps what two VMs have, if anything.
fn swap<T>(all: &mut BTreeMap<VmId, T>, one: VmId, other: VmId) {
    let (of_one, of_other) = (all.remove(&one), all.remove(&other));
    all.extend(of_other.map(|value| (one, value)));
    all.extend(of_one.map(|value| (other, value)));
}

/// New layers in memory.
struct SimLayers {
    sim: Sim,
    vm: VmId,
}

#[async_trait]
impl NewLayers for SimLayers {
    async fn freeze(self: Box<Self>) -> disks::Result<Vec<OwnedFd>> {
        {
            let mut state = self.sim.step("freeze the disks of a running guest")?;
            state.add_layer(self.vm);
            state.unsynced_layers.insert(self.vm);
        }
        let null = || rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty());
        Ok(vec![null().map_err(|error| HostError::os("open /dev/null", error))?])
    }
}

impl State {
    fn add_layer(&mut self, vm: VmId) {
        self.last_layer += 1;
        let layer = FrozenLayer { id: self.last_layer, size: LAYER };
        self.frozen_layers.entry(vm).or_default().push(layer);
    }
}

fn require_image(state: &State, image: ImageId) -> Result<(), HostError> {
    match state.image_files.contains(&image) {
        true => Ok(()),
        false => Err(HostError::not_ready("the image has no file")),
    }
}

/// How often to check whether workers are blocked.
const LOOK: Duration = Duration::from_millis(2);

impl Sim {
    /// Works for as long as workers are blocked and the job is not cancelled.
    async fn work(&self, user: Uid, progress: &dyn Progress) -> Result<(), HostError> {
        *self.lock().working.entry(user).or_default() += 1;
        while self.lock().workers_blocked && !progress.is_canceled() {
            tokio::time::sleep(LOOK).await;
        }
        *self.lock().working.entry(user).or_default() -= 1;
        match progress.is_canceled() {
            true => Err(HostError::other("work", "nobody wants it any more")),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl ImageFiles for Sim {
    async fn import(
        &self,
        image: ImageId,
        owner: Uid,
        content: Content,
        progress: Arc<dyn Progress>,
    ) -> image_files::Result<ImageFacts> {
        // Pulls are blocked in the registry instead.
        if matches!(content, Content::File(_) | Content::Disk { .. }) {
            self.work(owner, &*progress).await?;
        }
        match content {
            Content::Disk { room, .. } if room < Bytes::mib(400) => {
                return Err(Exceeded::Room { room }.into());
            }
            _ => {}
        }
        self.step("import an image")?.image_files.insert(image);
        progress.advanced(Bytes::mib(300), Some(Bytes::mib(400)));
        Ok(ImageFacts {
            file: image,
            digest: NO_DIGEST.to_owned(),
            virtual_size: Bytes::gib(8),
            content_size: Bytes::mib(300),
            disk_usage: Bytes::mib(400),
        })
    }

    async fn layout(
        &self,
        _owner: Uid,
        _file: OwnedFd,
        parts: &[FileRange],
        _platform: &Platform,
    ) -> image_files::Result<Layout> {
        if parts.len() < 3 {
            return Err(image_files::Error::Unsupported { message: "the image has no layers".to_owned() });
        }
        let manifest = banger_domain::digest::Digest::from_bytes([0; 32]);
        let config = ImageConfig { cmd: vec!["/bin/sh".to_owned()], ..ImageConfig::default() };
        let image = RemoteImage { manifest, layers: Vec::new(), config, notes: Vec::new() };
        Ok(Layout { image, layers: Vec::new() })
    }

    async fn export(
        &self,
        image: ImageId,
        for_whom: Uid,
        _described: (Name, ImageConfig),
        _archive: OwnedFd,
        progress: Arc<dyn Progress>,
    ) -> image_files::Result<Exported> {
        self.work(for_whom, &*progress).await?;
        match self.step("export an image")?.image_files.contains(&image) {
            true => {
                let manifest = banger_domain::digest::Digest::from_bytes([0; 32]);
                Ok(Exported { manifest, bytes: Bytes::mib(400) })
            }
            false => Err(HostError::not_ready("the image has no file").into()),
        }
    }

    async fn share(&self, image: ImageId, of: ImageId) -> image_files::Result<()> {
        let mut state = self.step("share the file of an image")?;
        if !state.image_files.contains(&of) {
            return Err(HostError::not_ready("the image has no file").into());
        }
        state.image_files.insert(image);
        Ok(())
    }

    async fn remove(&self, image: ImageId) -> image_files::Result<()> {
        self.files()?.image_files.remove(&image);
        Ok(())
    }

    async fn found(&self) -> image_files::Result<Vec<ImageId>> {
        Ok(self.files()?.image_files.iter().copied().collect())
    }
}

fn facts() -> KernelFacts {
    KernelFacts {
        digest: NO_DIGEST.to_owned(),
        release: "6.1.0-sim".to_owned(),
        modules: 12,
        module_tree: Bytes::mib(24),
        size: Bytes::mib(40),
    }
}

#[async_trait]
impl KernelFiles for Sim {
    async fn import(
        &self,
        kernel: KernelId,
        _owner: Uid,
        _vmlinuz: OwnedFd,
        _modules: Option<OwnedFd>,
    ) -> kernel_files::Result<KernelFacts> {
        self.step("import a kernel")?.kernel_files.insert(kernel);
        Ok(facts())
    }

    async fn on_host(&self) -> kernel_files::Result<HostKernel> {
        let installed = self.lock().host_kernel.clone();
        installed
            .ok_or_else(|| kernel_files::Error::not_ready("this host has no kernel that guests can boot"))
    }

    async fn import_from_host(
        &self,
        kernel: KernelId,
        from: &HostKernel,
    ) -> kernel_files::Result<KernelFacts> {
        self.work(Uid::ROOT, &NoProgress).await?;
        let mut state = self.step("import the kernel of the host")?;
        state.host_imports += 1;
        if state.host_kernel_unusable {
            let message = "the kernel has no virtio_blk built in".to_owned();
            return Err(kernel_files::Error::Unsupported { message });
        }
        state.kernel_files.insert(kernel);
        let release = from.installed.release.clone();
        Ok(KernelFacts { release, ..facts() })
    }

    async fn boot_files(&self, kernel: KernelId) -> kernel_files::Result<BootFiles> {
        let file = |name: &str| format!("/sim/{kernel}/{name}").into();
        let module_tree = Some(file("modules.ext4"));
        Ok(BootFiles { kernel: file("vmlinux"), initramfs: Vec::new(), module_tree })
    }

    async fn remove(&self, kernel: KernelId) -> kernel_files::Result<()> {
        self.files()?.kernel_files.remove(&kernel);
        Ok(())
    }

    async fn found(&self) -> kernel_files::Result<Vec<KernelId>> {
        Ok(self.files()?.kernel_files.iter().copied().collect())
    }
}
