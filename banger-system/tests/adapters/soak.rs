//! Sandboxes that come and go leave nothing behind: the engine with the real disks, database, network and supervisor of
//! processes, and `sleep` in place of VMMs. Guests, logs and the library of images are in memory.
//!
//! `cargo xtask soak --cycles N` runs this with as many cycles as wanted; a run of the tests has a few. The last line has the
//! figures. Each cycle creates a sandbox and starts it, stops it, starts it again and deletes it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::ErrorKind,
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
    time::Instant,
};

use async_trait::async_trait;
use banger_domain::{
    egress::Egress,
    id::{JobId, Uid, VmId},
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
        Engine, Settings,
        request::{CreateVm, ImportImage, ImportKernel, ImportSource, OnReboot, Start, Stop, StopMode},
        view::Outcome,
    },
    host::{
        network::LinuxNetwork, process::supervisor_process::ProcessSupervisor, storage::disks::FileDisks,
        store::SqliteStore,
    },
    ports::{
        Check, Ports,
        disks::OverlayBy,
        guest_link::{self, Channel},
        network::Network,
        store::Store,
        supervisor::Supervisor,
        vmm::{JailSpec, NetworkNamespace, Result, Vmm, VmmCommand},
    },
    sim::Sim,
    tasks::Tasks,
};
use tokio::task::JoinSet;

use crate::{
    net_lab::Space,
    scratch::{Scratch, has_program, is_root, require},
    skip,
};

/// Environment variables of `cargo xtask soak`.
const CYCLES: &str = "BANGER_SOAK_CYCLES";
const CONCURRENCY: &str = "BANGER_SOAK_CONCURRENCY";
/// What a run of the tests has.
const FEW: u32 = 20;
/// How many cycles come before the first count. Jobs are kept after their end, 64 for each user, and a cycle has four; threads,
/// caches and pools are made when they are first needed.
const WARM_UP: u32 = 20;

/// How much larger a figure may be after the cycles than before. What belongs to a sandbox must be gone: it grows by nothing.
///
/// Threads of blocking calls come and go with the load of the machine, and each may hold a descriptor when it is counted.
const THREADS: u64 = 64;
const DESCRIPTORS: u64 = 16;
/// What is allocated grows until SQLite has filled its cache of pages, which takes 2 MB, and the tables of the allocator's users
/// have their size. After that, a cycle may add less than a hundredth of what a sandbox takes.
const HEAP_KIB: u64 = 4 * 1024;
const HEAP_BYTES_PER_CYCLE: u64 = 256;
/// The allocator keeps what threads release, in an arena for each, of which there are eight for each processor.
const RSS_KIB: u64 = 64 * 1024;
const RSS_BYTES_PER_CYCLE: u64 = 1024;

const OWNER: Uid = Uid(1000);

