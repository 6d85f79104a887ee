//! QEMU as the VMM: with KVM if the host has it, with emulation (TCG) otherwise.

mod args;
mod capture;
mod key;
mod layers;
mod qmp;
mod sockets;

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use async_trait::async_trait;
use banger_domain::{
    architecture::Architecture,
    id::VmId,
    launch_spec::{Access, LaunchSpec, Medium},
    resource::Paths,
    vmm::VmmChoice,
};
use banger_proto::size::Bytes;
use tokio::net::UnixStream;

use self::{
    args::{Acceleration, CHANNELS, Role},
    sockets::Sockets,
};
use super::{
    files::{self, CONSOLE_LOG, VMM_LOG},
    kvm::{self, Kvm},
};
use crate::{
    host::{blocking::blocking, memory, network, programs},
    ports::{
        Check, FromHost as _, Status,
        captures::HostFacts,
        disks::OverlayBy,
        guest_link::{self, Channel},
        templates::TemplateKey,
        vmm::{Capture, Error, JailSpec, Result, Vmm, VmmCommand},
    },
};

/// Where distributions put QEMU's firmware.
const FIRMWARE: &str = "/usr/share/qemu";
/// What the VMM needs beside the guest's memory: its own code, translated code, device buffers.
const OVERHEAD: Bytes = Bytes::mib(512);

/// QEMU on this host.
pub struct Qemu {
    paths: Paths,
    architecture: Architecture,
    acceleration: Acceleration,
    sockets: Arc<Sockets>,
    /// The facts about the host that a template depends on. Reading them takes longer the more processors there are.
    host: Arc<OnceLock<Vec<String>>>,
    /// The memory of guests that will be captured.
    templates: Mutex<HashMap<VmId, OwnedFd>>,
}

impl Qemu {
    /// Returns the QEMU of this host.
    pub fn new(paths: Paths, kvm: Kvm) -> Self {
        let sockets = Arc::new(Sockets::new(paths.clone()));
        let acceleration = match kvm {
            Kvm::Works => Acceleration::Kvm,
            Kvm::Unusable => Acceleration::Tcg,
        };
        let architecture = Architecture::HOST;
        Self { paths, architecture, acceleration, sockets, host: Arc::default(), templates: Mutex::default() }
    }

    /// Returns a QEMU that emulates an architecture, which may differ from that of this host.
    pub fn emulating(paths: Paths, architecture: Architecture) -> Self {
        Self { architecture, ..Self::new(paths, Kvm::Unusable) }
    }

    /// Returns whether it is installed, with the firmware that guests of this architecture need.
    pub fn is_whole(architecture: Architecture) -> bool {
        program_files(architecture).iter().all(|file| file.exists())
    }

    /// Returns whether the QEMU of this host is installed.
    pub fn is_installed() -> bool {
        Path::new(programs::qemu(Architecture::HOST)).exists()
    }

    async fn prepare(&self, spec: &LaunchSpec, role: Role, memory: Option<OwnedFd>) -> Result<VmmCommand> {
        let (spec, paths) = (spec.clone(), self.paths.clone());
        let (kind, sockets) = ((self.architecture, self.acceleration), Arc::clone(&self.sockets));
        let doing = "prepare the VMM";
        blocking(doing, move || prepare(&spec, &paths, kind, &sockets, role, memory)).await
    }

    /// Returns the facts about the host.
    async fn host(&self) -> Result<Vec<String>> {
        let known = Arc::clone(&self.host);
        blocking("look at the host", move || match known.get() {
            Some(host) => Ok(host.clone()),
            None => {
                let read = key::host()?;
                Ok(known.get_or_init(|| read).clone())
            }
        })
        .await
    }

