//! The service that is killed: the engine on the real host of [`crate::real_host`], with real images too, in a process of its
//! own. It does what its standard input asks for, and writes what it does to its standard output.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    io::{self, BufRead},
    path::Path,
    process::Command,
    sync::Arc,
    time::Duration,
};

use banger_domain::{
    egress::Egress,
    id::{Timestamp, Uid, VmId},
    lifecycle::State,
    resource::{Paths, Resource},
    vm::{Lifetime, Vm},
};
use banger_image::{fixtures::tar::Tar, oci::config::ConfigChange};
use banger_proto::{
    guest::{
        GuestConfig,
        config::{Init, Programs},
    },
    size::Bytes,
};
use banger_system::{
    engine::{
        Engine,
        error::Error,
        request::{
            CommitVm, Configure, CreateVm, ForkVm, ImportImage, ImportKernel, ImportSource, OnConflict,
            Start, Stop, StopMode,
        },
        view::Outcome,
    },
    host::{process::worker_process::ProcessWorkers, storage::image_files::LocalImages},
    ports::{Ports, network::Network, store::Store, supervisor::Supervisor},
    sim::Sim,
    tasks::Tasks,
};
use serde::{Deserialize, Serialize};

use super::random::Random;
use crate::{
    real_host::{OWNER, RealHost, request, settings},
    scratch::IMAGE_SIZE,
    tars,
};

/// What a line of output begins with.
pub const STARTS: &str = "service starts";
pub const RECOVERED: &str = "service recovered ";
pub const PREPARED: &str = "service prepared";
pub const BEGINS: &str = "service begins ";
pub const ENDED: &str = "service ended ";
pub const CLEARED: &str = "service cleared ";

/// How long anything may take on a machine that does many other things.
const LONG: Duration = Duration::from_secs(120);
/// How often to look whether something is still under way.
const POLL: Duration = Duration::from_millis(20);
/// The most sandboxes.
const MOST: usize = 5;
/// The most images, beside the default one.
const MOST_IMAGES: usize = 3;

/// What there is on the host, and where that disagrees with itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    pub facts: BTreeMap<String, BTreeSet<String>>,
    pub kept: Kept,
    pub wrong: Vec<String>,
}

impl Look {
    /// Returns what is in one look and not in the other.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut all = Vec::new();
        for (what, facts) in &self.facts {
            let others = other.facts.get(what).cloned().unwrap_or_default();
            all.extend(facts.difference(&others).map(|fact| format!("{what}: only before: {fact}")));
            all.extend(others.difference(facts).map(|fact| format!("{what}: only after: {fact}")));
        }
        all
    }
}

/// What the service has reported as done, by id: no kill may take it away.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Names, options and snapshots of sandboxes, and their states, unless they are about to change.
    pub sandboxes: BTreeMap<String, (String, Option<String>)>,
    pub images: BTreeMap<String, String>,
}

/// An operation that begins, and what was reported as done before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    pub operation: String,
    /// The sandbox that it is about, if any.
    pub sandbox: String,
    pub kept: Kept,
}

impl Begin {
    /// Returns what is not as it was reported, although this operation does not touch it.
    pub fn lost(&self, now: &Kept) -> Vec<String> {
        let mut all = Vec::new();
        for (id, (text, state)) in self.kept.sandboxes.iter().filter(|(id, _)| **id != self.sandbox) {
            match now.sandboxes.get(id) {
                None => all.push(format!("the sandbox is gone: {text}")),
                Some((other, _)) if other != text => all.push(format!("the sandbox {text} is {other}")),
                Some((_, other)) if state.is_some() && other != state => {
                    all.push(format!("the sandbox {text} was {state:?} and is {other:?}"));
                }
                Some(_) => {}
            }
        }
        let images = self.kept.images.iter().filter(|(id, image)| now.images.get(*id) != Some(*image));
        let gone: Vec<String> = images.map(|(_, image)| format!("the image is gone: {image}")).collect();
        // The one that is deleted is any of the user's.
        if gone.len() > usize::from(self.operation == "DeleteImage") {
            all.extend(gone);
        }
        let new = now.sandboxes.keys().filter(|id| !self.kept.sandboxes.contains_key(*id)).count();
        if new > usize::from(matches!(&*self.operation, "Create" | "CreateStarted" | "Fork")) {
            all.push(format!("{new} sandboxes that nobody has made"));
        }
        let new = now.images.keys().filter(|id| !self.kept.images.contains_key(*id)).count();
        if new > usize::from(matches!(&*self.operation, "ImportImage" | "Commit")) {
            all.push(format!("{new} images that nobody has made"));
        }
        all
    }
}

