//! A client of the service on a private bus, for `cargo xtask bench create` and `cargo xtask bench bus`. Prints its figures as
//! JSON.

use std::{
    collections::HashMap,
    fs::{self, File},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use banger_proto::bus::{
    names::{MANAGER_PATH, SERVICE},
    option::{create, delete},
    proxy::{Facts, JobProxy, ManagerProxy, Options, VmProxy},
    record::VmRow,
};
use serde_json::json;
use zbus::{
    Connection, Fd, OwnedObjectPath, OwnedVariant, Variant, fdo::DBusProxy, interface, proxy,
    proxy::CacheProperties,
};

/// The longest that the service may take to start.
const START: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);
/// How many calls one sample is the mean of: many short ones, few long ones.
const SHORT: u32 = 200;
const LONG: u32 = 10;
/// The name of the service that does nothing.
const ECHO: &str = "dev.banger.Echo";
/// Whom the calls come from: root would need no authorisation.
const NOBODY: u32 = 65534;

/// A service that returns what it was given at its start, as a program with zbus alone would do it.
struct Echo {
    rows: Vec<VmRow>,
}

#[interface(name = "dev.banger.Echo")]
impl Echo {
    async fn list_snapshots(&self) -> Vec<HashMap<String, OwnedVariant>> {
        Vec::new()
    }

    #[zbus(name = "ListVMs")]
    async fn list_vms(&self, _filter: HashMap<String, OwnedVariant>) -> Vec<VmRow> {
        self.rows.clone()
    }
}

#[proxy(
    interface = "dev.banger.Echo",
    default_service = "dev.banger.Echo",
    default_path = "/dev/banger/Manager1"
)]
trait Peer {
    fn list_snapshots(&self) -> zbus::Result<Vec<Facts>>;
    #[zbus(name = "ListVMs")]
    fn list_vms(&self, filter: Options<'_>) -> zbus::Result<Vec<VmRow>>;
}

/// A call that only the owner of a sandbox may make without being asked.
#[proxy(interface = "dev.banger.Manager1.VM", default_service = "dev.banger.Manager1")]
trait Sandbox {
    fn list_snapshots(&self) -> zbus::Result<Vec<Facts>>;
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if rustix::process::geteuid().is_root() {
        // The threads of the runtime inherit it.
        let nobody = rustix::process::Uid::from_raw(NOBODY);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).context("cannot become another user")?;
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build()?;
    match words[..] {
        ["create", count, runs] => runtime.block_on(create_and_delete(count.parse()?, runs.parse()?)),
        ["bus", count, runs] => runtime.block_on(call(count.parse()?, runs.parse()?)),
        ["echo"] => runtime.block_on(echo()),
        _ => bail!("service_times create COUNT RUNS | bus COUNT RUNS | echo"),
    }
}

/// Connects, and waits until the service is there.
async fn connect(name: &'static str) -> Result<Connection> {
    let connection = Connection::system().await?;
    let bus = DBusProxy::new(&connection).await?;
    let begun = Instant::now();
    while !bus.name_has_owner(name.try_into()?).await? {
        ensure!(begun.elapsed() < START, "{name} does not start");
        tokio::time::sleep(PAUSE).await;
    }
    Ok(connection)
}

/// Returns the memory of the service, in KiB.
async fn rss_kib(connection: &Connection) -> Result<u64> {
    let pid = DBusProxy::new(connection).await?.get_connection_unix_process_id(SERVICE.try_into()?).await?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("cannot read the memory")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok()).context("it has no memory")
}

async fn wait(connection: &Connection, job: OwnedObjectPath) -> Result<()> {
    let job = JobProxy::builder(connection).path(job).cache_properties(CacheProperties::No).build().await?;
    let (result, name, message, _) = job.wait(0).await?;
    ensure!(result == "done", "a job is {result}: {name}: {message}");
    Ok(())
}

/// Makes the image and the kernel that sandboxes need.
async fn provide(connection: &Connection, manager: &ManagerProxy<'_>) -> Result<()> {
    let null = File::open("/dev/null")?;
    let kernel = HashMap::from([("kernel", Fd::from(&null))]);
    wait(connection, manager.import_kernel("debian", kernel, Options::new()).await?).await?;
    let rootfs = HashMap::from([("rootfs", Fd::from(&null))]);
    wait(connection, manager.import_image("bench", rootfs, Options::new()).await?).await
}

fn options(start: bool) -> Options<'static> {
    Options::from([
        (create::IMAGE, Variant::from("bench")),
        (create::KERNEL, Variant::from("debian")),
        (create::START, Variant::from(start)),
    ])
}

async fn create_all(
    connection: &Connection,
    manager: &ManagerProxy<'_>,
    count: u32,
    start: bool,
) -> Result<Vec<OwnedObjectPath>> {
    let mut all = Vec::new();
    for number in 0..count {
        let (vm, job) = manager.create_vm(&format!("vm-{number}"), options(start)).await?;
        wait(connection, job).await?;
        all.push(vm);
    }
    Ok(all)
}

