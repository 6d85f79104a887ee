//! Transient services of systemd: what all those of this service have in common. Each has a dynamic user, no
//! capabilities, and a file system with nothing but programs.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use banger_domain::resource::Paths;
use futures_util::StreamExt;
use zbus::{Connection, OwnedVariant, Variant, proxy::CacheProperties};
use zbus_systemd::systemd1::{ManagerProxy, ServiceProxy, UnitProxy};

use super::shim;
use crate::ports::{FromHost as _, HostError, host_error::Result, supervisor::Ended};

/// How long a killed unit may take to end.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the processes of a unit may take to stand still, or to go on.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest time until a change is noticed whose signal was lost.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long systemd may take to forget an ended unit.
const FORGET_TIMEOUT: Duration = Duration::from_secs(2);
/// How often to check that.
const FORGET_POLL: Duration = Duration::from_millis(5);
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
const NO_SUCH_PROCESS: &str = "org.freedesktop.systemd1.NoSuchProcess";
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const ALREADY_SUBSCRIBED: &str = "org.freedesktop.systemd1.AlreadySubscribed";
/// The kernel's objects and settings, below the root directory of the unit: without the plus sign, systemd would take it for that
/// of the host, and hide nothing.
const SYS: &str = "+/sys";
const SIGKILL: i32 = 9;
/// The user of a process that is gone; no process has this uid.
const NOBODY: u32 = u32::MAX;

/// The units of systemd.
#[derive(Clone)]
pub(super) struct Units {
    connection: Connection,
}

impl Units {
    /// Returns the units of the systemd on this bus.
    pub(super) async fn new(connection: Connection) -> Result<Self> {
        let units = Self { connection };
        // Without a subscription, systemd sends no signals about units.
        match units.manager().await?.subscribe().await {
            Err(error) if !is_called(&error, ALREADY_SUBSCRIBED) => Err(bus("subscribe to systemd", error)),
            _ => Ok(units),
        }
    }

