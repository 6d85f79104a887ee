//! Every operation, with a fault at each of its points: each step fails, takes too long, or finds the disk full, and the
//! service dies at each access to the host. After a recovery ledger, host and store agree, and a second recovery changes
//! nothing. `cargo xtask killpoints` runs these tests and adds up their figures.

use std::{fs::File, time::Duration};

use banger_domain::{egress::Egress, id::VmId, vm::Lifetime};
use banger_image::oci::{config::ConfigChange, credentials::Credentials, platform::Platform};
use banger_proto::size::Bytes;
use banger_system::{
    engine::{
        Engine,
        error::Result,
        request::{
            CommitVm, Configure, CreateVm, ForkVm, ImportImage, ImportKernel, ImportSource, OnConflict,
            PullImage, PullKernel, PullSource, Start, Stop, StopMode,
        },
    },
    ports::registry::Source,
    sim::{Sim, faults::Fault},
};

use crate::engine_lab::{ALICE, EngineLab, LONG, request};

const FAULTS: [Fault; 4] = [Fault::Killed, Fault::Error, Fault::Timeout, Fault::NoSpace];
/// More than any operation has.
const MOST_POINTS: usize = 1000;

/// Environment variable of `cargo xtask killpoints` with a part of the names of the wanted operations, or `capture` for all
/// that have to do with memory and frozen layers.
const ONLY: &str = "BANGER_KILLPOINTS_ONLY";

/// The state of the sandbox before an operation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    None,
    Down,
    Up,
    Suspended,
}

#[derive(Debug, Clone, Copy)]
enum Operation {
    Create,
    Start,
    Stop,
    Kill,
    Restart,
    Delete,
    DeleteRunning,
    Resize,
    ChangeNetwork,
    Autostart,
    Publish,
    Unpublish,
    Rename,
    Pause,
    Suspend,
    Resume,
    Fork,
    ForkRunning,
    CreateSnapshot,
    SnapshotRunning,
    RestoreSnapshot,
    RestoreMemory,
    DeleteSnapshot,
    ForkSnapshot,
    DeleteWithSnapshot,
    Commit,
    PullImage,
    PullKernel,
    ImportImage,
    ImportKernel,
    DeleteImage,
    Repair,
}

impl Operation {
    const fn before(self) -> Before {
        match self {
            Self::Create
            | Self::PullImage
            | Self::PullKernel
            | Self::ImportImage
            | Self::ImportKernel
            | Self::DeleteImage => Before::None,
            Self::Start
            | Self::Delete
            | Self::Resize
            | Self::Fork
            | Self::CreateSnapshot
            | Self::RestoreSnapshot
            | Self::Commit => Before::Down,
            Self::Resume => Before::Suspended,
            _ => Before::Up,
        }
    }

    /// Returns whether it writes or reads the memory or the frozen layers of a sandbox.
    const fn is_capture(self) -> bool {
        matches!(
            self,
            Self::Suspend
                | Self::Resume
                | Self::Fork
                | Self::ForkRunning
                | Self::CreateSnapshot
                | Self::SnapshotRunning
                | Self::DeleteSnapshot
                | Self::ForkSnapshot
                | Self::DeleteWithSnapshot
        )
    }

    /// Returns whether it is among the wanted ones.
    fn is_wanted(self, only: &str) -> bool {
        format!("{self:?}").to_lowercase().contains(only) || (only == "capture" && self.is_capture())
    }

