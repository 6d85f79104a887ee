//! An engine on a host in memory.
#![allow(dead_code)]

use std::{collections::BTreeMap, fs::File, time::Duration};

use banger_domain::{
    id::{JobId, Uid, VmId},
    lifecycle::State,
    limits::Limits,
    net::nic::{Nat, SameOwner},
    vm::{Init, Lifetime},
    vmm::VmmChoice,
};
use banger_proto::size::Bytes;
use banger_system::{
    engine::{
        Engine, Settings,
        request::{CreateVm, ImportImage, ImportKernel, OnReboot, Original, Start},
        view::{Event, Outcome},
    },
    sim::Sim,
};
use tokio::sync::mpsc::UnboundedReceiver;

pub const ALICE: Uid = Uid(1000);
pub const BOB: Uid = Uid(1001);
/// No test waits longer for what must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct House {
    pub sim: Sim,
    pub engine: Engine,
    pub events: UnboundedReceiver<Event>,
}

impl House {
    /// A host with an image and a kernel that everybody sees.
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// The same, with settings of its own.
    pub async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let house = Self::on_with(Sim::new(), change);
        house.furnish().await;
        house
    }

    async fn furnish(&self) {
        let house = self;
        let null = || File::open("/dev/null").unwrap().into();
        let kernel = ImportKernel {
            owner: Uid::ROOT,
            name: "debian".parse().unwrap(),
            shared: true,
            vmlinuz: null(),
            modules: None,
        };
        house.done(house.engine.import_kernel(kernel).unwrap()).await;
        let image = ImportImage {
            owner: Uid::ROOT,
            name: "debian-bookworm".parse().unwrap(),
            shared: true,
            kernel: None,
            content: Original::Rootfs(null()),
        };
        house.done(house.engine.import_image(image).unwrap()).await;
    }

    /// Gives a host an image and a kernel that everybody sees, by a run of the service that is over.
    pub async fn prepare(sim: &Sim) {
        let house = Self::on(sim.clone());
        house.furnish().await;
    }

    /// An engine that knows nothing yet, on a host that may have things.
    pub fn on(sim: Sim) -> Self {
        Self::on_with(sim, |_| {})
    }

    /// The same, with settings of its own.
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
            siblings: SameOwner::Connected,
            limits: Limits::of_host(4, Bytes::gib(32)),
        };
        change(&mut settings);
        let (engine, events) = Engine::new(sim.ports(), settings);
        Self { sim, engine, events }
    }

    /// Another run of the service on the same host. The first one is not asked to stop, as in a crash: its
    /// tasks end with the runtime, so the caller makes sure that they are idle.
    pub async fn restarted(self) -> Self {
        let next = Self::on(self.sim.clone());
        next.engine.recover().await.unwrap();
        next
    }

    pub async fn outcome(&self, job: JobId) -> Outcome {
        let view = tokio::time::timeout(PATIENCE, self.engine.wait_job(job, None)).await.unwrap().unwrap();
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

    /// Waits until a machine is as it should be.
    pub async fn until(&mut self, vm: VmId, wanted: impl Fn(Option<State>) -> bool) {
        let wait = async {
            while !wanted(self.engine.vm(vm).map(|view| view.vm.state)) {
                self.events.recv().await.expect("the engine lives");
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap();
    }
}

pub fn request() -> CreateVm {
    CreateVm {
        vmm: VmmChoice::Auto,
        nat: Nat::Off,
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
        start: Some(Start::default()),
    }
}
