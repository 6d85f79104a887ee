//! Sandboxes that come and go leave nothing behind: the engine with the real disks, database, network and supervisor of
//! processes, and `sleep` in place of VMMs. Guests, logs and the library of images are in memory.
//!
//! `cargo xtask soak --cycles N` runs this with as many cycles as wanted; a run of the tests has a few. The last line has the
//! figures. Each cycle creates a sandbox and starts it, stops it, starts it again and deletes it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    panic::{AssertUnwindSafe, resume_unwind},
    path::Path,
    sync::Arc,
    time::Instant,
};

use banger_domain::id::{JobId, Uid};
use banger_system::{
    engine::{
        Engine,
        request::{ImportImage, ImportKernel, ImportSource, Start, Stop, StopMode},
        view::Outcome,
    },
    host::{network::LinuxNetwork, process::supervisor_process::ProcessSupervisor, store::SqliteStore},
    ports::{network::Network, store::Store, supervisor::Supervisor},
    sim::Sim,
    tasks::Tasks,
};
use futures_util::FutureExt as _;
use tokio::task::JoinSet;

use crate::{
    net_lab::Space,
    real_host::{self, RealHost, request, settings},
    scratch::{Scratch, has_program, is_root, require},
    skip,
};

/// Environment variables of `cargo xtask soak`.
const CYCLES: &str = "BANGER_SOAK_CYCLES";
const CONCURRENCY: &str = "BANGER_SOAK_CONCURRENCY";
/// What a run of the tests has.
const FEW: u32 = 20;
/// How many cycles come before the first count of what belongs to sandboxes. Jobs are kept after their end, 64 for each user, and a
/// cycle has four; threads and pools are made when they are first needed.
const WARM_UP: u32 = 20;

/// How much larger a figure may be after the cycles than before. What belongs to a sandbox must be gone: it grows by nothing.
///
/// Threads of blocking calls come and go with the load of the machine, and each may hold a descriptor when it is counted.
const THREADS: u64 = 64;
const DESCRIPTORS: u64 = 16;
/// Memory is compared only in runs of at least this many cycles, and only in their second half: SQLite fills its cache of pages,
/// 2 MB, and the allocator makes an arena for each thread that is new. In 20 cycles that is more than any leak.
const MEMORY_CYCLES: u32 = 1000;
/// Nothing is allowed per cycle, so a leak fails once a run is long enough: in the 5,000 cycles of the second half of a run of 10,000,
/// one of 210 bytes per cycle does.
const HEAP_KIB: u64 = 1024;
/// The allocator gives memory back to the kernel in large pieces only, and keeps what threads have released for each of them. A
/// leak of what the allocator does not know, such as a mapping of 4 KiB per cycle, fails in a run of 10,000.
const RSS_KIB: u64 = 16 * 1024;

/// A host on which sandboxes come and go.
struct Host {
    scratch: Scratch,
    space: Space,
    engine: Engine,
    store: Arc<SqliteStore>,
    network: Arc<LinuxNetwork>,
    supervisor: Arc<ProcessSupervisor>,
    tasks: Tasks,
}

