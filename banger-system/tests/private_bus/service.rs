//! The service on a host in memory, on a private bus.

use std::{
    fs::File,
    sync::{Arc, Condvar, Mutex},
    time::{Duration, SystemTime},
};

use banger_domain::{egress::Egress, id::Uid, limits::Limits, net::nic::SameOwner, resource::Paths};
use banger_proto::size::Bytes;
use banger_system::{
    bus,
    engine::{
        Engine, Settings,
        request::{ImportImage, ImportKernel, ImportSource},
    },
    host,
    log::Log,
    ports::{Ports, clock::Clock, users::Users},
    sim::Sim,
    tasks::Tasks,
};
use tempfile::TempDir;
use zbus::Connection;

use super::{Bus, Client, Polkit, TIMEOUT, until};

/// Longer than any test waits.
const POLKIT_TIMEOUT: Duration = Duration::from_secs(600);

pub struct Service {
    pub sim: Sim,
    pub clock: PausableClock,
    users: Arc<dyn Users>,
    /// How long polkit may take to answer, from the next start on.
    pub polkit_timeout: Duration,
    pub engine: Engine,
    pub polkit: Polkit,
    pub connection: Connection,
    pub bus: Bus,
    /// Paths of the logs, which are real files.
    pub paths: Paths,
    _home: TempDir,
}

impl Service {
    /// Starts a service with a shared image and a shared kernel.
    pub async fn start() -> Self {
        let sim = Sim::new();
        let users = sim.ports().users;
        Self::start_with(sim, users).await
    }

    /// Does the same with these accounts.
    pub async fn start_with(sim: Sim, users: Arc<dyn Users>) -> Self {
        let polkit_timeout = POLKIT_TIMEOUT;
        let bus = Bus::start();
        let polkit = Polkit::start(&bus).await;
        let clock = PausableClock::default();
        let home = tempfile::tempdir().unwrap();
        let at = |name| home.path().join(name);
        let paths = Paths { state: at("state"), runtime: at("run"), libexec: at("libexec") };
        let (connection, engine) = serve(&bus, &sim, &clock, &paths, &users, polkit_timeout).await;
        let service =
            Self { sim, clock, users, polkit_timeout, engine, polkit, connection, bus, paths, _home: home };
        service.install_defaults().await;
        service
    }

    /// Disconnects the service from its bus, as a crash does. Its sandboxes keep running.
    pub async fn crash(&self) {
        self.connection.clone().close().await.unwrap();
    }

    /// Starts another service on the same host and bus.
    pub async fn restart(&mut self) {
        (self.connection, self.engine) =
            serve(&self.bus, &self.sim, &self.clock, &self.paths, &self.users, self.polkit_timeout).await;
    }

    pub async fn client(&self, uid: u32) -> Client {
        self.bus.client(uid).await
    }

    async fn install_defaults(&self) {
        let null = || File::open("/dev/null").unwrap().into();
        let (owner, shared) = (Uid::ROOT, true);
        let name = "debian".parse().unwrap();
        let kernel = ImportKernel { owner, name, shared, vmlinuz: null(), modules: None };
        self.engine.wait_job(self.engine.import_kernel(kernel).unwrap(), None).await.unwrap();
        let name = "debian-bookworm".parse().unwrap();
        let image = ImportImage { owner, name, shared, kernel: None, content: ImportSource::Rootfs(null()) };
        self.engine.wait_job(self.engine.import_image(image).unwrap(), None).await.unwrap();
    }
}

/// A clock that can block the next reader, in the middle of what it does.
#[derive(Clone, Default)]
pub struct PausableClock {
    stopped: Arc<(Mutex<Time>, Condvar)>,
}

#[derive(Default, PartialEq, Eq)]
enum Time {
    #[default]
    Runs,
    /// The next reader will block.
    Armed,
    Stands,
}

impl PausableClock {
    /// Blocks the next reader.
    pub fn stop(&self) {
        *self.stopped.0.lock().unwrap() = Time::Armed;
    }

    /// Waits until a reader is blocked.
    pub async fn until_stopped(&self) {
        until(|| async { *self.stopped.0.lock().unwrap() == Time::Stands }).await;
    }

    /// Releases the blocked reader.
    pub fn run(&self) {
        *self.stopped.0.lock().unwrap() = Time::Runs;
        self.stopped.1.notify_all();
    }
}

#[async_trait::async_trait]
impl Clock for PausableClock {
    /// The clock is never set.
    async fn due(&self) -> banger_system::ports::clock::Result<banger_domain::clock::Occasion> {
        std::future::pending().await
    }

    fn now(&self) -> SystemTime {
        let mut time = self.stopped.0.lock().unwrap();
        if *time == Time::Armed {
            *time = Time::Stands;
            // The other tasks of this thread move to another one.
            tokio::task::block_in_place(|| {
                drop(self.stopped.1.wait_timeout_while(time, TIMEOUT, |time| *time == Time::Stands));
            });
        }
        SystemTime::now()
    }
}

async fn serve(
    bus: &Bus,
    sim: &Sim,
    clock: &PausableClock,
    paths: &Paths,
    users: &Arc<dyn Users>,
    polkit_timeout: Duration,
) -> (Connection, Engine) {
    let (connection, tasks) = (bus.connect(0).await, Tasks::default());
    let authority = Arc::new(host::authority::Polkit::with_timeout(connection.clone(), polkit_timeout));
    let logs = Arc::new(host::process::logs::RingLogs::new(paths.clone(), tasks.clone()));
    let ports =
        Ports { authority, clock: Arc::new(clock.clone()), logs, users: Arc::clone(users), ..sim.ports() };
    let settings = Settings {
        default_image: "debian-bookworm".parse().unwrap(),
        default_kernel: "debian".parse().unwrap(),
        vcpus: 2,
        memory: Bytes::gib(1),
        disk_size: Bytes::gib(8),
        root_size: Bytes(0),
        ready_timeout: TIMEOUT,
        stop_timeout: TIMEOUT,
        on_reboot: banger_system::engine::request::OnReboot::Boot,
        subnet: None,
        same_owner: SameOwner::Connected,
        templates: false,
        egress_ceiling: Egress::Everything,
        presets: Arc::default(),
        limits: Limits::of_host(4, Bytes::gib(32)),
    };
    let (engine, events) = Engine::new(ports, settings, &tasks);
    engine.recover().await.unwrap();
    bus::serve(connection.clone(), engine.clone(), events, Log::unused(), &tasks).await.unwrap();
    (connection, engine)
}