#[test]
fn what_is_lost_is_found_and_what_the_operation_is_about_may_be() {
    let sandbox = |name: &str, state: &str| (name.to_owned(), Some(state.to_owned()));
    let kept = |sandboxes: &[(&str, &str)], images: &[&str]| Kept {
        sandboxes: sandboxes.iter().map(|(id, state)| ((*id).to_owned(), sandbox(id, state))).collect(),
        images: images.iter().map(|id| ((*id).to_owned(), (*id).to_owned())).collect(),
    };
    let before = kept(&[("a", "running"), ("b", "stopped")], &["debian", "mine"]);
    let begin = |operation: &str, sandbox: &str| {
        let (operation, sandbox) = (operation.to_owned(), sandbox.to_owned());
        Begin { operation, sandbox, kept: before.clone() }
    };
    let lost = |operation, of, now: Kept| begin(operation, of).lost(&now).len();
    assert_eq!(lost("Rename", "a", before.clone()), 0);
    assert_eq!(lost("Delete", "a", kept(&[("b", "stopped")], &["debian", "mine"])), 0);
    assert_eq!(lost("Delete", "b", kept(&[("b", "stopped")], &["debian", "mine"])), 1);
    assert_eq!(lost("Rename", "a", kept(&[("a", "running"), ("b", "failed")], &["debian", "mine"])), 1);
    assert_eq!(lost("DeleteImage", "0", kept(&[("a", "running"), ("b", "stopped")], &["debian"])), 0);
    assert_eq!(lost("DeleteImage", "0", kept(&[("a", "running"), ("b", "stopped")], &[])), 2);
    assert_eq!(lost("Rename", "a", Kept::default()), 3);
    let more = kept(&[("a", "running"), ("b", "stopped"), ("c", "created")], &["debian", "mine", "new"]);
    assert_eq!(lost("Create", "0", more.clone()), 1);
    assert_eq!(lost("Commit", "b", more.clone()), 1);
    assert_eq!(lost("Rename", "a", more), 2);
    let mut renamed = before.clone();
    renamed.sandboxes.insert("b".to_owned(), sandbox("another name", "stopped"));
    assert_eq!(lost("Rename", "b", renamed.clone()), 0);
    assert_eq!(lost("Rename", "a", renamed), 1);
}

/// How many kinds of operations there are.
pub const OPERATIONS: usize = Operation::DeleteImage as usize + 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Operation {
    Create,
    CreateStarted,
    Start,
    Stop,
    Kill,
    Restart,
    Delete,
    Resize,
    ChangeNetwork,
    Restrict,
    Publish,
    Unpublish,
    Rename,
    Autostart,
    Pause,
    Unpause,
    CreateSnapshot,
    RestoreSnapshot,
    DeleteSnapshot,
    Fork,
    Commit,
    ImportImage,
    DeleteImage,
}

struct Service {
    engine: Engine,
    host: RealHost,
    ports: Ports,
    paths: Paths,
}

