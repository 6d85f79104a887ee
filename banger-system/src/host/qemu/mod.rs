//! QEMU as the VMM: with KVM where the host has it, else with emulation (TCG).

mod args;
mod qmp;
mod sockets;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use banger_domain::{
    id::VmId,
    machine::{Access, Machine, Medium},
    monitor::Wish,
    resource::Places,
};
use banger_proto::size::Bytes;
use tokio::net::UnixStream;

use self::{
    args::{Acceleration, CHANNELS},
    sockets::Sockets,
};
use super::{
    blocking::blocking,
    kvm::{self, Kvm},
    monitor_files::{self, CONSOLE_LOG, MONITOR_LOG},
    network,
};
use crate::ports::{Channel, Check, Error, JailSpec, OverlayBy, Result, Status, Vmm, VmmCommand};

/// Where distributions put it.
const PROGRAM: &str = "/usr/bin/qemu-system-x86_64";
/// What QEMU begins with; distributions put it beside its other firmware.
const FIRMWARE: &str = "/usr/share/qemu/qboot.rom";
/// What a monitor needs beside the guest's memory: its own code, translated code, device buffers.
const OVERHEAD: Bytes = Bytes::mib(512);

/// The monitor.
pub struct Qemu {
    places: Places,
    acceleration: Acceleration,
    sockets: Arc<Sockets>,
}

impl Qemu {
    /// QEMU on this host.
    pub fn new(places: Places, kvm: Kvm) -> Self {
        let sockets = Arc::new(Sockets::new(places.clone()));
        let acceleration = match kvm {
            Kvm::Works => Acceleration::Kvm,
            Kvm::Unusable => Acceleration::Tcg,
        };
        Self { places, acceleration, sockets }
    }

    /// Whether it can be started.
    pub fn is_installed() -> bool {
        Path::new(PROGRAM).exists()
    }
}

#[async_trait]
impl Vmm for Qemu {
    fn overlay_by(&self, _wish: Wish, _vcpus: u32) -> OverlayBy {
        OverlayBy::Vmm
    }

    async fn jail_spec(&self, machine: &Machine) -> Result<JailSpec> {
        if !Self::is_installed() {
            return Err(Error::HostNotReady {
                message: format!("{PROGRAM} is missing; install the package qemu-system-x86"),
            });
        }
        self.sockets.make_directory(machine.vm)?;
        let devices = match self.acceleration {
            Acceleration::Kvm => vec![PathBuf::from(kvm::DEVICE)],
            Acceleration::Tcg => Vec::new(),
        };
        Ok(monitor_files::confinement(machine, OVERHEAD, devices))
    }

    async fn prepare_launch(&self, machine: &Machine) -> Result<VmmCommand> {
        let (machine, places) = (machine.clone(), self.places.clone());
        let (acceleration, sockets) = (self.acceleration, Arc::clone(&self.sockets));
        blocking("prepare the VMM", move || prepare(&machine, &places, acceleration, &sockets)).await
    }

    async fn connect(&self, vm: VmId, channel: Channel) -> Result<UnixStream> {
        self.sockets.connect(vm, channel).await
    }

    async fn remove_sockets(&self, vm: VmId) -> Result<()> {
        self.sockets.remove(vm)
    }

    async fn checks(&self) -> Vec<Check> {
        let missing = [PROGRAM, FIRMWARE].into_iter().find(|file| !Path::new(file).exists());
        let hint = "install QEMU for this processor (Debian: qemu-system-x86)";
        let (status, message, hint) = match missing {
            None => (Status::Pass, format!("{PROGRAM} is installed"), ""),
            Some(file) => (Status::Warn, format!("{file} is missing"), hint),
        };
        vec![Check { name: "qemu", status, message, hint: hint.to_owned() }]
    }

    async fn found(&self) -> Result<Vec<VmId>> {
        self.sockets.found()
    }
}

fn prepare(
    machine: &Machine,
    places: &Places,
    acceleration: Acceleration,
    sockets: &Sockets,
) -> Result<VmmCommand> {
    let mut files = vec![("kernel".to_owned(), monitor_files::open(&machine.kernel, Access::ReadOnly)?)];
    files.push(("initrd".to_owned(), monitor_files::initrd(machine)?));
    for (index, drive) in machine.drives.iter().enumerate() {
        files.push((args::drive_name(index), monitor_files::open(&drive.path, drive.access)?));
        if let Medium::Layer { base } = &drive.medium {
            files.push((args::base_name(index), monitor_files::open(base, Access::ReadOnly)?));
        }
    }
    for index in 0..machine.nics.len() {
        files.push((args::nic_name(index), network::tap_of(machine.vm)?));
    }
    for (name, listener) in sockets.bind(machine.vm)? {
        files.push((name, listener));
    }
    Ok(VmmCommand {
        argv: args::of(PROGRAM, machine, acceleration),
        files,
        console: monitor_files::log(&places.console_log(machine.vm), CONSOLE_LOG)?,
        log: monitor_files::log(&places.vmm_log(machine.vm), MONITOR_LOG)?,
    })
}

/// The path of a channel's socket.
fn channel_path(directory: &Path, channel: usize) -> PathBuf {
    debug_assert!(channel < CHANNELS);
    directory.join(format!("agent-{channel}.sock"))
}