/// Creates sandboxes, one after the other, each until its guest answers, and deletes them.
async fn create_and_delete(count: u32, runs: u32) -> Result<()> {
    let connection = connect(SERVICE).await?;
    let manager = ManagerProxy::new(&connection).await?;
    let at_rest = rss_kib(&connection).await?;
    provide(&connection, &manager).await?;
    let (without, mut with) = (rss_kib(&connection).await?, Vec::new());
    let mut per_second = Vec::new();
    for _ in 0..runs {
        let begun = Instant::now();
        let all = create_all(&connection, &manager, count, true).await?;
        let created = begun.elapsed();
        with.push(rss_kib(&connection).await?);
        let begun = Instant::now();
        for vm in &all {
            let vm =
                VmProxy::builder(&connection).path(vm).cache_properties(CacheProperties::No).build().await?;
            wait(&connection, vm.delete(Options::from([(delete::FORCE, Variant::from(true))])).await?)
                .await?;
        }
        per_second.push(f64::from(count) / (created + begun.elapsed()).as_secs_f64());
    }
    let first = with.first().copied().unwrap_or_default();
    println!(
        "{}",
        json!({
            "count": count,
            "per_second": per_second,
            "rss_kib": at_rest,
            "rss_per_vm_kib": first.saturating_sub(without) as f64 / f64::from(count),
        })
    );
    Ok(())
}

/// Compares calls of the service with those of one that does nothing, on the same bus and in turns.
async fn call(count: u32, runs: u32) -> Result<()> {
    let connection = connect(SERVICE).await?;
    let manager = ManagerProxy::new(&connection).await?;
    provide(&connection, &manager).await?;
    let all = create_all(&connection, &manager, count, false).await?;
    let rows = manager.list_vms(Options::new()).await?;
    ensure!(rows.len() == all.len(), "the service lists {} of {count} sandboxes", rows.len());
    // Its own path may lead through directories that are not open to this user.
    let mut process = Command::new("/proc/self/exe").arg("echo").stdin(Stdio::piped()).spawn()?;
    serde_json::to_writer(
        process.stdin.take().context("it has no input")?,
        &rows.iter().map(Row::of).collect::<Vec<_>>(),
    )?;
    let first = all.first().context("there are no sandboxes")?;
    let vm = SandboxProxy::builder(&connection).path(first).cache_properties(CacheProperties::No);
    let vm = vm.build().await?;
    let compared = compare(&manager, &vm, runs).await;
    process.kill()?;
    process.wait()?;
    println!("{}", compared?);
    Ok(())
}

async fn compare(manager: &ManagerProxy<'_>, vm: &SandboxProxy<'_>, runs: u32) -> Result<serde_json::Value> {
    let peer = PeerProxy::new(&connect(ECHO).await?).await?;
    let mut samples: [Vec<f64>; 4] = Default::default();
    // The first round is not counted.
    for round in 0..=runs {
        let all = [
            mean(LONG, async || Ok(manager.list_vms(Options::new()).await.map(drop)?)).await?,
            mean(LONG, async || Ok(peer.list_vms(Options::new()).await.map(drop)?)).await?,
            mean(SHORT, async || Ok(vm.list_snapshots().await.map(drop)?)).await?,
            mean(SHORT, async || Ok(peer.list_snapshots().await.map(drop)?)).await?,
        ];
        if round > 0 {
            samples.iter_mut().zip(all).for_each(|(samples, sample)| samples.push(sample));
        }
    }
    let [list, peer_list, call, peer_call] = samples;
    Ok(json!({ "list": list, "peer_list": peer_list, "call": call, "peer_call": peer_call }))
}

/// Returns how long a call takes, in milliseconds.
async fn mean(calls: u32, call: impl AsyncFn() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    for _ in 0..calls {
        call().await?;
    }
    Ok(begun.elapsed().as_secs_f64() * 1000.0 / f64::from(calls))
}

/// A row as JSON.
#[derive(serde::Serialize, serde::Deserialize)]
struct Row {
    id: String,
    name: String,
    owner_uid: u32,
    state: String,
    address: String,
    path: String,
}

impl Row {
    fn of(row: &VmRow) -> Self {
        Self {
            id: row.id.clone(),
            name: row.name.clone(),
            owner_uid: row.owner_uid,
            state: row.state.clone(),
            address: row.address.clone(),
            path: row.path.to_string(),
        }
    }

    fn into_row(self) -> Result<VmRow> {
        let path = OwnedObjectPath::try_from(self.path)?;
        let Self { id, name, owner_uid, state, address, .. } = self;
        Ok(VmRow { id, name, owner_uid, state, address, path })
    }
}

/// Serves the rows that come on standard input, until it is killed.
async fn echo() -> Result<()> {
    let rows: Vec<Row> = serde_json::from_reader(std::io::stdin()).context("cannot read the rows")?;
    let rows: Vec<VmRow> = rows.into_iter().map(Row::into_row).collect::<Result<_>>()?;
    let connection = Connection::system().await?;
    connection.object_server().at(MANAGER_PATH, Echo { rows }).await?;
    connection.request_name(ECHO).await?;
    std::future::pending().await
}
