//! Monitors as transient services of systemd: they live on when this service does not, under a user that
//! exists for them alone, in a file system that has programs and nothing else.

use std::os::fd::OwnedFd;

use async_trait::async_trait;
use zbus::Connection;

use super::{
    blocking::blocking,
    shim::{self, Told},
    units::{Kind, Properties, Units, bind, text},
};
use crate::{
    domain::{
        id::VmId,
        resource::{self, MACHINE_DIRECTORY, Places},
    },
    ports::{Ended, Error, Launch, NetworkOf, Result, Started, Supervisor},
};

/// The supervisor.
pub struct SystemdSupervisor {
    units: Units,
    places: Places,
}

impl SystemdSupervisor {
    /// The systemd that is reached over this bus.
    pub async fn new(connection: Connection, places: Places) -> Result<Self> {
        Ok(Self { units: Units::new(connection).await?, places })
    }

    fn properties(&self, launch: &Launch, socket: OwnedFd) -> Result<Properties> {
        let directory =
            launch.directory.as_deref().map(|path| (text(path), MACHINE_DIRECTORY.to_owned(), false, 0));
        let devices: Vec<String> = launch.devices.iter().map(|path| text(path)).collect();
        let allowed: Vec<(String, String)> =
            devices.iter().map(|path| (path.clone(), "rw".to_owned())).collect();
        let kind = Kind {
            description: &launch.description,
            program: shim::program(&self.places),
            user: resource::dynamic_user(launch.vm),
            slice: resource::slice_name(launch.owner),
            // The monitor narrows its own filter further.
            calls: vec!["@system-service", "seccomp"],
            sockets: vec!["AF_UNIX"],
        };
        let mut list = Properties::confined(&self.places, kind, socket)?;
        // At the end of the host, this service goes first and powers guests off in order.
        list.set("Before", vec!["banger-system.service"].into())?;
        let writable: Vec<_> = devices.iter().cloned().map(bind).chain(directory).collect();
        // An empty list would take those back that are read only.
        if !writable.is_empty() {
            list.set("BindPaths", writable.into())?;
        }
        if devices.is_empty() {
            list.set("PrivateDevices", true.into())?;
        } else {
            // The device belongs to this group on every distribution that has one for it.
            list.set("SupplementaryGroups", vec!["kvm"].into())?;
        }
        list.set("DeviceAllow", allowed.into())?;
        // In the host's network it has no more than the TAPs that its user owns: it makes no sockets but
        // those of files.
        list.set("PrivateNetwork", (launch.network == NetworkOf::Nobody).into())?;
        // MemoryDenyWriteExecute is not here: QEMU's translator writes the code that it runs.
        list.set("MemoryMax", launch.memory_max.0.into())?;
        list.set("TasksMax", 128u64.into())?;
        // In microseconds of processor time for each second.
        list.set("CPUQuotaPerSecUSec", (u64::from(launch.cpu_percent.max(100)) * 10_000).into())?;
        list.set("LimitNOFILE", 1024u64.into())?;
        // Its sockets are for the service, which is another user and has no right over others' files.
        list.set("UMask", (if launch.directory.is_some() { 0u32 } else { 0o077 }).into())?;
        Ok(list)
    }
}

#[async_trait]
impl Supervisor for SystemdSupervisor {
    async fn start(&self, launch: Launch) -> Result<Started> {
        let jail = self.places.jail();
        std::fs::create_dir_all(&jail)
            .map_err(|error| Error::os(format!("make {}", jail.display()), error))?;
        let (ours, theirs) = shim::socket_pair()?;
        let properties = self.properties(&launch, theirs)?;
        let unit = resource::unit_name(launch.vm);
        self.units.start(&unit, properties).await?;

        match blocking("talk to the shim", move || shim::order(&ours, launch, None)).await? {
            Told::Runs => {
                let (pid, user) = self.units.process(&unit).await?;
                Ok(Started { unit, pid, user })
            }
            Told::Ended => Err(Error::Vmm {
                message: format!("the unit {unit} ended before the machine ran; see journalctl -u {unit}"),
            }),
        }
    }

    /// The shim passes on every signal but the one that nobody can hear.
    async fn kill(&self, vm: VmId, signal: i32) -> Result<()> {
        self.units.kill(&resource::unit_name(vm), signal).await
    }

    async fn remove(&self, vm: VmId) -> Result<()> {
        self.units.remove(&resource::unit_name(vm)).await.map(drop)
    }

    async fn ended(&self, vm: VmId) -> Result<Ended> {
        self.units.ended(&resource::unit_name(vm)).await
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
}
