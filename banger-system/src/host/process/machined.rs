//! The list of systemd-machined, which `machinectl list` prints.
//! See <https://www.freedesktop.org/software/systemd/man/latest/org.freedesktop.machine1.html>

use std::{fs, time::Duration};

use async_trait::async_trait;
use banger_domain::{id::VmId, resource};
use zbus::{Connection, OwnedObjectPath, Proxy, proxy::MethodFlags};

use crate::ports::{FromHost as _, HostError, host_error::Result, machines::Machines};

const MACHINED: &str = "org.freedesktop.machine1";
const PATH: &str = "/org/freedesktop/machine1";
const MANAGER: &str = "org.freedesktop.machine1.Manager";
const SERVICE: &str = "banger";
const CLASS: &str = "vm";
/// D-Bus may have to start it.
const TIMEOUT: Duration = Duration::from_secs(30);
/// What a call fails with on a host that has no systemd-machined, or does not start it.
const ABSENT: [&str; 4] = [
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    "org.freedesktop.systemd1.NoSuchUnit",
    "org.freedesktop.systemd1.UnitMasked",
];
const EXISTS: &str = "org.freedesktop.machine1.MachineExists";

/// The list of systemd-machined, on a host that has it.
pub struct Machined {
    connection: Connection,
}

impl Machined {
    /// Returns the list on this bus.
    pub fn new(connection: Connection) -> Self {
        Self { connection }
    }

    async fn call(&self, name: &str, pid: u32, interfaces: Vec<i32>) -> zbus::Result<()> {
        let manager = Proxy::new(&self.connection, MACHINED, PATH, MANAGER).await?;
        let id: Vec<u8> = Vec::new();
        let body = (name, id, SERVICE, CLASS, pid, "", interfaces);
        // It takes the process where it is, in the unit of its VMM, and drops the entry when that unit ends.
        let registered: Option<OwnedObjectPath> =
            manager.call_with_flags("RegisterMachineWithNetwork", MethodFlags::empty(), &body).await?;
        drop(registered);
        Ok(())
    }
}

#[async_trait]
impl Machines for Machined {
    async fn register(&self, vm: VmId, pid: u32, tap: &str) -> Result<()> {
        let name = resource::machine_name(vm);
        let registered = tokio::time::timeout(TIMEOUT, self.call(&name, pid, indices(tap)));
        let late = |_| HostError::timeout("systemd-machined", TIMEOUT);
        match registered.await.map_err(late)? {
            Err(zbus::Error::MethodError(name, ..)) if is_fine(&name) => Ok(()),
            registered => registered.map_err(|error| HostError::other(format!("register {name}"), error)),
        }
    }
}

/// Whether an error means that there is nothing to do.
fn is_fine(name: &str) -> bool {
    name == EXISTS || ABSENT.contains(&name)
}

/// Returns the index of an interface of the host, if there is one of this name.
fn indices(interface: &str) -> Vec<i32> {
    let index = fs::read_to_string(format!("/sys/class/net/{interface}/ifindex"));
    index.ok().and_then(|index| index.trim().parse().ok()).into_iter().collect()
}
