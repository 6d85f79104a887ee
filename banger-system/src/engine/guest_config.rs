//! Builds the configuration that the agent of a guest gets at each boot.

use banger_domain::{
    id::Timestamp,
    launch_spec,
    net::{
        nic::{Mac, Nic},
        subnet::Subnet,
    },
    vm::{Init, Vm},
};
use banger_image::oci::config::ImageConfig;
use banger_proto::guest::config::{
    GuestConfig, GuestNetwork, GuestSsh, GuestTimezone, Init as GuestInit, Programs,
};

use super::{Shared, error::Result};
use crate::ports::kernel_files::BootFiles;

/// The disks of every sandbox: the system disk and the work disk. The module tree of the kernel comes after them.
const DISKS: usize = 2;

impl Shared {
    /// Returns the configuration of the boot of a VM that is under way. After a restart of the service it is the same,
    /// because it is made of what is stored.
    pub(super) async fn boot_config(&self, vm: &Vm) -> Result<GuestConfig> {
        let files = self.ports.kernel_files.boot_files(vm.kernel).await?;
        let mut guest = self.plan(vm).await?.guest;
        guest.module_disk = module_disk(&files);
        Ok(guest)
    }
}

/// Returns the guest's name of the drive with all modules of its kernel, if there is one.
fn module_disk(files: &BootFiles) -> Option<String> {
    files.module_tree.is_some().then(|| launch_spec::device(DISKS))
}

/// Returns the configuration of a guest, before capabilities add to it.
pub(super) fn config(vm: &Vm, image: &ImageConfig, nic: &Nic, subnet: Subnet, now: Timestamp) -> GuestConfig {
    let hostname = vm.spec.hostname.as_str();
    let (gateway4, gateway6) = subnet.gateway();
    GuestConfig {
        token: vm.token.as_str().to_owned(),
        hostname: hostname.to_owned(),
        names: vec![hostname.to_owned()],
        root_device: "/dev/vda".to_owned(),
        work_disk: None,
        module_disk: None,
        init: match &vm.spec.init {
            Init::Auto => GuestInit::Auto,
            Init::Agent => GuestInit::Agent,
            Init::Path(path) => GuestInit::Path(path.clone()),
        },
        unix_usec: now.0,
        network: Some(GuestNetwork {
            mac: nic.mac().0,
            ipv4: nic.v4,
            gateway4,
            ipv6: nic.v6,
            gateway6,
            gateway_mac: Mac::HOST.0,
            name_server: gateway4,
            search: String::new(),
        }),
        ssh: Some(GuestSsh {
            host_key: vm.host_key.secret().to_owned(),
            host_key_public: vm.host_key.public().to_owned(),
            authorized_keys: vm.spec.authorized_keys.iter().map(|key| key.as_str().to_owned()).collect(),
        }),
        timezone: vm
            .spec
            .timezone
            .as_ref()
            .map(|zone| GuestTimezone { name: zone.name().to_owned(), rule: zone.rule().map(str::to_owned) }),
        programs: programs(image),
        files: Vec::new(),
    }
}

/// Returns how the image wants its programs to run.
fn programs(image: &ImageConfig) -> Programs {
    let variable =
        |pair: &String| pair.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    let some = |text: &String| (!text.is_empty()).then(|| text.clone());
    Programs {
        env: image.env.iter().filter_map(variable).collect(),
        user: some(&image.user),
        working_dir: some(&image.working_dir),
        entrypoint: image.entrypoint.clone(),
        cmd: image.cmd.clone(),
    }
}