impl Host {
    async fn new(space: Space, concurrency: u32) -> Self {
        let scratch = Scratch::new();
        real_host::install(&scratch);
        let (sim, tasks) = (Sim::new(), Tasks::default());
        let RealHost { ports, store, network, supervisor } =
            RealHost::new(&scratch.paths, &sim, &tasks).await;
        let (engine, mut events) = Engine::new(ports, settings(concurrency + 1), &tasks);
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        engine.recover().await.unwrap();
        let host = Self { scratch, space, engine, store, network, supervisor, tasks };
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
    async fn count(&self) -> Figures {
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

type Figures = BTreeMap<&'static str, u64>;

/// Returns what has grown beyond its bound since the warm-up, and which memory since the middle of the run.
fn grown(before: &Figures, middle: &Figures, after: &Figures, cycles: u32) -> Vec<String> {
    let grown = |what: &&'static str| {
        let (before, allowed) = match *what {
            "heap KiB" | "rss KiB" if cycles < MEMORY_CYCLES => return None,
            "heap KiB" => (middle[what], HEAP_KIB),
            "rss KiB" => (middle[what], RSS_KIB),
            "threads" => (before[what], THREADS),
            "descriptors" => (before[what], DESCRIPTORS),
            _ => (before[what], 0),
        };
        (after[what] > before + allowed).then(|| format!("{what}: {before} → {}", after[what]))
    };
    after.keys().filter_map(grown).collect()
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
    runtime.block_on(on_a_host(space, concurrency, async |host| {
        run(&host, WARM_UP, concurrency).await;
        let (before, begun) = (host.count().await, Instant::now());
        run(&host, cycles / 2, concurrency).await;
        let middle = host.count().await;
        run(&host, cycles - cycles / 2, concurrency).await;
        let (after, took) = (host.count().await, begun.elapsed().as_secs_f64());
        let figures =
            after.iter().map(|(what, count)| format!("{what} {} → {} → {count}", before[what], middle[what]));
        let figures = figures.collect::<Vec<_>>().join(", ");
        let rate = f64::from(cycles) / took;
        println!("soak: {cycles} cycles, {concurrency} at once, {rate:.1} per second: {figures}");
        assert_eq!(grown(&before, &middle, &after, cycles), Vec::<String>::new());
        assert_eq!((after["interfaces"], after["processes"]), (0, 0));
        assert_eq!(host.engine.vms().len(), 0);
    }));
}

/// Does this on a host, and leaves no process behind, not even if it panics: shims and what they run outlive the service.
async fn on_a_host(space: Space, concurrency: u32, work: impl AsyncFnOnce(Arc<Host>)) {
    let host = Arc::new(Host::new(space, concurrency).await);
    let result = AssertUnwindSafe(work(Arc::clone(&host))).catch_unwind().await;
    // Nothing starts a process once these have ended.
    host.tasks.abort_all().await;
    for (vm, _) in host.supervisor.found().await.unwrap() {
        host.supervisor.remove(vm).await.unwrap();
    }
    if let Err(panic) = result {
        resume_unwind(panic);
    }
}

#[test]
fn a_run_that_fails_leaves_nothing() {
    require!(is_root(), "root");
    require!(has_program("nft") && has_program("ip"), "nft and ip");
    require!(skip::has_device("/dev/net/tun"), "TUN");
    let space = Space::enter_new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (mut pids, mut home) = (Vec::new(), None);
        let failed = AssertUnwindSafe(on_a_host(space, 1, async |host| {
            let (_, job) = host.engine.create_vm(request()).await.unwrap();
            host.done(job).await;
            pids.extend(host.supervisor.found().await.unwrap().iter().map(|(_, process)| process.pid));
            home = Some(host.scratch.home.path().to_owned());
            panic!("told to fail");
        }));
        assert!(failed.catch_unwind().await.is_err());
        let lives = |pid: &u32| {
            // One that has ended and that nobody has asked about is a zombie.
            let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            state.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
        };
        assert!(pids.len() == 1 && !pids.iter().any(lives), "{pids:?}");
        assert!(!home.unwrap().exists());
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
    let figures =
        |files, threads, heap| BTreeMap::from([("files", files), ("threads", threads), ("heap KiB", heap)]);
    let check = |cycles, middle: &Figures, after: &Figures, expect: &[&str]| {
        assert_eq!(grown(&figures(7, 3, 100), middle, after, cycles), expect);
    };
    let middle = figures(7, 3, 4000);
    check(10, &middle, &figures(7, 60, 5000), &[]);
    check(10, &middle, &figures(8, 3, 100), &["files: 7 → 8"]);
    check(10, &middle, &figures(6, 68, 100), &["threads: 3 → 68"]);
    check(10, &middle, &figures(7, 3, 9000), &[]);
    check(1000, &middle, &figures(7, 3, 5024), &[]);
    check(1000, &middle, &figures(7, 3, 5025), &["heap KiB: 4000 → 5025"]);
}
