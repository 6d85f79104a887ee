//! The part of the initramfs that is one boot's own: what the agent is told.

use core::net::Ipv6Addr;

use banger_proto::guest::config::{GuestConfig, GuestFile, GuestNetwork, Init as GuestInit, WorkDisk};

use super::error::Result;
use crate::{
    domain::{
        id::Timestamp,
        kernel::initramfs,
        net::{nic::Nic, subnet::Subnet},
        vm::{Init, Vm},
    },
    ports,
};

/// Where the work disk is mounted.
const WORK_MOUNT: &str = "/root";
/// The host, as it is called on every TAP.
const LINK_GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The archive for this boot of a machine.
pub(super) fn of(vm: &Vm, nic: &Nic, subnet: Subnet, now: Timestamp) -> Result<Vec<u8>> {
    let config = config(vm, nic, subnet, now);
    let doing = "write the guest's configuration";
    let json = serde_json::to_vec(&config).map_err(|error| ports::Error::other(doing, error))?;
    Ok(initramfs::config_archive(&json).map_err(|error| ports::Error::other(doing, error))?)
}

fn config(vm: &Vm, nic: &Nic, subnet: Subnet, now: Timestamp) -> GuestConfig {
    let hostname = vm.spec.hostname.as_str();
    let file = |path: &str, content: String| GuestFile { path: path.to_owned(), mode: 0o644, content };
    GuestConfig {
        token: vm.token.as_str().to_owned(),
        hostname: hostname.to_owned(),
        root_device: "/dev/vda".to_owned(),
        work_disk: Some(WorkDisk { device: "/dev/vdb".to_owned(), mount_point: WORK_MOUNT.to_owned() }),
        init: match &vm.spec.init {
            Init::Auto => GuestInit::Auto,
            Init::Agent => GuestInit::Agent,
            Init::Path(path) => GuestInit::Path(path.clone()),
        },
        unix_usec: now.0,
        network: Some(GuestNetwork {
            mac: nic.mac().0,
            ipv4: nic.v4,
            gateway4: subnet.gateway().0,
            ipv6: nic.v6,
            gateway6: LINK_GATEWAY6,
        }),
        files: vec![
            file("/etc/hostname", format!("{hostname}\n")),
            file("/etc/hosts", hosts(hostname)),
            file("/etc/resolv.conf", resolv_conf(subnet)),
        ],
    }
}

/// The host answers for the names of guests, and asks others for those with NAT.
fn resolv_conf(subnet: Subnet) -> String {
    format!("nameserver {}\nsearch vm\n", subnet.gateway().0)
}

fn hosts(hostname: &str) -> String {
    format!(
        "127.0.0.1\tlocalhost\n127.0.1.1\t{hostname}\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
    )
}
