//! Runs VMMs as transient services of systemd: they outlive this service, and each has a dynamic user and a file
//! system with nothing but programs.

use std::{collections::HashMap, os::fd::OwnedFd, path::Path};

use async_trait::async_trait;
use banger_domain::{
    id::{Uid, VmId},
    resource::{self, Paths},
};
use banger_jail::jail::VM_DIRECTORY;
use zbus::Connection;

use super::{
    shim::{self, Reply},
    units::{Kind, Properties, Units, bind, text},
    usage,
};
use crate::{
    host::{blocking::blocking, programs},
    ports::{
        FromHost as _,
        supervisor::{EmptyJail, Ended, Error, Result, Started, Supervisor, Usage},
        vmm::{JailSpec, NetworkNamespace, VmmCommand},
    },
};

/// Below the limits of the sandbox, its owner and all sandboxes, only sandboxes are candidates. If the host itself
/// runs out of memory, a sandbox counts like any other program.
const OOM_SCORE_ADJUST: i32 = 0;

/// The supervisor.
pub struct SystemdSupervisor {
    units: Units,
    paths: Paths,
}

impl SystemdSupervisor {
    /// Returns a supervisor for the systemd on this bus.
    pub async fn new(connection: Connection, paths: Paths) -> Result<Self> {
        Ok(Self { units: Units::new(connection).await?, paths })
    }

    fn properties(&self, wanted: &JailSpec, socket: OwnedFd) -> Result<Properties> {
        let directory =
            wanted.directory.as_deref().map(|path| (text(path), VM_DIRECTORY.to_owned(), false, 0));
        let devices: Vec<String> = wanted.devices.iter().map(|path| text(path)).collect();
        let allowed: Vec<(String, String)> =
            devices.iter().map(|path| (path.clone(), "rw".to_owned())).collect();
        let kind = Kind {
            description: &wanted.description,
            program: programs::shim(&self.paths),
            user: resource::dynamic_user(wanted.vm),
            slice: resource::slice_name(wanted.owner),
            oom_score_adjust: OOM_SCORE_ADJUST,
        };
        let mut list = Properties::confined(&self.paths, kind, socket)?;
        // On shutdown this service stops first, and powers guests off.
        list.set("Before", vec!["banger-system.service"].into())?;
        let writable: Vec<_> = devices.iter().cloned().map(bind).chain(directory).collect();
        // An empty list would reset the read-only ones.
        if !writable.is_empty() {
            list.set("BindPaths", writable.into())?;
        }
        if devices.is_empty() {
            list.set("PrivateDevices", true.into())?;
        } else {
            // On every distribution with this group, the device belongs to it.
            list.set("SupplementaryGroups", vec!["kvm"].into())?;
        }
        list.set("DeviceAllow", allowed.into())?;
        // In the host's network it has only the TAPs of its user: it can make no sockets but unix ones.
        list.set("PrivateNetwork", (wanted.network == NetworkNamespace::Private).into())?;
        // MemoryDenyWriteExecute is not set: QEMU's translator executes code that it writes.
        list.set("MemoryMax", wanted.memory_max.0.into())?;
        list.set("TasksMax", 128u64.into())?;
        // In microseconds of processor time per second.
        list.set("CPUQuotaPerSecUSec", (u64::from(wanted.cpu_percent.max(100)) * 10_000).into())?;
        list.set("LimitNOFILE", 1024u64.into())?;
        // Its sockets are for the service, which is another user and lacks the capability to ignore file permissions.
        list.set("UMask", (if wanted.directory.is_some() { 0u32 } else { 0o077 }).into())?;
        Ok(list)
    }
}

/// A started unit whose shim waits for its order.
struct Unit {
    unit: String,
    shim: OwnedFd,
}

#[async_trait]
impl EmptyJail for Unit {
    async fn run(self: Box<Self>, launch: VmmCommand) -> Result<Started> {
        let Self { unit, shim } = *self;
        match blocking("talk to the shim", move || shim::order(&shim, launch, None)).await? {
            Reply::Started { pid, user } => Ok(Started { unit, pid, user }),
            Reply::Ended => Err(Error::Exited {
                message: format!("the unit {unit} ended before the VMM started; see journalctl -u {unit}"),
            }),
        }
    }
}

#[async_trait]
impl Supervisor for SystemdSupervisor {
    async fn start_jail(&self, wanted: JailSpec) -> Result<Box<dyn EmptyJail>> {
        let jail = self.paths.jail();
        std::fs::create_dir_all(&jail)
            .map_err(|error| Error::os(format!("make {}", jail.display()), error))?;
        let (shim, theirs) = shim::socket_pair()?;
        let properties = self.properties(&wanted, theirs)?;
        let unit = resource::unit_name(wanted.vm);
        self.units.start(&unit, properties).await?;
        Ok(Box::new(Unit { unit, shim }))
    }

    /// Sends a signal. The shim forwards every signal but SIGKILL, which it cannot catch.
    async fn kill(&self, vm: VmId, signal: i32) -> Result<()> {
        Ok(self.units.kill(&resource::unit_name(vm), signal).await?)
    }

    async fn freeze(&self, vm: VmId) -> Result<()> {
        Ok(self.units.freeze(&resource::unit_name(vm)).await?)
    }

    async fn thaw(&self, vm: VmId) -> Result<()> {
        Ok(self.units.thaw(&resource::unit_name(vm)).await?)
    }

    async fn remove(&self, vm: VmId) -> Result<()> {
        self.units.remove(&resource::unit_name(vm)).await?;
        Ok(())
    }

    async fn ended(&self, vm: VmId) -> Result<Ended> {
        Ok(self.units.ended(&resource::unit_name(vm)).await?)
    }

    async fn found(&self) -> Result<Vec<(VmId, Started)>> {
        let mut found = Vec::new();
        for unit in self.units.running("banger-vm-*.service").await? {
            let Some(vm) = resource::vm_of_unit(&unit) else { continue };
            let (pid, user) = self.units.process(&unit).await?;
            found.push((vm, Started { unit, pid, user }));
        }
        Ok(found)
    }

    async fn usage(&self, vms: Vec<(VmId, Uid)>) -> HashMap<VmId, Usage> {
        let read = move || {
            let root = Path::new(usage::CONTROL_GROUPS);
            let all = vms.into_iter().filter_map(|(vm, owner)| Some((vm, usage::of_unit(root, vm, owner)?)));
            Ok::<_, Error>(all.collect())
        };
        // It fails only when the service ends.
        blocking("read the control groups of sandboxes", read).await.unwrap_or_default()
    }
}