    /// Does it, and waits for its end.
    async fn run(self, engine: Engine, vm: Option<VmId>) -> Result<()> {
        let id = vm.unwrap_or(VmId::from_bits(0));
        let job = match self {
            Self::Create => engine.create_vm(request()).await?.1,
            Self::Start => engine.start_vm(id, Start::default()).await?,
            Self::Stop => engine.stop_vm(id, Stop::default()).await?,
            Self::Kill => return engine.kill_vm(id, 9).await,
            Self::Restart => engine.restart_vm(id, Stop::default(), Start::default()).await?,
            Self::Delete => engine.delete_vm(id, StopMode::Graceful).await?,
            Self::DeleteRunning => engine.delete_vm(id, StopMode::Forced).await?,
            Self::Resize => {
                let (disk_size, root_size) = (Some(Bytes::gib(20)), Some(Bytes::gib(30)));
                let change = Configure { disk_size, root_size, ..Configure::default() };
                return engine.configure_vm(id, change).await;
            }
            Self::ChangeNetwork => {
                let change = Configure { egress: Some(Egress::Everything.into()), ..Configure::default() };
                return engine.configure_vm(id, change).await;
            }
            Self::Autostart => {
                let change = Configure { autostart: Some(true), ..Configure::default() };
                return engine.configure_vm(id, change).await;
            }
            Self::Publish => {
                let port = "loopback/tcp/8080/80".parse().unwrap();
                return engine.publish_port(id, port).await.map(drop);
            }
            Self::Unpublish => {
                let port = "loopback/tcp/9090/90".parse().unwrap();
                return engine.unpublish_port(id, port).await;
            }
            Self::Rename => return engine.rename_vm(id, "renamed".parse().unwrap()).await,
            Self::Pause => return engine.pause_vm(id).await,
            Self::Suspend => engine.suspend_vm(id).await?,
            Self::Resume => engine.resume_vm(id, Start::default()).await?,
            Self::Fork | Self::ForkRunning => engine.fork_vm(id, fork(None)).await?.1,
            Self::CreateSnapshot | Self::SnapshotRunning => {
                engine.create_snapshot(id, "clean".parse().unwrap()).await?
            }
            Self::RestoreSnapshot | Self::RestoreMemory => {
                engine.restore_snapshot(id, "clean".parse().unwrap()).await?
            }
            Self::DeleteSnapshot => return engine.delete_snapshot(id, "clean".parse().unwrap()).await,
            Self::ForkSnapshot => engine.fork_vm(id, fork(Some("clean"))).await?.1,
            Self::DeleteWithSnapshot => engine.delete_vm(id, StopMode::Forced).await?,
            Self::Commit => engine.commit_vm(id, commit()).await?,
            Self::PullImage => engine.pull_image(pull_image())?,
            Self::PullKernel => engine.pull_kernel(pull_kernel())?,
            Self::ImportImage => engine.import_image(import_image())?,
            Self::ImportKernel => engine.import_kernel(import_kernel())?,
            Self::DeleteImage => {
                let image = engine.images().first().map(|image| image.id).unwrap();
                return engine.delete_image(image).await;
            }
            Self::Repair => {
                engine.repair(ALICE).await;
                return Ok(());
            }
        };
        engine.wait_job(job, None).await.map(drop)
    }
}

fn fork(snapshot: Option<&str>) -> ForkVm {
    ForkVm {
        count: 2,
        names: Vec::new(),
        snapshot: snapshot.map(|name| name.parse().unwrap()),
        lifetime: Lifetime::Persistent,
    }
}

fn commit() -> CommitVm {
    let (name, config) = ("mine".parse().unwrap(), ConfigChange::default());
    CommitVm { owner: ALICE, name, config, on_conflict: OnConflict::Fail }
}

fn pull_image() -> PullImage {
    let source = Source {
        reference: "registry.test/library/alpine:3".parse().unwrap(),
        platform: Platform::of_host("x86_64"),
        credentials: Credentials::Anonymous,
    };
    PullImage {
        owner: ALICE,
        source,
        from: PullSource::Registry,
        name: None,
        shared: false,
        kernel: None,
        on_conflict: OnConflict::Fail,
    }
}

fn pull_kernel() -> PullKernel {
    let entry = "debian".parse().unwrap();
    PullKernel { owner: ALICE, entry, name: None, shared: false, on_conflict: OnConflict::Fail }
}

fn import_image() -> ImportImage {
    let content = ImportSource::Rootfs(File::open("/dev/null").unwrap().into());
    ImportImage { owner: ALICE, name: "mine".parse().unwrap(), shared: false, kernel: None, content }
}

fn import_kernel() -> ImportKernel {
    let vmlinuz = File::open("/dev/null").unwrap().into();
    ImportKernel { owner: ALICE, name: "mine".parse().unwrap(), shared: false, vmlinuz, modules: None }
}

impl EngineLab {
    /// Makes the sandbox that an operation needs.
    async fn before(&self, operation: Operation) -> Option<VmId> {
        let before = operation.before();
        if before == Before::None {
            return None;
        }
        let start = (before != Before::Down).then(Start::default);
        let (vm, job) = self.engine.create_vm(CreateVm { start, ..request() }).await.unwrap();
        self.done(job).await;
        if before == Before::Suspended {
            self.done(self.engine.suspend_vm(vm).await.unwrap()).await;
        }
        if matches!(
            operation,
            Operation::DeleteSnapshot
                | Operation::ForkSnapshot
                | Operation::DeleteWithSnapshot
                | Operation::RestoreSnapshot
                | Operation::RestoreMemory
        ) {
            self.done(self.engine.create_snapshot(vm, "clean".parse().unwrap()).await.unwrap()).await;
        }
        if matches!(operation, Operation::RestoreMemory) {
            self.done(self.engine.stop_vm(vm, Stop::default()).await.unwrap()).await;
        }
        if matches!(operation, Operation::Repair) {
            self.sim.leave_remains(VmId::from_bits(7));
            self.sim.lose_rules();
        }
        if matches!(operation, Operation::Unpublish) {
            let port = "loopback/tcp/9090/90".parse().unwrap();
            self.engine.publish_port(vm, port).await.unwrap();
        }
        Some(vm)
    }
}

