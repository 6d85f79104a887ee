//! The composition root: the only place that names concrete adapters.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use banger_domain::resource::Paths;
use banger_proto::size::Bytes;
use tokio::signal::unix::{SignalKind, signal};
use zbus::Connection;

use crate::{
    bus,
    config::{CATALOG_KEYS, Config, Host, presets},
    engine::{Engine, Settings},
    host::{
        authority::Polkit,
        catalogs::SignedCatalogs,
        clock::SystemClock,
        dns::NameServer,
        guest::{link::AgentLink, streams::OpenStreams},
        host_boot::BootMarks,
        lock::Lock,
        network::LinuxNetwork,
        privileges,
        process::{
            descriptor_store::{self, DescriptorStore},
            logs::RingLogs,
            machined::Machined,
            supervisor_process::ProcessSupervisor,
            supervisor_systemd::SystemdSupervisor,
            worker::Workers,
            worker_process::ProcessWorkers,
            worker_systemd::SystemdWorkers,
        },
        registry::{LocalPorts, Registries, Timeouts},
        storage::{
            captures::LocalCaptures, disks::FileDisks, image_files::LocalImages, kernel_files::LocalKernels,
            mapper::MapperDisks, templates::LocalTemplates,
        },
        store::SqliteStore,
        users::Accounts,
        vmm::{Vmms, kvm::Kvm},
    },
    log::Log,
    ports::{Ports, disks::Disks, supervisor::Supervisor},
    sim::Sim,
    tasks::{Task, Tasks},
};

/// Pause after a failure to watch the host's network.
const KEEP_AGAIN: Duration = Duration::from_secs(5);

/// How long names and published ports may take to withdraw at the end. A failed task may hold what that needs.
const TIDY_TIMEOUT: Duration = Duration::from_secs(20);

/// The host's system bus. A simulated service must not serve there.
const SYSTEM_BUSES: [&str; 2] = ["/run/dbus/system_bus_socket", "/var/run/dbus/system_bus_socket"];
/// The kernel of the host in memory.
const SIM_KERNEL: &str = "6.1.0-sim";
const BUS_VARIABLE: &str = "DBUS_SYSTEM_BUS_ADDRESS";

/// What the service runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// This host.
    Host,
    /// A host in memory.
    Sim,
}

/// Serves until a signal asks it to end.
pub async fn run(mode: Mode, config: &Config, log: Log) -> anyhow::Result<()> {
    if mode == Mode::Sim {
        require_private_bus(std::env::var(BUS_VARIABLE).ok().as_deref())?;
    }
    if mode == Mode::Host {
        privileges::check()?;
    }
    let presets = presets::read(&presets::DIRECTORIES);
    let settings = Settings { presets: presets.into(), ..config.settings(this_host()?)? };
    let connection = Connection::system().await.context("cannot reach the system bus")?;
    // First of all: two services would treat each other's sandboxes as orphans.
    let _lock = (mode == Mode::Host).then(|| Lock::take(&paths())).transpose()?;
    let tasks = Tasks::default();
    let ports = match mode {
        Mode::Host => host_ports(&connection, config, &tasks).await?,
        Mode::Sim => {
            let sim = Sim::new();
            sim.install_kernel(Some(SIM_KERNEL));
            sim.ports()
        }
    };
    let (names, network) = (Arc::clone(&ports.names), Arc::clone(&ports.network));
    let (engine, events) = Engine::new(ports, settings, &tasks);
    engine.recover().await.context("cannot recover the state of an earlier run")?;
    bus::serve(connection.clone(), engine.clone(), events, log, &tasks)
        .await
        .context("cannot serve the D-Bus API")?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), ?mode, "serving");
    // Without systemd, nothing listens.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tasks.spawn_finite(Task::Autostart, async move { engine.start_with_host().await });
    let ended = until_end(connection.closed(), &tasks).await;
    let tidy = async {
        names.withdraw().await;
        // Without systemd, nothing holds published ports after this process: any program could take them.
        let are_held = match &ended {
            Ok(()) => {
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
                descriptor_store::survives(&connection).await
            }
            // After a failure, systemd starts the service again, and passes them on.
            Err(_) => descriptor_store::exists(),
        };
        if !are_held && let Err(error) = network.unpublish_all().await {
            tracing::error!(%error, "cannot close the published ports");
        }
    };
    if tokio::time::timeout(TIDY_TIMEOUT, tidy).await.is_err() {
        tracing::error!("cannot withdraw names and published ports in time");
    }
    // Sandboxes belong to their units, and keep running.
    tracing::info!("ending");
    ended
}