/// Serves below these paths until its standard input ends. What reads its output kills it before that.
pub fn serve(paths: Paths) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        println!("{STARTS}");
        let service = Service::recovered(paths).await;
        println!("{RECOVERED}{}", service.look().await);
        for line in io::stdin().lock().lines() {
            let line = line.unwrap();
            match line.split_once(' ') {
                Some(("work", seed)) => service.work(Random(seed.parse().unwrap())).await,
                _ if line == "prepare" => {
                    service.prepare().await;
                    println!("{PREPARED}");
                }
                _ if line == "clear" => {
                    service.clear().await;
                    println!("{CLEARED}{}", service.look().await);
                }
                _ => panic!("unknown: {line}"),
            }
        }
    });
}

impl Service {
    async fn recovered(paths: Paths) -> Self {
        let (sim, tasks) = (Sim::new(), Tasks::default());
        let host = RealHost::new(&paths, &sim, &tasks).await;
        let workers = Arc::new(ProcessWorkers::new(paths.clone()));
        let images = LocalImages::new(paths.clone(), workers, IMAGE_SIZE);
        let ports = Ports { image_files: Arc::new(images), ..host.ports.clone() };
        // The guests of an earlier service are in no memory but its own. Real ones would still be configured.
        for vm in host.store.vms().await.unwrap().iter().filter(|vm| vm.state.is_up()) {
            ports.guest.configure(vm.id, &configuration(vm), LONG).await.unwrap();
        }
        let (engine, mut events) = Engine::new(ports.clone(), settings(8), &tasks);
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        engine.recover().await.unwrap();
        Self { engine, host, ports, paths }
    }

    /// Makes the default image and kernel, and a sandbox, with what stays once there was one.
    async fn prepare(&self) {
        let kernel = ImportKernel {
            owner: Uid::ROOT,
            name: "debian".parse().unwrap(),
            shared: true,
            vmlinuz: fs::File::open("/dev/null").unwrap().into(),
            modules: None,
        };
        self.done(self.engine.import_kernel(kernel)).await.unwrap();
        self.import(Uid::ROOT, "debian-bookworm", true).await.unwrap();
        self.done(self.engine.create_vm(request()).await.map(|(_, job)| job)).await.unwrap();
    }

    async fn import(&self, owner: Uid, name: &str, shared: bool) -> Result<(), String> {
        let tar = Tar::default().file("etc/name", name.as_bytes()).end();
        let content = ImportSource::Rootfs(tars::file(&tar));
        let request = ImportImage { owner, name: name.parse().unwrap(), shared, kernel: None, content };
        self.done(self.engine.import_image(request)).await
    }

    /// Deletes everything but the default image and kernel.
    async fn clear(&self) {
        for vm in self.engine.vms() {
            self.done(self.engine.delete_vm(vm.vm.id, StopMode::Forced).await).await.unwrap();
        }
        for image in self.engine.images() {
            if image.owner == OWNER {
                self.engine.delete_image(image.id).await.unwrap();
            }
        }
    }