/// A VMM that only waits. Its guest is in memory, and its directory for sockets is real, as are its logs.
struct Sleeper {
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

/// A host on which sandboxes come and go.
struct Host {
    scratch: Scratch,
    space: Space,
    engine: Engine,
    store: Arc<SqliteStore>,
    network: Arc<LinuxNetwork>,
    supervisor: Arc<ProcessSupervisor>,
}

impl Host {
    async fn new(space: Space, concurrency: u32) -> Self {
        let scratch = Scratch::new();
        scratch.install("banger-shim");
        for directory in [scratch.home.path(), scratch.paths.libexec.as_path()] {
            fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        fs::create_dir_all(&scratch.paths.state).unwrap();
        let (sim, tasks) = (Sim::new(), Tasks::default());
        let store = Arc::new(SqliteStore::open(&scratch.paths).await.unwrap());
        let network = Arc::new(LinuxNetwork::new(0, Arc::default(), &tasks).unwrap());
        let supervisor = Arc::new(ProcessSupervisor::new(scratch.paths.clone()));
        let ports = Ports {
            disks: Arc::new(FileDisks::new(scratch.paths.clone())),
            network: network.clone(),
            store: store.clone(),
            supervisor: supervisor.clone(),
            vmm: Arc::new(Sleeper { sim: sim.clone(), paths: scratch.paths.clone() }),
            ..sim.ports()
        };
        let limits = Limits::of_host(4, Bytes::gib(32));
        let settings = Settings {
            default_image: "debian-bookworm".parse().unwrap(),
            default_kernel: "debian".parse().unwrap(),
            vcpus: 1,
            memory: Bytes::mib(128),
            disk_size: Bytes::mib(256),
            root_size: Bytes(0),
            // A machine that does many other things is no failure.
            ready_timeout: std::time::Duration::from_secs(120),
            stop_timeout: std::time::Duration::from_secs(120),
            on_reboot: OnReboot::Boot,
            subnet: None,
            same_owner: SameOwner::Connected,
            templates: false,
            presets: Arc::default(),
            egress_ceiling: Egress::Everything,
            limits: Limits { vms: concurrency + 1, running: concurrency + 1, ..limits },
        };
        let (engine, mut events) = Engine::new(ports, settings, &tasks);
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        engine.recover().await.unwrap();
        let host = Self { scratch, space, engine, store, network, supervisor };
        host.install_defaults().await;
        host
    }

    async fn install_defaults(&self) {
        let null = || File::open("/dev/null").unwrap().into();
        let kernel = ImportKernel {
            owner: Uid::ROOT,
            name: "debian".parse().unwrap(),
            shared: true,
            vmlinuz: null(),
            modules: None,
        };
        self.done(self.engine.import_kernel(kernel).unwrap()).await;
        let image = ImportImage {
            owner: Uid::ROOT,
            name: "debian-bookworm".parse().unwrap(),
            shared: true,
            kernel: None,
            content: ImportSource::Rootfs(null()),
        };
        self.done(self.engine.import_image(image).unwrap()).await;
        // The image that the library in memory has no file of.
        let file = self.scratch.paths.image(self.engine.images()[0].id);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        File::create(file).unwrap().set_len(64 << 20).unwrap();
    }

    async fn done(&self, job: JobId) {
        let view = self.engine.wait_job(job, None).await.unwrap();
        assert!(matches!(view.outcome, Some(Outcome::Done)), "{:?}", view.outcome);
    }

    async fn cycle(&self) {
        let stop = Stop { mode: StopMode::Forced, ..Stop::default() };
        let (vm, job) = self.engine.create_vm(request()).await.unwrap();
        self.done(job).await;
        self.done(self.engine.stop_vm(vm, stop).await.unwrap()).await;
        self.done(self.engine.start_vm(vm, Start::default()).await.unwrap()).await;
        self.done(self.engine.delete_vm(vm, StopMode::Forced).await.unwrap()).await;
    }

    /// Counts what there is on the host and in this process.
    async fn count(&self) -> BTreeMap<&'static str, u64> {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let number = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
        };
        let rows = self.store.vms().await.unwrap().len() + self.store.ledger().await.unwrap().len();
        let others = self.store.images().await.unwrap().len() + self.store.kernels().await.unwrap().len();
        let links = self.space.command("ip -o link").unwrap().lines().count();
        BTreeMap::from([
            ("descriptors", fs::read_dir("/proc/self/fd").unwrap().count() as u64),
            ("heap KiB", heap_kib()),
            ("rss KiB", number("VmRSS:")),
            ("threads", number("Threads:")),
            ("files", files(&self.scratch.paths.state) + files(&self.scratch.paths.runtime)),
            ("nft elements", elements(&self.space.ruleset())),
            ("interfaces", self.network.found().await.unwrap().len() as u64),
            ("links", links as u64),
            ("processes", self.supervisor.found().await.unwrap().len() as u64),
            ("rows", (rows + others) as u64),
        ])
    }
}

