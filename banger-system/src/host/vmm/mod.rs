//! The VMMs of this host behind one port. A sandbox's VMM is chosen when it starts. Its directory of sockets shows
//! which one that is, also after a restart of the service.
//!
//! Each VMM has a folder: which command starts it, how its sockets work, and what it is told. [`files`] is what both
//! get, [`kvm`] is whether guests run with it.

mod files;
pub mod firecracker;
pub mod kvm;
pub mod qemu;

use std::{os::fd::OwnedFd, path::PathBuf};

use async_trait::async_trait;
use banger_domain::{
    architecture::Architecture,
    id::VmId,
    launch_spec::{LaunchSpec, Medium},
    resource::Paths,
    vmm::{Facts, VmmChoice, VmmKind, choose, explain},
};
use tokio::net::UnixStream;

use self::{firecracker::Firecracker, kvm::Kvm, qemu::Qemu};
use crate::ports::{
    Check, FromHost as _, Status,
    captures::HostFacts,
    disks::OverlayBy,
    guest_link::{self, Channel},
    supervisor::Started,
    templates::TemplateKey,
    vmm::{Capture, Error, JailSpec, Result, Vmm, VmmCommand},
};

/// Firecracker and QEMU.
pub struct Vmms {
    paths: Paths,
    firecracker: Firecracker,
    qemu: Qemu,
    kvm: Kvm,
    configured: VmmChoice,
}

impl Vmms {
    /// Returns the VMMs of this host. `firecracker` is its path in the configuration.
    pub fn new(paths: Paths, kvm: Kvm, configured: VmmChoice, firecracker: Option<PathBuf>) -> Self {
        Self {
            firecracker: Firecracker::new(paths.clone(), firecracker),
            qemu: Qemu::new(paths.clone(), kvm),
            paths,
            kvm,
            configured,
        }
    }

    /// Checked each time, since programs may be installed while the service runs.
    fn facts(&self) -> Facts {
        Facts {
            kvm: self.kvm == Kvm::Works,
            firecracker: self.firecracker.program().is_some(),
            qemu: Qemu::is_installed(),
        }
    }

    fn get(&self, kind: VmmKind) -> &dyn Vmm {
        match kind {
            VmmKind::Firecracker => &self.firecracker,
            VmmKind::Qemu => &self.qemu,
        }
    }

    /// Returns the VMM of a running sandbox.
    fn of(&self, vm: VmId) -> &dyn Vmm {
        self.get(if self.firecracker.has(vm) { VmmKind::Firecracker } else { VmmKind::Qemu })
    }
}

#[async_trait]
impl Vmm for Vmms {
    fn overlay_by(&self, choice: VmmChoice, vcpus: u32) -> OverlayBy {
        match choose(choice, self.configured, self.facts(), vcpus) {
            Ok(VmmKind::Qemu) => OverlayBy::Vmm,
            // If none works now, a sandbox may get any of them later.
            Ok(VmmKind::Firecracker) | Err(_) => OverlayBy::Host,
        }
    }

    async fn jail_spec(&self, spec: &LaunchSpec) -> Result<JailSpec> {
        let is_layered = spec.drives.iter().any(|drive| matches!(drive.medium, Medium::Layer { .. }));
        let choice = match spec.vmm {
            VmmChoice::Only(VmmKind::Firecracker) if is_layered => {
                let message =
                    "the system disk of this sandbox is in QEMU's format, which Firecracker does not \
                               read; create it again with --vmm firecracker"
                        .to_owned();
                return Err(Error::not_ready(message));
            }
            _ if is_layered => VmmChoice::Only(VmmKind::Qemu),
            choice => choice,
        };
        let chosen = choose(choice, self.configured, self.facts(), spec.vcpus);
        let chosen = chosen.map_err(|refused| Error::not_ready(refused.to_string()))?;
        tracing::info!(vm = %spec.vm, vmm = %chosen, "preparing a sandbox");
        self.get(chosen).jail_spec(spec).await
    }

    async fn prepare_launch(&self, spec: &LaunchSpec) -> Result<VmmCommand> {
        self.of(spec.vm).prepare_launch(spec).await
    }

    async fn configure(&self, spec: &LaunchSpec, started: &Started) -> Result<()> {
        self.of(spec.vm).configure(spec, started).await
    }

    async fn template_key(&self, spec: &LaunchSpec) -> Result<Option<TemplateKey>> {
        self.of(spec.vm).template_key(spec).await
    }

    async fn prepare_template(&self, spec: &LaunchSpec) -> Result<VmmCommand> {
        self.of(spec.vm).prepare_template(spec).await
    }

    async fn capture(&self, vm: VmId) -> Result<Capture> {
        self.of(vm).capture(vm).await
    }

    async fn prepare_child(&self, spec: &LaunchSpec, capture: &Capture) -> Result<VmmCommand> {
        self.of(spec.vm).prepare_child(spec, capture).await
    }

    async fn resume(&self, vm: VmId, capture: &Capture) -> Result<()> {
        self.of(vm).resume(vm, capture).await
    }

    async fn facts(&self, vm: VmId) -> Result<HostFacts> {
        self.of(vm).facts(vm).await
    }

    async fn halt(&self, vm: VmId) -> Result<()> {
        self.of(vm).halt(vm).await
    }

    async fn switch_layers(&self, vm: VmId, layers: Vec<OwnedFd>) -> Result<()> {
        self.of(vm).switch_layers(vm, layers).await
    }

    async fn save(&self, vm: VmId, to: OwnedFd) -> Result<()> {
        self.of(vm).save(vm, to).await
    }

    async fn go_on(&self, vm: VmId) -> Result<()> {
        self.of(vm).go_on(vm).await
    }

    async fn prepare_resume(&self, spec: &LaunchSpec) -> Result<VmmCommand> {
        self.of(spec.vm).prepare_resume(spec).await
    }

    async fn load(&self, vm: VmId, from: OwnedFd) -> Result<()> {
        self.of(vm).load(vm, from).await
    }

    async fn has_begun(&self, vm: VmId) -> Result<bool> {
        self.of(vm).has_begun(vm).await
    }

    async fn connect(&self, vm: VmId, channel: Channel) -> guest_link::Result<UnixStream> {
        self.of(vm).connect(vm, channel).await
    }

    async fn remove_sockets(&self, vm: VmId) -> Result<()> {
        self.of(vm).remove_sockets(vm).await
    }

    async fn checks(&self) -> Vec<Check> {
        let facts = self.facts();
        let mut checks = vec![self.kvm.check()];
        checks.extend(self.firecracker.checks().await);
        checks.extend(self.qemu.checks().await);
        let works = choose(VmmChoice::Auto, self.configured, facts, 1).is_ok();
        checks.push(Check {
            name: "VMM",
            status: if works { Status::Pass } else { Status::Fail },
            message: explain(self.configured, facts),
            hint: if works {
                String::new()
            } else {
                format!("install the package {}", Architecture::HOST.differences().qemu_package)
            },
        });
        checks
    }

    async fn found(&self) -> Result<Vec<VmId>> {
        files::socket_dirs(&self.paths)
    }
}
