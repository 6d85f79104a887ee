//! What a sandbox's unit uses of the host, as its control group counts it (cgroup v2, "Interface Files").

use std::{fs, path::Path, time::Duration};

use banger_domain::{
    id::{Uid, VmId},
    resource,
};
use banger_proto::size::Bytes;

use crate::ports::supervisor::Usage;

/// Where control groups are.
pub(super) const CONTROL_GROUPS: &str = "/sys/fs/cgroup";

/// Returns the usage of the unit of a VM. None if it has no control group, or one of version 1.
pub(super) fn of_unit(root: &Path, vm: VmId, owner: Uid) -> Option<Usage> {
    // systemd nests a slice in those that its name begins with.
    let slice = Path::new("banger.slice").join(resource::slice_name(owner));
    let group = root.join(slice).join(resource::unit_name(vm));
    let memory = fs::read_to_string(group.join("memory.current")).ok()?;
    let cpu = fs::read_to_string(group.join("cpu.stat")).ok()?;
    let usec = cpu.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse().ok())?;
    Some(Usage { memory: Bytes(memory.trim().parse().ok()?), cpu: Duration::from_micros(usec) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_control_group_of_a_unit_says_what_it_uses() {
        let (root, vm, owner) = (tempfile::tempdir().unwrap(), VmId::from_bits(7), Uid(1000));
        assert_eq!(of_unit(root.path(), vm, owner), None);
        let group = root.path().join(format!("banger.slice/banger-u1000.slice/banger-vm-{vm}.service"));
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("memory.current"), "4096\n").unwrap();
        // Version 1 has no such file, and no number in it.
        assert_eq!(of_unit(root.path(), vm, owner), None);
        fs::write(group.join("cpu.stat"), "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\n")
            .unwrap();
        let expect = Usage { memory: Bytes(4096), cpu: Duration::from_millis(1500) };
        assert_eq!(of_unit(root.path(), vm, owner), Some(expect));
        assert_eq!(of_unit(root.path(), vm, Uid(1001)), None);
    }
}
