//! A host with the real disks, database, network and supervisor of processes, and `sleep` in place of VMMs. Guests, logs,
//! kernels and whatever else a test does not replace are in memory.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::ErrorKind,
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use banger_domain::{
    egress::Egress,
    id::{Uid, VmId},
    launch_spec::LaunchSpec,
    limits::Limits,
    net::nic::SameOwner,
    resource::Paths,
    restart::RestartPolicy,
    vm::{Init, Lifetime},
    vmm::VmmChoice,
};
use banger_jail::ring::Writer;
use banger_proto::size::Bytes;
use banger_system::{
    engine::{
        Settings,
        request::{CreateVm, OnReboot, Start},
    },
    host::{
        network::LinuxNetwork, process::supervisor_process::ProcessSupervisor, storage::disks::FileDisks,
        store::SqliteStore,
    },
    ports::{
        Check, Ports,
        disks::OverlayBy,
        guest_link::{self, Channel},
        vmm::{JailSpec, NetworkNamespace, Result, Vmm, VmmCommand},
    },
    sim::Sim,
    tasks::Tasks,
};

use crate::scratch::Scratch;

/// The owner of the sandboxes.
pub const OWNER: Uid = Uid(1000);

/// The ports of the host, and those adapters that a test looks at itself.
pub struct RealHost {
    pub ports: Ports,
    pub store: Arc<SqliteStore>,
    pub network: Arc<LinuxNetwork>,
    pub supervisor: Arc<ProcessSupervisor>,
}

impl RealHost {
    /// Opens the host below these paths, which an earlier service may have used.
    pub async fn new(paths: &Paths, sim: &Sim, tasks: &Tasks) -> Self {
        let store = Arc::new(SqliteStore::open(paths).await.unwrap());
        let network = Arc::new(LinuxNetwork::new(0, Arc::default(), tasks).unwrap());
        let supervisor = Arc::new(ProcessSupervisor::new(paths.clone()));
        let ports = Ports {
            disks: Arc::new(FileDisks::new(paths.clone())),
            network: network.clone(),
            store: store.clone(),
            supervisor: supervisor.clone(),
            vmm: Arc::new(Sleeper { sim: sim.clone(), paths: paths.clone() }),
            ..sim.ports()
        };
        Self { ports, store, network, supervisor }
    }
}

/// Installs the shim, which starts what is in place of a VMM, and makes the directory of the state.
pub fn install(scratch: &Scratch) {
    scratch.install("banger-shim");
    for directory in [scratch.home.path(), scratch.paths.libexec.as_path()] {
        fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    fs::create_dir_all(&scratch.paths.state).unwrap();
}

/// Returns settings with which a user can have this many sandboxes.
pub fn settings(vms: u32) -> Settings {
    let limits = Limits::of_host(4, Bytes::gib(32));
    Settings {
        default_image: "debian-bookworm".parse().unwrap(),
        default_kernel: "debian".parse().unwrap(),
        vcpus: 1,
        memory: Bytes::mib(128),
        disk_size: Bytes::mib(256),
        root_size: Bytes(0),
        // A machine that does many other things is no failure.
        ready_timeout: Duration::from_secs(120),
        stop_timeout: Duration::from_secs(120),
        on_reboot: OnReboot::Boot,
        subnet: None,
        same_owner: SameOwner::Connected,
        templates: false,
        presets: Arc::default(),
        egress_ceiling: Egress::Everything,
        limits: Limits { vms, running: vms, ..limits },
    }
}

/// Returns a request for a small sandbox that starts at once.
pub fn request() -> CreateVm {
    CreateVm {
        vmm: VmmChoice::Auto,
        egress: Egress::Everything,
        timezone: None,
        authorized_keys: Vec::new(),
        owner: OWNER,
        name: None,
        image: None,
        kernel: None,
        vcpus: None,
        memory: None,
        disk_size: None,
        root_size: None,
        hostname: None,
        init: Init::Auto,
        lifetime: Lifetime::Persistent,
        labels: BTreeMap::new(),
        idle: None,
        restart: RestartPolicy::No,
        autostart: false,
        ports: Vec::new(),
        start: Some(Start::default()),
    }
}

/// A VMM that only waits. Its guest is in memory, and its directory for sockets is real, as are its logs.
pub struct Sleeper {
    sim: Sim,
    paths: Paths,
}

#[async_trait]
impl Vmm for Sleeper {
    fn overlay_by(&self, _wish: VmmChoice, _vcpus: u32) -> OverlayBy {
        OverlayBy::Vmm
    }

    async fn jail_spec(&self, spec: &LaunchSpec) -> Result<JailSpec> {
        fs::create_dir_all(self.paths.socket_dir(spec.vm)).unwrap();
        Ok(JailSpec {
            vm: spec.vm,
            owner: spec.owner,
            description: spec.name.clone(),
            memory_max: spec.memory,
            cpu_percent: 100,
            devices: Vec::new(),
            directory: None,
            network: NetworkNamespace::Private,
        })
    }

    async fn prepare_launch(&self, spec: &LaunchSpec) -> Result<VmmCommand> {
        self.sim.forget_guest(spec.vm);
        Ok(VmmCommand {
            argv: ["/usr/bin/sleep", "1000000"].map(str::to_owned).to_vec(),
            files: Vec::new(),
            console: ring(&self.paths.console_log(spec.vm)),
            log: ring(&self.paths.vmm_log(spec.vm)),
        })
    }

    async fn connect(&self, vm: VmId, channel: Channel) -> guest_link::Result<tokio::net::UnixStream> {
        Vmm::connect(&self.sim, vm, channel).await
    }

    async fn remove_sockets(&self, vm: VmId) -> Result<()> {
        self.sim.forget_guest(vm);
        match fs::remove_dir_all(self.paths.socket_dir(vm)) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            removed => removed.unwrap(),
        }
        Ok(())
    }

    async fn checks(&self) -> Vec<Check> {
        Vec::new()
    }

    async fn found(&self) -> Result<Vec<VmId>> {
        let entries = fs::read_dir(self.paths.sockets()).into_iter().flatten();
        Ok(entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok()).collect())
    }
}

fn ring(path: &Path) -> OwnedFd {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    Writer::create(file.try_clone().unwrap(), 64 << 10).unwrap();
    file.into()
}
