//! The part of the initramfs that is one boot's own: what the agent is told.

use banger_proto::guest::config::{GuestConfig, GuestFile, Init as GuestInit, WorkDisk};

use super::error::Result;
use crate::{
    domain::{
        id::Timestamp,
        kernel::initramfs,
        vm::{Init, Vm},
    },
    ports,
};

/// Where the work disk is mounted.
const WORK_MOUNT: &str = "/root";

/// The archive for this boot of a machine.
pub(super) fn of(vm: &Vm, now: Timestamp) -> Result<Vec<u8>> {
    let config = config(vm, now);
    let doing = "write the guest's configuration";
    let json = serde_json::to_vec(&config).map_err(|error| ports::Error::other(doing, error))?;
    Ok(initramfs::config_archive(&json).map_err(|error| ports::Error::other(doing, error))?)
}

fn config(vm: &Vm, now: Timestamp) -> GuestConfig {
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
        files: vec![file("/etc/hostname", format!("{hostname}\n")), file("/etc/hosts", hosts(hostname))],
    }
}

fn hosts(hostname: &str) -> String {
    format!(
        "127.0.0.1\tlocalhost\n127.0.1.1\t{hostname}\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
    )
}