    async fn manager(&self) -> Result<ManagerProxy<'_>> {
        ManagerProxy::new(&self.connection).await.map_err(|error| bus("reach systemd", error))
    }

    /// Starts a unit with these properties. Replaces an ended unit of this name; fails if one runs.
    pub(super) async fn start(&self, unit: &str, properties: Properties) -> Result<()> {
        let again = properties.try_clone()?;
        match self.try_start(unit, properties).await {
            Err(error) if is_called(&error, UNIT_EXISTS) && self.has_ended(unit).await? => {
                tracing::warn!(unit, "removing an ended unit that was still loaded");
                self.remove(unit).await?;
                self.try_start(unit, again).await.map_err(|error| bus("start a unit", error))
            }
            started => started.map_err(|error| bus("start a unit", error)),
        }
    }

    async fn try_start(&self, unit: &str, properties: Properties) -> zbus::Result<()> {
        let manager = ManagerProxy::new(&self.connection).await?;
        let (unit, mode) = (unit.to_owned(), "fail".to_owned());
        manager.start_transient_unit(unit, mode, properties.0, Vec::new()).await.map(drop)
    }

    /// Returns whether a unit has ended or does not exist.
    async fn has_ended(&self, unit: &str) -> Result<bool> {
        let state = self.look(unit).await?.map(|(state, _)| state);
        Ok(state.is_none_or(|state| matches!(state.as_str(), "inactive" | "failed")))
    }

    /// Sends a signal to the main process of a unit; SIGKILL goes to all of them.
    pub(super) async fn kill(&self, unit: &str, signal: i32) -> Result<()> {
        let whom = if signal == SIGKILL { "all" } else { "main" };
        match self.manager().await?.kill_unit(unit.to_owned(), whom.to_owned(), signal).await {
            // It may have ended just before.
            Err(error) if !is_no_such_unit(&error) && !is_called(&error, NO_SUCH_PROCESS) => {
                Err(bus("kill a unit", error))
            }
            _ => Ok(()),
        }
    }

    /// Freezes all processes of a unit, by the freezer of its control group.
    pub(super) async fn freeze(&self, unit: &str) -> Result<()> {
        let manager = self.manager().await?;
        let frozen = tokio::time::timeout(FREEZE_TIMEOUT, manager.freeze_unit(unit.to_owned())).await;
        let late = |_| HostError::timeout(format!("freezing the unit {unit}"), FREEZE_TIMEOUT);
        frozen.map_err(late)?.map_err(|error| bus("freeze a unit", error))
    }

    /// Lets the processes of a unit go on.
    pub(super) async fn thaw(&self, unit: &str) -> Result<()> {
        let manager = self.manager().await?;
        let thawed = tokio::time::timeout(FREEZE_TIMEOUT, manager.thaw_unit(unit.to_owned())).await;
        let late = |_| HostError::timeout(format!("thawing the unit {unit}"), FREEZE_TIMEOUT);
        match thawed.map_err(late)? {
            // It may have ended.
            Err(error) if !is_no_such_unit(&error) => Err(bus("thaw a unit", error)),
            _ => Ok(()),
        }
    }

    /// Kills a unit, waits until nothing of it is left, and returns how it ended.
    pub(super) async fn remove(&self, unit: &str) -> Result<Ended> {
        let gone = async {
            if self.look(unit).await?.is_none() {
                return Ok(Ended::Unknown);
            }
            self.kill(unit, SIGKILL).await?;
            let ended = self.ended(unit).await?;
            self.forget(unit).await?;
            Ok(ended)
        };
        let late = || HostError::timeout(format!("ending the unit {unit}"), REMOVE_TIMEOUT);
        tokio::time::timeout(REMOVE_TIMEOUT, gone).await.map_err(|_| late())?
    }

    /// Asks systemd to forget an ended unit, and waits until it has: its name cannot be reused before.
    async fn forget(&self, unit: &str) -> Result<()> {
        let manager = self.manager().await?;
        match manager.reset_failed_unit(unit.to_owned()).await {
            Err(error) if !is_no_such_unit(&error) => return Err(bus("forget a unit", error)),
            _ => {}
        }
        // This fails for a unit that was started without a reference.
        let _ = manager.unref_unit(unit.to_owned()).await;
        let forgotten = async {
            while self.look(unit).await?.is_some() {
                tokio::time::sleep(FORGET_POLL).await;
            }
            Ok(())
        };
        // Somebody else may hold a reference; the next start of this name reports that.
        tokio::time::timeout(FORGET_TIMEOUT, forgotten).await.unwrap_or(Ok(()))
    }

    /// Waits until a unit has ended, without a timeout, and returns how.
    pub(super) async fn ended(&self, unit: &str) -> Result<Ended> {
        // Signals are subscribed to before the first look, so that no change is missed.
        let path = match self.look(unit).await? {
            None => return Ok(Ended::Clean),
            Some((_, path)) => path,
        };
        let doing = "watch a unit";
        let proxy = UnitProxy::builder(&self.connection).path(path);
        let proxy = proxy.build().await.map_err(|error| bus(doing, error))?;
        let mut changes = proxy.receive_active_state_changed().await;
        loop {
            match self.look(unit).await? {
                // systemd forgets a unit that ended well at once, and keeps one that failed.
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

    /// Returns the names of the running units that match a pattern. Ended ones that nobody watched are forgotten.
    pub(super) async fn running(&self, pattern: &str) -> Result<Vec<String>> {
        let manager = self.manager().await?;
        let units = manager.list_units_by_patterns(Vec::new(), vec![pattern.to_owned()]).await;
        let units = units.map_err(|error| bus("list units", error))?;
        let mut running = Vec::new();
        for unit in units {
            let (name, state) = (unit.0, unit.3);
            if matches!(state.as_str(), "inactive" | "failed") {
                let _ = manager.reset_failed_unit(name).await;
                continue;
            }
            running.push(name);
        }
        Ok(running)
    }

    /// Returns the pid and uid of a unit's main process.
    pub(super) async fn process(&self, unit: &str) -> Result<(u32, u32)> {
        let process = async {
            let manager = ManagerProxy::new(&self.connection).await?;
            let path = manager.get_unit(unit.to_owned()).await?;
            let builder = ServiceProxy::builder(&self.connection).path(path);
            let service = builder.cache_properties(CacheProperties::No).build().await?;
            Ok((service.main_pid().await?, service.uid().await?))
        };
        match process.await {
            Ok(process) => Ok(process),
            // It has just ended, which its watcher will notice.
            Err(error) if is_no_such_unit(&error) => Ok((0, NOBODY)),
            Err(error) => Err(bus("look at a unit", error)),
        }
    }

    /// Returns the state of a unit and its object. `None` if systemd does not know it.
    async fn look(&self, unit: &str) -> Result<Option<(String, zbus::OwnedObjectPath)>> {
        let path = match self.manager().await?.get_unit(unit.to_owned()).await {
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
            // It went away between the two calls.
            Err(zbus::Error::MethodError(..)) => Ok(None),
            Err(zbus::Error::FDO(error)) if matches!(*error, zbus::fdo::Error::UnknownObject(_)) => Ok(None),
            Err(error) => Err(bus("look at a unit", error)),
        }
    }

    /// Returns how a failed unit ended.
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
}

/// The properties of a unit.
pub(super) struct Properties(Vec<(String, OwnedVariant)>);

/// What differs between the kinds of units.
pub(super) struct Kind<'a> {
    /// One line for people.
    pub(super) description: &'a str,
    /// One of our programs, which gets the socket as standard input.
    pub(super) program: PathBuf,
    /// The name of its dynamic user.
    pub(super) user: String,
    /// The slice with its limits.
    pub(super) slice: String,
    /// Which process within one limit of memory is killed first: the one with the higher number.
    pub(super) oom_score_adjust: i32,
}

impl Properties {
    /// Returns the properties of a unit that sees nothing of the host but programs and libraries.
    pub(super) fn confined(paths: &Paths, kind: Kind<'_>, socket: OwnedFd) -> Result<Self> {
        Self::build(paths, kind, socket).map_err(|error| bus("describe a unit", error))
    }

    fn build(paths: &Paths, kind: Kind<'_>, socket: OwnedFd) -> zbus::Result<Self> {
        let program = text(&kind.program);
        let command = vec![(program.clone(), vec![program], false)];
        let visible: Vec<_> = shim::visible(paths).iter().map(|path| bind(text(path))).collect();

        let mut list = Self(Vec::new());
        let mut set = |name: &str, value: Variant<'_>| list.put(name, value);
        set("Description", kind.description.into())?;
        set("Type", "exec".into())?;
        set("ExecStart", command.into())?;
        set("StandardInputFileDescriptor", zbus::Fd::from(socket).into())?;
        set("StandardOutput", "journal".into())?;
        set("StandardError", "journal".into())?;
        set("Slice", kind.slice.into())?;
        set("KillMode", "control-group".into())?;
        set("TimeoutStopUSec", 10_000_000u64.into())?;
        set("OOMPolicy", "stop".into())?;
        set("OOMScoreAdjust", kind.oom_score_adjust.into())?;

        set("DynamicUser", true.into())?;
        set("User", kind.user.into())?;
        set("CapabilityBoundingSet", 0u64.into())?;
        set("AmbientCapabilities", 0u64.into())?;
        set("NoNewPrivileges", true.into())?;
        set("RootDirectory", text(&paths.jail()).into())?;
        set("MountAPIVFS", true.into())?;
        set("BindReadOnlyPaths", visible.into())?;
        // Not strict, which would remove /dev/null, the VMM's standard input.
        set("DevicePolicy", "closed".into())?;
        set("PrivateIPC", true.into())?;
        set("PrivateTmp", true.into())?;
        set("ProtectProc", "invisible".into())?;
        set("ProcSubset", "pid".into())?;
        // Our programs filter their system calls themselves, and see neither /sys nor the settings in /proc. So
        // systemd's protections of modules, clocks, the log and the host's name, and its limits of sockets,
        // namespaces and personalities, would add nothing, and cost as much as all others together
        // (docs/decisions/0017-confinement-of-units.md).
        set("InaccessiblePaths", vec![SYS].into())?;
        // It has its own mounts anyway, so this costs nothing.
        set("PrivateMounts", true.into())?;
        // Implied by the dynamic user.
        set("RestrictSUIDSGID", true.into())?;
        set("KeyringMode", "private".into())?;
        set("MemorySwapMax", 0u64.into())?;
        set("LimitCORE", 0u64.into())?;
        Ok(list)
    }

    fn try_clone(&self) -> Result<Self> {
        let clone = |(name, value): &(String, OwnedVariant)| Ok((name.clone(), value.try_clone()?));
        let clones = self.0.iter().map(clone).collect::<zbus::Result<_>>();
        clones.map(Self).map_err(|error| bus("describe a unit", error))
    }

    /// Sets a further property.
    pub(super) fn set(&mut self, name: &str, value: Variant<'_>) -> Result<()> {
        self.put(name, value).map_err(|error| bus("describe a unit", error))
    }

    fn put(&mut self, name: &str, value: Variant<'_>) -> zbus::Result<()> {
        self.0.push((name.to_owned(), OwnedVariant::try_from(value)?));
        Ok(())
    }
}

/// Returns a bind mount that is skipped if the path is missing.
pub(super) fn bind(path: String) -> (String, String, bool, u64) {
    (path.clone(), path, true, 0)
}

pub(super) fn text(path: &Path) -> String {
    path.display().to_string()
}

fn is_no_such_unit(error: &zbus::Error) -> bool {
    is_called(error, NO_SUCH_UNIT)
}

fn is_called(error: &zbus::Error, expected: &str) -> bool {
    matches!(error, zbus::Error::MethodError(name, _, _) if name.as_str() == expected)
}

fn bus(doing: &str, error: zbus::Error) -> HostError {
    HostError::other(doing, error)
}