/// Serves until a signal asks the service to end. Fails if it can no longer serve.
async fn until_end(bus_closed: impl Future<Output = ()>, tasks: &Tasks) -> anyhow::Result<()> {
    tokio::select! {
        biased;
        ended = wait_for_end() => ended,
        // No client can reach this process; the next one connects to the next bus.
        () = bus_closed => bail!("lost the connection to the system bus"),
        // The next process does all that this one no longer does.
        ended = tasks.ended() => Err(ended.into()),
        never = feed_watchdog(tasks) => match never {},
    }
}

async fn host_ports(connection: &Connection, config: &Config, tasks: &Tasks) -> anyhow::Result<Ports> {
    let paths = paths();
    let booted = sd_notify::booted().context("cannot check whether systemd is running")?;
    let (supervisor, workers): (Arc<dyn Supervisor>, Arc<dyn Workers>) = if booted {
        let workers = SystemdWorkers::new(connection.clone(), paths.clone()).await?;
        (Arc::new(SystemdSupervisor::new(connection.clone(), paths.clone()).await?), Arc::new(workers))
    } else {
        tracing::info!("no systemd on this host: sandboxes and imports run as plain processes");
        (Arc::new(ProcessSupervisor::new(paths.clone())), Arc::new(ProcessWorkers::new(paths.clone())))
    };
    let vmm = Vmms::new(paths.clone(), Kvm::find(), config.vmm()?, config.firecracker.clone());
    let vmm = Arc::new(vmm);
    let store = DescriptorStore::inherited().context("cannot take the descriptors stored by systemd")?;
    let network = Arc::new(LinuxNetwork::new(config.warm_taps(), Arc::new(store), tasks)?);
    tasks.spawn(Task::HostNetwork, keep_network(Arc::clone(&network)));
    let local = local_registries(config.registry.local_ports.clone(), &network);
    let registries = Registries::new(&cache_directory(), config.cache_size()?, Timeouts::default(), local);
    let registries = registries.reached_by(config.proxy()?.as_ref(), config.mirrors()?);
    let keys = CATALOG_KEYS.map(PathBuf::from).to_vec();
    let catalogs = SignedCatalogs::new(config.catalogs()?, paths.catalogs(), keys, registries.clone());
    Ok(Ports {
        authority: Arc::new(Polkit::new(connection.clone())),
        captures: Arc::new(LocalCaptures::new(paths.captures())),
        catalogs: Arc::new(catalogs),
        clock: Arc::new(SystemClock::new()?),
        disks: disks(&paths),
        guest: Arc::new(AgentLink::new(vmm.clone())),
        host_boot: Arc::new(BootMarks::new(&paths)),
        image_files: Arc::new(LocalImages::new(paths.clone(), Arc::clone(&workers), config.image_size()?)),
        kernel_files: Arc::new(LocalKernels::new(paths.clone(), workers)),
        logs: Arc::new(RingLogs::new(paths.clone(), tasks.clone())),
        machines: Arc::new(Machined::new(connection.clone())),
        names: Arc::new(NameServer::new(connection.clone(), network.clone(), tasks)),
        network,
        registry: Arc::new(registries),
        store: Arc::new(SqliteStore::open(&paths).await.context("cannot open the database")?),
        streams: Arc::new(OpenStreams::default()),
        supervisor,
        templates: Arc::new(LocalTemplates::new(paths.templates(), config.templates_disk()?)),
        users: Arc::new(Accounts::of_host()),
        vmm,
    })
}

