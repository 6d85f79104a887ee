//! What a host gives a machine beside processors, memory and a link: one type for each, which says what it needs
//! of the host (this is what `doctor` prints) and what it adds to a start. The engine goes through the list, and
//! one more changes nothing but the list.

use async_trait::async_trait;
use banger_domain::{
    net::{nic::Nic, subnet::Subnet},
    vm::Vm,
};
use banger_proto::guest::config::{GuestConfig, WorkDisk as GuestDisk};

use crate::ports::{Check, Ports};

/// A start that is being put together.
pub(super) struct Plan {
    /// The interface on the host.
    pub(super) nic: Nic,
    /// What the agent is told.
    pub(super) guest: GuestConfig,
}

/// What a machine may have.
#[async_trait]
pub(super) trait Capability: Send + Sync {
    /// What it needs of the host, and whether that is there.
    async fn checks(&self, ports: &Ports) -> Vec<Check>;
    /// Adds what this sandbox gets of it.
    fn add_to(&self, plan: &mut Plan, vm: &Vm, subnet: Subnet);
}

/// All of them, in the order in which `doctor` prints them.
pub(super) const ALL: [&dyn Capability; 4] = [&WorkDisk, &Nat, &Names, &PublishedPorts];

/// A disk that keeps what its user writes, whatever becomes of the system.
struct WorkDisk;

/// Where it is in the guest: behind the system's, and mounted on root's home.
const WORK_DISK: (&str, &str) = ("/dev/vdb", "/root");

#[async_trait]
impl Capability for WorkDisk {
    async fn checks(&self, ports: &Ports) -> Vec<Check> {
        ports.disks.checks().await
    }

    fn add_to(&self, plan: &mut Plan, _vm: &Vm, _subnet: Subnet) {
        let (device, mount_point) = (WORK_DISK.0.to_owned(), WORK_DISK.1.to_owned());
        plan.guest.work_disk = Some(GuestDisk { device, mount_point });
    }
}

/// A way beyond the host, in the host's name.
struct Nat;

#[async_trait]
impl Capability for Nat {
    async fn checks(&self, ports: &Ports) -> Vec<Check> {
        ports.network.checks_of_nat().await
    }

    fn add_to(&self, plan: &mut Plan, vm: &Vm, _subnet: Subnet) {
        plan.nic.nat = vm.spec.nat;
    }
}

/// Names of guests, and a server that knows them.
struct Names;

/// The domain of guests.
const DOMAIN: &str = "vm";

#[async_trait]
impl Capability for Names {
    async fn checks(&self, ports: &Ports) -> Vec<Check> {
        ports.names.checks().await
    }

    fn add_to(&self, plan: &mut Plan, vm: &Vm, subnet: Subnet) {
        plan.guest.names = vec![format!("{}.{DOMAIN}", vm.name), vm.spec.hostname.to_string()];
        if let Some(network) = &mut plan.guest.network {
            // The host answers for the names of guests, and asks others for those with NAT.
            network.name_server = subnet.gateway().0;
            network.search = DOMAIN.to_owned();
        }
    }
}

/// Ports of the host that lead to the guest.
struct PublishedPorts;

#[async_trait]
impl Capability for PublishedPorts {
    async fn checks(&self, ports: &Ports) -> Vec<Check> {
        ports.network.checks_of_ports().await
    }

    fn add_to(&self, plan: &mut Plan, vm: &Vm, _subnet: Subnet) {
        plan.nic.ports = vm.spec.ports.clone();
    }
}