    fn templates(&self) -> MutexGuard<'_, HashMap<VmId, OwnedFd>> {
        self.templates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Vmm for Qemu {
    fn overlay_by(&self, _wish: VmmChoice, _vcpus: u32) -> OverlayBy {
        OverlayBy::Vmm
    }

    async fn jail_spec(&self, spec: &LaunchSpec) -> Result<JailSpec> {
        let program = programs::qemu(self.architecture);
        if !Path::new(program).exists() {
            let package = self.architecture.differences().qemu_package;
            return Err(Error::not_ready(format!("{program} is missing; install the package {package}")));
        }
        self.sockets.make_directory(spec.vm)?;
        let devices = match self.acceleration {
            Acceleration::Kvm => vec![PathBuf::from(kvm::DEVICE)],
            Acceleration::Tcg => Vec::new(),
        };
        Ok(files::vmm_jail(spec, OVERHEAD, devices))
    }

    async fn prepare_launch(&self, spec: &LaunchSpec) -> Result<VmmCommand> {
        self.prepare(spec, Role::Boot, None).await
    }

    async fn template_key(&self, spec: &LaunchSpec) -> Result<Option<TemplateKey>> {
        // With KVM, captures have not been tried: a guest that continues wrongly would cost its start a time limit.
        if self.acceleration == Acceleration::Kvm {
            return Ok(None);
        }
        let (spec, vmm, host) = (spec.clone(), program_files(self.architecture), self.host().await?);
        let (architecture, acceleration) = (self.architecture, self.acceleration);
        let doing = "look at the files of a template";
        blocking(doing, move || key::of(&spec, architecture, acceleration, vmm, host)).await.map(Some)
    }

    async fn prepare_template(&self, spec: &LaunchSpec) -> Result<VmmCommand> {
        let memory = memory::of_guest(spec.memory)?;
        self.templates().insert(spec.vm, memory.try_clone().map_err(share_memory)?);
        self.prepare(spec, Role::Template, Some(memory)).await
    }

    async fn capture(&self, vm: VmId) -> Result<Capture> {
        let memory = self.templates().remove(&vm);
        let memory = memory.ok_or_else(|| Error::Failed { message: "it is not a template".to_owned() })?;
        capture::capture(&mut self.sockets.control(vm).await?, memory).await
    }

    async fn prepare_child(&self, spec: &LaunchSpec, capture: &Capture) -> Result<VmmCommand> {
        let memory = capture.memory.try_clone().map_err(share_memory)?;
        self.prepare(spec, Role::Child, Some(memory)).await
    }

    async fn resume(&self, vm: VmId, capture: &Capture) -> Result<()> {
        capture::resume(&mut self.sockets.control(vm).await?, capture).await
    }

    async fn facts(&self, vm: VmId) -> Result<HostFacts> {
        let version = capture::version(&mut self.sockets.control(vm).await?).await?;
        Ok(key::facts(version, self.acceleration, &self.host().await?))
    }

    async fn halt(&self, vm: VmId) -> Result<()> {
        capture::halt(&mut self.sockets.control(vm).await?).await
    }

    async fn switch_layers(&self, vm: VmId, layers: Vec<OwnedFd>) -> Result<()> {
        layers::switch(&mut self.sockets.control(vm).await?, &layers).await
    }

    async fn save(&self, vm: VmId, to: OwnedFd) -> Result<()> {
        capture::save(&mut self.sockets.control(vm).await?, to).await
    }

    async fn go_on(&self, vm: VmId) -> Result<()> {
        capture::go_on(&mut self.sockets.control(vm).await?).await
    }

    async fn prepare_resume(&self, spec: &LaunchSpec) -> Result<VmmCommand> {
        self.prepare(spec, Role::Resumed, None).await
    }

    async fn load(&self, vm: VmId, from: OwnedFd) -> Result<()> {
        capture::load(&mut self.sockets.control(vm).await?, from).await
    }

    async fn has_begun(&self, vm: VmId) -> Result<bool> {
        capture::runs(&mut self.sockets.control(vm).await?).await
    }

    async fn connect(&self, vm: VmId, channel: Channel) -> guest_link::Result<UnixStream> {
        self.sockets.connect(vm, channel).await
    }

    async fn remove_sockets(&self, vm: VmId) -> Result<()> {
        self.templates().remove(&vm);
        self.sockets.remove(vm)
    }

    async fn checks(&self) -> Vec<Check> {
        let missing = program_files(self.architecture).into_iter().find(|file| !file.exists());
        let package = self.architecture.differences().qemu_package;
        let (status, message, hint) = match missing {
            None => {
                (Status::Pass, format!("{} is installed", programs::qemu(self.architecture)), String::new())
            }
            Some(file) => (
                Status::Warn,
                format!("{} is missing", file.display()),
                format!("install QEMU for this processor (Debian: {package})"),
            ),
        };
        vec![Check { name: "qemu", status, message, hint }]
    }

    async fn found(&self) -> Result<Vec<VmId>> {
        self.sockets.found()
    }
}

fn prepare(
    spec: &LaunchSpec,
    paths: &Paths,
    (architecture, acceleration): (Architecture, Acceleration),
    sockets: &Sockets,
    role: Role,
    memory: Option<OwnedFd>,
) -> Result<VmmCommand> {
    let mut files: Vec<_> = memory.into_iter().map(|file| (args::MEMORY.to_owned(), file)).collect();
    if matches!(role, Role::Boot | Role::Template) {
        files.push(("kernel".to_owned(), files::open(&spec.kernel, Access::ReadOnly)?));
        files.push(("initrd".to_owned(), files::initrd(spec)?));
    }
    if role != Role::Template {
        files.extend(devices(spec)?);
    }
    for (name, listener) in sockets.bind(spec.vm)? {
        files.push((name, listener));
    }
    Ok(VmmCommand {
        argv: args::of(architecture, programs::qemu(architecture), spec, acceleration, role),
        files,
        console: files::log(&paths.console_log(spec.vm), CONSOLE_LOG)?,
        log: files::log(&paths.vmm_log(spec.vm), VMM_LOG)?,
    })
}

/// Returns the QEMU for guests of an architecture, and its firmware.
fn program_files(architecture: Architecture) -> Vec<PathBuf> {
    let firmware = architecture.differences().qemu.firmware;
    let firmware = firmware.map(|name| Path::new(FIRMWARE).join(name));
    [PathBuf::from(programs::qemu(architecture))].into_iter().chain(firmware).collect()
}

/// Opens what is behind the disks and interfaces.
fn devices(spec: &LaunchSpec) -> Result<Vec<(String, OwnedFd)>> {
    let mut files = Vec::new();
    for (index, drive) in spec.drives.iter().enumerate() {
        files.push((args::drive_name(index), files::open(&drive.path, drive.access)?));
        if let Medium::Layer { base, frozen } = &drive.medium {
            files.push((args::base_name(index), files::open(base, Access::ReadOnly)?));
            for (number, layer) in frozen.iter().enumerate() {
                files.push((args::frozen_name(index, number), files::open(layer, Access::ReadOnly)?));
            }
        }
    }
    for index in 0..spec.nics.len() {
        files.push((args::nic_name(index), network::tap_of(spec.vm)?));
    }
    Ok(files)
}

fn share_memory(error: io::Error) -> Error {
    Error::os("share the memory of a guest", error)
}

/// Returns the path of a channel's socket.
fn channel_path(directory: &Path, channel: usize) -> PathBuf {
    debug_assert!(channel < CHANNELS);
    directory.join(format!("agent-{channel}.sock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_needs_firmware_for_x86_64_guests_alone() {
        let of = |architecture| {
            program_files(architecture).iter().map(|file| file.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(of(Architecture::X86_64), ["/usr/bin/qemu-system-x86_64", "/usr/share/qemu/qboot.rom"]);
        assert_eq!(of(Architecture::Aarch64), ["/usr/bin/qemu-system-aarch64"]);
    }
}