/// Returns the host's ports where users may pull images from: those that the configuration allows, except published
/// ones.
fn local_registries(allowed: BTreeSet<u16>, network: &Arc<LinuxNetwork>) -> LocalPorts {
    let network = Arc::clone(network);
    LocalPorts::where_port(move |port| allowed.contains(&port) && !network.is_published(port))
}

/// Watches the host's network for changes by others, as long as the service runs.
async fn keep_network(network: Arc<LinuxNetwork>) {
    loop {
        let Err(error) = network.maintain().await;
        tracing::error!(%error, "cannot watch the network of the host");
        tokio::time::sleep(KEEP_AGAIN).await;
    }
}

/// Returns device-mapper snapshots if the kernel has them, else plain files.
fn disks(paths: &Paths) -> Arc<dyn Disks> {
    match MapperDisks::new(paths.clone()) {
        Ok(disks) => Arc::new(disks),
        Err(error) => {
            tracing::warn!(%error, "cannot use device mapper snapshots; system disks are files");
            Arc::new(FileDisks::new(paths.clone()).because(&error))
        }
    }
}

/// Returns the unit's directories, else the package's defaults.
fn paths() -> Paths {
    let directory =
        |variable: &str, default: &str| PathBuf::from(std::env::var(variable).unwrap_or(default.to_owned()));
    Paths {
        state: directory("STATE_DIRECTORY", "/var/lib/banger"),
        runtime: directory("RUNTIME_DIRECTORY", "/run/banger"),
        libexec: PathBuf::from("/usr/libexec/banger"),
    }
}

/// Returns the unit's cache directory, else the package's default.
fn cache_directory() -> PathBuf {
    let directory = std::env::var("CACHE_DIRECTORY").unwrap_or("/var/cache/banger".to_owned());
    Path::new(&directory).join("blobs")
}

fn this_host() -> anyhow::Result<Host> {
    let cpus = std::thread::available_parallelism().context("cannot count the processors")?;
    let meminfo = std::fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let kib = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    let kib: u64 = kib.context("/proc/meminfo does not say how much memory there is")?;
    Ok(Host { cpus: u32::try_from(cpus.get())?, memory: Bytes::kib(kib) })
}

fn require_private_bus(address: Option<&str>) -> anyhow::Result<()> {
    match address {
        Some(address) if !SYSTEM_BUSES.iter().any(|bus| address.contains(bus)) => Ok(()),
        _ => bail!("--sim serves on a private bus only: set {BUS_VARIABLE} to the address of one"),
    }
}

/// Tells systemd that the service works, as long as every task answers. Without that, systemd ends the service, and
/// starts it again.
async fn feed_watchdog(tasks: &Tasks) -> Infallible {
    let Some(interval) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    // So a check that fails once is made again in time.
    let pause = interval / 4;
    let mut ticks = tokio::time::interval(pause);
    loop {
        ticks.tick().await;
        match tasks.check(pause).await {
            Ok(()) => drop(sd_notify::notify(&[sd_notify::NotifyState::Watchdog])),
            Err(silent) => {
                let silent = silent.iter().map(Task::to_string).collect::<Vec<_>>().join(", ");
                tracing::error!(tasks = silent, "tasks do not answer; the watchdog is not fed");
            }
        }
    }
}

async fn wait_for_end() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_ends_the_service_with_its_name() {
        let tasks = Tasks::default();
        tasks.spawn(Task::Names, async { panic!("no names") });
        let error = until_end(std::future::pending(), &tasks).await.unwrap_err();
        assert_eq!(error.to_string(), "the task \"names\" has panicked: no names");
    }

    #[test]
    fn a_simulated_service_refuses_the_system_bus() {
        assert!(require_private_bus(None).is_err());
        assert!(require_private_bus(Some("unix:path=/run/dbus/system_bus_socket")).is_err());
        assert!(require_private_bus(Some("unix:path=/tmp/mine/bus")).is_ok());
    }
}
