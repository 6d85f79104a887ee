//! An engine on a host in memory, for tests.

use std::{collections::BTreeMap, fs::File, sync::Arc, time::Duration};

use banger_domain::{
    egress::Egress,
    id::{JobId, Uid, VmId},
    lifecycle::State,
    limits::Limits,
    net::nic::SameOwner,
    restart::RestartPolicy,
    vm::{Init, Lifetime},
    vmm::VmmChoice,
};
use banger_proto::size::Bytes;
use banger_system::{
    engine::{
        Engine, Events, Settings,
        request::{CreateVm, ImportImage, ImportKernel, ImportSource, OnReboot, Start},
        view::Outcome,
    },
    ports::Ports,
    sim::Sim,
    tasks::Tasks,
};

pub const ALICE: Uid = Uid(1000);
pub const BOB: Uid = Uid(1001);
/// The longest that a test waits for anything.
pub const TIMEOUT: Duration = Duration::from_secs(20);
/// Longer than the pause between two tries of the service, for tests whose clock is virtual.
pub const LONG: Duration = Duration::from_secs(600);

pub struct EngineLab {
    pub sim: Sim,
    pub engine: Engine,
    pub events: Events,
    pub tasks: Tasks,
}

impl EngineLab {
    /// Creates a host with a shared image and a shared kernel.
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// Does the same with other settings.
    pub async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let lab = Self::on_with(Sim::new(), change);
        lab.install_defaults().await;
        lab
    }

    async fn install_defaults(&self) {
        let lab = self;
        let null = || File::open("/dev/null").unwrap().into();
        let kernel = ImportKernel {
            owner: Uid::ROOT,
            name: "debian".parse().unwrap(),
            shared: true,
            vmlinuz: null(),
            modules: None,
        };
        lab.done(lab.engine.import_kernel(kernel).unwrap()).await;
        let image = ImportImage {
            owner: Uid::ROOT,
            name: "debian-bookworm".parse().unwrap(),
            shared: true,
            kernel: None,
            content: ImportSource::Rootfs(null()),
        };
        lab.done(lab.engine.import_image(image).unwrap()).await;
    }

    /// Installs a shared image and a shared kernel on a host, with an engine that has ended.
    pub async fn prepare(sim: &Sim) {
        let lab = Self::on(sim.clone());
        lab.install_defaults().await;
    }

    /// Creates an engine that has recovered nothing yet, on a host that may have objects.
    pub fn on(sim: Sim) -> Self {
        Self::on_with(sim, |_| {})
    }

    /// Does the same with other settings.
    pub fn on_with(sim: Sim, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings {
            default_image: "debian-bookworm".parse().unwrap(),
            default_kernel: "debian".parse().unwrap(),
            vcpus: 2,
            memory: Bytes::gib(1),
            disk_size: Bytes::gib(8),
            root_size: Bytes(0),
            ready_timeout: Duration::from_millis(300),
            stop_timeout: Duration::from_millis(300),
            on_reboot: OnReboot::Boot,
            subnet: None,
            same_owner: SameOwner::Connected,
            templates: false,
            presets: Arc::default(),
            egress_ceiling: Egress::Everything,
            limits: Limits::of_host(4, Bytes::gib(32)),
        };
        change(&mut settings);
        Self::of(sim.clone(), sim.ports(), settings)
    }

    /// Creates an engine on these ports.
    pub fn of(sim: Sim, ports: Ports, settings: Settings) -> Self {
        let tasks = Tasks::default();
        let (engine, events) = Engine::new(ports, settings, &tasks);
        Self { sim, engine, events, tasks }
    }

    /// Starts another engine on the same host, after the first one has crashed.
    pub async fn restart(self) -> Self {
        self.restart_with(|_| {}).await
    }

    /// Restarts with other settings.
    pub async fn restart_with(self, change: impl FnOnce(&mut Settings)) -> Self {
        self.tasks.abort_all().await;
        let next = Self::on_with(self.sim.clone(), change);
        next.engine.recover().await.unwrap();
        next
    }

    /// Waits until a condition holds, which is looked at each second of the clock.
    pub async fn wait_until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let wait = async {
            while !is_so(self) {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        assert!(tokio::time::timeout(LONG, wait).await.is_ok(), "{what}: {:?}", self.sim.alive());
    }

    pub async fn outcome(&self, job: JobId) -> Outcome {
        let view = tokio::time::timeout(TIMEOUT, self.engine.wait_job(job, None)).await.unwrap().unwrap();
        view.outcome.clone().unwrap()
    }

    pub async fn done(&self, job: JobId) {
        let outcome = self.outcome(job).await;
        assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
    }

    pub async fn failed(&self, job: JobId) -> String {
        match self.outcome(job).await {
            Outcome::Failed(error) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    pub async fn running(&self) -> VmId {
        let (vm, job) = self.engine.create_vm(request()).await.unwrap();
        self.done(job).await;
        vm
    }

    pub fn state(&self, vm: VmId) -> State {
        self.engine.vm(vm).unwrap().vm.state
    }

    /// Waits until a VM's state is as wanted.
    pub async fn until(&mut self, vm: VmId, wanted: impl Fn(Option<State>) -> bool) {
        let wait = async {
            while !wanted(self.engine.vm(vm).map(|view| view.vm.state)) {
                self.events.recv().await.expect("the engine lives");
            }
        };
        tokio::time::timeout(TIMEOUT, wait).await.unwrap();
    }
}

pub fn request() -> CreateVm {
    CreateVm {
        vmm: VmmChoice::Auto,
        egress: Egress::Nothing,
        timezone: None,
        authorized_keys: Vec::new(),
        owner: ALICE,
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