fn request() -> CreateVm {
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

/// Returns what this process has allocated and not released.
fn heap_kib() -> u64 {
    // SAFETY: the call only fills in what it returns.
    #[expect(unsafe_code, reason = "only the allocator knows")]
    let info = unsafe { libc::mallinfo2() };
    (info.uordblks + info.hblkhd) as u64 / 1024
}

/// Returns how many files and directories are below a directory.
fn files(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let below =
        |entry: fs::DirEntry| if entry.file_type().unwrap().is_dir() { files(&entry.path()) } else { 0 };
    entries.map(|entry| 1 + below(entry.unwrap())).sum()
}

/// Returns how many elements the sets and maps of a packet filter have.
fn elements(ruleset: &str) -> u64 {
    let all: serde_json::Value = serde_json::from_str(ruleset).unwrap();
    let objects = all["nftables"].as_array().unwrap();
    let of = |object: &serde_json::Value| {
        let set = object.get("set").or_else(|| object.get("map"));
        set.and_then(|set| set["elem"].as_array()).map_or(0, Vec::len) as u64
    };
    objects.iter().map(of).sum()
}

/// Returns what has grown beyond its bound.
fn grown(
    before: &BTreeMap<&'static str, u64>,
    after: &BTreeMap<&'static str, u64>,
    cycles: u32,
) -> Vec<String> {
    let allowed = |what: &str| match what {
        "threads" => THREADS,
        "descriptors" => DESCRIPTORS,
        "heap KiB" => HEAP_KIB + u64::from(cycles) * HEAP_BYTES_PER_CYCLE / 1024,
        "rss KiB" => RSS_KIB + u64::from(cycles) * RSS_BYTES_PER_CYCLE / 1024,
        _ => 0,
    };
    let has_grown = |what: &&&str| after[**what] > before[**what] + allowed(what);
    after.keys().filter(has_grown).map(|what| format!("{what}: {} → {}", before[what], after[what])).collect()
}

fn number(variable: &str, default: u32) -> u32 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn sandboxes_that_come_and_go_leave_nothing_behind() {
    require!(is_root(), "root");
    require!(has_program("nft") && has_program("ip"), "nft and ip");
    require!(skip::has_device("/dev/net/tun"), "TUN");
    let (cycles, concurrency) = (number(CYCLES, FEW), number(CONCURRENCY, 4).max(1));
    let space = Space::enter_new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let host = Arc::new(Host::new(space, concurrency).await);
        run(&host, WARM_UP, concurrency).await;
        let (before, begun) = (host.count().await, Instant::now());
        run(&host, cycles, concurrency).await;
        let (after, took) = (host.count().await, begun.elapsed().as_secs_f64());
        let figures = after.iter().map(|(what, count)| format!("{what} {} → {count}", before[what]));
        let figures = figures.collect::<Vec<_>>().join(", ");
        let rate = f64::from(cycles) / took;
        println!("soak: {cycles} cycles, {concurrency} at once, {rate:.1} per second: {figures}");
        assert_eq!(grown(&before, &after, cycles), Vec::<String>::new());
        assert_eq!((after["interfaces"], after["processes"]), (0, 0));
        assert_eq!(host.engine.vms().len(), 0);
    });
}

/// Runs this many cycles, some of them at once.
async fn run(host: &Arc<Host>, cycles: u32, concurrency: u32) {
    let mut running = JoinSet::new();
    for number in 0..cycles {
        if running.len() >= concurrency as usize {
            running.join_next().await.unwrap().unwrap();
        }
        let host = Arc::clone(host);
        running.spawn(async move { host.cycle().await });
        if number % 500 == 499 {
            eprintln!("{} of {cycles} cycles, {} KiB allocated", number + 1, heap_kib());
        }
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
}

#[test]
fn growth_beyond_a_bound_is_reported() {
    let figures = |files, threads| BTreeMap::from([("files", files), ("threads", threads)]);
    assert_eq!(grown(&figures(7, 3), &figures(7, 60), 10), Vec::<String>::new());
    assert_eq!(grown(&figures(7, 3), &figures(8, 3), 10), ["files: 7 → 8"]);
    assert_eq!(grown(&figures(7, 3), &figures(6, 68), 10), ["threads: 3 → 68"]);
}
