//! Monitors as transient services of systemd: they live on when this service does not, under a user that
//! exists for them alone, in a file system that has programs and nothing else.

use std::{os::fd::OwnedFd, path::Path, time::Duration};

use async_trait::async_trait;
use futures_util::StreamExt;
use zbus::{Connection, OwnedVariant, Variant, proxy::CacheProperties};
use zbus_systemd::systemd1::{ManagerProxy, ServiceProxy, UnitProxy};

use super::{
    blocking::blocking,
    shim::{self, Told},
};
use crate::{
    domain::{
        id::VmId,
        resource::{self, MACHINE_DIRECTORY, Places},
    },
    ports::{Ended, Error, Launch, NetworkOf, Result, Started, Supervisor},
};

/// How long a unit may take to go after it was killed.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(20);
/// A change of a unit is told by a signal. Should one be lost, this is how long it takes to be seen.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
const SIGKILL: i32 = 9;
const EPERM: i32 = 1;
/// The user of a process that is gone; the kernel gives this number to nobody.
const NOBODY: u32 = u32::MAX;

/// The supervisor.
pub struct SystemdSupervisor {
    connection: Connection,
    places: Places,
}

type Properties = Vec<(String, OwnedVariant)>;

impl SystemdSupervisor {
    /// The systemd that is reached over this bus.
    pub async fn new(connection: Connection, places: Places) -> Result<Self> {
        let supervisor = Self { connection, places };
        // Without this, systemd sends no signals about units.
        supervisor.manager().await?.subscribe().await.map_err(|error| bus("subscribe to systemd", error))?;
        Ok(supervisor)
    }

