//! Optional features that the host gives a sandbox. Each is one type, which checks what it needs from the host
//! (`doctor` prints the checks) and adds its part to a start. A new capability is one more entry in [`ALL`].

use async_trait::async_trait;
use banger_domain::{
    net::{nic::Nic, subnet::Subnet},
    vm::Vm,
};
use banger_proto::guest::config::{GuestConfig, WorkDisk as GuestDisk};

use crate::ports::{Check, Ports, Status};

/// What a start is made of; capabilities add to it.
pub(super) struct Plan {
    /// The network interface on the host.
    pub(super) nic: Nic,
    /// The agent's configuration.
    pub(super) guest: GuestConfig,
}

/// An optional feature of a sandbox.
#[async_trait]
pub(super) trait Capability: Send + Sync {
    /// Checks what the capability needs from the host.
    async fn checks(&self, ports: &Ports) -> Vec<Check>;
    /// Adds the capability's part to a start.
    fn add_to(&self, _plan: &mut Plan, _vm: &Vm, _subnet: Subnet) {}
}

/// All capabilities, in the order in which `doctor` prints them.
pub(super) const ALL: [&dyn Capability; 4] = [&WorkDisk, &Nat, &Names, &PublishedPorts];

/// The work disk, which outlives the system disk.
struct WorkDisk;

/// Device and mount point in the guest.
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

/// Internet access behind the host's address.
struct Nat;

#[async_trait]
impl Capability for Nat {
    async fn checks(&self, ports: &Ports) -> Vec<Check> {
        let internet = Check {
            name: "internet",
            status: Status::Pass,
            message: "sandboxes have it only with `--nat` or `--egress`, so that code in them cannot send data away"
                .to_owned(),
            hint: String::new(),
        };
        let mut checks = ports.network.nat_checks().await;
        checks.insert(0, internet);
        checks
    }
}

/// DNS names of sandboxes.
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
            // The host's name server answers for guests, and forwards other names for guests with NAT.
            network.name_server = subnet.gateway().0;
            network.search = DOMAIN.to_owned();
        }
    }
}

/// Published ports.
struct PublishedPorts;

#[async_trait]
impl Capability for PublishedPorts {
    async fn checks(&self, ports: &Ports) -> Vec<Check> {
        ports.network.port_checks().await
    }

    fn add_to(&self, plan: &mut Plan, vm: &Vm, _subnet: Subnet) {
        plan.nic.ports = vm.spec.ports.clone();
    }
}