/// Recovers a host after the death of its service, and returns the next service once nothing is under way.
async fn recovered(sim: Sim) -> EngineLab {
    let lab = EngineLab::on(sim);
    lab.engine.recover().await.unwrap();
    tokio::time::sleep(LONG).await;
    lab
}

/// Runs an operation with a fault at a point. `None` if the operation ends before that point; else what was wrong
/// afterwards.
async fn try_point(operation: Operation, point: usize, fault: Fault) -> Option<Vec<String>> {
    // Recovery reads the stored catalogs.
    let lab = EngineLab::new().await.restart().await;
    let vm = lab.before(operation).await;
    lab.sim.plan(Some((point, fault)));
    // The task that is killed may be the caller's own.
    let run = tokio::spawn(operation.run(lab.engine.clone(), vm));
    let _ = tokio::time::timeout(LONG, run).await;
    // What an operation leaves to the background is a part of it.
    tokio::time::sleep(Duration::from_secs(1)).await;
    lab.tasks.abort_all().await;
    let (sim, happened) = lab.sim.next_service();
    if !happened {
        return None;
    }
    let first = recovered(sim).await;
    let mut wrong = first.sim.disagreements();
    let state = (first.sim.alive(), first.sim.rows());
    first.tasks.abort_all().await;
    let second = recovered(first.sim.next_service().0).await;
    if (second.sim.alive(), second.sim.rows()) != state {
        wrong.push(format!("a second recovery changes something: {state:?} {:?}", second.sim.rows()));
    }
    second.tasks.abort_all().await;
    Some(wrong)
}

/// Runs an operation with each fault at each of its points, and prints the figures.
fn try_all(operation: Operation) {
    let only = std::env::var(ONLY).unwrap_or_default().to_lowercase();
    if !operation.is_wanted(&only) {
        return;
    }
    let (mut points, mut runs, mut failures) = (0, 0, Vec::new());
    for fault in FAULTS {
        for point in 0..MOST_POINTS {
            // The tasks of a service that has died end with its runtime.
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
            let Some(wrong) = runtime.unwrap().block_on(try_point(operation, point, fault)) else { break };
            points += usize::from(matches!(fault, Fault::Killed | Fault::Error));
            runs += 1;
            if !wrong.is_empty() {
                failures.push(format!("{operation:?}, {fault:?} at {point}: {wrong:?}"));
            }
        }
    }
    println!("killpoints {operation:?}: {points} points, {runs} runs, {} failed", failures.len());
    assert!(runs > 4, "{operation:?} has no points");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

macro_rules! operations {
    ($($test:ident: $operation:ident,)+) => {
        $(
            #[test]
            fn $test() {
                try_all(Operation::$operation);
            }
        )+
    };
}

operations! {
    a_create_recovers_at_every_point: Create,
    a_start_recovers_at_every_point: Start,
    a_stop_recovers_at_every_point: Stop,
    a_kill_recovers_at_every_point: Kill,
    a_restart_recovers_at_every_point: Restart,
    a_delete_recovers_at_every_point: Delete,
    a_forced_delete_recovers_at_every_point: DeleteRunning,
    a_resize_recovers_at_every_point: Resize,
    a_network_change_recovers_at_every_point: ChangeNetwork,
    an_autostart_recovers_at_every_point: Autostart,
    a_publish_recovers_at_every_point: Publish,
    an_unpublish_recovers_at_every_point: Unpublish,
    a_rename_recovers_at_every_point: Rename,
    a_pause_recovers_at_every_point: Pause,
    a_suspend_recovers_at_every_point: Suspend,
    a_resume_recovers_at_every_point: Resume,
    a_fork_recovers_at_every_point: Fork,
    a_fork_of_a_running_sandbox_recovers_at_every_point: ForkRunning,
    a_snapshot_recovers_at_every_point: CreateSnapshot,
    a_snapshot_of_a_running_sandbox_recovers_at_every_point: SnapshotRunning,
    a_restored_snapshot_recovers_at_every_point: RestoreSnapshot,
    a_restored_snapshot_with_memory_recovers_at_every_point: RestoreMemory,
    a_deletion_of_a_snapshot_recovers_at_every_point: DeleteSnapshot,
    a_fork_of_a_snapshot_recovers_at_every_point: ForkSnapshot,
    a_deletion_with_snapshots_recovers_at_every_point: DeleteWithSnapshot,
    a_commit_recovers_at_every_point: Commit,
    an_image_pull_recovers_at_every_point: PullImage,
    a_kernel_pull_recovers_at_every_point: PullKernel,
    an_image_import_recovers_at_every_point: ImportImage,
    a_kernel_import_recovers_at_every_point: ImportKernel,
    an_image_deletion_recovers_at_every_point: DeleteImage,
    a_repair_recovers_at_every_point: Repair,
}