    async fn manager(&self) -> Result<ManagerProxy<'_>> {
        ManagerProxy::new(&self.connection).await.map_err(|error| bus("reach systemd", error))
    }

    /// The state of a unit and, when it is there, its object. `None` when systemd does not know it.
    async fn look(&self, vm: VmId) -> Result<Option<(String, zbus::OwnedObjectPath)>> {
        let unit = resource::unit_name(vm);
        let path = match self.manager().await?.get_unit(unit.clone()).await {
            Ok(path) => path,
            Err(error) if is_no_such_unit(&error) => return Ok(None),
            Err(error) => return Err(bus("look at a unit", error)),
        };
        let state = async {
            let builder = UnitProxy::builder(&self.connection).path(path.clone());
            builder.cache_properties(CacheProperties::No).build().await?.active_state().await
        };
        match state.await {
            Ok(state) => Ok(Some((state, path))),
            // It went between the two calls.
            Err(zbus::Error::MethodError(..)) => Ok(None),
            Err(error) => Err(bus("look at a unit", error)),
        }
    }

    /// How a unit that failed did.
    async fn how(&self, path: zbus::OwnedObjectPath) -> zbus::Result<String> {
        let builder = ServiceProxy::builder(&self.connection).path(path);
        let service = builder.cache_properties(CacheProperties::No).build().await?;
        let (result, code, status) =
            (service.result().await?, service.exec_main_code().await?, service.exec_main_status().await?);
        // As in wait(2): 1 is CLD_EXITED, 2 and 3 are ends by a signal.
        Ok(match (result.as_str(), code) {
            ("oom-kill", _) => "oom-kill".to_owned(),
            (_, 1) => format!("exited:{status}"),
            (_, 2 | 3) => format!("killed:{status}"),
            (other, _) => other.to_owned(),
        })
    }

    fn properties(&self, launch: &Launch, socket: OwnedFd) -> zbus::Result<Properties> {
        let text = |path: &Path| path.display().to_string();
        let shim = text(&shim::program(&self.places));
        let command = vec![(shim.clone(), vec![shim], false)];
        // What is not there is left out.
        let bind = |path: String| (path.clone(), path, true, 0u64);
        let directory =
            launch.directory.as_deref().map(|path| (text(path), MACHINE_DIRECTORY.to_owned(), false, 0));
        let visible: Vec<_> = shim::visible(&self.places).iter().map(|path| bind(text(path))).collect();
        let devices: Vec<String> = launch.devices.iter().map(|path| text(path)).collect();
        let allowed: Vec<(String, String)> =
            devices.iter().map(|path| (path.clone(), "rw".to_owned())).collect();

        let mut list = Vec::new();
        let mut set = |name: &str, value: Variant<'_>| -> zbus::Result<()> {
            list.push((name.to_owned(), OwnedVariant::try_from(value)?));
            Ok(())
        };
        set("Description", launch.description.as_str().into())?;
        set("Type", "exec".into())?;
        set("ExecStart", command.into())?;
        set("StandardInputFileDescriptor", zbus::Fd::from(socket).into())?;
        set("StandardOutput", "journal".into())?;
        set("StandardError", "journal".into())?;
        set("Slice", resource::slice_name(launch.owner).into())?;
        // At the end of the host, this service goes first and powers guests off in order.
        set("Before", vec!["banger-system.service"].into())?;
        set("KillMode", "control-group".into())?;
        set("TimeoutStopUSec", 10_000_000u64.into())?;
        set("OOMPolicy", "stop".into())?;
        set("OOMScoreAdjust", 200i32.into())?;

        set("DynamicUser", true.into())?;
        set("User", resource::dynamic_user(launch.vm).into())?;
        set("CapabilityBoundingSet", 0u64.into())?;
        set("AmbientCapabilities", 0u64.into())?;
        set("NoNewPrivileges", true.into())?;
        set("RootDirectory", self.places.jail().display().to_string().into())?;
        set("MountAPIVFS", true.into())?;
        set("BindReadOnlyPaths", visible.into())?;
        let writable: Vec<_> = devices.iter().cloned().map(bind).chain(directory).collect();
        // An empty list would take those back that are read only.
        if !writable.is_empty() {
            set("BindPaths", writable.into())?;
        }
        if devices.is_empty() {
            set("PrivateDevices", true.into())?;
        } else {
            // The device belongs to this group on every distribution that has one for it.
            set("SupplementaryGroups", vec!["kvm"].into())?;
        }
        // Not strict: that would take /dev/null away, which the monitor's standard input is.
        set("DevicePolicy", "closed".into())?;
        set("DeviceAllow", allowed.into())?;
        // In the host's network it has no more than the TAPs that its user owns: it makes no sockets but
        // those of files.
        set("PrivateNetwork", (launch.network == NetworkOf::Nobody).into())?;
        set("PrivateIPC", true.into())?;
        set("PrivateTmp", true.into())?;
        set("ProtectProc", "invisible".into())?;
        set("ProcSubset", "pid".into())?;
        set("ProtectKernelTunables", true.into())?;
        set("ProtectKernelModules", true.into())?;
        set("ProtectKernelLogs", true.into())?;
        set("ProtectControlGroups", true.into())?;
        set("ProtectClock", true.into())?;
        set("ProtectHostname", true.into())?;
        set("RestrictAddressFamilies", (true, vec!["AF_UNIX"]).into())?;
        set("RestrictNamespaces", 0u64.into())?;
        set("RestrictRealtime", true.into())?;
        set("RestrictSUIDSGID", true.into())?;
        set("LockPersonality", true.into())?;
        set("KeyringMode", "private".into())?;
        set("SystemCallArchitectures", vec!["native"].into())?;
        // The monitor narrows its own filter further.
        set("SystemCallFilter", (true, vec!["@system-service", "seccomp"]).into())?;
        // A call that is not allowed fails instead of killing: QEMU asks for io_uring and memory policies,
        // and does without.
        set("SystemCallErrorNumber", EPERM.into())?;
        // MemoryDenyWriteExecute is not here: QEMU's translator writes the code that it runs.
        set("MemoryMax", launch.memory_max.0.into())?;
        set("MemorySwapMax", 0u64.into())?;
        set("TasksMax", 128u64.into())?;
        // In microseconds of processor time for each second.
        set("CPUQuotaPerSecUSec", (u64::from(launch.cpu_percent.max(100)) * 10_000).into())?;
        set("LimitCORE", 0u64.into())?;
        set("LimitNOFILE", 1024u64.into())?;
        // Its sockets are for the service, which is another user and has no right over others' files.
        set("UMask", (if launch.directory.is_some() { 0u32 } else { 0o077 }).into())?;
        Ok(list)
    }
}

#[async_trait]
impl Supervisor for SystemdSupervisor {
    async fn start(&self, launch: Launch) -> Result<Started> {
        let doing = "start a machine's unit";
        let jail = self.places.jail();
        std::fs::create_dir_all(&jail)
            .map_err(|error| Error::os(format!("make {}", jail.display()), error))?;
        let (ours, theirs) = shim::socket_pair()?;
        let properties = self.properties(&launch, theirs).map_err(|error| bus(doing, error))?;
        let unit = resource::unit_name(launch.vm);
        let manager = self.manager().await?;
        let started = manager.start_transient_unit(unit.clone(), "fail".to_owned(), properties, Vec::new());
        started.await.map_err(|error| bus(doing, error))?;

        match blocking("talk to the shim", move || shim::order(&ours, launch, None)).await? {
            Told::Runs => {
                let (pid, user) = self.process(&unit).await?;
                Ok(Started { unit, pid, user })
            }
            Told::Ended => Err(Error::Vmm {
                message: format!("the unit {unit} ended before the machine ran; see journalctl -u {unit}"),
            }),
        }
    }