    /// Waits for a job, and returns why it failed.
    async fn done(&self, job: Result<banger_domain::id::JobId, Error>) -> Result<(), String> {
        let job = job.map_err(|error| error.to_string())?;
        let view = self.engine.wait_job(job, Some(LONG)).await.map_err(|error| error.to_string())?;
        match &view.outcome {
            Some(Outcome::Done) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    }

    async fn work(&self, mut random: Random) {
        for number in 0.. {
            let (operation, vm) = self.choose(&mut random);
            let begin =
                Begin { operation: format!("{operation:?}"), sandbox: vm.to_string(), kept: self.kept() };
            println!("{BEGINS}{}", serde_json::to_string(&begin).unwrap());
            let run = self.run(operation, vm, number, &mut random);
            let done = tokio::time::timeout(LONG, run).await.unwrap_or_else(|_| Err("too late".to_owned()));
            match done {
                Ok(()) => println!("{ENDED}{operation:?} done"),
                Err(error) => println!("{ENDED}{operation:?} {error}"),
            }
        }
    }

    /// Returns what can be done, and with which sandbox.
    fn choose(&self, random: &mut Random) -> (Operation, VmId) {
        use Operation as O;
        let (vms, images) = (self.engine.vms(), self.engine.images());
        let mut all: Vec<(Operation, VmId)> = Vec::new();
        let nobody = VmId::from_bits(0);
        if vms.len() < MOST {
            all.extend([(O::Create, nobody), (O::CreateStarted, nobody), (O::CreateStarted, nobody)]);
        }
        if images.len() <= MOST_IMAGES {
            all.push((O::ImportImage, nobody));
        }
        if images.iter().any(|image| image.owner == OWNER) {
            all.push((O::DeleteImage, nobody));
        }
        for view in &vms {
            let vm = view.vm.id;
            let mut can = |operations: &[Operation]| all.extend(operations.iter().map(|o| (*o, vm)));
            can(&[O::Rename, O::Autostart, O::ChangeNetwork, O::Restrict, O::Publish, O::Delete]);
            if !view.vm.spec.ports.is_empty() {
                can(&[O::Unpublish]);
            }
            match view.vm.state {
                State::Running => can(&[O::Stop, O::Kill, O::Restart, O::Pause]),
                State::Paused => can(&[O::Unpause, O::Stop]),
                State::Created | State::Stopped | State::Failed => {
                    can(&[O::Start, O::Start, O::Resize, O::Commit]);
                    if vms.len() < MOST {
                        can(&[O::Fork]);
                    }
                    match self.engine.snapshots(vm).is_empty() {
                        true => can(&[O::CreateSnapshot]),
                        false => can(&[O::RestoreSnapshot, O::DeleteSnapshot]),
                    }
                }
                _ => {}
            }
        }
        // Each kind of operation is as likely as any other one.
        let kinds: BTreeSet<Operation> = all.iter().map(|(operation, _)| *operation).collect();
        let kind = *kinds.iter().nth(random.below(kinds.len())).unwrap();
        all.retain(|(operation, _)| *operation == kind);
        all[random.below(all.len())]
    }

    async fn run(
        &self,
        operation: Operation,
        vm: VmId,
        number: u32,
        random: &mut Random,
    ) -> Result<(), String> {
        let engine = &self.engine;
        let text = |error: Error| error.to_string();
        let name = format!("n{}-{number}", random.below(1 << 30));
        let snapshot = || "clean".parse().unwrap();
        let forced = || Stop { mode: StopMode::Forced, ..Stop::default() };
        let configure = async |change| engine.configure_vm(vm, change).await.map_err(text);
        match operation {
            Operation::Create | Operation::CreateStarted => {
                let start = (operation == Operation::CreateStarted).then(Start::default);
                let egress = if random.below(2) == 0 { Egress::Nothing } else { Egress::Everything };
                let created = engine.create_vm(CreateVm { start, egress, ..request() }).await;
                self.done(created.map(|(_, job)| job)).await
            }
            Operation::Start => self.done(engine.start_vm(vm, Start::default()).await).await,
            Operation::Stop => self.done(engine.stop_vm(vm, forced()).await).await,
            Operation::Kill => {
                engine.kill_vm(vm, 9).await.map_err(text)?;
                // Its end is noticed a moment later.
                while engine.vm(vm).is_some_and(|view| view.vm.state.is_up()) {
                    tokio::time::sleep(POLL).await;
                }
                Ok(())
            }
            Operation::Restart => self.done(engine.restart_vm(vm, forced(), Start::default()).await).await,
            Operation::Delete => self.done(engine.delete_vm(vm, StopMode::Forced).await).await,
            Operation::Resize => {
                let spec = engine.vm(vm).map(|view| view.vm.spec.clone()).ok_or("it is gone")?;
                let more = |size: Bytes| Some(Bytes(size.0 + Bytes::mib(1).0));
                let (disk_size, root_size) = (more(spec.disk_size), more(spec.root_size));
                configure(Configure { disk_size, root_size, ..Configure::default() }).await
            }
            Operation::ChangeNetwork => {
                let is_open = engine.vm(vm).is_some_and(|view| view.vm.spec.egress == Egress::Everything);
                let egress = if is_open { Egress::Nothing } else { Egress::Everything };
                configure(Configure { egress: Some(egress.into()), ..Configure::default() }).await
            }
            Operation::Restrict => {
                let egress = Egress::parse(&["example.com", "198.51.100.0/24"]).unwrap();
                configure(Configure { egress: Some(egress.into()), ..Configure::default() }).await
            }
            Operation::Autostart => {
                let autostart = Some(random.below(2) == 0);
                configure(Configure { autostart, ..Configure::default() }).await
            }
            Operation::Publish => {
                let port = format!("loopback/tcp/{}/80", 20_000 + random.below(20_000)).parse().unwrap();
                engine.publish_port(vm, port).await.map(drop).map_err(text)
            }
            Operation::Unpublish => {
                let port = engine.vm(vm).and_then(|view| view.vm.spec.ports.iter().next().copied());
                engine.unpublish_port(vm, port.ok_or("it is gone")?).await.map_err(text)
            }
            Operation::Rename => engine.rename_vm(vm, name.parse().unwrap()).await.map_err(text),
            Operation::Pause => engine.pause_vm(vm).await.map_err(text),
            Operation::Unpause => engine.unpause_vm(vm).await.map_err(text),
            Operation::CreateSnapshot => self.done(engine.create_snapshot(vm, snapshot()).await).await,
            Operation::RestoreSnapshot => self.done(engine.restore_snapshot(vm, snapshot()).await).await,
            Operation::DeleteSnapshot => engine.delete_snapshot(vm, snapshot()).await.map_err(text),
            Operation::Fork => {
                let (names, lifetime) = (Vec::new(), Lifetime::Persistent);
                let fork = ForkVm { count: 1, names, snapshot: None, lifetime };
                self.done(engine.fork_vm(vm, fork).await.map(|(_, job)| job)).await
            }
            Operation::Commit => {
                let (name, config) = (name.parse().unwrap(), ConfigChange::default());
                let commit = CommitVm { owner: OWNER, name, config, on_conflict: OnConflict::Fail };
                self.done(engine.commit_vm(vm, commit).await).await
            }
            Operation::ImportImage => self.import(OWNER, &name, false).await,
            Operation::DeleteImage => {
                let image = engine.images().into_iter().find(|image| image.owner == OWNER);
                engine.delete_image(image.ok_or("it is gone")?.id).await.map_err(text)
            }
        }
    }

    /// Returns what users see, without what changes by itself.
    fn kept(&self) -> Kept {
        let vms = self.engine.vms();
        let sandboxes = vms.iter().map(|view| {
            let vm = &view.vm;
            let snapshots = self.engine.snapshots(vm.id);
            let snapshots: Vec<_> = snapshots.iter().map(|snapshot| snapshot.vm.name.to_string()).collect();
            let text = format!("{} {} {:?} {:?} {snapshots:?}", vm.name, vm.owner, vm.image, vm.spec);
            let state = wanted(vm).map(|_| vm.state.as_str().to_owned());
            (vm.id.to_string(), (text, state))
        });
        let images = self.engine.images();
        let images = images.iter().map(|image| {
            let text = format!("{} {} {:?}", image.name, image.owner, image.id);
            (format!("{:?}", image.id), text)
        });
        Kept { sandboxes: sandboxes.collect(), images: images.collect() }
    }

    /// Waits until nothing is under way, and returns what there is, as JSON.
    async fn look(&self) -> String {
        let is_busy = || {
            self.engine.jobs().iter().any(|job| job.outcome.is_none())
                || self.engine.vms().iter().any(|view| wanted(&view.vm).is_none())
        };
        let mut waited = Duration::ZERO;
        while is_busy() && waited < LONG {
            tokio::time::sleep(POLL).await;
            waited += POLL;
        }
        // What is removed beside the tasks of sandboxes takes a moment longer.
        let mut look = self.look_now().await;
        while !look.wrong.is_empty() && waited < LONG / 8 {
            tokio::time::sleep(POLL).await;
            waited += POLL;
            look = self.look_now().await;
        }
        serde_json::to_string(&look).unwrap()
    }

    async fn look_now(&self) -> Look {
        let store = &self.host.store;
        let (vms, ledger) = (store.vms().await.unwrap(), store.ledger().await.unwrap());
        let processes = self.host.supervisor.found().await.unwrap();
        let mut held: BTreeSet<(VmId, Resource)> = BTreeSet::new();
        let mut hold = |resource, vms: Vec<VmId>| held.extend(vms.into_iter().map(|vm| (vm, resource)));
        hold(Resource::Disks, self.ports.disks.found().await.unwrap());
        hold(Resource::Mapper, self.ports.disks.attached().await.unwrap());
        hold(Resource::Nic, self.host.network.found().await.unwrap());
        hold(Resource::Sockets, self.ports.vmm.found().await.unwrap());
        hold(Resource::Unit, processes.iter().map(|(vm, _)| *vm).collect());

        let mut wrong = Vec::new();
        let recorded: BTreeSet<(VmId, Resource)> = ledger.iter().copied().collect();
        let known = vms.iter().map(|vm| vm.id).chain(held.iter().map(|held| held.0));
        let known: BTreeSet<VmId> = known.chain(recorded.iter().map(|entry| entry.0)).collect();
        for id in known {
            let row = vms.iter().find(|vm| vm.id == id);
            let Some(wants) = row.map_or(Some(Vec::new()), wanted) else {
                wrong.push(format!("{id} is still {}", row.map_or("", |vm| vm.state.as_str())));
                continue;
            };
            for resource in Resource::ALL {
                // Files need nothing to be attached.
                let is_wanted = wants.contains(&resource) && resource != Resource::Mapper;
                let is_recorded = recorded.contains(&(id, resource));
                let is_held = held.contains(&(id, resource));
                let may_be_recorded = resource == Resource::Mapper && wants.contains(&resource);
                if is_wanted != is_held || (is_recorded != is_held && !may_be_recorded) {
                    let row = row.map_or("no row", |vm| vm.state.as_str());
                    wrong.push(format!(
                        "{id} ({row}): {}: wanted {is_wanted}, held {is_held}, recorded {is_recorded}",
                        resource.as_str()
                    ));
                }
            }
        }

        let taps: BTreeSet<String> = held
            .iter()
            .filter(|(_, resource)| *resource == Resource::Nic)
            .map(|(vm, _)| format!("bgr-{}", &vm.to_string()[..11]))
            .collect();
        let links = lines("ip -o link");
        let routes = ["ip route show table all proto 98", "ip -6 route show table all proto 98"];
        let routes = routes.map(lines).concat();
        let rules = rules();
        for (what, text) in
            [("links", links.join("\n")), ("routes", routes.join("\n")), ("packet filter", rules.join("\n"))]
        {
            let named = taps_in(&text);
            if named != taps {
                wrong.push(format!("{what} name {named:?}, and the interfaces are {taps:?}"));
            }
        }

        let images = store.images().await.unwrap();
        let (rows, files): (BTreeSet<_>, BTreeSet<_>) = (
            images.iter().map(|image| image.id).collect(),
            self.ports.image_files.found().await.unwrap().into_iter().collect(),
        );
        if rows != files {
            wrong.push(format!("images: rows {rows:?}, files {files:?}"));
        }
        for image in rows.iter().filter(|image| !self.paths.image(**image).is_file()) {
            wrong.push(format!("the image {image} has no file"));
        }
        let mut files = BTreeSet::new();
        for directory in [&self.paths.state, &self.paths.runtime] {
            files_below(directory, directory, &mut files);
        }
        // The network is chosen once; a link's number and state change with each start of the service.
        let link = |line: &String| line.split(": ").nth(1).unwrap_or_default().to_owned();
        let facts = BTreeMap::from([
            ("rows", vms.iter().map(row).collect()),
            ("ledger", ledger.iter().map(|(vm, resource)| format!("{vm} {resource:?}")).collect()),
            ("images", images.iter().map(|image| format!("{image:?}")).collect()),
            ("links", links.iter().map(link).collect()),
            ("routes", routes.into_iter().collect()),
            ("packet filter", rules.into_iter().collect()),
            ("processes", processes.iter().map(|(vm, process)| format!("{vm} {}", process.pid)).collect()),
            ("files", files),
        ]);
        let facts = facts.into_iter().map(|(what, facts)| (what.to_owned(), facts)).collect();
        Look { facts, kept: self.kept(), wrong }
    }
}

/// Returns as much of the configuration of a guest as one in memory looks at.
fn configuration(vm: &Vm) -> GuestConfig {
    GuestConfig {
        token: vm.token.as_str().to_owned(),
        hostname: String::new(),
        names: Vec::new(),
        root_device: String::new(),
        work_disk: None,
        module_disk: None,
        init: Init::Agent,
        unix_usec: 0,
        network: None,
        ssh: None,
        timezone: None,
        programs: Programs::default(),
        files: Vec::new(),
    }
}

/// Returns the resources that a sandbox has when nothing is under way; none if its state says that something is.
fn wanted(vm: &Vm) -> Option<Vec<Resource>> {
    match vm.state {
        State::Created | State::Stopped | State::Failed => Some(vec![Resource::Disks]),
        State::Suspended => Some(vec![Resource::Disks, Resource::Capture]),
        State::Running | State::Paused => {
            Some(Resource::ALL.into_iter().filter(|resource| *resource != Resource::Capture).collect())
        }
        State::Starting | State::Suspending | State::Resuming | State::Stopping | State::Deleting => None,
    }
}

/// Returns a row without what guests in memory forget.
fn row(vm: &Vm) -> String {
    let mut vm = vm.clone();
    vm.ready_at = Timestamp::default();
    vm.boot_id = String::new();
    format!("{vm:?}")
}

fn lines(command: &str) -> Vec<String> {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// Returns the objects of the packet filter, without what changes by itself.
fn rules() -> Vec<String> {
    let all: serde_json::Value = serde_json::from_str(&lines("nft -j list ruleset").concat()).unwrap();
    let mut rules: Vec<String> = Vec::new();
    for object in all["nftables"].as_array().unwrap() {
        let mut object = object.clone();
        settle(&mut object);
        // The elements of a set are facts of their own.
        let mut text = String::new();
        for kind in ["set", "map"] {
            let name = object[kind]["name"].to_string();
            if let Some(elements) = object.get_mut(kind).and_then(|set| set.as_object_mut()?.remove("elem")) {
                rules.extend(elements.as_array().unwrap().iter().map(|element| format!("{name} {element}")));
            }
        }
        write!(text, "{object}").unwrap();
        rules.push(text);
    }
    rules.retain(|rule| !rule.contains("metainfo"));
    rules
}

fn settle(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(object) => {
            for key in ["handle", "expires", "packets", "bytes", "used"] {
                object.remove(key);
            }
            object.values_mut().for_each(settle);
        }
        serde_json::Value::Array(array) => array.iter_mut().for_each(settle),
        _ => {}
    }
}

/// Returns the interfaces of sandboxes that a text names.
fn taps_in(text: &str) -> BTreeSet<String> {
    let hex = |name: &&str| name.len() == 15 && name[4..].bytes().all(|byte| byte.is_ascii_hexdigit());
    text.match_indices("bgr-")
        .filter_map(|(at, _)| text.get(at..at + 15))
        .filter(hex)
        .map(str::to_owned)
        .collect()
}

fn files_below(root: &Path, directory: &Path, files: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        // SQLite makes these, and removes them when it wants to.
        if path.extension().is_some_and(|e| e == "sqlite-wal" || e == "sqlite-shm") {
            continue;
        }
        if path.is_dir() {
            files_below(root, &path, files);
        }
        files.insert(path.strip_prefix(root.parent().unwrap()).unwrap().display().to_string());
    }
}
