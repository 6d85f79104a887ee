//! QEMU as the VMM: with KVM if the host has it, with emulation (TCG) otherwise.

mod args;
mod memory;
mod qmp;
mod sockets;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use banger_domain::{
    id::VmId,
    launch_spec::{Access, LaunchSpec, Medium},
    resource::Paths,
    vmm::VmmChoice,
};
use banger_proto::size::Bytes;
use tokio::net::UnixStream;

use self::{
    args::{Acceleration, CHANNELS},
    sockets::Sockets,
};
use super::{
    files::{self, CONSOLE_LOG, VMM_LOG},
    kvm::{self, Kvm},
};
use crate::{
    host::{blocking::blocking, network, programs::QEMU},
    ports::{
        Check, FromHost as _, Status,
        disks::OverlayBy,
        guest_link::{self, Channel},
        vmm::{Error, JailSpec, Result, Vmm, VmmCommand},
    },
};

/// The firmware, which distributions put beside QEMU's other firmware.
const FIRMWARE: &str = "/usr/share/qemu/qboot.rom";
/// What the VMM needs beside the guest's memory: its own code, translated code, device buffers.
const OVERHEAD: Bytes = Bytes::mib(512);

/// QEMU on this host.
pub struct Qemu {
    paths: Paths,
    acceleration: Acceleration,
    sockets: Arc<Sockets>,
}

impl Qemu {
    /// Returns the QEMU of this host.
    pub fn new(paths: Paths, kvm: Kvm) -> Self {
        let sockets = Arc::new(Sockets::new(paths.clone()));
        let acceleration = match kvm {
            Kvm::Works => Acceleration::Kvm,
            Kvm::Unusable => Acceleration::Tcg,
        };
        Self { paths, acceleration, sockets }
    }

    /// Returns whether it is installed.
    pub fn is_installed() -> bool {
        Path::new(QEMU).exists()
    }
}

#[async_trait]
impl Vmm for Qemu {
    fn overlay_by(&self, _wish: VmmChoice, _vcpus: u32) -> OverlayBy {
        OverlayBy::Vmm
    }

    async fn jail_spec(&self, spec: &LaunchSpec) -> Result<JailSpec> {
        if !Self::is_installed() {
            return Err(Error::not_ready(format!("{QEMU} is missing; install the package qemu-system-x86")));
        }
        self.sockets.make_directory(spec.vm)?;
        let devices = match self.acceleration {
            Acceleration::Kvm => vec![PathBuf::from(kvm::DEVICE)],
            Acceleration::Tcg => Vec::new(),
        };
        Ok(files::vmm_jail(spec, OVERHEAD, devices))
    }

    async fn prepare_launch(&self, spec: &LaunchSpec) -> Result<VmmCommand> {
        let (spec, paths) = (spec.clone(), self.paths.clone());
        let (acceleration, sockets) = (self.acceleration, Arc::clone(&self.sockets));
        blocking("prepare the VMM", move || prepare(&spec, &paths, acceleration, &sockets)).await
    }

    async fn connect(&self, vm: VmId, channel: Channel) -> guest_link::Result<UnixStream> {
        self.sockets.connect(vm, channel).await
    }

    async fn remove_sockets(&self, vm: VmId) -> Result<()> {
        self.sockets.remove(vm)
    }

    async fn checks(&self) -> Vec<Check> {
        let missing = [QEMU, FIRMWARE].into_iter().find(|file| !Path::new(file).exists());
        let hint = "install QEMU for this processor (Debian: qemu-system-x86)";
        let (status, message, hint) = match missing {
            None => (Status::Pass, format!("{QEMU} is installed"), ""),
            Some(file) => (Status::Warn, format!("{file} is missing"), hint),
        };
        vec![Check { name: "qemu", status, message, hint: hint.to_owned() }]
    }

    async fn found(&self) -> Result<Vec<VmId>> {
        self.sockets.found()
    }
}

fn prepare(
    spec: &LaunchSpec,
    paths: &Paths,
    acceleration: Acceleration,
    sockets: &Sockets,
) -> Result<VmmCommand> {
    let mut files = vec![("kernel".to_owned(), files::open(&spec.kernel, Access::ReadOnly)?)];
    files.push(("initrd".to_owned(), files::initrd(spec)?));
    files.push((args::MEMORY.to_owned(), memory::of_guest(spec.memory)?));
    for (index, drive) in spec.drives.iter().enumerate() {
        files.push((args::drive_name(index), files::open(&drive.path, drive.access)?));
        if let Medium::Layer { base } = &drive.medium {
            files.push((args::base_name(index), files::open(base, Access::ReadOnly)?));
        }
    }
    for index in 0..spec.nics.len() {
        files.push((args::nic_name(index), network::tap_of(spec.vm)?));
    }
    for (name, listener) in sockets.bind(spec.vm)? {
        files.push((name, listener));
    }
    Ok(VmmCommand {
        argv: args::of(QEMU, spec, acceleration),
        files,
        console: files::log(&paths.console_log(spec.vm), CONSOLE_LOG)?,
        log: files::log(&paths.vmm_log(spec.vm), VMM_LOG)?,
    })
}

/// Returns the path of a channel's socket.
fn channel_path(directory: &Path, channel: usize) -> PathBuf {
    debug_assert!(channel < CHANNELS);
    directory.join(format!("agent-{channel}.sock"))
}
