//! Loads the modules that the host selected, in its order: first those that are the same for every sandbox, and the
//! drivers of its devices once it is configured.

use std::{
    fs::{self, File},
    io,
};

use banger_proto::guest::config::MODULES_PATH;

use crate::log;

/// When a module is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Before the configuration arrives.
    Common,
    /// After it has arrived. A driver that has probed a disk or a network interface keeps its size or its hardware
    /// address, so it must not see those of another sandbox.
    Devices,
}

/// The modules of [`Stage::Devices`]. No other module in the list needs them.
const DEVICE_DRIVERS: [&str; 2] = ["virtio_blk.ko", "virtio_net.ko"];

impl Stage {
    fn of(path: &str) -> Self {
        let is_driver = DEVICE_DRIVERS.iter().any(|name| path.rsplit('/').next() == Some(name));
        if is_driver { Self::Devices } else { Self::Common }
    }
}

/// Loads the modules of a stage. A failure is reported as a problem, and loading continues, because the next module
/// may not depend on it.
pub fn load(stage: Stage) -> Vec<String> {
    let list = match fs::read_to_string(MODULES_PATH) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => return vec![format!("cannot read the list of modules: {error}")],
    };
    let mut problems = Vec::new();
    for path in list.lines().filter(|line| !line.is_empty() && Stage::of(line) == stage) {
        if let Err(error) = load_one(path) {
            let problem = format!("cannot load {path}: {error}");
            log::error(&problem);
            problems.push(problem);
        }
    }
    problems
}

fn load_one(path: &str) -> io::Result<()> {
    let file = File::open(path)?;
    match rustix::system::finit_module(&file, c"", 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_drivers_of_disks_and_network_interfaces_wait_for_the_configuration() {
        for (path, expect) in [
            ("/lib/modules/6.1.0/kernel/drivers/block/virtio_blk.ko", Stage::Devices),
            ("/lib/modules/6.1.0/kernel/drivers/net/virtio_net.ko", Stage::Devices),
            ("/lib/modules/6.1.0/kernel/drivers/net/net_failover.ko", Stage::Common),
            ("/lib/modules/6.1.0/kernel/drivers/char/virtio_console.ko", Stage::Common),
            ("/lib/modules/6.1.0/kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko", Stage::Common),
            ("/lib/modules/6.1.0/kernel/fs/ext4/ext4.ko", Stage::Common),
        ] {
            assert_eq!(Stage::of(path), expect, "{path}");
        }
    }
}
