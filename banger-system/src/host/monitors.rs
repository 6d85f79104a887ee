//! The VMMs of this host behind one port: each sandbox has the one that was chosen when it was started.
//! Its directory of sockets shows which one that is, also after a restart of the service.

use std::path::PathBuf;

use async_trait::async_trait;
use banger_domain::{
    id::VmId,
    machine::{Machine, Medium},
    monitor::{Facts, Monitor, Wish, choose, explain},
    resource::Places,
};
use tokio::net::UnixStream;

use super::{firecracker::Firecracker, kvm::Kvm, monitor_files, qemu::Qemu};
use crate::ports::{Channel, Check, Error, JailSpec, OverlayBy, Result, Started, Status, Vmm, VmmCommand};

/// Firecracker and QEMU.
pub struct Monitors {
    places: Places,
    firecracker: Firecracker,
    qemu: Qemu,
    kvm: Kvm,
    configured: Wish,
}

impl Monitors {
    /// The monitors of this host. `firecracker` is where the configuration says that it is.
    pub fn new(places: Places, kvm: Kvm, configured: Wish, firecracker: Option<PathBuf>) -> Self {
        Self {
            firecracker: Firecracker::new(places.clone(), firecracker),
            qemu: Qemu::new(places.clone(), kvm),
            places,
            kvm,
            configured,
        }
    }

    /// What is installed may change while the service runs.
    fn facts(&self) -> Facts {
        Facts {
            kvm: self.kvm == Kvm::Works,
            firecracker: self.firecracker.program().is_some(),
            qemu: Qemu::is_installed(),
        }
    }

    fn get(&self, monitor: Monitor) -> &dyn Vmm {
        match monitor {
            Monitor::Firecracker => &self.firecracker,
            Monitor::Qemu => &self.qemu,
        }
    }

    /// The monitor of a machine that is up.
    fn of(&self, vm: VmId) -> &dyn Vmm {
        self.get(if self.firecracker.has(vm) { Monitor::Firecracker } else { Monitor::Qemu })
    }
}

#[async_trait]
impl Vmm for Monitors {
    fn overlay_by(&self, wish: Wish, vcpus: u32) -> OverlayBy {
        match choose(wish, self.configured, self.facts(), vcpus) {
            Ok(Monitor::Qemu) => OverlayBy::Vmm,
            // What has no monitor now may get any later.
            Ok(Monitor::Firecracker) | Err(_) => OverlayBy::Host,
        }
    }

    async fn jail_spec(&self, machine: &Machine) -> Result<JailSpec> {
        let is_layered = machine.drives.iter().any(|drive| matches!(drive.medium, Medium::Layer { .. }));
        let wish = match machine.vmm {
            Wish::Only(Monitor::Firecracker) if is_layered => {
                let message =
                    "the system disk of this sandbox is in QEMU's format, which Firecracker does not \
                               read; create it again with --vmm firecracker"
                        .to_owned();
                return Err(Error::HostNotReady { message });
            }
            _ if is_layered => Wish::Only(Monitor::Qemu),
            wish => wish,
        };
        let chosen = choose(wish, self.configured, self.facts(), machine.vcpus);
        let chosen = chosen.map_err(|refused| Error::HostNotReady { message: refused.to_string() })?;
        tracing::info!(vm = %machine.vm, monitor = %chosen, "preparing a sandbox");
        self.get(chosen).jail_spec(machine).await
    }

    async fn prepare_launch(&self, machine: &Machine) -> Result<VmmCommand> {
        self.of(machine.vm).prepare_launch(machine).await
    }

    async fn configure(&self, machine: &Machine, started: &Started) -> Result<()> {
        self.of(machine.vm).configure(machine, started).await
    }

    async fn connect(&self, vm: VmId, channel: Channel) -> Result<UnixStream> {
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
        let works = choose(Wish::Auto, self.configured, facts, 1).is_ok();
        checks.push(Check {
            name: "machine monitor",
            status: if works { Status::Pass } else { Status::Fail },
            message: explain(self.configured, facts),
            hint: if works { String::new() } else { "install the package qemu-system-x86".to_owned() },
        });
        checks
    }

    async fn found(&self) -> Result<Vec<VmId>> {
        monitor_files::socket_dirs(&self.places)
    }
}