    async fn kill(&self, vm: VmId, signal: i32) -> Result<()> {
        // The shim passes on every signal but the one that nobody can hear.
        let whom = if signal == SIGKILL { "all" } else { "main" };
        let killed = self.manager().await?.kill_unit(resource::unit_name(vm), whom.to_owned(), signal).await;
        match killed {
            Err(error) if !is_no_such_unit(&error) => Err(bus("kill a unit", error)),
            _ => Ok(()),
        }
    }

    async fn remove(&self, vm: VmId) -> Result<()> {
        let gone = async {
            if self.look(vm).await?.is_none() {
                return Ok(());
            }
            self.kill(vm, SIGKILL).await?;
            self.ended(vm).await?;
            let reset = self.manager().await?.reset_failed_unit(resource::unit_name(vm)).await;
            match reset {
                Err(error) if !is_no_such_unit(&error) => Err(bus("forget a unit", error)),
                _ => Ok(()),
            }
        };
        let late = || Error::Timeout { what: "ending a machine's unit".to_owned(), after: REMOVE_TIMEOUT };
        tokio::time::timeout(REMOVE_TIMEOUT, gone).await.map_err(|_| late())?
    }

    async fn ended(&self, vm: VmId) -> Result<Ended> {
        // The signals are awaited before the first look, so that no change falls between the two.
        let path = match self.look(vm).await? {
            None => return Ok(Ended::Clean),
            Some((_, path)) => path,
        };
        let doing = "watch a unit";
        let unit = UnitProxy::builder(&self.connection).path(path);
        let unit = unit.build().await.map_err(|error| bus(doing, error))?;
        let mut changes = unit.receive_active_state_changed().await;
        loop {
            match self.look(vm).await? {
                // A unit that ended well is forgotten by systemd at once; one that did not is kept.
                None => return Ok(Ended::Clean),
                Some((state, _)) if state == "inactive" => return Ok(Ended::Clean),
                Some((state, path)) if state == "failed" => {
                    let how = self.how(path).await.map_err(|error| bus(doing, error))?;
                    return Ok(Ended::Failed(how));
                }
                Some(_) => {}
            }
            // Either way, the next look decides.
            let _ = tokio::time::timeout(LOOK_AGAIN, changes.next()).await;
        }
    }

    async fn found(&self) -> Result<Vec<(VmId, Started)>> {
        let manager = self.manager().await?;
        let patterns = vec!["banger-vm-*.service".to_owned()];
        let units = manager.list_units_by_patterns(Vec::new(), patterns).await;
        let units = units.map_err(|error| bus("list units", error))?;
        let mut found = Vec::new();
        for unit in units {
            let (name, state) = (unit.0, unit.3);
            let Some(vm) = resource::vm_of_unit(&name) else { continue };
            if matches!(state.as_str(), "inactive" | "failed") {
                // It ended while nobody was there to see it.
                let _ = manager.reset_failed_unit(name).await;
                continue;
            }
            let (pid, user) = self.process(&name).await?;
            found.push((vm, Started { unit: name, pid, user }));
        }
        Ok(found)
    }
}

impl SystemdSupervisor {
    /// The process id and the user of a unit's main process.
    async fn process(&self, unit: &str) -> Result<(u32, u32)> {
        let process = async {
            let manager = ManagerProxy::new(&self.connection).await?;
            let path = manager.get_unit(unit.to_owned()).await?;
            let builder = ServiceProxy::builder(&self.connection).path(path);
            let service = builder.cache_properties(CacheProperties::No).build().await?;
            Ok((service.main_pid().await?, service.uid().await?))
        };
        match process.await {
            Ok(process) => Ok(process),
            // It ended meanwhile, which whoever watches it will see.
            Err(error) if is_no_such_unit(&error) => Ok((0, NOBODY)),
            Err(error) => Err(bus("look at a unit", error)),
        }
    }
}

fn is_no_such_unit(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::MethodError(name, _, _) if name.as_str() == NO_SUCH_UNIT)
}

fn bus(doing: &str, error: zbus::Error) -> Error {
    Error::other(doing, error)
}
