//! The service on a host in memory, on a bus of the test's own.

use std::{fs::File, sync::Arc, time::Duration};

use banger_proto::size::Bytes;
use banger_system::{
    bus,
    domain::{id::Uid, limits::Limits},
    engine::{
        Engine, Settings,
        request::{ImportImage, ImportKernel},
    },
    host,
    ports::Ports,
    sim::Sim,
};
use zbus::Connection;

use super::{Bus, Client, Polkit};

pub struct Service {
    pub sim: Sim,
    pub engine: Engine,
    pub polkit: Polkit,
    pub connection: Connection,
    pub bus: Bus,
}

impl Service {
    /// A service with an image and a kernel that everybody sees.
    pub async fn start() -> Self {
        let bus = Bus::start();
        let polkit = Polkit::start(&bus).await;
        let sim = Sim::new();
        let (connection, engine) = serve(&bus, &sim).await;
        let service = Self { sim, engine, polkit, connection, bus };
        service.furnish().await;
        service
    }

    /// Takes the service from its bus, as a crash does: nothing is told to it, and its machines go on.
    pub async fn crash(&self) {
        self.connection.clone().close().await.unwrap();
    }

    /// Another run of the service on the same host and the same bus.
    pub async fn restart(&mut self) {
        (self.connection, self.engine) = serve(&self.bus, &self.sim).await;
    }

    pub async fn client(&self, uid: u32) -> Client {
        self.bus.client(uid).await
    }

    async fn furnish(&self) {
        let null = || File::open("/dev/null").unwrap().into();
        let (owner, shared) = (Uid::ROOT, true);
        let name = "debian".parse().unwrap();
        let kernel = ImportKernel { owner, name, shared, vmlinuz: null(), modules: None };
        self.engine.wait_job(self.engine.import_kernel(kernel).unwrap(), None).await.unwrap();
        let name = "debian-bookworm".parse().unwrap();
        let image = ImportImage { owner, name, shared, kernel: None, rootfs: null() };
        self.engine.wait_job(self.engine.import_image(image).unwrap(), None).await.unwrap();
    }
}

async fn serve(bus: &Bus, sim: &Sim) -> (Connection, Engine) {
    let connection = bus.connect(0).await;
    let authority = Arc::new(host::authority::Polkit::new(connection.clone()));
    let ports = Ports { authority, ..sim.ports() };
    let settings = Settings {
        default_image: "debian-bookworm".parse().unwrap(),
        default_kernel: "debian".parse().unwrap(),
        vcpus: 2,
        memory: Bytes::gib(1),
        disk_size: Bytes::gib(8),
        ready_timeout: Duration::from_secs(60),
        stop_timeout: Duration::from_secs(1),
        limits: Limits::of_host(4, Bytes::gib(32)),
    };
    let (engine, events) = Engine::new(ports, settings);
    engine.recover().await.unwrap();
    bus::serve(connection.clone(), engine.clone(), events).await.unwrap();
    (connection, engine)
}
